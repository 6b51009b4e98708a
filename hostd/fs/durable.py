"""What makes bytes and names outlive a power failure, and what a full disk means."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from hostd.errors import ConflictError, StorageFullError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Say that the disk is full in our own terms."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(
                "the data directory has no space left; nothing was changed",
                hint="remove images, or give the data directory more space",
            ) from error
        raise


def syncfs(fd: int) -> None:
    """Put everything on disk that was written to the file system of ``fd`` (syncfs(2))."""
    if _libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sync_directory(path: str) -> None:
    """Put a directory's names on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def changed(path: bytes) -> ConflictError:
    """The error for a file that changed while it was being stored."""
    return ConflictError(f"{os.fsdecode(path)!r} changed while it was being stored")
