"""The part of hostd-fs that the FUSE way needs: whole images as read-only trees, below /img.

Everything is answered from the image's index, which is mapped into memory, and from blobs on this
host. Trees never change, so inode numbers are computed (image, node), not remembered, and the
kernel may keep every answer for ever; "forget" means nothing here.

A blob is opened through the CAS, which hashes it when this process has not seen it before or it was
changed since: wrong bytes become a fetch, then an error, never an answer. Reads ask the page cache
first (RWF_NOWAIT) and go to a thread only when the disk is needed, so that one slow disk read does
not hold up the others. Files are read with preadv, not mapped: a truncated mapping is a request
without an answer.

Handlers raise OSError; whatever else escapes is a bug and becomes EIO in ``server.py``, which puts
this behind pyfuse3. No outside library here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

from hostd.errors import BlobError, Error
from hostd.fs.index import Attributes, IndexReader
from hostd.ids import Digest, ImageId
from hostd.log import get_logger

log = get_logger(__name__)

IMG = 2
"""Inode number of /img."""

NODE_BITS = 40
"""Inode number = (slot of the image, from 1) << 40 | node number; EROFS node numbers are 32 bit."""

INLINE_HASH_BYTES_MAX = 1 << 20
"""Blobs up to this size are opened, and hashed if need be, without a thread: at most 0.3 ms."""

T = TypeVar("T")
InThread = Callable[[Callable[[], T]], Awaitable[T]]


class Blobs(Protocol):
    """What the trees need of the CAS; called from any thread."""

    def size(self, d: Digest) -> int:
        """Bytes of the blob; BlobMissingError."""
        ...

    def open(self, d: Digest) -> int:
        """A descriptor of a blob that was verified; BlobMissingError, BlobCorruptError."""
        ...


class _OpenFile:
    """A regular file that somebody has open: a blob's descriptor, or bytes of the index."""

    __slots__ = ("data", "descriptor", "size", "users")

    def __init__(self, *, descriptor: int, data: bytes, size: int) -> None:
        self.descriptor = descriptor
        self.data = data
        self.size = size
        self.users = 0


