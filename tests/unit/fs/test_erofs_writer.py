"""The index writer and its reader: what fits, what is refused, and where things lie."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hostd.errors import BlobCorruptError, InvalidError
from hostd.fs import erofs_format as erofs
from hostd.fs.erofs import write_index
from hostd.fs.erofs_format import BLOCK, INLINE_MAX
from hostd.fs.index import Attributes, IndexReader
from hostd.fs.tree import Node, Tree, blob_file, differences, directory, small_file, symlink
from hostd.ids import digest

BLOB = digest("ab" + "cd" * 31)
TIME = 1_700_000_000_123_456_789


def reader_of(tmp_path: Path, root: Node) -> IndexReader:
    path = tmp_path / "index.erofs"
    path.write_bytes(write_index(Tree(root)))
    return IndexReader(path)


def root_of(**children: Node) -> Node:
    root = directory(mtime_ns=TIME)
    root.children.update({name.encode(): node for name, node in children.items()})
    return root


def test_every_kind_of_node_comes_back(tmp_path: Path):
    linked = blob_file(BLOB, 5000, 0o4755, uid=1, gid=2, mtime_ns=TIME)
    root = root_of(
        blob=linked,
        again=linked,
        empty=small_file(b""),
        inline=small_file(b"x" * INLINE_MAX, 0o600, xattrs={b"user.a": b"b", b"user.": b""}),
        link=symlink(b"t" * 4095),
        short=symlink(b"../a"),
        pipe=Node(mode=stat.S_IFIFO | 0o600),
        socket=Node(mode=stat.S_IFSOCK | 0o777),
        char=Node(mode=stat.S_IFCHR | 0o666, rdev=os.makedev(4095, 1_048_575)),
        block=Node(mode=stat.S_IFBLK | 0o660, rdev=os.makedev(8, 300)),
        sticky=directory(0o1777, uid=2**32 - 2, gid=65_534, mtime_ns=-1),
        capable=blob_file(BLOB, 2**45, xattrs={b"security.capability": bytes(20)}),
    )
    reader = reader_of(tmp_path, root)
    reader.validate()
    assert differences(Tree(root), reader.to_tree()) == []


def test_attributes_of_a_file_with_a_blob(tmp_path: Path):
    node = blob_file(BLOB, 5000, 0o4755, uid=1, gid=2, mtime_ns=TIME, xattrs={b"user.x": b"y"})
    reader = reader_of(tmp_path, root_of(a=node, b=node))
    nid = reader.lookup(reader.root_nid, b"a")
    assert nid is not None
    assert reader.stat(nid) == Attributes(0o104755, 1, 2, 5000, TIME, 2, 0)
    assert (reader.digest(nid), reader.inline_data(nid)) == (BLOB, None)
    assert reader.xattrs(nid) == {b"user.x": b"y"}
    assert reader.lookup(reader.root_nid, b"b") == nid
    assert reader.digests() == {BLOB}


def test_attributes_of_an_inline_file_and_of_directories(tmp_path: Path):
    reader = reader_of(tmp_path, root_of(a=small_file(b"abc"), d=root_of(e=directory())))
    a, d = reader.resolve(b"/a"), reader.resolve(b"/d")
    assert a is not None
    assert d is not None
    assert (reader.inline_data(a), reader.digest(a), reader.stat(a).size) == (b"abc", None, 3)
    assert (reader.stat(d).nlink, reader.stat(reader.root_nid).nlink) == (3, 3)
    assert (reader.lookup(d, b"."), reader.lookup(d, b"..")) == (d, reader.root_nid)
    assert reader.resolve(b"/a/x") is None
    assert reader.resolve(b"/none/x") is None


def test_readdir_is_sorted_and_typed_and_walk_goes_down_first(tmp_path: Path):
    reader = reader_of(tmp_path, root_of(b=small_file(b""), a=root_of(z=symlink(b"x"))))
    listed = [(name, kind) for name, _, kind in reader.readdir(reader.root_nid)]
    assert listed == [(b"a", stat.S_IFDIR), (b"b", stat.S_IFREG)]
    assert [path for path, _ in reader.walk()] == [b"/", b"/a", b"/a/z", b"/b"]


def test_names_of_all_lengths_and_bytes_in_a_directory_of_many_blocks(tmp_path: Path):
    names = [b"%0*d" % (length, length) for length in range(1, 256)]
    names += [bytes([byte]) * 3 for byte in range(1, 256) if byte != ord("/")]
    names += [b"...", b"..a", b"!", b"\xff" * 255, *(b"n%d" % n for n in range(2000))]
    root = directory()
    root.children.update({name: small_file(name) for name in names})
    reader = reader_of(tmp_path, root)
    reader.validate()
    assert [name for name, _, _ in reader.readdir(reader.root_nid)] == sorted(set(names))
    for name in names:
        nid = reader.lookup(reader.root_nid, name)
        assert nid is not None
        assert reader.inline_data(nid) == name


def test_order_of_insertion_does_not_change_a_byte():
    nodes = {b"%d" % number: small_file(b"%d" % number) for number in range(50)}
    one, two = directory(), directory()
    one.children.update(nodes)
    two.children.update(reversed(nodes.items()))
    assert write_index(Tree(one)) == write_index(Tree(two))


@pytest.mark.parametrize("count", range(150, 260, 7))
def test_no_inline_data_crosses_a_block(tmp_path: Path, count: int):
    root = directory()
    for number in range(count):
        root.children[b"file-%d" % number] = small_file(b"x" * number)
        root.children[b"blob-%d" % number] = blob_file(BLOB, 5000)
    reader = reader_of(tmp_path, root)
    for _, nid, _ in reader.readdir(reader.root_nid):
        start = nid * erofs.SLOT
        length = erofs.INODE_BYTES + len(reader.inline_data(nid) or b"")
        if length == erofs.INODE_BYTES:
            continue
        assert start // BLOCK == (start + length - 1) // BLOCK


def test_attributes_larger_than_a_block_move_the_content_elsewhere(tmp_path: Path):
    xattrs = {b"user.%d" % number: bytes([number]) * 4000 for number in range(5)}
    root = root_of(
        file=small_file(b"content", xattrs=xattrs),
        link=symlink(b"target", xattrs={b"trusted.x": b"y" * 5000}),
        dir=directory(xattrs=xattrs),
        blob=blob_file(BLOB, 5000, xattrs={b"user.big": b"z" * 65_535}),
    )
    root.children[b"dir"].children[b"inside"] = small_file(b"i")
    reader = reader_of(tmp_path, root)
    reader.validate()
    assert differences(Tree(root), reader.to_tree()) == []


def test_an_index_does_not_depend_on_what_was_written_before():
    """Directories keep their packed form: changed ones must not be written from it."""
    linked = blob_file(BLOB, 7000)
    inner = root_of(kept=small_file(b"k"), changed=small_file(b"old"), linked=linked)
    first = Tree(root_of(d=inner, e=root_of(x=blob_file(BLOB, 5000))))
    before = write_index(first)
    second = Tree(first.root.replace(uid=7))
    second.root.children[b"a"] = linked
    grown = inner.replace()
    grown.children[b"changed"] = small_file(b"new")
    second.root.children[b"d"] = grown
    inner.children[b"late"] = small_file(b"added after it was written")
    for tree in (first, second):
        assert write_index(tree) == write_index(unpacked(tree))
    del inner.children[b"late"]
    assert write_index(first) == before


def unpacked(tree: Tree) -> Tree:
    """A copy without anything kept from writing it; hard links stay."""
    copies: dict[int, Node] = {}

    def copied(node: Node) -> Node:
        children = {name: copied(child) for name, child in node.children.items()}
        if id(node) not in copies:
            copies[id(node)] = node.replace(children=children, packed=None)
        return copies[id(node)]

    return Tree(copied(tree.root))


REFUSED = {
    "slash": (directory(), b"a/b"),
    "nul": (directory(), b"a\0b"),
    "dot": (directory(), b"."),
    "dots": (directory(), b".."),
    "empty name": (directory(), b""),
    "long name": (directory(), b"x" * 256),
    "layer mark": (directory(opaque=True), b"a"),
    "implicit": (directory(implicit=True), b"a"),
    "redirect": (small_file(b"", xattrs={b"trusted.overlay.redirect": b"/ab"}), b"a"),
    "foreign attribute": (small_file(b"", xattrs={b"btrfs.x": b""}), b"a"),
    "large attribute": (small_file(b"", xattrs={b"user.x": bytes(65_536)}), b"a"),
    "large inline": (small_file(bytes(INLINE_MAX + 1)), b"a"),
    "no content": (Node(mode=stat.S_IFREG, size=5), b"a"),
    "not a digest": (blob_file(digest("../../x"), 5), b"a"),
    "no target": (symlink(b""), b"a"),
    "long target": (symlink(b"x" * 4096), b"a"),
    "no type": (Node(mode=0o644), b"a"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_an_image_is_refused(case: str):
    node, name = REFUSED[case]
    root = directory()
    root.children[name] = node
    with pytest.raises(InvalidError):
        write_index(Tree(root))


def test_a_directory_in_two_places_and_a_cycle_are_refused():
    shared, cycle = directory(), directory()
    cycle.children[b"self"] = cycle
    for root in (root_of(a=shared, b=shared), root_of(a=cycle)):
        with pytest.raises(InvalidError, match="two places"):
            write_index(Tree(root))


def test_a_root_that_is_no_directory_is_refused():
    with pytest.raises(InvalidError, match="not a directory"):
        write_index(Tree(small_file(b"")))


def test_a_deep_tree_needs_no_recursion(tmp_path: Path):
    root = deepest = directory()
    for _ in range(5000):
        deepest.children[b"d"] = deepest = directory()
    reader = reader_of(tmp_path, root)
    reader.validate()
    assert sum(1 for _ in reader.walk()) == 5001


@pytest.mark.parametrize("damage", ["empty", "short", "cut", "magic", "features", "blocks"])
def test_a_file_that_is_no_index_is_not_opened(tmp_path: Path, damage: str):
    data = bytearray(write_index(Tree(root_of(a=small_file(b"a")))))
    path = tmp_path / "x"
    changes = {"magic": 1024, "features": 1024 + 80, "blocks": 1024 + 36}
    if damage in changes:
        data[changes[damage]] ^= 1
    path.write_bytes({"empty": b"", "short": data[:100], "cut": data[:-1]}.get(damage, data))
    with pytest.raises(BlobCorruptError, match="index"):
        IndexReader(path)


def test_a_flipped_bit_is_refused_or_is_another_tree(tmp_path: Path):
    linked = blob_file(BLOB, 5000, xattrs={b"user.a": b"b"})
    inner = root_of(link=symlink(b"x"), pipe=Node(mode=stat.S_IFIFO))
    root = root_of(a=linked, b=linked, c=small_file(b"content"), d=inner)
    data = write_index(Tree(root))
    path = tmp_path / "x"
    unnoticed = []
    for position in range(erofs.SUPER_OFFSET, len(data.rstrip(b"\0"))):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            reader = IndexReader(path)
            reader.validate()
        except BlobCorruptError:
            continue
        if not differences(Tree(root), reader.to_tree()):
            unnoticed.append(position)
    assert unnoticed == []


def test_lookups_keep_a_bounded_number_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hostd.fs.index.NAMES_MAX", 30)
    root = directory()
    for number in range(20):
        child = root.children[b"%d" % number] = directory()
        child.children[b"x"] = small_file(b"%d" % number)
    reader = reader_of(tmp_path, root)
    for _ in range(2):
        for number in range(20):
            folder = reader.lookup(reader.root_nid, b"%d" % number)
            assert folder is not None
            inner = reader.lookup(folder, b"x")
            assert inner is not None
            assert reader.inline_data(inner) == b"%d" % number
