"""hostd-fs: the process that answers the kernel's file system requests, at <run_dir>/fs.

    /fault/ab/<62 hex>, /data/ab/<62 hex>    layers below EROFS roots; see ``faultfs.py``
    /img/<image id>/…                        whole images, the other way; see ``treefs.py``

A process of its own, with this one mount: pyfuse3 keeps its session in module globals, and a busy
Python thread beside it makes every request wait for the interpreter lock (up to ten times slower;
DESIGN.md). This is the only module that imports trio and pyfuse3.

It holds no state that cannot be had again: handles are inode numbers, inode numbers are computed,
images are named by the daemon. It never opens a file below its own mount. It ends when the daemon's
control connection ends. Every handler turns every exception into an errno: pyfuse3 ends the whole
session when anything but a FUSEError escapes.

    python -m hostd.fs.server --run-dir DIR --cas DIR --control SOCKET [--fetch-timeout-s N]
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import gc
import itertools
import os
import resource
import stat
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyfuse3
import trio

from hostd import log as logging
from hostd.errors import BlobMissingError, TimeoutError
from hostd.fs import control
from hostd.fs.cas import CAS
from hostd.fs.faultfs import DATA, FAULT, FaultFS
from hostd.fs.index import Attributes
from hostd.fs.treefs import IMG, TreeFS
from hostd.ids import Digest, ImageId

log = logging.get_logger(__name__)

ROOT = pyfuse3.ROOT_INODE
FOR_EVER_S = 1e9
"""Timeout of names and attributes: content-addressed trees do not change."""

TASKS_MAX = 1_000
"""Requests at the same time. pyfuse3's 99 could all wait for fetches while local reads queue."""

REPLY_MARGIN_S = 2.0
"""The daemon ends a fetch at its timeout; this much later we stop to wait for its answer."""

OOM_SCORE_ADJ = "-900"
"""The kernel should choose a container before the process that serves all of them."""

T = TypeVar("T")
Handler = Callable[..., Coroutine[Any, Any, T]]


def guarded(handler: Handler[T]) -> Handler[T]:
    """Let nothing but FUSEError out of a handler, and count the request."""
    kind = handler.__name__

    @functools.wraps(handler)
    async def run(self: HostdFS, *arguments: Any) -> T:
        self.requests[kind] += 1
        try:
            return await handler(self, *arguments)
        except pyfuse3.FUSEError:
            raise
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        except Exception:
            # The root of a request: the bug is logged, and the session lives on for all the others.
            log.exception("handler failed", kind=kind)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return run


