"""A directory for files that are not finished, which dies with its process.

Each process (each :class:`Scratch`) has its own directory below ``tmp`` and holds a lock on it; the
kernel drops the lock when the process ends, however it ends. Whoever starts next removes the
directories whose lock is free. Two processes may so share one store and clear only what is dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import tempfile
import weakref
from pathlib import Path


class Scratch:
    """Names for unfinished files, on the file system of ``parent``."""

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_dead(parent)
        self.path, self.fd = _make_locked(parent)
        self._numbers = itertools.count()
        self._close = weakref.finalize(self, _remove, self.path, self.fd, os.getpid())

    def name(self) -> str:
        """A path that no other file has."""
        return f"{self.path}/{next(self._numbers)}"

    def close(self) -> None:
        """Remove the directory and what is in it."""
        self._close()


def _make_locked(parent: Path) -> tuple[str, int]:
    while True:
        path = tempfile.mkdtemp(dir=parent, prefix="")
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # Another process may have found it unlocked and removed it: then there is nothing to lock.
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return path, fd
        os.close(fd)


def _remove(path: str, fd: int, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.close(fd)


def _remove_dead(parent: Path) -> None:
    for entry in parent.iterdir():
        if entry.is_symlink() or not entry.is_dir():
            entry.unlink(missing_ok=True)
            continue
        try:
            fd = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)
