"""Indexes that were made to mislead: each trick is refused by ``validate``."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostd.errors import BlobCorruptError
from hostd.fs import erofs_format as erofs
from hostd.fs.erofs import write_index
from hostd.fs.index import IndexReader
from hostd.fs.tree import Tree, blob_file, directory, small_file
from hostd.ids import digest

BLOB = digest("ab" + "cd" * 31)


class Image:
    """An index that can be changed by hand."""

    def __init__(self, path: Path) -> None:
        inner = directory()
        inner.children[b"c"] = small_file(b"content")
        root = directory()
        root.children.update({b"a": blob_file(BLOB, 5000), b"d": inner, b"e": directory()})
        self.path = path
        self.data = bytearray(write_index(Tree(root)))
        path.write_bytes(self.data)
        self.reader = IndexReader(path)

    def offset(self, name: bytes) -> int:
        nid = self.reader.resolve(name)
        assert nid is not None
        return nid * erofs.SLOT

    def dirent(self, directory: bytes, name: bytes) -> int:
        """Where the entry of a name lies."""
        names = [b".", b"..", *(n for n, _, _ in self.reader.readdir(self.nid(directory)))]
        start = self.offset(directory) + erofs.INODE_BYTES
        return start + sorted(names).index(name) * erofs.DIRENT.size

    def nid(self, name: bytes) -> int:
        return self.offset(name) // erofs.SLOT

    def put(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def refusal(self) -> str:
        self.path.write_bytes(self.data)
        with pytest.raises(BlobCorruptError) as caught:
            IndexReader(self.path).validate()
        return str(caught.value)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path / "index.erofs")


def test_the_untouched_image_is_valid(image: Image):
    IndexReader(image.path).validate()


def test_a_directory_that_contains_itself(image: Image):
    image.put(image.dirent(b"/", b"e"), image.nid(b"/").to_bytes(8, "little"))
    assert "second way" in image.refusal()


def test_a_directory_under_two_names(image: Image):
    image.put(image.dirent(b"/", b"e"), image.nid(b"/d").to_bytes(8, "little"))
    assert "second way" in image.refusal()


def test_a_parent_that_is_not_the_parent(image: Image):
    image.put(image.dirent(b"/d", b".."), image.nid(b"/e").to_bytes(8, "little"))
    assert "wrong . or .." in image.refusal()


@pytest.mark.parametrize("nid", [0, 1, 10**6, 2**40, 2**64 - 1])
def test_an_entry_that_leads_out_of_the_file(image: Image, nid: int):
    image.put(image.dirent(b"/", b"a"), nid.to_bytes(8, "little"))
    assert image.refusal()


def test_a_type_that_the_inode_does_not_have(image: Image):
    image.put(image.dirent(b"/", b"a") + 10, b"\7")
    assert image.refusal()


@pytest.mark.parametrize("offset", [0, 5, 4096, 65_535])
def test_a_name_outside_its_block(image: Image, offset: int):
    image.put(image.dirent(b"/", b"d") + 8, offset.to_bytes(2, "little"))
    assert image.refusal()


@pytest.mark.parametrize("name", [b"/", b"\0", b"b"])
def test_a_name_that_is_wrong_or_out_of_order(image: Image, name: bytes):
    root = image.offset(b"/") + erofs.INODE_BYTES
    at = image.data.index(b"...ade", root)
    image.put(at + 5, name)
    assert image.refusal()


@pytest.mark.parametrize(
    "text", [b"/ab/../../../../etc/shadow", b"/ab/" + b"AB" * 31, b"/abxcd", b"//b"]
)
def test_a_redirect_that_is_no_digest(image: Image, text: bytes):
    image.put(image.offset(b"/a") + erofs.REDIRECT_OFFSET, text)
    assert image.refusal()


def test_attributes_that_overlayfs_would_read_differently(image: Image):
    at = image.data.index(b"overlay.metacopy")
    image.put(at, b"overlay.metacopx")
    assert "form that hostd writes" in image.refusal()


def test_sizes_beyond_the_file(image: Image):
    image.put(image.offset(b"/d/c") + 8, (2**40).to_bytes(8, "little"))
    assert image.refusal()


def test_a_link_count_that_is_wrong(image: Image):
    image.put(image.offset(b"/a") + erofs.NLINK_OFFSET, b"\2")
    assert "form that hostd writes" in image.refusal()


def test_bytes_where_nothing_belongs(image: Image):
    image.put(100, b"x")
    assert "form that hostd writes" in image.refusal()
