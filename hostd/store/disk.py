"""One SQLite file with log and state: batches in, one durable transaction each.

Promises: when ``commit`` returned, every command of the batch is on the disk and applied; when it
raised ``StorageFullError``, none is and the file is as it was; after any other failure of the disk
the object refuses further work, because a failed fsync cannot be repeated (the kernel has forgotten
which pages were dirty; https://lwn.net/Articles/752063/).

Only this connection checkpoints: two connections that checkpoint while a third writes can corrupt
the file in SQLite 3.7.0 to 3.51.2 (WAL-reset bug). Everyone else opens it with ``mode=ro``.

Beside the database lie two small files. ``.applied`` holds the index of the last durable command;
it is written after the commit and never synced, so it can only lag: a database that is behind it
has lost the end of its WAL. ``.ballast`` is space to give up: on a disk that is full to the last
block SQLite cannot even open a database that needs recovery.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hostd.errors import Error, InternalError, StorageFullError
from hostd.log import get_logger
from hostd.store import commands, machine, schema
from hostd.store.commands import Command

log = get_logger(__name__)

LOG_ROWS_KEPT = 5_000
"""Applied entries that stay readable, for peers that are a little behind and for people."""
TRUNCATE_EVERY = 1_000
"""Rows deleted at a time: one cheap range delete instead of one per commit."""
CHECKPOINT_COMMITS = 256
CHECKPOINT_BYTES = 4 * 2**20
"""Checkpoint after so many commits or command bytes: keeps the WAL at some MB."""
BALLAST_BYTES = 16 * 2**20
"""More than one WAL of that size and its shared-memory index."""
BUSY_MS = 5_000
"""Readers never block the writer in WAL mode; this covers a person's sqlite3 shell."""

