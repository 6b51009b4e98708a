"""One blob in the making."""

from __future__ import annotations

import os
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from blake3 import blake3

from hostd.errors import BlobCorruptError, PayloadTooLargeError
from hostd.fs.durable import storage_errors, sync_directory
from hostd.fs.stamps import stamp_of
from hostd.ids import Digest, digest

if TYPE_CHECKING:
    from hostd.fs.cas import CAS

BLOB_MODE: Final = 0o444
"""Of every blob: a layer's files take their attributes from the index, never from here."""


class BlobWriter:
    """One blob in the making: ``with cas.writer() as w: w.write(…); name = w.commit()``.

    Leaving the block without ``commit`` drops what was written. Not for several threads at once.
    """

    def __init__(
        self, cas: CAS, *, expected: Digest | None, size_max: int | None, sync: bool
    ) -> None:
        self._cas = cas
        self._expected = expected
        self._size_max = size_max
        self._sync = sync
        self._hasher = blake3(max_threads=1)
        self._path = cas.scratch_name()
        self.size = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with storage_errors():
            self._fd = os.open(self._path, flags, BLOB_MODE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def __del__(self) -> None:
        self.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes.

        Raises:
            PayloadTooLargeError: more than ``size_max``.
            StorageFullError: no space is left.
        """
        self.size += len(data)
        if self._size_max is not None and self.size > self._size_max:
            raise PayloadTooLargeError(
                f"blob is over {self._size_max} bytes",
                size_bytes=self.size,
                limit_bytes=self._size_max,
            )
        self._hasher.update(data)
        view = memoryview(data)
        with storage_errors():
            while view:
                view = view[os.write(self._fd, view) :]

    def commit(self) -> Digest:
        """Give the content its name and its place; on disk when this returns (if ``sync``).

        Raises:
            BlobCorruptError: the content is not the expected one.
            StorageFullError: no space is left.
        """
        name = digest(self._hasher.hexdigest())
        if self._expected is not None and name != self._expected:
            raise BlobCorruptError(
                f"content of {self.size} bytes is {name}, expected {self._expected}",
                digest=self._expected,
            )
        with storage_errors():
            if self._sync:
                os.fdatasync(self._fd)
            status = self._cas.adopt(name, self._path)
            self._path = ""
            if self._sync:
                sync_directory(self._cas.directory_of(name))
        self._cas.record([(bytes.fromhex(name[7:]), stamp_of(status))], persist=self._sync)
        self.abort()
        return name

    def abort(self) -> None:
        """Drop what was written, unless it was committed. May be called more than once."""
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)
            if self._path:
                with suppress(FileNotFoundError):
                    os.unlink(self._path)
