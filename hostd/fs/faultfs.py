"""The part of hostd-fs that the EROFS way needs: two layers that turn a missing blob into a fetch.

An overlay looks a blob up in its data layers from left to right:

    objects    the CAS: nearly always there, and hostd-fs is not asked fault      here: the look-up
    waits while the daemon fetches, then answers "not here", so that the
               kernel goes on to
    late       hard links of what was fetched on demand. It must be another directory than objects:
               the overlay has just looked there, and refuses the same directory twice
    data       here, and last because an overlay returns the error of its last layer: EIO. "No such
               file" would make a program go on without a module that it has

Names below /fault and /data are two hexadecimal digits, then 62. Nothing else becomes a digest.
Only directories ever exist here. No outside library: ``server.py`` puts this behind pyfuse3.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Awaitable, Callable, Iterator

from hostd.errors import Error
from hostd.ids import Digest, digest
from hostd.log import get_logger

log = get_logger(__name__)

FAULT = 3
DATA = 4
"""Inode numbers of /fault and /data; their 256 directories follow from these."""

_FAULT_PAIRS = 0x100
_DATA_PAIRS = 0x200
INODE_END = 0x300

_PAIR = re.compile(rb"[0-9a-f]{2}")
_REST = re.compile(rb"[0-9a-f]{62}")

Fetch = Callable[[Digest], Awaitable[None]]
"""Returns when the blob is in objects and in late; raises a hostd.errors.Error when it cannot."""


class FaultFS:
    """Look-ups below /fault and /data, by inode number."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self.faults = 0
        self.failed = 0

    def has(self, inode: int) -> bool:
        """Whether the inode is one of the directories here."""
        return inode in (FAULT, DATA) or _FAULT_PAIRS <= inode < INODE_END

    async def lookup(self, parent: int, name: bytes) -> int:
        """The inode of a two-digit directory; a blob never has one.

        Raises:
            OSError: ENOENT from /fault, after the blob was fetched or could not be; EIO from /data.
        """
        if parent in (FAULT, DATA):
            if _PAIR.fullmatch(name) is None:
                raise OSError(errno.ENOENT, "not two hexadecimal digits")
            return (_FAULT_PAIRS if parent == FAULT else _DATA_PAIRS) + int(name, 16)
        if parent >= _DATA_PAIRS:
            raise OSError(errno.EIO, "the blob is not on this host")
        if _REST.fullmatch(name) is not None:
            await self._fault(digest(f"{parent - _FAULT_PAIRS:02x}{name.decode()}"))
        raise OSError(errno.ENOENT, "look in the next layer")

    async def _fault(self, d: Digest) -> None:
        self.faults += 1
        try:
            await self._fetch(d)
        except Error as error:
            # The next layers decide: a blob that came in meanwhile is read, else /data says EIO.
            self.failed += 1
            log.warning("blob cannot be had", blob=d, why=error.text)

    def names(self, inode: int) -> Iterator[tuple[bytes, int]]:
        """What readdir shows: the 256 directories of /fault and /data; they show nothing."""
        first = {FAULT: _FAULT_PAIRS, DATA: _DATA_PAIRS}.get(inode)
        if first is not None:
            for pair in range(256):
                yield b"%02x" % pair, first + pair
