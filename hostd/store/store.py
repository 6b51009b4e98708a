"""The store as the daemon uses it: propose a command, read the state.

Proposals queue in memory; one thread takes everything that is queued, commits it as one transaction
and answers all of it (group commit), so that a sync of the disk is shared by whoever waits. The
interface is that of a replicated log: commands in, deterministic apply, an answer when it is
durable. A Raft log can take the place of the thread without its callers noticing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hostd.clock import Clock
from hostd.errors import (
    Error,
    InternalError,
    PayloadTooLargeError,
    ResourceExhaustedError,
    TimeoutError,
)
from hostd.ids import Digest, ImageId
from hostd.log import get_logger
from hostd.store import commands
from hostd.store.commands import Command
from hostd.store.disk import BALLAST_BYTES, Disk, Outcome
from hostd.store.reading import ImageRow, Reader

log = get_logger(__name__)

QUEUE_MAX = 10_000
"""Proposals that wait or are being written: some seconds of work for a slow disk."""
BATCH_MAX = 1_024
"""Commands of one transaction: beyond it the sync is already spread thin and latency only grows."""
COMMAND_BYTES_MAX = 4 * 2**20
"""One command: about 25,000 uploads. Larger ones must be split by the proposer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatistics:
    """What the store did since it was opened."""

    applied: int
    commands: int
    batches: int
    batch_max: int
    rejected: int
    queued: int
    commit_us: int
    """Time spent in commits, all together."""


class _Proposal:
    __slots__ = ("command", "data", "future")

    def __init__(self, command: Command, data: bytes, future: asyncio.Future[object]) -> None:
        self.command = command
        self.data = data
        self.future = future


