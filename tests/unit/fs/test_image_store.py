"""Images: ids from content, manifests that show damage, indexes of a client's files."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from hostd.errors import (
    BlobCorruptError,
    BlobMissingError,
    InvalidError,
    NotFoundError,
    StorageFullError,
)
from hostd.fs.cas import CAS
from hostd.fs.image import BIG_FILE_MIN, READERS_MAX, SOURCE_MTIME_NS, BigFile, ImageStore
from hostd.fs.index import IndexReader
from hostd.fs.tree import Tree, blob_file, differences, directory, small_file, symlink
from hostd.ids import Digest, ImageId, digest
from hostd.model import ImageConfig

CONFIG = ImageConfig(env={"B": "2", "A": "1"}, cmd=("sh",))


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(CAS(tmp_path / "cas"), tmp_path / "images")


def again(images: ImageStore) -> ImageStore:
    """As after a restart."""
    return ImageStore(CAS(images.cas.root), images.root)


def tree_with(images: ImageStore, **files: bytes) -> Tree:
    root = directory(mtime_ns=5)
    for name, data in files.items():
        blob = images.cas.put_bytes(data)
        root.children[name.encode()] = images.file_node(blob, mtime_ns=5)
    return Tree(root)


def test_an_image_survives_a_restart(images: ImageStore):
    tree = tree_with(images, small=b"s", large=b"l" * 5000, same=b"l" * 5000)
    name = images.save(tree, CONFIG, python="3.11")
    later = again(images)
    manifest = later.manifest(name)
    assert (manifest.entries, manifest.size_bytes, manifest.blobs) == (3, 10_001, 1)
    assert (manifest.config, manifest.python, manifest.big_files) == (CONFIG, "3.11", ())
    assert differences(later.tree(name), tree) == []
    assert list(later.list()) == [name]
    IndexReader(later.index_path(name)).validate()


def test_equal_images_have_one_id_and_others_another(images: ImageStore):
    one = images.save(tree_with(images, a=b"a"), CONFIG)
    swapped = ImageConfig(env={"A": "1", "B": "2"}, cmd=("sh",))
    assert images.save(tree_with(images, a=b"a"), swapped) == one
    assert images.save(tree_with(images, a=b"b"), CONFIG) != one
    assert images.save(tree_with(images, a=b"a"), ImageConfig()) != one


def test_blobs_are_the_index_and_what_it_refers_to(images: ImageStore):
    name = images.save(tree_with(images, small=b"s", large=b"l" * 5000), CONFIG)
    large = images.tree(name).root.children[b"large"].digest
    assert list(images.blobs(name)) == [images.manifest(name).index, large]
    assert images.cas.invalid(images.blobs(name)) == []


def test_big_files_are_listed_in_the_manifest(images: ImageStore):
    tree = Tree()
    tree.root.children[b"a"] = blob_file(digest("ab" * 32), BIG_FILE_MIN)
    tree.root.children[b"b"] = blob_file(digest("cd" * 32), BIG_FILE_MIN - 1)
    manifest = images.manifest(images.save(tree, CONFIG))
    assert manifest.big_files == (BigFile(digest=digest("ab" * 32), size_bytes=BIG_FILE_MIN),)


@pytest.mark.parametrize("text", ["im-" + "0" * 26, "../../etc", "", "im-../", "al-" + "0" * 26])
def test_unknown_images_are_not_found(images: ImageStore, text: str):
    for method in (images.manifest, images.index_path, images.open_index, images.tree):
        with pytest.raises(NotFoundError):
            method(ImageId(text))


def test_a_damaged_manifest_is_set_aside(images: ImageStore):
    name = images.save(tree_with(images, a=b"a"), CONFIG)
    path = images.root / f"{name}.json"
    path.write_bytes(path.read_bytes().replace(b'"A":"1"', b'"A":"2"'))
    later = again(images)
    with pytest.raises(BlobCorruptError):
        later.manifest(name)
    with pytest.raises(NotFoundError):
        later.manifest(name)
    assert images.save(tree_with(images, a=b"a"), CONFIG) == name
    assert again(images).manifest(name).config == CONFIG


def test_saving_again_heals_a_damaged_manifest(images: ImageStore):
    name = images.save(tree_with(images, a=b"a"), CONFIG)
    (images.root / f"{name}.json").write_bytes(b"{}")
    assert images.save(tree_with(images, a=b"a"), CONFIG) == name
    assert again(images).manifest(name).config == CONFIG


def test_a_damaged_index_is_not_opened(images: ImageStore):
    name = images.save(tree_with(images, a=b"a"), CONFIG)
    path = images.index_path(name)
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[1200] ^= 1
    path.write_bytes(data)
    later = again(images)
    with pytest.raises(BlobCorruptError):
        later.open_index(name)
    with pytest.raises(BlobMissingError):
        later.open_index(name)


def test_an_index_that_is_damaged_while_it_is_open_is_noticed(images: ImageStore):
    name = images.save(tree_with(images, a=b"a"), CONFIG)
    images.open_index(name)
    path = images.index_path(name)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(1200)
        file.write(b"\xff")
    with pytest.raises(BlobCorruptError):
        images.open_index(name)


def test_an_unsynced_image_is_there_and_a_later_sync_covers_it(images: ImageStore):
    name = images.save(tree_with(images, a=b"a" * 2000), CONFIG, sync=False)
    index = Digest(images.manifest(name).index)
    assert images.cas.is_verified(index)
    assert not again(images).cas.is_verified(index)
    images.cas.sync()
    assert again(images).cas.is_verified(index)
    assert again(images).manifest(name).entries == 1


def test_trees_in_memory_are_bounded_by_their_entries(
    images: ImageStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("hostd.fs.image.TREE_ENTRIES_MAX", 3)
    trees = [tree_with(images, a=b"%d" % number, b=b"b") for number in range(3)]
    names = [images.save(tree, CONFIG) for tree in trees]
    assert images.tree(names[2]) is trees[2]
    assert images.tree(names[0]) is not trees[0]


def test_a_deleted_image_is_gone_and_its_blobs_are_unused(images: ImageStore):
    kept = images.save(tree_with(images, a=b"a" * 2000), CONFIG)
    gone = images.save(tree_with(images, a=b"a" * 2000, b=b"b" * 2000), CONFIG)
    only_there = set(images.blobs(gone)) - set(images.blobs(kept))
    images.delete(gone)
    images.delete(gone)
    assert list(images.list()) == [kept]
    assert set(images.unused()) == only_there
    assert images.unused(keep=only_there) == []
    with pytest.raises(NotFoundError):
        images.manifest(gone)


def test_readers_are_shared_and_bounded(images: ImageStore):
    names = [
        images.save(tree_with(images, a=b"%d" % number), CONFIG)
        for number in range(READERS_MAX + 2)
    ]
    assert images.open_index(names[0]) is images.open_index(names[0])
    first = images.open_index(names[0])
    for name in names[1:]:
        images.open_index(name)
    assert images.open_index(names[0]) is not first
    assert first.lookup(first.root_nid, b"a") is not None


def test_a_full_disk_leaves_no_image(images: ImageStore, monkeypatch: pytest.MonkeyPatch):
    import errno
    import os

    tree = tree_with(images, a=b"a")
    fdatasync, calls = os.fdatasync, []

    def fail(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        fdatasync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageFullError):
            images.save(tree, CONFIG)
    assert list(images.list()) == []
    assert [path for path in (images.cas.root / "tmp").rglob("*") if path.is_file()] == []


def test_source_files_with_their_parents(images: ImageStore):
    cas = images.cas
    small, large = cas.put_bytes(b"import x"), cas.put_bytes(b"y" * 5000)
    name = images.source_index(
        [
            ("/root/app/main.py", small, 0o644, "file", None),
            ("/root/app/data", large, 0o600, "file", None),
            ("/root/app/link", None, 0o777, "symlink", "main.py"),
            ("/root/empty/", None, 0o700, "dir", None),
        ]
    )
    tree = images.tree(name)
    nodes = {path: oct(node.mode) for path, node in tree.walk()}
    assert nodes == {
        b"/": "0o40755",
        b"/root": "0o40755",
        b"/root/app": "0o40755",
        b"/root/app/data": "0o100600",
        b"/root/app/link": "0o120777",
        b"/root/app/main.py": "0o100644",
        b"/root/empty": "0o40700",
    }
    main, data = tree.lookup(b"/root/app/main.py"), tree.lookup(b"/root/app/data")
    assert main is not None
    assert data is not None
    assert (main.inline, data.digest, data.size) == (b"import x", large, 5000)
    times = {node.mtime_ns for _, node in tree.walk() if not stat.S_ISREG(node.mode)}
    assert times == {SOURCE_MTIME_NS}


def test_source_files_follow_the_links_and_permissions_of_their_base(images: ImageStore):
    base = Tree()
    base.root.children[b"tmp"] = directory(0o1777, uid=3, xattrs={b"user.x": b"y"})
    base.root.children[b"lib"] = symlink(b"usr/lib")
    base.root.children[b"tmp"].children[b"secret"] = small_file(b"hidden")
    blob = images.cas.put_bytes(b"code")
    name = images.source_index(
        [("/tmp/a", blob, 0o644, "file", None), ("/lib/b", blob, 0o644, "file", None)],
        base=images.save(base, CONFIG),
    )
    tree = images.tree(name)
    assert [path for path, _ in tree.walk()] == [
        b"/",
        b"/tmp",
        b"/tmp/a",
        b"/usr",
        b"/usr/lib",
        b"/usr/lib/b",
    ]
    tmp = tree.lookup(b"/tmp")
    assert tmp is not None
    assert (tmp.mode & 0o7777, tmp.uid, tmp.xattrs) == (0o1777, 3, {b"user.x": b"y"})


def test_order_of_source_files_does_not_matter(images: ImageStore):
    blob = images.cas.put_bytes(b"code")
    files = [(f"/a/{number}", blob, 0o644, "file", None) for number in range(10)]
    assert images.source_index(files) == images.source_index(files[::-1])


def test_no_files_are_an_empty_image(images: ImageStore):
    assert images.manifest(images.source_index([])).entries == 0


@pytest.mark.parametrize(
    "files",
    [
        [("relative", "blob", 0o644, "file", None)],
        [("/a", None, 0o644, "file", None)],
        [("/a", "blob", 0o644, "file", None), ("/a/b", "blob", 0o644, "file", None)],
        [("/", None, 0o755, "dir", None)],
    ],
)
def test_source_files_that_cannot_be_are_refused(images: ImageStore, files):
    blob = images.cas.put_bytes(b"x")
    files = [(path, name and blob, *rest) for path, name, *rest in files]
    with pytest.raises(InvalidError):
        images.source_index(files)


def test_source_files_without_their_blob_are_refused(images: ImageStore):
    with pytest.raises(BlobMissingError):
        images.source_index([("/a", digest("ab" * 32), 0o644, "file", None)])
