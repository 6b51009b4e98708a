"""Which blobs were found whole, and by what stamp a later change to them would show.

A stamp is (inode number, size, mtime, ctime) of the blob's file. Nobody can write to a file, or
replace it, without a change of its ctime or inode, so an equal stamp means: the bytes are those
that were hashed. (A medium that rots on its own leaves the stamp as it is; ``CAS.read`` and the
first ``CAS.open`` of a process hash regardless.)

Stamps are kept in a file of 64-byte records (32 digest, 4 x 8 stamp), appended, last one wins. It
is safe to lose, to cut anywhere and to write from several processes: a record that does not fit
the blob's own stamp means that the blob is hashed once more.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from struct import Struct
from typing import Final

_RECORD: Final = Struct("<32s32s")
_STAMP: Final = Struct("<QQqq")
_REWRITE_FACTOR: Final = 4
_REWRITE_BYTES_MIN: Final = 1 << 20
"""The file is written anew when it is both over 1 MiB and 4 times what it says."""


def stamp_of(status: os.stat_result) -> bytes:
    """The stamp of a file."""
    return _STAMP.pack(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Stamps:
    """The stamps of verified blobs, by the 32 bytes of their hash. Thread-safe.

    About 230 bytes of memory for each blob.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[bytes, bytes] | None = None
        self._here: set[bytes] = set()
        self._held: list[tuple[bytes, bytes]] = []

    def is_known(self, key: bytes) -> bool:
        """Whether there is any stamp of this blob: without one it needs no look at its file."""
        return key in self._load()

    def is_verified(self, key: bytes, stamp: bytes) -> bool:
        """Whether some process found these very bytes whole."""
        return self._load().get(key) == stamp

    def is_verified_here(self, key: bytes, stamp: bytes) -> bool:
        """Whether this process did."""
        return key in self._here and self._load().get(key) == stamp

    def record(self, pairs: Iterable[tuple[bytes, bytes]], *, persist: bool = True) -> None:
        """Note stamps of blobs that this process has just hashed (or written).

        ``persist=False`` is for blobs that were not synced: their stamps end with this process,
        unless whoever syncs takes them with ``take_held`` before and records them after it.
        """
        pairs = list(pairs)
        known = self._load()
        with self._lock:
            known.update(pairs)
            self._here.update(key for key, _ in pairs)
            if not persist:
                self._held += pairs
            elif pairs:
                self._append(b"".join(key + stamp for key, stamp in pairs))

    def take_held(self) -> list[tuple[bytes, bytes]]:
        """The stamps of what was not synced so far; they are the caller's now."""
        with self._lock:
            held, self._held = self._held, []
        return held

    def forget(self, key: bytes) -> None:
        """The blob is gone or damaged."""
        known = self._load()
        with self._lock:
            known.pop(key, None)
            self._here.discard(key)

    def __len__(self) -> int:
        return len(self._load())

    def _load(self) -> dict[bytes, bytes]:
        known = self._known
        if known is None:
            with self._lock:
                known = self._known
                if known is None:
                    known = self._known = self._read()
        return known

    def _read(self) -> dict[bytes, bytes]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        known = dict(_RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size]))
        needed = len(known) * _RECORD.size
        if len(data) % _RECORD.size or len(data) > max(
            _REWRITE_BYTES_MIN, _REWRITE_FACTOR * needed
        ):
            self._rewrite(known)
        return known

    def _rewrite(self, known: dict[bytes, bytes]) -> None:
        """Start the file anew; what another process appends meanwhile is lost, which is safe."""
        fresh = self._path.with_suffix(f".{os.getpid()}")
        try:
            fresh.write_bytes(b"".join(key + stamp for key, stamp in known.items()))
            fresh.replace(self._path)
        except OSError:
            fresh.unlink(missing_ok=True)

    def _append(self, data: bytes) -> None:
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            os.write(file, data)
        except OSError:
            pass  # A full disk must not fail a write that is complete: the blob is hashed again.
        finally:
            os.close(file)
