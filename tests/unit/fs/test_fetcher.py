"""Fetching blobs: once for all callers, right bytes or a typed error, within the time limit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from hostd.errors import BlobCorruptError, BlobMissingError, TimeoutError
from hostd.fs import CAS, BlobWriter, DirectorySource, Fetcher
from hostd.ids import Digest, digest

CONTENT = b"content of a blob" * 1_000
BLOB = digest(blake3(CONTENT).hexdigest())


class Source:
    """A source that delivers what it is told to, after a gate opened."""

    def __init__(self, content: bytes | None, *, error: Exception | None = None) -> None:
        self.name = "fake"
        self.asked = 0
        self.called = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self._content = content
        self._error = error

    async def fetch(self, d: Digest, writer: BlobWriter) -> None:
        self.asked += 1
        self.called.set()
        await self.gate.wait()
        if self._error is not None:
            raise self._error
        if self._content is None:
            raise BlobMissingError("not here")
        writer.write(self._content)


@pytest.fixture
def cas(tmp_path: Path) -> CAS:
    return CAS(tmp_path / "cas")


def unfinished(cas: CAS) -> list[Path]:
    return [path for path in (cas.root / "tmp").rglob("*") if path.is_file()]


async def test_blob_is_stored_under_its_name(cas: CAS) -> None:
    fetcher = Fetcher(cas, [Source(CONTENT)], 5.0)
    await fetcher.fetch(BLOB)
    assert cas.read(BLOB) == CONTENT
    assert fetcher.statistics().fetched == 1


async def test_present_blob_is_not_asked_for(cas: CAS) -> None:
    cas.put_bytes(CONTENT)
    source = Source(CONTENT)
    await Fetcher(cas, [source], 5.0).fetch(BLOB)
    assert source.asked == 0


async def test_late_fetch_links_the_blob_into_late(cas: CAS) -> None:
    await Fetcher(cas, [Source(CONTENT)], 5.0).fetch_late(BLOB)
    assert (cas.late / BLOB[7:9] / BLOB[9:]).read_bytes() == CONTENT


async def test_many_callers_make_one_fetch(cas: CAS) -> None:
    source = Source(CONTENT)
    fetcher = Fetcher(cas, [source], 5.0)
    await asyncio.gather(*(fetcher.fetch(BLOB) for _ in range(20)))
    assert source.asked == 1
    assert fetcher.statistics().joined == 19


async def test_no_source_has_it(cas: CAS) -> None:
    fetcher = Fetcher(cas, [Source(None), Source(None)], 5.0)
    with pytest.raises(BlobMissingError) as caught:
        await fetcher.fetch(BLOB)
    assert "no source has it" in caught.value.text
    assert caught.value.hint
    assert fetcher.statistics().failed == 1


@pytest.mark.parametrize(
    "first", [Source(None), Source(b"wrong"), Source(None, error=OSError("broken"))]
)
async def test_next_source_is_asked_when_one_fails(cas: CAS, first: Source) -> None:
    await Fetcher(cas, [first, Source(CONTENT)], 5.0).fetch(BLOB)
    assert cas.read(BLOB) == CONTENT
    assert unfinished(cas) == []


async def test_wrong_bytes_are_refused_and_leave_nothing(cas: CAS) -> None:
    with pytest.raises(BlobCorruptError):
        await Fetcher(cas, [Source(b"wrong"), Source(None)], 5.0).fetch(BLOB)
    assert not cas.has(BLOB)
    assert unfinished(cas) == []


async def test_hanging_source_ends_in_a_timeout_for_all_callers(cas: CAS) -> None:
    source = Source(CONTENT)
    source.gate.clear()
    fetcher = Fetcher(cas, [source], 0.05)
    results = await asyncio.gather(*(fetcher.fetch(BLOB) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [TimeoutError] * 3
    assert unfinished(cas) == []


async def test_waiter_takes_over_when_the_first_caller_is_cancelled(cas: CAS) -> None:
    source = Source(CONTENT)
    source.gate.clear()
    fetcher = Fetcher(cas, [source], 5.0)
    first = asyncio.ensure_future(fetcher.fetch(BLOB))
    await source.called.wait()
    second = asyncio.ensure_future(fetcher.fetch(BLOB))
    await asyncio.sleep(0)
    first.cancel()
    source.gate.set()
    await second
    assert first.cancelled()
    assert cas.read(BLOB) == CONTENT
    assert source.asked == 2


async def test_cancelled_waiter_does_not_disturb_the_fetch(cas: CAS) -> None:
    source = Source(CONTENT)
    source.gate.clear()
    fetcher = Fetcher(cas, [source], 5.0)
    first = asyncio.ensure_future(fetcher.fetch(BLOB))
    await source.called.wait()
    second = asyncio.ensure_future(fetcher.fetch(BLOB))
    await asyncio.sleep(0)
    second.cancel()
    source.gate.set()
    await first
    assert cas.has(BLOB)
    assert source.asked == 1


async def test_directory_source_copies_and_says_what_it_lacks(cas: CAS, tmp_path: Path) -> None:
    other = CAS(tmp_path / "other")
    other.put_bytes(CONTENT)
    fetcher = Fetcher(cas, [DirectorySource(other.objects)], 5.0)
    await fetcher.fetch(BLOB)
    assert cas.read(BLOB) == CONTENT
    with pytest.raises(BlobMissingError):
        await fetcher.fetch(digest("0" * 64))


async def test_directory_source_does_not_follow_links(cas: CAS, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    folder = tmp_path / "other" / BLOB[7:9]
    folder.mkdir(parents=True)
    (folder / BLOB[9:]).symlink_to(secret)
    with pytest.raises(BlobMissingError):
        await Fetcher(cas, [DirectorySource(tmp_path / "other")], 5.0).fetch(BLOB)


async def test_thread_that_was_given_up_writes_nothing_more(cas: CAS, tmp_path: Path) -> None:
    other = CAS(tmp_path / "other")
    big = bytes(3 << 20)
    name = other.put_bytes(big)
    source = DirectorySource(other.objects)
    began, go_on, written = threading.Event(), threading.Event(), []

    class Writer:
        def write(self, chunk: bytes) -> None:
            written.append(len(chunk))
            began.set()
            go_on.wait(5)

    fetch = asyncio.ensure_future(source.fetch(name, Writer()))  # type: ignore[arg-type]
    await asyncio.to_thread(began.wait, 5)
    fetch.cancel()
    _soon(go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await fetch
    source._threads.shutdown()
    assert written == [1 << 20]


def _soon(call: Callable[[], None]) -> None:
    # From another thread: the gate makes the loop wait for the write under way.
    threading.Timer(0.05, call).start()
