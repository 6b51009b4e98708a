"""/fault and /data: what an overlay is told about blobs that are not there."""

from __future__ import annotations

import errno

import pytest

from hostd.errors import BlobMissingError, Error, TimeoutError
from hostd.fs.faultfs import DATA, FAULT, FaultFS
from hostd.ids import Digest, digest

REST = b"cd" * 31


class Fetches:
    """Notes what was asked for; fails if told so."""

    def __init__(self, error: Error | None = None) -> None:
        self.asked: list[Digest] = []
        self._error = error

    async def __call__(self, d: Digest) -> None:
        self.asked.append(d)
        if self._error is not None:
            raise self._error


async def errno_of(fs: FaultFS, parent: int, name: bytes) -> int | None:
    with pytest.raises(OSError, match="Errno") as caught:
        await fs.lookup(parent, name)
    return caught.value.errno


async def test_blob_is_fetched_and_then_said_to_be_elsewhere() -> None:
    fetches = Fetches()
    fs = FaultFS(fetches)
    folder = await fs.lookup(FAULT, b"ab")
    assert await errno_of(fs, folder, REST) == errno.ENOENT
    assert fetches.asked == [digest("ab" + "cd" * 31)]


@pytest.mark.parametrize("error", [BlobMissingError("gone"), TimeoutError("late")])
async def test_failed_fetch_leaves_the_answer_to_the_data_layer(error: Error) -> None:
    fs = FaultFS(Fetches(error))
    assert await errno_of(fs, await fs.lookup(FAULT, b"00"), REST) == errno.ENOENT
    assert await errno_of(fs, await fs.lookup(DATA, b"00"), REST) == errno.EIO
    assert (fs.faults, fs.failed) == (1, 1)


@pytest.mark.parametrize("name", [b"a", b"AB", b"abc", b"..", b"g0", b"", b"\xff\xff"])
async def test_only_two_digits_name_a_directory(name: bytes) -> None:
    fs = FaultFS(Fetches())
    assert await errno_of(fs, FAULT, name) == errno.ENOENT


@pytest.mark.parametrize(
    "name", [b"cd", REST + b"0", REST.upper(), b"../" * 20 + b"cd", b"\n" * 62]
)
async def test_other_names_are_never_fetched(name: bytes) -> None:
    fetches = Fetches()
    fs = FaultFS(fetches)
    assert await errno_of(fs, await fs.lookup(FAULT, b"ab"), name) == errno.ENOENT
    assert fetches.asked == []


async def test_directories_are_listed_and_have_numbers_of_their_own() -> None:
    fs = FaultFS(Fetches())
    numbers = [inode for top in (FAULT, DATA) for _, inode in fs.names(top)]
    assert len(set(numbers)) == 512
    assert all(fs.has(inode) for inode in numbers)
    assert [await fs.lookup(FAULT, name) for name, _ in fs.names(FAULT)] == numbers[:256]
    assert not fs.has(1)
