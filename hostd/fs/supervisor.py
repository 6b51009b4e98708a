"""The daemon's side of hostd-fs: starts it, talks to it, notices its death, starts it again.

A dead hostd-fs leaves a mount behind on which every access fails; a hung one (stopped, or stuck)
leaves one on which every access waits. Both are treated alike: kill the process, abort its
connection, take the mount out of the tree lazily, start the next one on the same path, tell it
about the images. Overlays made before keep the dead mount below them: in the EROFS way they only
lose blobs that are not on this host, in the FUSE way they are broken and their containers end. New
ones see the new mount.

Concurrency: everything runs on the daemon's loop, with three tasks at most: ``run``, the handler of
the one control connection, and below it one task for each fetch that hostd-fs asked for. The daemon
never opens, nor looks up, a path at or below the mount: that could wait for the very process it
supervises.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TypeVar, assert_never

import msgspec

import hostd
from hostd.errors import BlobMissingError, ContainerStartError, Error
from hostd.fs import control, mounting
from hostd.ids import Digest, ImageId, is_digest
from hostd.log import get_logger

log = get_logger(__name__)

READY_TIMEOUT_S = 15.0
"""From spawn to Ready: 0.2 s, nearly all of it imports; much longer on a loaded host."""

PING_INTERVAL_S = 2.0
PONG_TIMEOUT_S = 10.0
"""A hostd-fs that does not answer for this long hangs: readers get errors after 12 s at most."""

REPLY_TIMEOUT_S = 10.0
"""Of one Serve request: it maps a file of a few MiB."""

STOP_TIMEOUT_S = 2.0
"""From hanging up to SIGKILL when the daemon stops."""

DEATH_KNOWN_S = 1.0
"""By then the loop has heard of a death, even when it is busy."""

BACKOFF_S = (0.0, 0.1, 0.5, 2.0, 5.0)
"""Waits before restarts in a row; the first is at once. The last repeats."""

HEALTHY_AFTER_S = 30.0
"""A hostd-fs that lived this long begins a new row."""

READ_AHEAD_KIB = 1024

T = TypeVar("T")

BringBlob = Callable[[Digest], Awaitable[None]]
"""Fetches a blob and links it into late; raises hostd.errors.Error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How hostd-fs is started."""

    run_dir: Path
    cas: Path
    fetch_timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStatistics:
    """Immutable counters."""

    is_ready: bool
    pid: int | None
    restarts: int
    requests: dict[str, int]


@dataclass(slots=True)
class _Server:
    """One life of hostd-fs."""

    process: subprocess.Popen[bytes]
    pidfd: int
    started_s: float
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    pong: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Death sets the other two as well: who waits for them looks at this one first."""
    writer: asyncio.StreamWriter | None = None
    conversation: asyncio.Task[None] | None = None
    """asyncio made this task, and ``_bury`` waits for it."""
    replies: dict[int, asyncio.Future[str]] = field(default_factory=dict)
    served: set[ImageId] = field(default_factory=set)