class HostdFS(pyfuse3.Operations):
    """Routes requests by inode number to the directories here, FaultFS and TreeFS."""

    supports_dot_lookup = False
    enable_acl = True
    """The kernel then keeps access lists, which it otherwise asks for at every permission check: a
    quarter of all requests of an import through an overlay (counted, Linux 6.18)."""

    def __init__(self, faults: FaultFS, trees: TreeFS) -> None:
        super().__init__()
        self._faults = faults
        self._trees = trees
        self._listings: dict[int, list[tuple[bytes, int]]] = {}
        self._handles = itertools.count(1)
        self.requests: Counter[str] = Counter()
        self.initialised = trio.Event()

    def init(self) -> None:
        """The kernel's first request is being answered."""
        self.initialised.set()

    # --- names and attributes --------------------------------------------------------------------

    @guarded
    async def lookup(self, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        """Find a name; absent ones are remembered by the kernel only where they stay absent."""
        if parent == ROOT:
            return self._entry(_TOP[name] if name in _TOP else _absent())
        if parent == IMG:
            return self._entry(self._trees.image_root(name))
        if self._faults.has(parent):
            return self._entry(await self._faults.lookup(parent, name))
        try:
            return self._entry(self._trees.lookup(parent, name))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return _negative_entry()

    @guarded
    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        """What stat shows."""
        return self._entry(inode)

    def _entry(self, inode: int) -> pyfuse3.EntryAttributes:
        if inode <= DATA or self._faults.has(inode):
            return _directory_entry(inode)
        return _tree_entry(inode, self._trees.attributes(inode))

    @guarded
    async def readlink(self, inode: int, ctx: Any) -> bytes:
        """Where a symbolic link points."""
        return self._trees.readlink(inode)

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        """An extended attribute; ENODATA."""
        value = self._xattrs(inode).get(name)
        if value is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    @guarded
    async def listxattr(self, inode: int, ctx: Any) -> Sequence[bytes]:
        """Names of extended attributes."""
        return list(self._xattrs(inode))

    def _xattrs(self, inode: int) -> dict[bytes, bytes]:
        return {} if inode <= DATA or self._faults.has(inode) else self._trees.xattrs(inode)

    @guarded
    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        """A full, read-only file system; overlayfs refuses a layer that does not answer this."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_namemax = 255
        return data

    # --- directories -----------------------------------------------------------------------------

    @guarded
    async def opendir(self, inode: int, ctx: Any) -> int:
        """Take a listing; its handle is good until releasedir."""
        handle = next(self._handles)
        self._listings[handle] = self._names(inode)
        return handle

    def _names(self, inode: int) -> list[tuple[bytes, int]]:
        if inode == ROOT:
            return list(_TOP.items())
        if inode == IMG:
            return self._trees.images()
        if self._faults.has(inode):
            return list(self._faults.names(inode))
        return self._trees.entries(inode)

    @guarded
    async def readdir(self, handle: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries from a position on, with their attributes, as many as the kernel takes."""
        names = self._listings[handle]
        for position in range(start, len(names)):
            name, inode = names[position]
            if not pyfuse3.readdir_reply(token, name, self._entry(inode), position + 1):
                break

    @guarded
    async def releasedir(self, handle: int) -> None:
        """Forget a listing."""
        self._listings.pop(handle, None)

    # --- contents --------------------------------------------------------------------------------

    @guarded
    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        """Open a file for reading; its cached pages stay good."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        await self._trees.open(inode)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @guarded
    async def read(  # type: ignore[override]  # any buffer will do, its stubs say bytes
        self, handle: int, offset: int, size: int
    ) -> bytes | memoryview:
        """Bytes of an open file."""
        return await self._trees.read(handle, offset, size)

    @guarded
    async def release(self, handle: int) -> None:
        """The last user of an open file is gone."""
        self._trees.release(handle)

    async def flush(self, handle: int) -> None:
        """Nothing is ever written; ENOSYS once, and the kernel never asks again."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def access(self, inode: int, mode: int, ctx: Any) -> bool:
        """The kernel checks permissions itself (default_permissions)."""
        return True


_TOP = {b"img": IMG, b"fault": FAULT, b"data": DATA}


def _absent() -> int:
    raise OSError(errno.ENOENT, "no such entry")


def _negative_entry() -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = FOR_EVER_S
    return entry


def _directory_entry(inode: int) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode
    entry.st_mode = stat.S_IFDIR | 0o755
    entry.st_nlink = 2
    entry.entry_timeout = entry.attr_timeout = FOR_EVER_S
    return entry


def _tree_entry(inode: int, attributes: Attributes) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = attributes.rdev
    entry.st_size = attributes.size
    entry.st_blksize = 4096
    entry.st_blocks = (attributes.size + 511) // 512
    entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = attributes.mtime_ns
    entry.entry_timeout = entry.attr_timeout = FOR_EVER_S
    return entry


class DaemonLink:
    """The connection to the daemon: asks it for blobs, is told about images."""

    def __init__(self, stream: trio.SocketStream, *, fetch_timeout_s: float) -> None:
        self._stream = stream
        self._fetch_timeout_s = fetch_timeout_s
        self._tokens = itertools.count(1)
        self._waiting: dict[int, trio.MemorySendChannel[str]] = {}
        self._sending = trio.Lock()

    async def send(self, message: control.Message) -> None:
        """Send one message, whole."""
        async with self._sending:
            await self._stream.send_all(control.encode(message))

    async def fetch(self, d: Digest) -> None:
        """Have the daemon bring a blob.

        Raises:
            BlobMissingError: it could not; the text says why.
            TimeoutError: it did not answer.
        """
        token = next(self._tokens)
        sender, receiver = trio.open_memory_channel[str](1)
        self._waiting[token] = sender
        try:
            with trio.fail_after(self._fetch_timeout_s + REPLY_MARGIN_S):
                await self.send(control.Fetch(token=token, blob=d))
                problem = await receiver.receive()
        except trio.TooSlowError:
            raise TimeoutError(f"the daemon did not answer about blob {d}", blob=d) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise BlobMissingError("the daemon is gone", blob=d) from None
        finally:
            del self._waiting[token]
        if problem:
            raise BlobMissingError(problem, blob=d)

    async def run(self, filesystem: HostdFS, trees: TreeFS) -> None:
        """Obey the daemon until it hangs up."""
        buffer = bytearray()
        async for chunk in self._stream:
            buffer += chunk
            while (end := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                await self._obey(control.decode_to_server(line), filesystem, trees)
            if len(buffer) > control.LINE_BYTES_MAX:
                raise msgspec.DecodeError(f"line of over {control.LINE_BYTES_MAX} bytes")

    async def _obey(self, message: control.ToServer, filesystem: HostdFS, trees: TreeFS) -> None:
        match message:
            case control.FetchDone():
                if (sender := self._waiting.get(message.token)) is not None:
                    sender.send_nowait(message.problem)
            case control.Serve():
                await self.send(control.Served(token=message.token, problem=_add(trees, message)))
            case control.Drop():
                trees.drop(ImageId(message.image))
            case control.Ping():
                pong = control.Pong(value=message.value, requests=dict(filesystem.requests))
                await self.send(pong)


def _add(trees: TreeFS, message: control.Serve) -> str:
    try:
        trees.add(ImageId(message.image), Path(message.path))
    except Exception as error:
        # Whatever is wrong with one image, the others are served.
        log.exception("image cannot be served", image=message.image)
        return str(error) or type(error).__name__
    return ""


async def serve(arguments: argparse.Namespace) -> None:
    """Mount, say so, answer until the daemon hangs up, unmount."""
    stream = await trio.open_unix_socket(str(arguments.control))
    link = DaemonLink(stream, fetch_timeout_s=arguments.fetch_timeout_s)
    trees = TreeFS(
        CAS(arguments.cas),
        fetch=link.fetch,
        in_thread=trio.to_thread.run_sync,
        read_in_thread=trio.to_thread.run_sync,
    )
    filesystem = HostdFS(FaultFS(link.fetch), trees)
    options = {*pyfuse3.default_options, "allow_other", "ro", "fsname=hostd", "subtype=hostd"}
    pyfuse3.init(filesystem, str(arguments.run_dir / "fs"), options)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_follow, link, filesystem, trees, nursery.cancel_scope)
            nursery.start_soon(_say_ready, link, filesystem)
            await pyfuse3.main(max_tasks=TASKS_MAX)
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


async def _say_ready(link: DaemonLink, filesystem: HostdFS) -> None:
    """Not before the kernel has our answer to INIT: it resets the read-ahead then."""
    await filesystem.initialised.wait()
    await link.send(control.Ready(pid=os.getpid()))


async def _follow(
    link: DaemonLink, filesystem: HostdFS, trees: TreeFS, scope: trio.CancelScope
) -> None:
    try:
        await link.run(filesystem, trees)
    finally:
        scope.cancel()


def main(arguments: Sequence[str]) -> None:
    """The process's entry point."""
    parser = argparse.ArgumentParser(prog="hostd-fs", description="hostd's file system server")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--cas", type=Path, required=True)
    parser.add_argument("--control", type=Path, required=True)
    parser.add_argument("--fetch-timeout-s", type=float, default=20.0)
    parser.add_argument("--log-level", default="info")
    chosen = parser.parse_args(arguments)
    logging.configure(chosen.log_level)
    _prepare_process()
    trio.run(serve, chosen)


def _prepare_process() -> None:
    """Make room for open files, and ask the kernel to spare this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE_ADJ)
    gc.freeze()


if __name__ == "__main__":
    main(sys.argv[1:])