class TreeFS:
    """Look-ups, attributes and contents of images, by inode number.

    Concurrency: one event loop. ``_open`` is changed only between awaits; two openers of one inode
    that both had to wait for its blob are sorted out in ``_register``.
    """

    def __init__(
        self,
        blobs: Blobs,
        *,
        fetch: Callable[[Digest], Awaitable[None]],
        in_thread: Callable[[Callable[[], int]], Awaitable[int]],
        read_in_thread: Callable[[Callable[[], bytes]], Awaitable[bytes]],
    ) -> None:
        self._blobs = blobs
        self._fetch = fetch
        self._in_thread = in_thread
        self._read_in_thread = read_in_thread
        self._slots: dict[ImageId, int] = {}
        self._readers: dict[int, IndexReader] = {}
        self._open: dict[int, _OpenFile] = {}

    # --- images ----------------------------------------------------------------------------------

    def add(self, image: ImageId, path: Path) -> None:
        """Offer an image; its index must have been validated."""
        if image in self._slots:
            return
        slot = max(self._readers, default=0) + 1
        self._readers[slot] = IndexReader(path)
        self._slots[image] = slot

    def drop(self, image: ImageId) -> None:
        """Stop offering an image by name; what is mounted goes on to read it."""
        self._slots.pop(image, None)

    def images(self) -> list[tuple[bytes, int]]:
        """Names and inode numbers below /img."""
        return [(image.encode(), self._root(slot)) for image, slot in self._slots.items()]

    def _root(self, slot: int) -> int:
        return slot << NODE_BITS | self._readers[slot].root_nid

    def _node(self, inode: int) -> tuple[IndexReader, int]:
        reader = self._readers.get(inode >> NODE_BITS)
        if reader is None:
            raise OSError(errno.ESTALE, "no such image")
        return reader, inode & (1 << NODE_BITS) - 1

    # --- names and attributes --------------------------------------------------------------------

    def image_root(self, name: bytes) -> int:
        """The inode of /img/<name>; ENOENT when it is not offered."""
        slot = self._slots.get(ImageId(os.fsdecode(name)))
        if slot is None:
            raise OSError(errno.ENOENT, "no such image")
        return self._root(slot)

    def lookup(self, parent: int, name: bytes) -> int:
        """The inode of a directory's entry; ENOENT."""
        reader, node = self._node(parent)
        child = reader.lookup(node, name)
        if child is None:
            raise OSError(errno.ENOENT, "no such entry")
        return parent >> NODE_BITS << NODE_BITS | child

    def attributes(self, inode: int) -> Attributes:
        """What stat shows."""
        reader, node = self._node(inode)
        return reader.stat(node)

    def readlink(self, inode: int) -> bytes:
        """Where a symbolic link points."""
        reader, node = self._node(inode)
        return reader.readlink(node)

    def xattrs(self, inode: int) -> dict[bytes, bytes]:
        """Extended attributes as programs see them."""
        reader, node = self._node(inode)
        return reader.xattrs(node)

    def entries(self, inode: int) -> list[tuple[bytes, int]]:
        """Names and inodes of a directory, always in the same order."""
        reader, node = self._node(inode)
        base = inode >> NODE_BITS << NODE_BITS
        return [(name, base | child) for name, child, _ in reader.readdir(node)]

    # --- contents --------------------------------------------------------------------------------

    async def open(self, inode: int) -> None:
        """Make an inode readable until as many ``release`` calls; it is its own handle.

        Raises:
            OSError: EIO when the blob is missing or damaged and cannot be fetched.
        """
        file = self._open.get(inode)
        if file is None:
            file = self._register(inode, await self._open_file(inode))
        file.users += 1

    def _register(self, inode: int, opened: _OpenFile) -> _OpenFile:
        """Keep a file that was opened, unless another opener was faster."""
        file = self._open.setdefault(inode, opened)
        if file is not opened and opened.descriptor >= 0:
            os.close(opened.descriptor)
        return file

    async def _open_file(self, inode: int) -> _OpenFile:
        reader, node = self._node(inode)
        d = reader.digest(node)
        if d is None:
            data = reader.inline_data(node) or b""
            return _OpenFile(descriptor=-1, data=data, size=len(data))
        size = reader.stat(node).size
        return _OpenFile(descriptor=await self._open_blob(d, size), data=b"", size=size)

    async def _open_blob(self, d: Digest, size: int) -> int:
        try:
            return await self._open_local(d, size)
        except BlobError as error:
            log.info("blob is fetched because it is read", blob=d, why=error.text)
        try:
            await self._fetch(d)
            return await self._open_local(d, size)
        except Error as error:
            log.warning("blob cannot be had", blob=d, why=error.text)
            raise OSError(errno.EIO, error.text) from error

    async def _open_local(self, d: Digest, size: int) -> int:
        if size <= INLINE_HASH_BYTES_MAX:
            return self._blobs.open(d)
        return await self._in_thread(lambda: self._blobs.open(d))

    async def read(self, inode: int, offset: int, size: int) -> bytes | memoryview:
        """At most ``size`` bytes from ``offset``; fewer only at the end of the file."""
        file = self._open.get(inode)
        if file is None:
            raise OSError(errno.EBADF, "not open")
        if file.descriptor < 0:
            return file.data[offset : offset + size]
        wanted = max(0, min(size, file.size - offset))
        cached = _read_cached(file.descriptor, wanted, offset)
        if len(cached) == wanted:
            return cached
        data = await self._read_in_thread(lambda: os.pread(file.descriptor, wanted, offset))
        if len(data) != wanted:
            raise OSError(errno.EIO, "the blob is shorter than its index says")
        return data

    def release(self, inode: int) -> None:
        """Undo one ``open``."""
        file = self._open[inode]
        file.users -= 1
        if file.users == 0:
            del self._open[inode]
            if file.descriptor >= 0:
                os.close(file.descriptor)

    def open_files(self) -> int:
        """How many files are open."""
        return len(self._open)


def _read_cached(descriptor: int, size: int, offset: int) -> memoryview:
    """What the page cache has of this range; short or empty when the disk is needed."""
    buffer = bytearray(size)
    try:
        count = os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        # EOPNOTSUPP: this file system cannot say; the thread will read.
        if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
            raise
        return memoryview(b"")
    return memoryview(buffer)[:count]
