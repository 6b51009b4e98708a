"""The kernel mounts what we write, and shows the very tree it was made from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostd.fs import CAS, IndexReader, Tree, ingest_directory
from hostd.fs.erofs import write_index
from hostd.fs.mounting import OverlayLayers, mount_erofs, mount_overlay, unmount
from hostd.fs.tree import blob_file, directory, small_file, symlink
from tests.integration.fs.real_trees import MANY, compared, fill

pytestmark = pytest.mark.root


@contextmanager
def mounted_index(tree: Tree, base: Path) -> Iterator[Path]:
    """The tree as the kernel shows it."""
    base.mkdir()
    (base / "index.erofs").write_bytes(write_index(tree))
    point = base / "meta"
    point.mkdir()
    mount_erofs(base / "index.erofs", point)
    try:
        yield point
    finally:
        unmount(point)


@contextmanager
def overlay(
    point: Path, lower: list[Path], data: list[Path], *, metacopy: bool = False
) -> Iterator[Path]:
    point.mkdir()
    mount_overlay(point, OverlayLayers(lower=lower, data=data), metacopy=metacopy)
    try:
        yield point
    finally:
        unmount(point)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CAS, Tree]:
    """A directory with everything, and what became of it."""
    base = tmp_path_factory.mktemp("made")
    (base / "source").mkdir()
    fill(base / "source")
    cas = CAS(base / "cas")
    return base / "source", cas, ingest_directory(base / "source", cas)


def test_the_kernel_shows_every_attribute_of_the_source(made, tmp_path: Path):
    source, _, tree = made
    with mounted_index(tree, tmp_path / "m") as meta:
        assert compared(meta, source, with_content=False) == []
        assert len(os.listdir(meta / "many")) == MANY
        assert (meta / "files" / "size-1024").read_bytes() == (
            source / "files" / "size-1024"
        ).read_bytes()


def test_the_reader_sees_what_the_kernel_sees(made, tmp_path: Path):
    _, _, tree = made
    with mounted_index(tree, tmp_path / "m") as meta:
        reader = IndexReader(tmp_path / "m" / "index.erofs")
        for path, nid in reader.walk():
            status = os.lstat(os.fsencode(meta) + path)
            assert status.st_ino == nid
            assert reader.stat(nid) == (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_size,
                status.st_mtime_ns,
                status.st_nlink,
                status.st_rdev,
            )


def test_an_overlay_with_data_layers_gives_contents_too(made, tmp_path: Path):
    source, cas, tree = made
    with (
        mounted_index(tree, tmp_path / "m") as meta,
        overlay(tmp_path / "o", [meta], [cas.objects, cas.late]) as merged,
    ):
        assert compared(merged, source) == []
        assert (merged / "files" / "sparse").stat().st_blocks < 100_000


def test_ingesting_the_overlay_gives_the_same_image(made, tmp_path: Path):
    _, cas, tree = made
    with (
        mounted_index(tree, tmp_path / "m") as meta,
        overlay(tmp_path / "o", [meta], [cas.objects, cas.late]) as merged,
    ):
        assert write_index(ingest_directory(merged, cas)) == write_index(tree)


def test_two_indexes_lie_over_each_other(tmp_path: Path):
    """A client's source files lie over an image: both refer to blobs.

    Without metacopy the kernel follows redirects from the lowest of them only (else EPERM, 6.18).
    """
    cas = CAS(tmp_path / "cas")
    lower, upper = directory(), directory()
    big = cas.put_bytes(b"image" * 1000), cas.put_bytes(b"source" * 1000)
    lower.children[b"app"] = directory()
    lower.children[b"app"].children[b"image"] = blob_file(big[0], 5000)
    lower.children[b"app"].children[b"both"] = blob_file(big[0], 5000)
    upper.children[b"app"] = directory()
    upper.children[b"app"].children[b"both"] = blob_file(big[1], 6000)
    upper.children[b"app"].children[b"small"] = small_file(b"s")
    with (
        mounted_index(Tree(lower), tmp_path / "l") as one,
        mounted_index(Tree(upper), tmp_path / "u") as two,
        overlay(tmp_path / "o", [two, one], [cas.objects], metacopy=True) as merged,
    ):
        app = merged / "app"
        assert sorted(os.listdir(app)) == ["both", "image", "small"]
        assert (app / "image").read_bytes() == b"image" * 1000
        assert (app / "both").read_bytes() == b"source" * 1000
        assert (app / "small").read_bytes() == b"s"


def test_links_whose_attributes_fill_a_block(tmp_path: Path):
    root = directory()
    xattrs = {b"trusted.pad": b"p" * 4000}
    root.children[b"link"] = symlink(b"t" * 4000, xattrs=xattrs)
    root.children[b"file"] = small_file(b"f" * 1000, xattrs=xattrs)
    root.children[b"dir"] = directory(xattrs=xattrs)
    root.children[b"dir"].children[b"inside"] = small_file(b"i")
    with mounted_index(Tree(root), tmp_path / "m") as meta:
        assert os.readlink(meta / "link") == "t" * 4000
        assert (meta / "file").read_bytes() == b"f" * 1000
        assert os.listdir(meta / "dir") == ["inside"]
        assert os.getxattr(meta / "dir", "trusted.pad") == b"p" * 4000


@pytest.mark.parametrize("count", [0, 1, 2, 100, 101, 102, 103, 200, 204, 205, 206, 1000])
def test_directories_around_the_size_of_a_block(tmp_path: Path, count: int):
    root = directory()
    top = root.children[b"d"] = directory()
    for number in range(count):
        top.children[b"entry-%022d" % number] = small_file(b"%d" % number)
    with mounted_index(Tree(root), tmp_path / "m") as meta:
        listed = sorted(os.listdir(meta / "d"))
        assert listed == [f"entry-{number:022}" for number in range(count)]
        assert all((meta / "d" / name).read_bytes() for name in listed)
        assert not (meta / "d" / "entry-").exists()


def test_a_root_directory_of_many_blocks(tmp_path: Path):
    root = directory()
    for number in range(3000):
        root.children[b"%d" % number] = small_file(b"%d" % number)
    with mounted_index(Tree(root), tmp_path / "m") as meta:
        assert len(os.listdir(meta)) == 3000
        assert (meta / "2999").read_bytes() == b"2999"


def test_a_file_of_many_terabytes_is_one_hole(tmp_path: Path):
    root = directory()
    name = CAS(tmp_path / "cas").put_bytes(b"x")
    root.children[b"huge"] = blob_file(name, (1 << 43) + 12_345)
    with mounted_index(Tree(root), tmp_path / "m") as meta:
        assert (meta / "huge").stat().st_size == (1 << 43) + 12_345
        assert "trusted.overlay.redirect" in os.listxattr(meta / "huge")
