"""Laws of trees and their indexes: any tree can be written and read back; merging is a function."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from hostd.fs.erofs import write_index
from hostd.fs.index import IndexReader
from hostd.fs.tree import (
    Node,
    Tree,
    blob_file,
    differences,
    directory,
    merge_layer,
    small_file,
    split,
    symlink,
    whiteout,
)
from hostd.ids import digest

names = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"d", b"...", b"-", b"\xff"]),
    st.binary(min_size=1, max_size=255).filter(
        lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
    ),
)
xattr_names = st.sampled_from(
    [b"user.a", b"user.b", b"security.capability", b"trusted.x", b"system.posix_acl_access"]
)
attributes = st.fixed_dictionaries(
    {},
    optional={
        "uid": st.integers(0, 2**32 - 1),
        "gid": st.integers(0, 2**32 - 1),
        "mtime_ns": st.integers(-(2**62), 2**62),
        "xattrs": st.dictionaries(xattr_names, st.binary(max_size=3000), max_size=3),
    },
)
permissions = st.integers(0, 0o7777)
digests = st.binary(min_size=32, max_size=32).map(lambda raw: digest(raw.hex()))
devices = st.builds(
    lambda kind, rdev: Node(mode=kind | 0o600, rdev=rdev),
    st.sampled_from([stat.S_IFCHR, stat.S_IFBLK]),
    st.integers(1, 2**32 - 1),
)
specials = st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK]).map(lambda kind: Node(mode=kind))
small = st.builds(
    lambda data, mode, more: small_file(data, mode, **more),
    st.binary(max_size=1024),
    permissions,
    attributes,
)
large = st.builds(
    lambda name, size, mode, more: blob_file(name, size, mode, **more),
    digests,
    st.one_of(st.integers(1, 10_000), st.integers(1, 2**46)),
    permissions,
    attributes,
)
links = st.builds(
    lambda target, more: symlink(target, **more), st.binary(min_size=1, max_size=4095), attributes
)
leaves = st.one_of(small, large, links, specials, devices)


@st.composite
def trees(draw: st.DrawFn, *, is_layer: bool = False) -> Tree:
    """A tree in which some leaves have several names; layers have their marks too."""
    shared = draw(st.lists(leaves, min_size=1, max_size=4))
    leaf = st.one_of(st.sampled_from(shared), leaves)
    if is_layer:
        leaf = st.one_of(leaf, st.builds(whiteout))

    def grow(depth: int) -> Node:
        marks = {}
        if is_layer:
            marks["opaque"] = draw(st.booleans())
            marks["implicit"] = not marks["opaque"] and draw(st.booleans())
        node = directory(draw(permissions), **draw(attributes)).replace(**marks)
        for name in draw(st.lists(names, max_size=6, unique=True)):
            is_deeper = depth < 3 and draw(st.booleans())
            node.children[name] = grow(depth + 1) if is_deeper else draw(leaf)
        return node

    return Tree(grow(0))


def read_back(data: bytes) -> Tree:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        reader = IndexReader(Path(file.name))
        reader.validate()
        return reader.to_tree()


@settings(max_examples=150, deadline=None)
@given(trees())
def test_what_is_written_is_read(tree: Tree):
    assert differences(tree, read_back(write_index(tree))) == []


@settings(max_examples=50, deadline=None)
@given(trees(), st.randoms(use_true_random=False))
def test_equal_trees_have_equal_bytes(tree: Tree, random):
    copies: dict[int, Node] = {}

    def shuffled(node: Node) -> Node:
        if not node.is_dir:
            return copies.setdefault(id(node), node.replace())
        items = list(node.children.items())
        random.shuffle(items)
        return node.replace(children={name: shuffled(child) for name, child in items})

    data = write_index(tree)
    assert write_index(Tree(shuffled(tree.root))) == data
    assert write_index(read_back(data)) == data


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 400), st.integers(1, 255), st.booleans())
def test_directories_of_any_size_are_read_back(count: int, length: int, is_large: bool):
    root = directory()
    for number in range(count):
        name = (b"%d-" % number).ljust(length, b"x")
        root.children[name] = blob_file(digest("ab" * 32), 9) if is_large else small_file(b"y")
    assert differences(Tree(root), read_back(write_index(Tree(root)))) == []


def seen(parent: Tree, layer: Tree, path: bytes) -> Node | None:
    """What overlayfs finds at a path: a lookup in two directories at once, name by name."""
    above: Node | None = layer.root
    below: Node | None = None if layer.root.opaque else parent.root
    for name in split(path):
        above = above.children.get(name) if above is not None else None
        below = below.children.get(name) if below is not None else None
        if above is not None and above.is_whiteout:
            return None
        if above is not None and (above.opaque or below is None or not below.is_dir):
            below = None
        if above is not None and not above.is_dir:
            below = None
    if above is None or (above.implicit and below is not None):
        return below
    return above


def _own(node: Node) -> tuple[object, ...]:
    return node.mode, node.uid, node.gid, node.mtime_ns, tuple(sorted(node.xattrs.items()))


@settings(max_examples=150, deadline=None)
@given(trees(), trees(is_layer=True))
def test_merging_shows_what_overlayfs_finds(parent: Tree, layer: Tree):
    merged = merge_layer(parent, layer)
    for path in {path for tree in (parent, layer, merged) for path, _ in tree.walk()}:
        expected, found = seen(parent, layer, path), merged.lookup(path)
        if expected is None or found is None or not found.is_dir:
            assert found is expected
        else:
            assert _own(found) == _own(expected)


@settings(max_examples=50, deadline=None)
@given(trees(), trees(is_layer=True))
def test_merging_twice_is_merging_once(parent: Tree, layer: Tree):
    once = merge_layer(parent, layer)
    assert differences(merge_layer(once, layer), once) == []
