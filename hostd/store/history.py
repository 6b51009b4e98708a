"""Telemetry of this host: calls and containers of the past, in an SQLite file of its own.

It is never replicated and may be lost: records wait in memory for a moment, go to the disk in
batches from one thread with ``synchronous=NORMAL``, and are dropped (and counted) when the disk
refuses them. Recording costs the event loop one append. Retention is bounded by rows and by age.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec

from hostd.clock import Clock, SystemClock
from hostd.errors import ConflictError, VersionMismatchError
from hostd.log import get_logger
from hostd.model import CallInfo, ContainerInfo

log = get_logger(__name__)

HISTORY_VERSION = 1
CALLS_MAX = 200_000
"""About 200 MB with typical phases; a month of a busy host."""
CONTAINERS_MAX = 50_000
AGE_MAX_US = 30 * 86_400 * 1_000_000
BUFFER_MAX = 20_000
"""Records waiting for the disk; the oldest are dropped beyond it."""
BATCH_MAX = 2_000
GATHER_S = 0.2
"""How long the first record of a batch waits for others: a busy host writes 5 times a second."""
PRUNE_EVERY = 2_000
"""Records between two looks at the limits."""
READ_TIMEOUT_S = 5.0

_TABLES = f"""
CREATE TABLE calls (
    id             TEXT PRIMARY KEY,  -- fc-…
    at_us          INTEGER NOT NULL,  -- when it was created
    app_id         TEXT NOT NULL,     -- ap-…
    record         BLOB NOT NULL      -- JSON of model.CallInfo, as it was when the call ended
) STRICT;
CREATE INDEX calls_by_time ON calls (at_us);
CREATE INDEX calls_by_app ON calls (app_id, at_us);
CREATE TABLE containers (
    id             TEXT PRIMARY KEY,  -- ct-…
    at_us          INTEGER NOT NULL,  -- when it was started
    app_id         TEXT NOT NULL,     -- ap-…
    record         BLOB NOT NULL      -- JSON of model.ContainerInfo, as it was when it ended
) STRICT;
CREATE INDEX containers_by_time ON containers (at_us);
CREATE INDEX containers_by_app ON containers (app_id, at_us);
PRAGMA user_version = {HISTORY_VERSION};
"""
_PUT = {
    CallInfo: "INSERT OR REPLACE INTO calls (id, at_us, app_id, record) VALUES (?, ?, ?, ?)",
    ContainerInfo: (
        "INSERT OR REPLACE INTO containers (id, at_us, app_id, record) VALUES (?, ?, ?, ?)"
    ),
}
_BY_ID = {
    CallInfo: "SELECT record FROM calls WHERE id >= ? AND id < ? ORDER BY id LIMIT 2",
    ContainerInfo: "SELECT record FROM containers WHERE id >= ? AND id < ? ORDER BY id LIMIT 2",
}
_LATEST = {
    CallInfo: "SELECT record FROM calls ORDER BY at_us DESC, id DESC LIMIT ?",
    ContainerInfo: "SELECT record FROM containers ORDER BY at_us DESC, id DESC LIMIT ?",
}
_LATEST_OF_APP = {
    CallInfo: "SELECT record FROM calls WHERE app_id = ? ORDER BY at_us DESC, id DESC LIMIT ?",
    ContainerInfo: (
        "SELECT record FROM containers WHERE app_id = ? ORDER BY at_us DESC, id DESC LIMIT ?"
    ),
}
R = TypeVar("R", CallInfo, ContainerInfo)
_PRUNE = (
    ("DELETE FROM calls WHERE at_us < ?", "SELECT at_us FROM calls", CALLS_MAX),
    ("DELETE FROM containers WHERE at_us < ?", "SELECT at_us FROM containers", CONTAINERS_MAX),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryStatistics:
    """What became of the records since the file was opened."""

    written: int
    lost: int
    waiting: int


class History:
    """Past calls and containers. ``record_*`` do not block; reads are awaited."""

    def __init__(self, path: Path, *, clock: Clock | None = None) -> None:
        self._path = path
        self._clock: Clock = clock or SystemClock()
        self._written = self._lost = 0
        self._since_prune = PRUNE_EVERY
        # Guards the fields below. Held for list operations only, never during I/O.
        self._wake = threading.Condition()
        self._waiting: deque[CallInfo | ContainerInfo] = deque()
        self._urgent = False
        self._recorded = 0
        self._closing = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = self._open()
        self._thread = threading.Thread(
            target=self._write_forever, name="history-writer", daemon=True
        )
        self._thread.start()

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self._path)
        except sqlite3.DatabaseError as error:
            # Telemetry must not keep a host from starting: a damaged file is put aside.
            log.warning("history is put aside and begun anew", error=str(error))
            for suffix in ("", "-wal", "-shm"):
                source = Path(f"{self._path}{suffix}")
                with suppress(FileNotFoundError):
                    source.replace(f"{self._path}.damaged{suffix}")
            return _connect(self._path)

    def close(self) -> None:
        """Write what waits and close the file. Idempotent."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join()
        self._db.close()

    def statistics(self) -> HistoryStatistics:
        """Counters since the file was opened."""
        return HistoryStatistics(written=self._written, lost=self._lost, waiting=len(self._waiting))

    # --- recording -----------------------------------------------------------------------------

    def record_call(self, call: CallInfo) -> None:
        """Keep a call that has ended; a later record of the same id replaces the earlier one."""
        self._record(call)

    def record_container(self, container: ContainerInfo) -> None:
        """Keep a container that has ended."""
        self._record(container)

    def _record(self, record: CallInfo | ContainerInfo) -> None:
        with self._wake:
            if self._closing:
                return
            if len(self._waiting) >= BUFFER_MAX:
                self._waiting.popleft()
                self._lost += 1
            self._waiting.append(record)
            self._recorded += 1
            if len(self._waiting) == 1:
                self._wake.notify_all()

    def _write_forever(self) -> None:
        while batch := self._take():
            is_written = self._try_write(batch)
            with self._wake:
                self._written += len(batch) if is_written else 0
                self._lost += 0 if is_written else len(batch)
                self._wake.notify_all()

    def _try_write(self, batch: list[CallInfo | ContainerInfo]) -> bool:
        try:
            self._write(batch)
        except sqlite3.Error as error:
            log.warning("history was not written", records=len(batch), error=str(error))
            return False
        return True

    def _take(self) -> list[CallInfo | ContainerInfo]:
        """Wait for records, gather a batch, take it; empty when the file is being closed."""
        with self._wake:
            # Ends when close() or a record notifies; both come through this lock.
            self._wake.wait_for(lambda: self._waiting or self._closing)
            self._wake.wait_for(
                lambda: self._urgent or self._closing or len(self._waiting) >= BATCH_MAX,
                timeout=GATHER_S,
            )
            count = min(len(self._waiting), BATCH_MAX)
            batch = [self._waiting.popleft() for _ in range(count)]
            self._urgent = False
            return batch

    def _write(self, batch: list[CallInfo | ContainerInfo]) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            for record in batch:
                db.execute(_PUT[type(record)], _row(record))
            self._prune(len(batch))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _prune(self, added: int) -> None:
        """Delete what is too old or too much."""
        self._since_prune += added
        if self._since_prune < PRUNE_EVERY:
            return
        self._since_prune = 0
        oldest_us = self._clock.wall_us() - AGE_MAX_US
        for delete, times, most in _PRUNE:
            beyond = f"{times} ORDER BY at_us DESC LIMIT 1 OFFSET ?"
            row = self._db.execute(beyond, (most - 1,)).fetchone()
            self._db.execute(delete, (max(oldest_us, row[0] if row else 0),))

    # --- reading -------------------------------------------------------------------------------

    async def calls(self, *, limit: int, app_id: str | None = None) -> list[CallInfo]:
        """The latest calls that have ended, newest first."""
        return await asyncio.to_thread(self._latest, CallInfo, limit, app_id)

    async def call(self, ref: str) -> CallInfo | None:
        """The call with this id, or the only one whose id begins so.

        Raises:
            ConflictError: several ids begin so.
        """
        return await asyncio.to_thread(self._one, CallInfo, ref)

    async def containers(self, *, limit: int, app_id: str | None = None) -> list[ContainerInfo]:
        """The latest containers that have ended, newest first."""
        return await asyncio.to_thread(self._latest, ContainerInfo, limit, app_id)

    async def container(self, ref: str) -> ContainerInfo | None:
        """The container with this id, or the only one whose id begins so.

        Raises:
            ConflictError: several ids begin so.
        """
        return await asyncio.to_thread(self._one, ContainerInfo, ref)

    def _latest(self, kind: type[R], limit: int, app_id: str | None) -> list[R]:
        if app_id is None:
            return self._select(kind, _LATEST[kind], (limit,))
        return self._select(kind, _LATEST_OF_APP[kind], (app_id, limit))

    def _one(self, kind: type[R], ref: str) -> R | None:
        found = self._select(kind, _BY_ID[kind], (ref, ref + "{"))
        if not found or found[0].id == ref or len(found) == 1:
            return found[0] if found else None
        raise ConflictError(f"{ref} begins several ids: {found[0].id}, {found[1].id}, …")

    def _select(self, kind: type[R], sql: str, parameters: tuple[object, ...]) -> list[R]:
        """Rows of a query, after everything that was recorded before it is on the disk."""
        self._flush()
        reader = sqlite3.connect(f"file:{quote(str(self._path))}?mode=ro", uri=True)
        try:
            rows = reader.execute(sql, parameters).fetchall()
        finally:
            reader.close()
        return [msgspec.json.decode(row[0], type=kind) for row in rows]

    def _flush(self) -> None:
        with self._wake:
            until = self._recorded
            if self._written + self._lost >= until:
                return
            self._urgent = True
            self._wake.notify_all()
            self._wake.wait_for(lambda: self._written + self._lost >= until, timeout=READ_TIMEOUT_S)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA busy_timeout = 5000")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > HISTORY_VERSION:
            raise VersionMismatchError(
                f"{path.name} has version {version}, this hostd knows up to {HISTORY_VERSION}",
                hint=f"install the newer hostd again, or move {path} away",
            )
        if version == 0:
            db.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
    except BaseException:
        db.close()
        raise
    return db


def _row(record: CallInfo | ContainerInfo) -> tuple[object, ...]:
    at_us = record.created_at_us if isinstance(record, CallInfo) else record.started_at_us
    return (record.id, at_us, record.app_id, msgspec.json.encode(record))