class Store:
    """The state of this cluster. Open one per data directory; use it from one event loop."""

    def __init__(self, disk: Disk, reader: Reader, *, clock: Clock) -> None:
        self._disk = disk
        self._reader = reader
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._failure: Error | None = None
        self._outstanding = 0
        self._rejected = 0
        self._commands = self._batches = self._batch_max = self._commit_us = 0
        # Guards _queue and _closing; the thread waits on it. Held for list operations only.
        self._wake = threading.Condition()
        self._queue: list[_Proposal] = []
        self._closing = False
        self._thread = threading.Thread(
            target=self._write_forever, name="store-writer", daemon=True
        )
        self._thread.start()

    @classmethod
    async def open(cls, path: Path, *, clock: Clock, ballast_bytes: int = BALLAST_BYTES) -> Store:
        """Open or create the state database.

        Raises:
            VersionMismatchError: a newer hostd wrote it.
            StorageFullError: there is no space to open it.
            InternalError: it is damaged.
        """
        disk = Disk(path, ballast_bytes=ballast_bytes)
        await asyncio.to_thread(disk.open)
        try:
            reader = await Reader.open(path)
        except BaseException:
            disk.close()
            raise
        return cls(disk, reader, clock=clock)

    @property
    def identity(self) -> str:
        """Random name of this copy of the state, made with the file."""
        return self._disk.identity

    @property
    def failure(self) -> Error | None:
        """Why the store stopped for good, or None. The daemon must restart to use it again."""
        return self._failure

    def statistics(self) -> StoreStatistics:
        """Counters since the store was opened."""
        return StoreStatistics(
            applied=self._disk.applied,
            commands=self._commands,
            batches=self._batches,
            batch_max=self._batch_max,
            rejected=self._rejected,
            queued=self._outstanding,
            commit_us=self._commit_us,
        )

    async def close(self) -> None:
        """Write what is queued, then close the file. Idempotent."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        await self._reader.close()
        await asyncio.to_thread(self._disk.close)

    # --- proposing ------------------------------------------------------------------------------

    async def propose(self, command: Command, *, timeout_s: float = 10) -> object:
        """Make a command durable and apply it; what ``machine.apply`` returned.

        Raises:
            Error: the state machine rejected it (NotFoundError, …); nothing changed.
            StorageFullError: no space; nothing changed, and it may be tried again.
            ResourceExhaustedError: too many proposals wait; nothing changed.
            TimeoutError: the field ``certain`` tells whether it surely did not happen.
            InternalError: the store stopped; see ``failure``.
        """
        proposal = self._enqueue(command)
        try:
            async with asyncio.timeout(timeout_s):
                return await proposal.future
        except BaseException as error:
            withdrawn = self._withdraw(proposal)
            if isinstance(error, asyncio.TimeoutError) and not isinstance(error, Error):
                raise self._late(command, timeout_s, withdrawn=withdrawn) from None
            raise

    def _enqueue(self, command: Command) -> _Proposal:
        if self._failure is not None:
            raise InternalError(f"the store has stopped: {self._failure}")
        if self._outstanding >= QUEUE_MAX:
            raise ResourceExhaustedError(
                f"{self._outstanding} commands wait for the disk, at most {QUEUE_MAX} may"
            )
        data = commands.encode(command)
        if len(data) > COMMAND_BYTES_MAX:
            name = type(command).__name__
            raise PayloadTooLargeError(f"{name} is {len(data)} bytes, limit {COMMAND_BYTES_MAX}")
        proposal = _Proposal(command, data, self._loop.create_future())
        with self._wake:
            if self._closing:
                raise InternalError("the store is closed")
            self._queue.append(proposal)
            self._wake.notify()
        self._outstanding += 1
        return proposal

    def _withdraw(self, proposal: _Proposal) -> bool:
        """Take a proposal back if the thread has not begun it."""
        with self._wake:
            try:
                self._queue.remove(proposal)
            except ValueError:
                return False
        self._outstanding -= 1
        return True

    def _late(self, command: Command, timeout_s: float, *, withdrawn: bool) -> TimeoutError:
        name = type(command).__name__
        if withdrawn:
            return TimeoutError(
                f"{name} waited {timeout_s} s for the disk and was withdrawn", certain=True
            )
        return TimeoutError(
            f"{name} was not confirmed within {timeout_s} s; it may still happen", certain=False
        )

    # --- the writer thread ----------------------------------------------------------------------

    def _write_forever(self) -> None:
        while batch := self._take():
            started = self._clock.monotonic_us()
            try:
                outcomes = self._disk.commit([(each.command, each.data) for each in batch])
            except Error as error:
                outcomes = [Outcome(error=error)] * len(batch)
                if isinstance(error, InternalError):
                    self._failure = error
            except Exception as error:  # the thread's root: callers must hear of it
                log.exception("the store stopped")
                self._failure = InternalError(f"the store stopped: {error!r}")
                outcomes = [Outcome(error=self._failure)] * len(batch)
            took_us = self._clock.monotonic_us() - started
            self._loop.call_soon_threadsafe(self._answer, batch, outcomes, took_us)

    def _take(self) -> list[_Proposal]:
        """Wait for proposals and take what is there; empty when the store is being closed."""
        with self._wake:
            # Ends when close() or a proposal notifies; both always come through this lock.
            while not self._queue and not self._closing:
                self._wake.wait()
            batch, self._queue = self._queue[:BATCH_MAX], self._queue[BATCH_MAX:]
            return batch

    def _answer(self, batch: list[_Proposal], outcomes: list[Outcome], took_us: int) -> None:
        self._batches += 1
        self._commands += len(batch)
        self._batch_max = max(self._batch_max, len(batch))
        self._commit_us += took_us
        self._outstanding -= len(batch)
        for proposal, outcome in zip(batch, outcomes, strict=True):
            self._rejected += outcome.error is not None
            if proposal.future.done():
                continue
            if outcome.error is None:
                proposal.future.set_result(outcome.value)
            else:
                proposal.future.set_exception(outcome.error)

    # --- reading --------------------------------------------------------------------------------

    async def image(self, ref: str) -> ImageRow | None:
        """The image with this id, name, or unique id prefix (``im-`` and >= 4 characters).

        Raises:
            ConflictError: several ids begin so.
        """
        return await self._reader.image(ref)

    async def images(self) -> list[ImageRow]:
        """All images, newest first."""
        return await self._reader.images()

    async def layer(self, key: str) -> ImageId | None:
        """The image that a build step with this cache key made."""
        return await self._reader.layer(key)

    async def uploads(self, sha256s: Iterable[str]) -> dict[str, Digest]:
        """The blobs that clients know by these SHA-256; unknown ones are absent from the result."""
        return await self._reader.uploads(sha256s)
