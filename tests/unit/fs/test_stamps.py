"""Stamps: which blobs were found whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostd.fs.stamps import Stamps, stamp_of

KEY, OTHER = bytes(32), b"\1" * 32
STAMP, LATER = b"s" * 32, b"t" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "verified"


def test_the_last_record_of_a_blob_wins_and_survives(path: Path):
    stamps = Stamps(path)
    stamps.record([(KEY, STAMP)])
    stamps.record([(KEY, LATER), (OTHER, STAMP)])
    again = Stamps(path)
    assert again.is_verified(KEY, LATER)
    assert not again.is_verified(KEY, STAMP)
    assert again.is_verified(OTHER, STAMP)
    assert len(again) == 2


def test_a_stamp_of_another_process_is_not_one_of_this(path: Path):
    Stamps(path).record([(KEY, STAMP)])
    again = Stamps(path)
    assert again.is_verified(KEY, STAMP)
    assert not again.is_verified_here(KEY, STAMP)
    again.record([(KEY, STAMP)])
    assert again.is_verified_here(KEY, STAMP)


def test_records_that_are_not_persisted_end_with_the_process(path: Path):
    stamps = Stamps(path)
    stamps.record([(KEY, STAMP)], persist=False)
    assert stamps.is_verified_here(KEY, STAMP)
    assert not Stamps(path).is_verified(KEY, STAMP)


@pytest.mark.parametrize("cut", [1, 63, 64, 100])
def test_a_file_that_was_cut_loses_its_end_only(path: Path, cut: int):
    Stamps(path).record([(KEY, STAMP), (OTHER, STAMP)])
    os.truncate(path, 128 - cut)
    again = Stamps(path)
    assert again.is_verified(KEY, STAMP) == (cut <= 64)
    assert not again.is_verified(OTHER, STAMP)
    again.record([(OTHER, LATER)])
    assert Stamps(path).is_verified(OTHER, LATER)


def test_garbage_verifies_nothing(path: Path):
    path.write_bytes(os.urandom(1000))
    stamps = Stamps(path)
    assert not stamps.is_verified(KEY, STAMP)


def test_a_grown_file_is_written_anew(path: Path):
    stamps = Stamps(path)
    for _ in range(20):
        stamps.record([(KEY, STAMP)] * 1000)
    assert path.stat().st_size > 1 << 20
    assert Stamps(path).is_verified(KEY, STAMP)
    assert path.stat().st_size == 64


def test_a_directory_that_cannot_be_written_costs_the_record_only(tmp_path: Path):
    stamps = Stamps(tmp_path / "absent" / "verified")
    stamps.record([(KEY, STAMP)])
    assert stamps.is_verified(KEY, STAMP)


def test_forgotten_stamps_are_gone(path: Path):
    stamps = Stamps(path)
    stamps.record([(KEY, STAMP)])
    stamps.forget(KEY)
    stamps.forget(KEY)
    assert not stamps.is_verified(KEY, STAMP)


def test_any_write_to_a_file_changes_its_stamp(tmp_path: Path):
    file = tmp_path / "f"
    file.write_bytes(b"hello")
    before, status = stamp_of(file.stat()), file.stat()
    file.write_bytes(b"hellO")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert stamp_of(file.stat()) != before
