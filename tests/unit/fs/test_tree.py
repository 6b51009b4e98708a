"""Trees, layers and their merge."""

from __future__ import annotations

import pytest

from hostd.errors import InvalidError
from hostd.fs.tree import (
    Node,
    Tree,
    differences,
    directory,
    merge_layer,
    place,
    small_file,
    symlink,
    whiteout,
)


def tree_of(**entries: Node) -> Tree:
    root = directory()
    for path, node in entries.items():
        place(root, b"/" + path.replace("__", "/").encode(), node)
    return Tree(_plain(root))


def _plain(node: Node) -> Node:
    if not node.is_dir:
        return node
    children = {name: _plain(child) for name, child in node.children.items()}
    return node.replace(children=children, implicit=False)


def paths(tree: Tree) -> list[bytes]:
    return [path for path, _ in tree.walk()]


def test_walk_gives_the_root_first_and_sorted_names():
    tree = tree_of(b=small_file(b""), a__z=small_file(b""), a__c=small_file(b""))
    assert paths(tree) == [b"/", b"/a", b"/a/c", b"/a/z", b"/b"]


def test_lookup_does_not_follow_links():
    tree = tree_of(usr__bin__sh=small_file(b"x"), bin=symlink(b"usr/bin"))
    assert tree.lookup(b"/bin/sh") is None
    assert tree.lookup(b"usr/./bin/../bin/sh").inline == b"x"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/bin/sh", b"/usr/bin/sh"),
        (b"/bin/../lib/new/file", b"/usr/lib64/new/file"),  # ".." of where "bin" leads
        (b"/../../bin", b"/usr/bin"),
        (b"/absent/../bin", b"/usr/bin"),
        (b"/escape/etc", b"/etc"),
        (b"/", b"/"),
    ],
)
def test_resolve_follows_links_and_stays_inside(path, expected):
    tree = tree_of(
        bin=symlink(b"usr/bin"),
        lib=symlink(b"/usr/lib"),
        usr__lib=symlink(b"lib64"),
        usr__bin__sh=small_file(b""),
        escape=symlink(b"../../../.."),
    )
    assert tree.resolve(path) == expected


def test_resolve_refuses_a_loop_of_links():
    with pytest.raises(InvalidError, match="40 symbolic links"):
        tree_of(a=symlink(b"b"), b=symlink(b"a")).resolve(b"/a/x")


def test_whiteout_removes_a_name_and_ignores_an_absent_one():
    layer = directory()
    place(layer, b"/etc/a", whiteout())
    place(layer, b"/etc/none", whiteout())
    merged = merge_layer(tree_of(etc__a=small_file(b"1"), etc__b=small_file(b"2")), Tree(layer))
    assert paths(merged) == [b"/", b"/etc", b"/etc/b"]


def test_opaque_directory_hides_what_lay_below():
    layer = directory()
    place(layer, b"/etc", directory(opaque=True))
    place(layer, b"/etc/new", small_file(b"n"))
    merged = merge_layer(tree_of(etc__a=small_file(b"1")), Tree(layer))
    assert paths(merged) == [b"/", b"/etc", b"/etc/new"]
    assert not merged.lookup(b"/etc").opaque  # type: ignore[union-attr]


def test_implicit_directory_keeps_the_attributes_of_an_existing_one():
    layer = directory(implicit=True)
    place(layer, b"/tmp/x", small_file(b"x"))
    place(layer, b"/new/x", small_file(b"x"))
    parent = tree_of(tmp=directory(0o1777, uid=5))
    merged = merge_layer(parent, Tree(layer))
    tmp, new = merged.lookup(b"/tmp"), merged.lookup(b"/new")
    assert tmp is not None
    assert new is not None
    assert (tmp.mode & 0o7777, tmp.uid, sorted(tmp.children)) == (0o1777, 5, [b"x"])
    assert (new.mode & 0o7777, new.implicit) == (0o755, False)


def test_explicit_directory_replaces_attributes_and_keeps_children():
    layer = directory()
    place(layer, b"/etc", directory(0o700, uid=7))
    merged = merge_layer(tree_of(etc__a=small_file(b"1")), Tree(layer))
    etc = merged.lookup(b"/etc")
    assert etc is not None
    assert (etc.mode & 0o7777, etc.uid, sorted(etc.children)) == (0o700, 7, [b"a"])


def test_file_and_directory_replace_each_other():
    layer = directory()
    place(layer, b"/a", small_file(b"file"))
    place(layer, b"/b/c", small_file(b"c"))
    merged = merge_layer(tree_of(a__x=small_file(b"1"), b=small_file(b"2")), Tree(layer))
    assert paths(merged) == [b"/", b"/a", b"/b", b"/b/c"]


def test_merge_changes_neither_side_and_shares_what_it_does_not_touch():
    parent = tree_of(etc__a=small_file(b"1"), usr__b=small_file(b"2"))
    before = tree_of(etc__a=small_file(b"1"), usr__b=small_file(b"2"))
    layer = directory()
    place(layer, b"/etc/new", small_file(b"n"))
    merged = merge_layer(parent, Tree(layer))
    assert differences(parent, before) == []
    assert merged.lookup(b"/usr/b") is parent.lookup(b"/usr/b")


def test_replaced_name_leaves_its_hard_link_as_it_was():
    linked = small_file(b"old")
    parent = tree_of(a=linked, b=linked)
    layer = directory()
    place(layer, b"/a", small_file(b"new"))
    merged = merge_layer(parent, Tree(layer))
    assert merged.lookup(b"/b") is linked
    assert merged.lookup(b"/a") is not linked


def test_replace_gives_a_directory_its_own_children():
    node = directory()
    node.children[b"a"] = small_file(b"")
    other = node.replace(uid=3)
    other.children[b"b"] = small_file(b"")
    assert sorted(node.children) == [b"a"]
    assert other.uid == 3


def test_place_refuses_a_way_through_a_file_and_the_root():
    layer = directory()
    place(layer, b"/a", small_file(b""))
    with pytest.raises(InvalidError, match="not a directory"):
        place(layer, b"/a/b", small_file(b""))
    with pytest.raises(InvalidError, match="root"):
        place(layer, b"/", directory())


def test_place_of_a_directory_keeps_what_is_in_it_already():
    layer = directory()
    place(layer, b"/a/b", small_file(b""))
    place(layer, b"/a", directory(0o700))
    assert paths(Tree(layer)) == [b"/", b"/a", b"/a/b"]
    assert layer.children[b"a"].mode & 0o7777 == 0o700


def test_differences_name_the_path_and_see_broken_hard_links():
    one = small_file(b"x")
    linked, apart = tree_of(a=one, b=one), tree_of(a=one, b=small_file(b"x"))
    (found,) = differences(linked, apart)
    assert found.startswith("b'/b'")
    assert differences(linked, tree_of(a=one, b=one)) == []
