"""Whole images as trees: look-ups, listings, contents; what is damaged is an error, never bytes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hostd.errors import BlobMissingError
from hostd.fs import CAS, Tree, blob_file, directory, small_file, symlink
from hostd.fs.erofs import write_index
from hostd.fs.treefs import TreeFS
from hostd.ids import Digest, ImageId

IMAGE = ImageId("im-" + "0" * 26)
OTHER = ImageId("im-" + "1" * 26)
CONTENT = os.urandom(300_000)


class Fixture:
    """A CAS, an image with a blob, and the trees that serve it."""

    def __init__(self, top: Path) -> None:
        self.cas = CAS(top / "cas")
        self.blob = self.cas.put_bytes(CONTENT)
        self.fetched: list[Digest] = []
        self.heal = False
        root = directory(0o751, uid=7)
        file = blob_file(self.blob, len(CONTENT), 0o4755, uid=1, gid=2, xattrs={b"user.a": b"\0b"})
        folder = directory()
        folder.children.update({b"%05d" % n: small_file(b"%d" % n) for n in range(3_000)})
        root.children.update(
            {b"file": file, b"again": file, b"dir": folder, b"link": symlink(b"dir/00007")}
        )
        self.index = top / "index"
        self.index.write_bytes(write_index(Tree(root)))
        self.trees = TreeFS(self.cas, fetch=self.fetch, in_thread=run_now, read_in_thread=run_now)
        self.trees.add(IMAGE, self.index)
        self.root = self.trees.image_root(IMAGE.encode())

    async def fetch(self, d: Digest) -> None:
        self.fetched.append(d)
        if not self.heal:
            raise BlobMissingError("no source has it")
        self.cas.put_bytes(CONTENT)

    async def content(self, name: bytes, offset: int, size: int) -> bytes:
        inode = self.trees.lookup(self.root, name)
        await self.trees.open(inode)
        try:
            return bytes(await self.trees.read(inode, offset, size))
        finally:
            self.trees.release(inode)


def errno_text(number: int) -> str:
    """How an OSError with this number begins, as a pattern."""
    return rf"^\[Errno {number}\]"


async def run_now(call: Callable[[], object]) -> object:
    return call()


@pytest.fixture
def served(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


def test_attributes_links_and_xattrs_are_the_images(served: Fixture) -> None:
    trees, root = served.trees, served.root
    file = trees.lookup(root, b"file")
    assert trees.lookup(root, b"again") == file
    attributes = trees.attributes(file)
    assert stat.S_IMODE(attributes.mode) == 0o4755
    assert (attributes.uid, attributes.gid, attributes.nlink) == (1, 2, 2)
    assert attributes.size == len(CONTENT)
    assert trees.xattrs(file) == {b"user.a": b"\0b"}
    assert trees.readlink(trees.lookup(root, b"link")) == b"dir/00007"
    assert trees.attributes(root).uid == 7


def test_listing_is_complete_and_has_the_numbers_of_lookup(served: Fixture) -> None:
    folder = served.trees.lookup(served.root, b"dir")
    entries = served.trees.entries(folder)
    assert len(entries) == 3_000
    assert entries == sorted(entries)
    assert all(served.trees.lookup(folder, name) == inode for name, inode in entries[::100])


@pytest.mark.parametrize("name", [b"absent", b"fil", b"file\0", b""])
def test_absent_names_do_not_exist(served: Fixture, name: bytes) -> None:
    with pytest.raises(OSError, match=errno_text(errno.ENOENT)):
        served.trees.lookup(served.root, name)


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 10), (0, 1 << 20), (299_990, 100), (300_000, 1), (1 << 40, 4096), (131_072, 131_072)],
)
async def test_reads_give_the_slice_and_stop_at_the_end(
    served: Fixture, offset: int, size: int
) -> None:
    assert await served.content(b"file", offset, size) == CONTENT[offset : offset + size]
    assert served.trees.open_files() == 0


async def test_file_is_open_until_its_last_user_is_gone(served: Fixture) -> None:
    trees, inode = served.trees, served.trees.lookup(served.root, b"file")
    for _ in range(3):
        await trees.open(inode)
    served.cas.delete(served.blob)
    for _ in range(2):
        trees.release(inode)
    assert bytes(await trees.read(inode, 0, 5)) == CONTENT[:5]
    trees.release(inode)
    assert trees.open_files() == 0
    with pytest.raises(OSError, match="not open"):
        await trees.read(inode, 0, 5)


async def test_missing_blob_is_fetched_or_an_io_error(served: Fixture) -> None:
    served.cas.delete(served.blob)
    with pytest.raises(OSError, match=errno_text(errno.EIO)):
        await served.content(b"file", 0, 5)
    served.heal = True
    assert await served.content(b"file", 0, 5) == CONTENT[:5]
    assert served.fetched == [served.blob] * 2


async def test_damaged_blob_is_fetched_or_an_io_error(served: Fixture) -> None:
    path = served.cas.path(served.blob)
    path.chmod(0o644)
    path.write_bytes(b"\0" + CONTENT[1:])
    with pytest.raises(OSError, match=errno_text(errno.EIO)):
        await served.content(b"file", 0, 5)
    served.heal = True
    assert await served.content(b"file", 0, 5) == CONTENT[:5]


async def test_blob_cut_while_it_is_open_is_an_io_error(served: Fixture) -> None:
    inode = served.trees.lookup(served.root, b"file")
    await served.trees.open(inode)
    path = served.cas.path(served.blob)
    path.chmod(0o644)
    os.truncate(path, 1_000)
    with pytest.raises(OSError, match=errno_text(errno.EIO)):
        await served.trees.read(inode, 0, 4_096)
    served.trees.release(inode)


def test_images_have_numbers_of_their_own(served: Fixture) -> None:
    served.trees.add(OTHER, served.index)
    served.trees.add(OTHER, served.index)
    names = [name for name, _ in served.trees.images()]
    assert names == [IMAGE.encode(), OTHER.encode()]
    other = served.trees.image_root(OTHER.encode())
    assert served.trees.lookup(other, b"file") != served.trees.lookup(served.root, b"file")


def test_dropped_image_has_no_name_but_what_is_mounted_goes_on(served: Fixture) -> None:
    served.trees.drop(IMAGE)
    with pytest.raises(OSError, match="no such image"):
        served.trees.image_root(IMAGE.encode())
    assert served.trees.lookup(served.root, b"file")
    with pytest.raises(OSError, match=errno_text(errno.ESTALE)):
        served.trees.attributes(99 << 40)
