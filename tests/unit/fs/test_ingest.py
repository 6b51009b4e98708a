"""Directories become trees. (What needs root is in tests/integration/test_overlay_uppers.py.)"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from hostd.errors import InvalidError
from hostd.fs.cas import CAS
from hostd.fs.erofs_format import INLINE_MAX
from hostd.fs.ingest import DEPTH_MAX, apply_upper, ingest_directory
from hostd.fs.tree import Tree, differences, directory, small_file

TIME = 1_700_000_000_123_456_789


@pytest.fixture
def cas(tmp_path: Path) -> CAS:
    return CAS(tmp_path / "cas")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    return path


def test_attributes_of_every_kind(cas: CAS, source: Path):
    (source / "big").write_bytes(b"x" * (INLINE_MAX + 1))
    (source / "big").chmod(0o4750)
    (source / "small").write_bytes(b"x" * INLINE_MAX)
    (source / "link").symlink_to("../outside")
    (source / "sticky").mkdir()
    (source / "sticky").chmod(0o1777)
    os.mkfifo(source / "pipe", 0o640)
    os.utime(source / "big", ns=(0, TIME))
    os.utime(source / "link", ns=(0, TIME + 1), follow_symlinks=False)
    root = ingest_directory(source, cas).root
    big, small, link = (root.children[name] for name in (b"big", b"small", b"link"))
    assert (big.mode, big.mtime_ns, big.size, big.inline) == (0o104750, TIME, INLINE_MAX + 1, None)
    assert big.digest is not None
    assert cas.read(big.digest) == b"x" * (INLINE_MAX + 1)
    assert (small.digest, small.inline) == (None, b"x" * INLINE_MAX)
    assert (link.target, link.mtime_ns) == (b"../outside", TIME + 1)
    assert root.children[b"sticky"].mode == stat.S_IFDIR | 0o1777
    assert root.children[b"pipe"].mode == stat.S_IFIFO | 0o640
    assert (big.uid, big.gid) == (os.getuid(), os.getgid())


def test_hard_links_are_one_node(cas: CAS, source: Path):
    (source / "a").write_bytes(b"a" * 2000)
    (source / "d").mkdir()
    os.link(source / "a", source / "d" / "b")
    os.symlink("x", source / "s")
    os.link(source / "s", source / "t", follow_symlinks=False)
    tree = ingest_directory(source, cas)
    assert tree.lookup(b"/a") is tree.lookup(b"/d/b")
    assert tree.lookup(b"/s") is tree.lookup(b"/t")


def test_names_that_are_not_text(cas: CAS, source: Path):
    names = [b"\xff\xfe", b"n" * 255, " ü\n".encode(), b"..."]
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(source), name))).write_bytes(name)
    assert sorted(ingest_directory(source, cas).root.children) == sorted(names)


def test_links_are_never_followed(cas: CAS, source: Path, tmp_path: Path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"k" * 2000)
    (source / "dir").symlink_to(tmp_path / "secret")
    (source / "file").symlink_to(tmp_path / "secret" / "key")
    tree = ingest_directory(source, cas)
    assert [path for path, _ in tree.walk()] == [b"/", b"/dir", b"/file"]
    assert list(cas) == []
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        ingest_directory(source / "dir", cas)


def test_a_socket_is_kept_as_a_node(cas: CAS, source: Path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "s"))
        assert stat.S_ISSOCK(ingest_directory(source, cas).root.children[b"s"].mode)


def test_twice_the_same_directory_is_the_same_tree(cas: CAS, source: Path):
    (source / "a").write_bytes(b"a" * 2000)
    assert differences(ingest_directory(source, cas), ingest_directory(source, cas)) == []


def test_moving_takes_the_files(cas: CAS, source: Path):
    (source / "a").write_bytes(b"a" * 2000)
    (source / "b").write_bytes(b"small")
    copied = ingest_directory(source, cas)
    for name in cas:
        cas.delete(name)
    moved = ingest_directory(source, cas, move=True)
    assert differences(copied, moved) == []
    assert not (source / "a").exists()
    assert len(list(cas)) == 1


def test_a_big_file_with_holes_keeps_them(cas: CAS, source: Path):
    with (source / "sparse").open("wb") as file:
        file.truncate(200 << 20)
    node = ingest_directory(source, cas).root.children[b"sparse"]
    assert node.digest is not None
    assert node.size == 200 << 20
    assert cas.path(node.digest).stat().st_blocks < 1000


def test_a_directory_that_nests_too_deep_is_refused(cas: CAS, source: Path):
    here = os.open(source, os.O_RDONLY)
    for _ in range(DEPTH_MAX + 2):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with pytest.raises(InvalidError, match="nest deeper than 256"):
        ingest_directory(source, cas)


def test_what_mounts_made_is_dropped_with_its_trace(cas: CAS, tmp_path: Path, source: Path):
    parent = Tree(directory(mtime_ns=1))
    etc = parent.root.children[b"etc"] = directory(mtime_ns=2)
    etc.children[b"hosts"] = small_file(b"old", mtime_ns=3)
    (source / "etc").mkdir(mode=0o755)
    (source / "etc" / "hosts").write_bytes(b"")
    (source / "etc" / "resolv.conf").write_bytes(b"")
    source.chmod(0o755)
    drop = {b"/etc/hosts", b"/etc/resolv.conf", b"/proc"}
    merged = apply_upper(parent, source, cas, drop=drop)
    assert merged.lookup(b"/etc").mtime_ns == 2  # type: ignore[union-attr]
    assert merged.lookup(b"/etc/hosts") is etc.children[b"hosts"]
    assert merged.lookup(b"/etc/resolv.conf") is None


def test_added_and_changed_files_lie_over_the_parent(cas: CAS, source: Path):
    parent = Tree()
    parent.root.children[b"a"] = small_file(b"old")
    parent.root.children[b"d"] = directory()
    parent.root.children[b"d"].children[b"kept"] = small_file(b"kept")
    (source / "a").write_bytes(b"new")
    (source / "d").mkdir()
    (source / "d" / "b").write_bytes(b"b" * 5000)
    merged = apply_upper(parent, source, cas)
    assert [path for path, _ in merged.walk()] == [b"/", b"/a", b"/d", b"/d/b", b"/d/kept"]
    assert merged.root.children[b"a"].inline == b"new"
