"""Notices when somebody other than the CAS changes a blob, so that it is looked at again.

An image is checked before its first root; afterwards the kernel reads its blobs without asking us.
The CAS never writes to a blob in its place: files come in by rename, which is not watched. Whatever
else happens in ``objects`` (a write, a deletion, a change of attributes) is a tool, a person or a
broken program, and makes the next root of every image wait for another check (4 µs a blob).

It is not seen when a medium rots by itself, nor what was changed while no daemon ran: the check
before an image's first root is for the latter (inotify(7)).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

from hostd.log import get_logger

log = get_logger(__name__)

# linux/inotify.h
_IN_MODIFY = 0x2
_IN_ATTRIB = 0x4
_IN_MOVED_FROM = 0x40
_IN_DELETE = 0x200
_IN_ONLYDIR = 0x1000000
_MASK = _IN_MODIFY | _IN_ATTRIB | _IN_MOVED_FROM | _IN_DELETE | _IN_ONLYDIR

_READ_BYTES = 64 * 1024
"""What is read at once; events that overflow the kernel's queue arrive as one that says so."""

_libc = ctypes.CDLL(None, use_errno=True)


class BlobWatch:
    """Says whether blobs below ``objects`` were touched since it was last asked."""

    def __init__(self, objects: Path) -> None:
        """Begin to watch; without inotify nothing is ever noticed, with a warning."""
        self._descriptor = -1
        try:
            self._descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
            for number in range(256):
                path = os.fsencode(objects / f"{number:02x}")
                _checked(_libc.inotify_add_watch(self._descriptor, path, _MASK))
        except OSError as error:
            log.warning("changes to blobs will not be noticed", why=error.strerror)
            self.close()

    def touched(self) -> bool:
        """Take all events; which blobs they name does not matter, the check finds out. 1 µs."""
        count = 0
        if self._descriptor >= 0:
            with contextlib.suppress(BlockingIOError):
                while events := os.read(self._descriptor, _READ_BYTES):
                    count += len(events)
        return count > 0

    def close(self) -> None:
        """Stop watching. May be repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
