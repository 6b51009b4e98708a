"""The content-addressed store: what it promises about bytes and names."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from hostd.errors import (
    BlobCorruptError,
    BlobMissingError,
    PayloadTooLargeError,
    StorageFullError,
)
from hostd.fs.cas import CAS, MMAP_MIN
from hostd.ids import Digest, digest

ABSENT = digest("ab" * 32)


@pytest.fixture
def cas(tmp_path: Path) -> CAS:
    return CAS(tmp_path / "cas")


def name_of(data: bytes) -> Digest:
    return digest(blake3(data).hexdigest())


def flip_bit(path: Path, offset: int = 0) -> None:
    """Damage a file in place, and give it back the times that utime(2) can set."""
    before = path.stat()
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def unfinished(cas: CAS) -> list[Path]:
    return [path for path in (cas.root / "tmp").rglob("*") if path.is_file()]


def test_bytes_come_back_under_the_name_of_their_hash(cas: CAS):
    name = cas.put_bytes(b"hello")
    assert name == name_of(b"hello")
    assert (cas.read(name), cas.size(name), cas.has(name)) == (b"hello", 5, True)
    assert cas.path(name) == cas.objects / name[7:9] / name[9:]
    assert list(cas) == [name]


def test_blob_is_read_only_and_the_store_private(cas: CAS):
    assert cas.path(cas.put_bytes(b"x")).stat().st_mode & 0o7777 == 0o444
    assert cas.root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("text", ["", "blake3:..", "sha256:" + "0" * 64, "blake3:../" + "0" * 61])
def test_text_that_is_no_digest_never_becomes_a_path(cas: CAS, text: str):
    for method in (cas.path, cas.has, cas.read, cas.open, cas.delete, cas.quarantine):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            method(Digest(text))


def test_missing_blob_is_said_to_be_missing(cas: CAS):
    for method in (cas.size, cas.read, cas.open, cas.verify, cas.link_late):
        with pytest.raises(BlobMissingError):
            method(ABSENT)
    assert cas.invalid([ABSENT]) == [ABSENT]
    assert not cas.has(ABSENT)


def test_writer_takes_pieces_and_leaves_nothing_behind(cas: CAS):
    with cas.writer() as writer:
        writer.write(b"ab")
        writer.write(memoryview(b"cd"))
        name = writer.commit()
    assert (name, cas.read(name), writer.size) == (name_of(b"abcd"), b"abcd", 4)
    assert unfinished(cas) == []


def test_writer_that_is_not_committed_stores_nothing(cas: CAS):
    with cas.writer() as writer:
        writer.write(b"ab")
    assert (list(cas), unfinished(cas)) == ([], [])


def test_writer_refuses_content_of_another_name(cas: CAS):
    with cas.writer(expected=ABSENT) as writer:
        writer.write(b"ab")
        with pytest.raises(BlobCorruptError, match="expected"):
            writer.commit()
    assert (list(cas), unfinished(cas)) == ([], [])


def test_writer_refuses_more_bytes_than_allowed(cas: CAS):
    with cas.writer(size_max=3) as writer, pytest.raises(PayloadTooLargeError):
        writer.write(b"abcd")
    assert unfinished(cas) == []


@pytest.mark.parametrize("step", ["write", "fdatasync", "rename", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_its_own_error_and_leaves_nothing(cas, monkeypatch, step, number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    kept = cas.put_bytes(b"kept")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(StorageFullError, match="no space left"):
            cas.put_bytes(b"new")
    assert cas.read(kept) == b"kept"
    assert unfinished(cas) == []
    assert cas.read(cas.put_bytes(b"new")) == b"new"


def test_flipped_bit_is_not_read(cas: CAS):
    name = cas.put_bytes(b"hello")
    flip_bit(cas.path(name))
    with pytest.raises(BlobCorruptError):
        cas.read(name)
    assert not cas.has(name)
    assert (cas.root / "quarantine" / name[7:]).exists()


def test_flipped_bit_is_not_opened(cas: CAS):
    name = cas.put_bytes(b"hello")
    os.close(cas.open(name))
    flip_bit(cas.path(name))
    with pytest.raises(BlobCorruptError):
        cas.open(name)
    assert not cas.has(name)


def test_flipped_bit_is_found_by_invalid_and_by_verify(cas: CAS):
    good, bad, worse = (cas.put_bytes(data) for data in (b"good", b"bad", b"worse"))
    flip_bit(cas.path(bad))
    flip_bit(cas.path(worse), 4)
    assert cas.invalid([good, bad, ABSENT, bad]) == [bad, ABSENT]
    assert cas.verify(good)
    assert not cas.verify(worse)
    assert list(cas) == [good]
    assert cas.statistics().blobs_quarantined == 2


def test_damage_from_before_the_start_is_found(cas: CAS):
    name = cas.put_bytes(b"hello")
    flip_bit(cas.path(name))
    again = CAS(cas.root)
    with pytest.raises(BlobCorruptError):
        again.open(name)


def test_truncated_and_replaced_blobs_are_found(cas: CAS):
    short, other = cas.put_bytes(b"hello"), cas.put_bytes(b"world")
    os.truncate(cas.path(short), 2)
    (cas.root / "x").write_bytes(b"wurld")
    (cas.root / "x").rename(cas.path(other))
    assert cas.invalid([short, other]) == [short, other]


def test_big_blob_is_hashed_through_mmap(cas: CAS):
    data = bytes(MMAP_MIN + 1)
    name = cas.put_bytes(data)
    assert CAS(cas.root).verify(name)
    flip_bit(cas.path(name), MMAP_MIN)
    assert cas.invalid([name]) == [name]


def test_damaged_blob_leaves_the_late_directory_too(cas: CAS):
    name = cas.put_bytes(b"hello")
    cas.link_late(name)
    flip_bit(cas.path(name))
    assert cas.invalid([name]) == [name]
    assert [path for path in cas.late.rglob("*") if path.is_file()] == []


def test_storing_again_heals_a_damaged_blob_that_nobody_noticed(cas: CAS):
    name = cas.put_bytes(b"hello")
    flip_bit(cas.path(name))
    assert cas.put_bytes(b"hello") == name
    assert cas.read(name) == b"hello"


def test_verified_blobs_are_not_hashed_again_by_the_next_process(cas: CAS):
    names = [cas.put_bytes(b"%d" % number) for number in range(20)]
    again = CAS(cas.root)
    assert again.invalid(names) == []
    assert again.statistics().blobs_hashed == 0


def test_open_hashes_once_in_each_process_whatever_the_last_one_said(cas: CAS):
    name = cas.put_bytes(b"hello")
    again = CAS(cas.root)
    for _ in range(3):
        os.close(again.open(name))
    assert again.statistics().blobs_hashed == 1


def test_unsynced_blob_is_not_trusted_by_the_next_process(cas: CAS):
    with cas.writer(sync=False) as writer:
        writer.write(b"x")
        name = writer.commit()
    assert cas.is_verified(name)
    assert not CAS(cas.root).is_verified(name)


def test_link_late_keeps_the_blob_verified_and_may_be_repeated(cas: CAS):
    name = cas.put_bytes(b"hello")
    cas.link_late(name)
    cas.link_late(name)
    late = cas.late / name[7:9] / name[9:]
    assert late.samefile(cas.path(name))
    assert cas.is_verified(name)


def test_link_late_replaces_a_link_to_an_older_file(cas: CAS):
    name = cas.put_bytes(b"hello")
    cas.link_late(name)
    cas.path(name).unlink()
    cas.put_bytes(b"hello")
    cas.link_late(name)
    assert (cas.late / name[7:9] / name[9:]).samefile(cas.path(name))


def test_deleted_blob_is_gone_everywhere(cas: CAS):
    name = cas.put_bytes(b"hello")
    cas.link_late(name)
    cas.delete(name)
    cas.delete(name)
    assert (cas.has(name), list(cas), cas.invalid([name])) == (False, [], [name])
    assert [path for path in cas.late.rglob("*") if path.is_file()] == []


def test_many_threads_store_and_read_the_same_blobs(cas: CAS):
    contents = [b"%d" % number * 100 for number in range(10)]

    def work(_: int) -> list[bytes]:
        return [cas.read(cas.put_bytes(data)) for data in contents]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [contents] * 8
    assert sorted(cas) == sorted(map(name_of, contents))


def test_open_gives_a_descriptor_at_the_start_of_the_blob(cas: CAS):
    fd = cas.open(cas.put_bytes(b"hello"))
    try:
        assert os.read(fd, 10) == b"hello"
    finally:
        os.close(fd)