class Supervisor:
    """Keeps one hostd-fs alive."""

    def __init__(self, options: ServerOptions, bring: BringBlob) -> None:
        self._options = options
        self._bring = bring
        self.mountpoint = options.run_dir / "fs"
        self._socket = options.run_dir / "fs.sock"
        self._pid_file = options.run_dir / "fs.pid"
        self._images: dict[ImageId, Path] = {}
        self._server: _Server | None = None
        self._listener: asyncio.Server | None = None
        self._ready = asyncio.Event()
        self._threads = ThreadPoolExecutor(2, "hostd-fs-supervisor")
        self._tokens = count(1)
        self._restarts = 0
        self._requests: dict[str, int] = {}

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Remove what an earlier daemon left, then start hostd-fs and wait until it is mounted.

        Raises:
            ContainerStartError: it did not get ready in time.
        """
        await self._in_thread(self._end_leftover)
        self._listener = await asyncio.start_unix_server(
            self._converse, self._socket, limit=control.LINE_BYTES_MAX
        )
        self._socket.chmod(0o600)
        await self._spawn()

    async def run(self) -> None:
        """Watch hostd-fs for ever; restart it when it dies or hangs."""
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            if (server := self._server) is not None:
                await self._wait_death(server)
                lived_s = loop.time() - server.started_s
                attempt = 0 if lived_s > HEALTHY_AFTER_S else attempt
                log.warning("hostd-fs is gone", pid=server.process.pid, lived_s=round(lived_s, 1))
                await self._bury(server)
            await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
            attempt += 1
            self._restarts += 1
            try:
                await self._spawn()
            except (OSError, Error) as error:
                log.warning("hostd-fs cannot be started", why=str(error), attempt=attempt)

    async def close(self) -> None:
        """End hostd-fs and take its mount away; ``run`` must have been cancelled."""
        if (server := self._server) is not None:
            if server.writer is not None:
                server.writer.close()
            with contextlib.suppress(builtins.TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await server.ended.wait()
            await self._bury(server)
        if self._listener is not None:
            self._listener.close()
            self._socket.unlink(missing_ok=True)
        self._threads.shutdown(wait=False)

    async def _spawn(self) -> None:
        """Start hostd-fs; returns when it has mounted and offers all images."""
        # Inline, a millisecond: a thread could start it just when this task is cancelled.
        server = self._server = self._popen()
        asyncio.get_running_loop().add_reader(server.pidfd, self._on_death, server)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self._prepare(server)
        except builtins.TimeoutError:
            await self._bury(server)
            text = f"hostd-fs was not ready within {READY_TIMEOUT_S} s"
            raise ContainerStartError(text, hint="the daemon's log has its output") from None
        except Error:
            await self._bury(server)
            raise
        log.info("hostd-fs is ready", pid=server.process.pid)

    def _popen(self) -> _Server:
        options = self._options
        arguments = {
            "--run-dir": options.run_dir,
            "--cas": options.cas,
            "--control": self._socket,
            "--fetch-timeout-s": options.fetch_timeout_s,
        }
        command = [sys.executable, "-m", "hostd.fs.server"]
        command += [str(part) for pair in arguments.items() for part in pair]
        # A process group of its own: a Ctrl-C at the daemon must not end it before its mounts.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, env=_environment(), process_group=0
        )
        self._pid_file.write_text(f"{process.pid}\n")
        return _Server(
            process=process,
            pidfd=os.pidfd_open(process.pid),
            started_s=asyncio.get_running_loop().time(),
        )

    async def _prepare(self, server: _Server) -> None:
        await server.connected.wait()
        if server.ended.is_set():
            text = f"hostd-fs ended with status {server.process.poll()} while it started"
            raise ContainerStartError(text, hint="the daemon's log has its output")
        for image, path in list(self._images.items()):
            await self._offer(server, image, path)
        await self._in_thread(self._tune)
        self._ready.set()

    def _on_death(self, server: _Server) -> None:
        asyncio.get_running_loop().remove_reader(server.pidfd)
        self._ready.clear()
        for event in (server.ended, server.connected, server.pong):
            event.set()
        for reply in server.replies.values():
            if not reply.done():
                reply.set_result("hostd-fs ended")

    async def _wait_death(self, server: _Server) -> None:
        """Returns when it has ended, or has not answered a ping in time."""
        for value in count():
            with contextlib.suppress(builtins.TimeoutError):
                async with asyncio.timeout(PING_INTERVAL_S):
                    await server.ended.wait()
                return
            server.pong.clear()
            self._send(server, control.Ping(value=value))
            try:
                async with asyncio.timeout(PONG_TIMEOUT_S):
                    await server.pong.wait()
            except builtins.TimeoutError:
                log.warning("hostd-fs hangs and is killed", pid=server.process.pid)
                return

    async def _bury(self, server: _Server) -> None:
        """Make sure that it is dead and its mount out of the way; may be repeated if cut short."""
        self._ready.clear()
        if not server.ended.is_set():
            signal.pidfd_send_signal(server.pidfd, signal.SIGKILL)
            await server.ended.wait()
        if server.writer is not None:
            server.writer.close()
        if server.conversation is not None:
            await asyncio.wait((server.conversation,), timeout=STOP_TIMEOUT_S)
        await self._in_thread(server.process.wait)
        await self._in_thread(self._clean_mount)
        if self._server is server:
            self._server = None
            os.close(server.pidfd)

    # --- steps in a thread: they touch files, mounts and processes
    # ---------------------------------

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _tune(self) -> None:
        for entry in mounting.mounts_below(self.mountpoint):
            mounting.set_read_ahead(entry.device, READ_AHEAD_KIB)

    def _clean_mount(self) -> None:
        mounting.sweep(self.mountpoint)
        self.mountpoint.mkdir(parents=True, exist_ok=True)
        self._pid_file.unlink(missing_ok=True)

    def _end_leftover(self) -> None:
        """Kill the hostd-fs that a killed daemon left, if it has not ended by itself."""
        self._socket.unlink(missing_ok=True)
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._pid_file.read_text())
            pidfd = os.pidfd_open(pid)
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"hostd.fs.server" in words and os.fsencode(self._options.run_dir) in words:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    select.select([pidfd], [], [], STOP_TIMEOUT_S)
            finally:
                os.close(pidfd)
        self._clean_mount()

    # --- images ----------------------------------------------------------------------------------

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until hostd-fs serves.

        Raises:
            ContainerStartError: it did not come back in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except builtins.TimeoutError:
            text = f"hostd-fs is not running (waited {timeout_s} s)"
            raise ContainerStartError(text, hint="the daemon's log says why") from None

    async def wait_replaced(self, timeout_s: float) -> None:
        """The same, after an access failed as if hostd-fs were dead: that may not be known yet."""
        if (server := self._server) is not None:
            with contextlib.suppress(builtins.TimeoutError):
                async with asyncio.timeout(DEATH_KNOWN_S):
                    await server.ended.wait()
        await self.wait_ready(timeout_s)

    async def serve_image(self, image: ImageId, path: Path) -> None:
        """Offer an image as /img/<image>, now and after each restart.

        Raises:
            ContainerStartError: hostd-fs cannot read it, or ends.
        """
        self._images[image] = path
        server = self._server
        if server is not None and image not in server.served:
            await self._offer(server, image, path)

    def drop_image(self, image: ImageId) -> None:
        """Stop offering an image."""
        if self._images.pop(image, None) is not None and self._server is not None:
            self._server.served.discard(image)
            self._send(self._server, control.Drop(image=image))

    async def _offer(self, server: _Server, image: ImageId, path: Path) -> None:
        token = next(self._tokens)
        reply = server.replies[token] = asyncio.get_running_loop().create_future()
        try:
            self._send(server, control.Serve(token=token, image=image, path=str(path)))
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                problem = await reply
        except builtins.TimeoutError:
            problem = f"hostd-fs did not answer within {REPLY_TIMEOUT_S} s"
        finally:
            del server.replies[token]
        if problem:
            raise ContainerStartError(f"image {image} cannot be served: {problem}", image=image)
        server.served.add(image)

    # --- the control connection ------------------------------------------------------------------

    def _send(self, server: _Server, message: control.Message) -> None:
        """Queue one line; hostd-fs reads at once, and what it lets pile up is a few small lines."""
        if server.writer is not None and not server.writer.is_closing():
            server.writer.write(control.encode(message))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read what hostd-fs says until it hangs up; fetches run beside and end with it."""
        server = self._server
        try:
            if server is not None and _peer_pid(writer) == server.process.pid:
                server.conversation = asyncio.current_task()
                async with asyncio.TaskGroup() as fetches:
                    async for line in reader:
                        self._obey(server, writer, control.decode_to_daemon(line), fetches)
                    raise _HungUp
        except* _HungUp:
            pass
        except* (OSError, ValueError, msgspec.MsgspecError) as errors:
            log.warning("hostd-fs speaks nonsense", why=str(errors.exceptions[0]))
        finally:
            writer.close()

    def _obey(
        self,
        server: _Server,
        writer: asyncio.StreamWriter,
        message: control.ToDaemon,
        fetches: asyncio.TaskGroup,
    ) -> None:
        match message:
            case control.Ready():
                server.writer = writer
                server.connected.set()
            case control.Served():
                if (reply := server.replies.get(message.token)) is not None and not reply.done():
                    reply.set_result(message.problem)
            case control.Pong():
                self._requests = message.requests
                server.pong.set()
            case control.Fetch():
                fetches.create_task(self._answer(server, message))
            case _:
                assert_never(message)

    async def _answer(self, server: _Server, request: control.Fetch) -> None:
        problem = ""
        try:
            if not is_digest(request.blob):
                raise BlobMissingError(f"{request.blob!r} is not a digest")
            await self._bring(Digest(request.blob))
        except Error as error:
            problem = error.text
        except Exception as error:
            log.exception("fetch failed", blob=request.blob)
            problem = str(error) or type(error).__name__
        self._send(server, control.FetchDone(token=request.token, problem=problem))

    def statistics(self) -> SupervisorStatistics:
        """Counters since the start; requests are those of the present hostd-fs, 2 s old at most."""
        server = self._server
        return SupervisorStatistics(
            is_ready=self._ready.is_set(),
            pid=None if server is None else server.process.pid,
            restarts=self._restarts,
            requests=dict(self._requests),
        )


class _HungUp(Exception):
    """hostd-fs closed the connection."""


def _peer_pid(writer: asyncio.StreamWriter) -> int:
    """Process at the other end, as the kernel knows it (unix(7), SO_PEERCRED)."""
    peer: socket.socket = writer.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def _environment() -> dict[str, str]:
    """This process's environment, with this very hostd first on the path."""
    here = str(Path(hostd.__file__).parents[1])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
