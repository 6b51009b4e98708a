"""Many files stored at once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hostd.errors import ConflictError, StorageFullError
from hostd.fs.batch import SMALL_MAX, Batch, copy_sparse
from hostd.fs.cas import CAS
from hostd.fs.durable import syncfs
from hostd.ids import Digest


@pytest.fixture
def cas(tmp_path: Path) -> CAS:
    return CAS(tmp_path / "cas")


def add(batch: Batch, path: Path) -> Digest:
    fd = os.open(path, os.O_RDONLY)
    try:
        return batch.add(fd, os.fstat(fd), os.fsencode(path))
    finally:
        os.close(fd)


def store(cas: CAS, *paths: Path, move: bool) -> list[Digest]:
    with Batch(cas, move=move) as batch:
        names = [add(batch, path) for path in paths]
        batch.commit()
    return names


def unfinished(cas: CAS) -> list[Path]:
    return [path for path in (cas.root / "tmp").rglob("*") if path.is_file()]


def files(tmp_path: Path, *contents: bytes) -> list[Path]:
    paths = []
    for number, data in enumerate(contents):
        path = tmp_path / f"file-{number}"
        path.write_bytes(data)
        path.chmod(0o4711)
        paths.append(path)
    return paths


CONTENTS = (b"one", b"two" * 1000, b"one", bytes(SMALL_MAX + 1), os.urandom(9 << 20))


@pytest.mark.parametrize("move", [False, True])
def test_contents_come_back_and_equal_ones_are_stored_once(cas: CAS, tmp_path: Path, move: bool):
    names = store(cas, *files(tmp_path, *CONTENTS), move=move)
    assert [cas.read(name) for name in names] == list(CONTENTS)
    assert len(list(cas)) == 4
    assert {cas.path(name).stat().st_mode & 0o7777 for name in names} == {0o444}
    assert unfinished(cas) == []
    assert CAS(cas.root).invalid(names) == []


def test_copied_files_stay_and_moved_ones_go(cas: CAS, tmp_path: Path):
    kept, moved = files(tmp_path, b"kept", b"moved")
    store(cas, kept, move=False)
    store(cas, moved, move=True)
    assert (kept.read_bytes(), kept.stat().st_mode & 0o7777) == (b"kept", 0o4711)
    assert not moved.exists()


def test_nothing_appears_before_commit(cas: CAS, tmp_path: Path):
    with Batch(cas, move=False) as batch:
        for path in files(tmp_path, *CONTENTS):
            add(batch, path)
        assert list(cas) == []
    assert (list(cas), unfinished(cas)) == ([], [])


@pytest.mark.parametrize("move", [False, True])
def test_a_damaged_blob_is_replaced(cas: CAS, tmp_path: Path, move: bool):
    (name,) = store(cas, *files(tmp_path, b"data"), move=move)
    cas.path(name).chmod(0o600)
    cas.path(name).write_bytes(b"date")
    assert store(cas, *files(tmp_path, b"data"), move=move) == [name]
    assert cas.read(name) == b"data"


def test_a_moved_file_that_changes_after_its_hash_is_refused(cas: CAS, tmp_path: Path):
    one, two = files(tmp_path, b"one", b"two")
    with Batch(cas, move=True) as batch:
        add(batch, one)
        add(batch, two)
        two.chmod(0o600)
        two.write_bytes(b"2222")
        with pytest.raises(ConflictError, match="changed while"):
            batch.commit()
    assert all(cas.verify(name) for name in cas)


def test_a_file_that_shrinks_while_it_is_read_is_refused(cas: CAS, tmp_path: Path):
    (path,) = files(tmp_path, b"content")
    fd = os.open(path, os.O_RDONLY)
    status = os.fstat(fd)
    os.truncate(path, 2)
    with Batch(cas, move=False) as batch, pytest.raises(ConflictError):
        batch.add(fd, status, os.fsencode(path))
    os.close(fd)


@pytest.mark.parametrize("move", [False, True])
def test_another_mount_of_the_same_device_means_copying(cas, tmp_path, monkeypatch, move):
    """rename(2) across mounts fails with EXDEV though st_dev is the same."""
    rename = os.rename

    def refuse(source, target, **kwargs):
        if b"file-" in os.fsencode(source):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target, **kwargs)

    paths = files(tmp_path, *CONTENTS)
    monkeypatch.setattr(os, "rename", refuse)
    names = store(cas, *paths, move=move)
    assert [cas.read(name) for name in names] == list(CONTENTS)
    assert unfinished(cas) == []


@pytest.mark.parametrize("call", ["write", "ftruncate", "rename"])
def test_full_disk_is_its_own_error_and_leaves_nothing(cas, tmp_path, monkeypatch, call):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "full")

    paths = files(tmp_path, *CONTENTS)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageFullError):
            store(cas, *paths, move=False)
    assert (list(cas), unfinished(cas)) == ([], [])


def test_holes_stay_holes(tmp_path: Path):
    source = os.open(tmp_path / "s", os.O_RDWR | os.O_CREAT)
    target = os.open(tmp_path / "t", os.O_RDWR | os.O_CREAT)
    os.ftruncate(source, 1 << 30)
    os.pwrite(source, b"middle", 512 << 20)
    copy_sparse(source, target, 1 << 30)
    status = os.fstat(target)
    assert status.st_size == 1 << 30
    assert status.st_blocks < 1000
    assert os.pread(target, 8, (512 << 20) - 1) == b"\0middle\0"
    os.close(source)
    os.close(target)


def test_moved_files_lose_their_attributes(cas: CAS, tmp_path: Path):
    (path,) = files(tmp_path, b"data")
    try:
        os.setxattr(path, "user.note", b"x")
    except OSError:
        pytest.skip("not here: the temporary directory has no user attributes")
    (name,) = store(cas, path, move=True)
    assert os.listxattr(cas.path(name)) == []


def test_a_failed_sync_is_an_error():
    with pytest.raises(OSError, match="Bad file descriptor"):
        syncfs(-1)