_FULL = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"})
"""What a full disk, a quota or a file size limit look like. Nothing was committed after these."""
_APPLIED = struct.Struct(">QI")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one command: its value, or the error of its proposer."""

    value: object = None
    error: Error | None = None


def chain_of(previous: bytes, log_index: int, command: bytes) -> bytes:
    """The checksum that binds an entry to everything before it."""
    return hashlib.blake2b(
        previous + log_index.to_bytes(8, "big") + command, digest_size=16
    ).digest()


class Disk:
    """The write side of the state database. Used by one thread at a time."""

    def __init__(self, path: Path, *, ballast_bytes: int = BALLAST_BYTES) -> None:
        self.path = path
        self.applied = 0
        self.identity = ""
        self.log_first = 1
        self._chain = bytes(16)
        self._ballast = path.with_name(path.name + ".ballast")
        self._ballast_bytes = ballast_bytes
        self._commits = 0
        self._bytes = 0
        self._applied_fd = -1
        self._db: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open or create the file, migrate and check it, apply what was only logged.

        Raises:
            VersionMismatchError: a newer hostd wrote it.
            StorageFullError: the disk is full, even after the ballast was given up.
            InternalError: the file is damaged; the text says where.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open_once()
        except StorageFullError:
            if not self._ballast.exists():
                raise
            log.warning("disk is full: ballast of the state database is given up")
            self._ballast.unlink()
            self._open_once()
        self._keep_ballast()

    def _open_once(self) -> None:
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._set_up(self._db)
            schema.migrate(self._db, identity=os.urandom(6).hex())
            self._load()
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.OperationalError):
                raise self._translated(error, opening=True) from error
            if isinstance(error, sqlite3.DatabaseError):
                raise _damaged(self.path, str(error)) from error
            raise

    def _set_up(self, db: sqlite3.Connection) -> None:
        os.chmod(self.path, 0o600)
        db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute(f"PRAGMA journal_size_limit = {4 * CHECKPOINT_BYTES}")

    def _load(self) -> None:
        db = self._open_db()
        row = db.execute("SELECT applied, chain, identity FROM meta").fetchone()
        self.applied, self._chain, self.identity = row
        self._check_tail()
        self._check_log()
        self._replay()
        self._applied_fd = os.open(self._applied_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._note_applied()
        self._checkpoint()

    @property
    def _applied_path(self) -> Path:
        return self.path.with_name(self.path.name + ".applied")

    def _check_tail(self) -> None:
        try:
            data = self._applied_path.read_bytes()[: _APPLIED.size]
            index, checksum = _APPLIED.unpack(data)
        except (FileNotFoundError, struct.error):
            return
        if zlib.crc32(data[:8]) == checksum and index > self.applied:
            lost = index - self.applied
            raise _damaged(
                self.path,
                f"its last {lost} commands are gone (applied {self.applied}, was {index})",
            )

    def _check_log(self) -> None:
        """Follow the checksum chain through every row that is kept."""
        db, previous, chain = self._open_db(), 0, bytes(16)
        for log_index, command, stored in db.execute("SELECT * FROM log ORDER BY log_index"):
            if previous == 0:
                self.log_first = log_index
            elif log_index != previous + 1:
                raise _damaged(self.path, f"log entry {previous + 1} is missing")
            trusted_start = previous == 0 and log_index > 1
            chain = stored if trusted_start else chain_of(chain, log_index, command)
            if chain != stored:
                raise _damaged(self.path, f"log entry {log_index} does not match its checksum")
            if log_index == self.applied and chain != self._chain:
                raise _damaged(self.path, f"the state does not belong to log entry {log_index}")
            previous = log_index
        if previous < self.applied:
            raise _damaged(self.path, f"log ends at {previous}, state is at {self.applied}")

    def _replay(self) -> None:
        db = self._open_db()
        rows = db.execute(
            "SELECT log_index, command, chain FROM log WHERE log_index > ? ORDER BY log_index",
            (self.applied,),
        ).fetchall()
        if not rows:
            return
        log.info("log entries are applied again", count=len(rows))
        db.execute("BEGIN IMMEDIATE")
        for log_index, data, chain in rows:
            self._apply_guarded(log_index, commands.decode(data))
            db.execute("UPDATE meta SET applied = ?, chain = ?", (log_index, chain))
        db.execute("COMMIT")
        self.applied, self._chain = rows[-1][0], rows[-1][2]

    def commit(self, batch: Sequence[tuple[Command, bytes]]) -> list[Outcome]:
        """Append, apply and make durable, all of it in one transaction.

        Args:
            batch: commands with their encoded form, in the order of the log.

        Raises:
            StorageFullError: nothing of the batch happened; it may be tried again.
            InternalError: the disk failed; the batch's fate is unknown, this object is finished.
        """
        try:
            outcomes = self._transact(batch)
        except sqlite3.OperationalError as error:
            self._rollback()
            raise self._translated(error) from error
        self._after_commit(sum(len(data) for _, data in batch))
        return outcomes

    def _transact(self, batch: Sequence[tuple[Command, bytes]]) -> list[Outcome]:
        try:
            return self._write(batch, guarded=False)
        except sqlite3.OperationalError:
            raise
        except Exception:  # one bad command must not fail those beside it
            self._rollback()
            log.exception("a command broke its batch: the batch is done again one by one")
            return self._write(batch, guarded=True)

    def _write(self, batch: Sequence[tuple[Command, bytes]], *, guarded: bool) -> list[Outcome]:
        db, index, chain = self._open_db(), self.applied, self._chain
        outcomes: list[Outcome] = []
        apply = self._apply_guarded if guarded else self._apply
        db.execute("BEGIN IMMEDIATE")
        for command, data in batch:
            index += 1
            chain = chain_of(chain, index, data)
            db.execute(
                "INSERT INTO log (log_index, command, chain) VALUES (?, ?, ?)", (index, data, chain)
            )
            outcomes.append(apply(index, command))
        db.execute("UPDATE meta SET applied = ?, chain = ?", (index, chain))
        first = self._truncate(index)
        db.execute("COMMIT")
        self.applied, self._chain, self.log_first = index, chain, first
        return outcomes

    def _apply(self, index: int, command: Command) -> Outcome:
        db = self._open_db()
        before = db.total_changes
        try:
            return Outcome(machine.apply(db, index, command))
        except machine.Reject as reject:
            assert db.total_changes == before, (
                f"{type(command).__name__} wrote before it was rejected"
            )
            return Outcome(error=reject.error)

    def _apply_guarded(self, index: int, command: Command) -> Outcome:
        db = self._open_db()
        db.execute("SAVEPOINT one")
        try:
            outcome = self._apply(index, command)
        except sqlite3.OperationalError:
            raise
        except Exception as error:  # becomes the answer to this command only
            log.exception("a command could not be applied", log_index=index)
            db.execute("ROLLBACK TO one")
            outcome = Outcome(
                error=InternalError(f"{type(command).__name__} could not be applied: {error!r}")
            )
        db.execute("RELEASE one")
        return outcome

    def _truncate(self, index: int) -> int:
        """Delete log rows far behind; the first index that is kept."""
        keep_from = index - LOG_ROWS_KEPT + 1
        if keep_from - self.log_first < TRUNCATE_EVERY:
            return self.log_first
        self._open_db().execute("DELETE FROM log WHERE log_index < ?", (keep_from,))
        return keep_from

    def _after_commit(self, size: int) -> None:
        self._note_applied()
        self._commits += 1
        self._bytes += size
        if self._commits >= CHECKPOINT_COMMITS or self._bytes >= CHECKPOINT_BYTES:
            self._checkpoint()

    def _note_applied(self) -> None:
        index = self.applied.to_bytes(8, "big")
        # A full disk cannot hold the note: it lags, which is allowed.
        with contextlib.suppress(OSError):
            os.pwrite(self._applied_fd, _APPLIED.pack(self.applied, zlib.crc32(index)), 0)

    def _checkpoint(self) -> None:
        self._commits = self._bytes = 0
        try:
            self._open_db().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname not in _FULL:
                raise self._translated(error) from error
            log.warning("disk is full: the write-ahead log cannot be folded in yet")

    def _rollback(self) -> None:
        db = self._open_db()
        if db.in_transaction:
            with contextlib.suppress(sqlite3.OperationalError):
                db.execute("ROLLBACK")

    def _translated(self, error: sqlite3.OperationalError, *, opening: bool = False) -> Error:
        name = getattr(error, "sqlite_errorname", "")
        # While opening, recovery reports a full disk under any of the I/O codes.
        if name in _FULL or (opening and name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN"))):
            return StorageFullError(
                f"{self.path.name} cannot grow: {error} ({name})", hint="free space in data_dir"
            )
        return InternalError(f"{self.path.name} stopped working: {error} ({name})")

    def _keep_ballast(self) -> None:
        if not self._ballast_bytes or self._ballast.exists():
            return
        space = os.statvfs(self.path.parent)
        if space.f_bavail * space.f_frsize < 4 * self._ballast_bytes:
            return
        with contextlib.suppress(OSError), self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self._ballast_bytes)

    def _open_db(self) -> sqlite3.Connection:
        assert self._db is not None, "state database is not open"
        return self._db

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._applied_fd >= 0:
            os.close(self._applied_fd)
            self._applied_fd = -1


def _damaged(path: Path, what: str) -> InternalError:
    return InternalError(
        f"{path.name} is damaged: {what}",
        hint=f"move {path} away (blobs and images stay, names and build cache are lost)",
    )
