"""The store is killed at every step of every write, and runs out of space."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostd.errors import StorageFullError
from hostd.fs import CAS, ImageStore, Tree, ingest_directory
from hostd.fs.mounting import mount, unmount
from hostd.fs.tree import directory
from hostd.ids import Digest
from hostd.model import ImageConfig

CALLS = ("open", "write", "fdatasync", "fsync", "rename", "link", "unlink", "mkdir", "chmod")
CALLS_MAX = 400
"""No write below takes so many steps; a loop that does not end would."""
CONTENTS = [b"%d" % number * 2000 for number in range(12)]


class Sources:
    """A place for a store, and files to put into it."""

    def __init__(self, base: Path) -> None:
        self.root = base / "cas"
        self.images = base / "images"
        self.files = base / "files"
        self.files.mkdir()
        for number, data in enumerate(CONTENTS):
            (self.files / f"f{number}").write_bytes(data)

    def put(self) -> None:
        CAS(self.root).put_bytes(b"x" * 3000)

    def copy(self) -> None:
        ingest_directory(self.files, CAS(self.root))

    def move(self) -> None:
        ingest_directory(self.files, CAS(self.root), move=True)

    def late(self) -> None:
        cas = CAS(self.root)
        cas.link_late(cas.put_bytes(b"late"))

    def save(self) -> None:
        cas = CAS(self.root)
        tree = ingest_directory(self.files, cas)
        ImageStore(cas, self.images).save(tree, ImageConfig())


def killed_at(step: int, action: Callable[[], None]) -> bool:
    """Run in a child that kills itself at its n-th system call; False if it ended before."""
    pid = os.fork()
    if not pid:
        left = [step]

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def wrapper(*args: object, **kwargs: object) -> object:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return wrapper

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            action()
        except BaseException:  # noqa: BLE001 - the child must not come back into pytest
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("action", ["put", "copy", "move", "late", "save"])
def test_a_kill_at_any_step_leaves_whole_blobs_only(tmp_path: Path, action: str):
    sources = Sources(tmp_path)
    CAS(sources.root).close()
    for step in range(CALLS_MAX):
        was_killed = killed_at(step, getattr(sources, action))
        cas = CAS(sources.root)
        assert all(cas.verify(name) for name in cas)
        assert [path for path in (sources.root / "tmp").rglob("*") if path.is_file()] == []
        images = ImageStore(cas, sources.images)
        for image in images.list():
            assert cas.invalid(images.blobs(image)) == []
        cas.close()
        if not was_killed:
            return
    pytest.fail("never ended")


def test_a_killed_copy_can_be_repeated(tmp_path: Path):
    sources = Sources(tmp_path)
    for step in (520, 530, 545):  # The first 512 or so make the directories.
        killed_at(step, sources.save)
    sources.save()
    cas = CAS(sources.root)
    images = ImageStore(cas, sources.images)
    (image,) = images.list()
    assert cas.invalid(images.blobs(image)) == []
    assert len(list(cas)) == len(CONTENTS) + 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "disk"
    point.mkdir()
    mount("tmpfs", point, "tmpfs", flags=0, options="size=4m")
    yield point
    unmount(point)


@pytest.mark.root
def test_a_full_disk_harms_nothing_that_was_stored(small_disk: Path):
    cas = CAS(small_disk / "cas")
    stored: list[Digest] = []

    def fill() -> None:
        while len(stored) < 100:
            stored.append(cas.put_bytes(b"%03d" % len(stored) * 40_000))

    with pytest.raises(StorageFullError, match="no space left"):
        fill()
    assert sorted(cas) == sorted(stored)
    assert all(cas.verify(name) for name in stored)
    assert [path for path in (small_disk / "cas/tmp").rglob("*") if path.is_file()] == []
    cas.delete(stored.pop())
    assert cas.has(cas.put_bytes(b"n" * 100_000))


@pytest.mark.root
def test_a_disk_that_fills_during_an_ingest_is_as_it_was(small_disk: Path, tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(40):
        (source / f"{number}").write_bytes(os.urandom(200_000))
    cas = CAS(small_disk / "cas")
    kept = cas.put_bytes(b"kept" * 1000)
    with pytest.raises(StorageFullError):
        ingest_directory(source, cas)
    assert list(cas) == [kept]
    assert [path for path in (small_disk / "cas/tmp").rglob("*") if path.is_file()] == []
    with pytest.raises(StorageFullError):  # Other file system: moving means copying.
        ingest_directory(source, cas, move=True)
    assert len(list(source.iterdir())) == 40


@pytest.mark.root
def test_a_disk_that_fills_while_an_image_is_saved_has_no_half_image(small_disk: Path):
    cas = CAS(small_disk / "cas")
    images = ImageStore(cas, small_disk / "images")
    root = directory()
    for number in range(20_000):
        root.children[b"%d" % number] = directory()
    before = images.save(Tree(), ImageConfig())

    def fill() -> None:
        for uid in range(10):
            images.save(Tree(root.replace(uid=uid)), ImageConfig())

    with pytest.raises(StorageFullError):
        fill()
    for image in images.list():
        assert cas.invalid(images.blobs(image)) == []
    assert before in images.list()
