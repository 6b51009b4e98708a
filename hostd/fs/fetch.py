"""Getting blobs that this host lacks: from whom, one request per blob, never longer than a limit.

``BlobSource`` is what the fs service needs from others (a directory now, peers later; they declare
nothing here, they are handed in). ``Fetcher`` asks the sources in order, stores only what hashes to
its name, and answers every caller with the blob or a typed error within its time limit.

Concurrency: all methods run on one event loop. ``_running`` maps a digest to the outcome of the one
fetch under way. The first caller does the work itself, so there are no tasks to look after; when
that caller is cancelled, one of the waiters takes over.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from hostd.errors import (
    BlobCorruptError,
    BlobError,
    BlobMissingError,
    StorageFullError,
    TimeoutError,
)
from hostd.fs.cas import CAS
from hostd.fs.writer import BlobWriter
from hostd.ids import Digest, hex_of
from hostd.log import get_logger

log = get_logger(__name__)

PARALLEL_MAX = 64
"""Fetches under way at once; 64 overlapping 300 ms requests took 0.96 s (measured)."""

THREADS = 8
"""Of the fetcher, and of each source. Their own, because the loop's may all wait for us: whoever
reads a file of a root in such a thread waits for the fetch of its blob."""

_CHUNK_BYTES = 1 << 20


T = TypeVar("T")


class BlobSource(Protocol):
    """Somebody who may have blobs."""

    name: str

    async def fetch(self, d: Digest, writer: BlobWriter) -> None:
        """Write all bytes of the blob to the writer; the caller commits, which checks the hash.

        Called on the event loop, for different digests at the same time. Must not block the loop.

        Raises:
            BlobMissingError: this source does not have it.
            OSError, BlobError: it could not be read; the next source is asked.
        """
        ...


class DirectorySource:
    """A directory with blobs as ``ab/<62 hex>``: another host's objects, a network mount."""

    def __init__(self, directory: Path) -> None:
        self.name = f"directory {directory}"
        self._directory = directory
        # Threads of its own: a network mount that hangs must not take the threads of all others.
        self._threads = ThreadPoolExecutor(THREADS, "hostd-source")

    async def fetch(self, d: Digest, writer: BlobWriter) -> None:
        """Copy the blob in a thread; BlobMissingError when there is no such file."""
        gate = _Gate(writer.write)
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, self._copy, d, gate)
        finally:
            gate.close()

    def _copy(self, d: Digest, gate: _Gate) -> None:
        digits = hex_of(d)
        path = self._directory / digits[:2] / digits[2:]
        try:
            source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise BlobMissingError(f"{self.name} lacks blob {d}") from None
        with os.fdopen(source, "rb", buffering=0) as file:
            while (chunk := file.read(_CHUNK_BYTES)) and gate.write(chunk):
                pass


class _Gate:
    """Lets one thread write until the fetch is over.

    A thread cannot be cancelled: without the gate it could write to a descriptor that was closed,
    and reused, after its fetch timed out.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._open = True

    def write(self, chunk: bytes) -> bool:
        """Pass the chunk on; False when the fetch is over."""
        with self._lock:
            if self._open:
                self._write(chunk)
            return self._open

    def close(self) -> None:
        """Let nothing more pass; waits for the write under way, which is local and short."""
        self._open = False
        with self._lock:
            pass


@dataclass(frozen=True, slots=True)
class FetchStatistics:
    """Counters since the start."""

    fetched: int
    failed: int
    joined: int
    """Callers who waited for a fetch that another had begun."""
    running: int


class _Abandoned(Exception):
    """The caller who ran a fetch for others was cancelled; somebody else must run it."""


Outcome = BlobError | TimeoutError | StorageFullError | _Abandoned | None


class Fetcher:
    """Brings missing blobs into the CAS, from the first source that delivers the right bytes."""

    def __init__(self, cas: CAS, sources: Sequence[BlobSource], timeout_s: float) -> None:
        self._cas = cas
        self._sources = tuple(sources)
        self._timeout_s = timeout_s
        self._running: dict[Digest, asyncio.Future[Outcome]] = {}
        self._slots = asyncio.Semaphore(PARALLEL_MAX)
        self._threads = ThreadPoolExecutor(THREADS, "hostd-fetch")
        self._fetched = self._failed = self._joined = 0

    @property
    def timeout_s(self) -> float:
        """The longest that one fetch may take."""
        return self._timeout_s

    async def fetch(self, d: Digest) -> None:
        """Make sure that the CAS has a blob.

        Raises:
            BlobMissingError: no source has it.
            BlobCorruptError: those that have it delivered other bytes.
            TimeoutError: not done within ``timeout_s``.
            StorageFullError: the data directory has no space for it.
        """
        while (running := self._running.get(d)) is not None:
            self._joined += 1
            outcome = await asyncio.shield(running)
            if not isinstance(outcome, _Abandoned):
                return _deliver(outcome)
        # No await until the entry is written: two callers must not both begin this fetch.
        running = self._running[d] = asyncio.get_running_loop().create_future()
        outcome = _Abandoned()
        try:
            outcome = await self._attempt(d)
        finally:
            del self._running[d]
            running.set_result(outcome)
        return _deliver(outcome)

    async def fetch_late(self, d: Digest) -> None:
        """The same, for a reader who waits: the blob is in the layer that the kernel tries next."""
        await self.fetch(d)
        await self._in_thread(lambda: self._cas.link_late(d))

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _attempt(self, d: Digest) -> Outcome:
        try:
            async with asyncio.timeout(self._timeout_s), self._slots:
                await self._ask_all(d)
        except builtins.TimeoutError:
            self._failed += 1
            return TimeoutError(f"blob {d} was not fetched within {self._timeout_s} s", blob=d)
        except (BlobError, StorageFullError) as error:
            self._failed += 1
            return error
        return None

    async def _ask_all(self, d: Digest) -> None:
        if await self._in_thread(lambda: self._cas.has(d)):
            return
        failure: BlobError = BlobMissingError(
            f"blob {d} is not on this host and no source has it",
            hint="build the image again, or set fs.source_dir to a directory that has its blobs",
            blob=d,
        )
        for source in self._sources:
            try:
                await self._ask(source, d)
            except BlobMissingError:
                continue
            except BlobCorruptError as error:
                log.warning("source delivered other bytes", source=source.name, blob=d)
                failure = error
            except OSError as error:
                log.warning("source cannot be read", source=source.name, blob=d, why=str(error))
            else:
                self._fetched += 1
                log.info("blob fetched", source=source.name, blob=d)
                return
        raise failure

    async def _ask(self, source: BlobSource, d: Digest) -> None:
        writer = await self._in_thread(lambda: self._cas.writer(expected=d))
        try:
            await source.fetch(d, writer)
            await self._in_thread(writer.commit)
        except BaseException:
            writer.abort()
            raise

    def statistics(self) -> FetchStatistics:
        """Counters since the start."""
        return FetchStatistics(
            fetched=self._fetched,
            failed=self._failed,
            joined=self._joined,
            running=len(self._running),
        )


def _deliver(outcome: Outcome) -> None:
    if outcome is not None:
        raise outcome
