"""One container from its creation to its end.

    created --start--> running --PID 1 ends--> ended --delete--> gone

Every process of a container lives in its PID namespace: when PID 1 ends, the kernel ends all others
before PID 1 can be reaped. So killing PID 1 (through its pidfd, which never means another process)
kills everything, a fork bomb included, and afterwards only empty directories are left to remove.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from hostd.errors import ConflictError, ContainerStartError
from hostd.log import get_logger
from hostd.runtime import sweep
from hostd.runtime.bundle import HostLimits, process_object
from hostd.runtime.cgroup import Cgroup
from hostd.runtime.oci import OCIRuntime
from hostd.runtime.output import ContainerOutput
from hostd.runtime.pty import console_socket
from hostd.runtime.rootfs import User, check_cwd
from hostd.runtime.spawn import Process, Stdio
from hostd.runtime.spec import ContainerExit, ContainerSpec, Usage
from hostd.runtime.streams import Streams, set_size

log = get_logger(__name__)

KILL_TIMEOUT_S = 30.0
"""For a killed container to end; only a process that hangs in the kernel takes longer."""

OUTPUT_GRACE_S = 2.0
"""For the pipes to end after PID 1 did; they do at once unless a descriptor escaped."""


@dataclass(frozen=True, slots=True)
class Host:
    """What all containers of a daemon share."""

    oci: OCIRuntime
    places: sweep.Places
    limits: HostLimits
    executor: Executor


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What creating a container gave. Either ``output`` or ``master`` (a terminal) is there."""

    process: Process
    cgroup: Cgroup
    user: User
    address: str | None
    output: ContainerOutput | None
    master: int | None


class ExecProcess:
    """A program that was started in a running container."""

    def __init__(self, process: Process, streams: Streams) -> None:
        self._process = process
        self._streams = streams
        self.pid = process.pid

    async def read(self) -> tuple[str, bytes] | None:
        """The next piece of output and its stream (``stdout``, ``stderr``); None at the end."""
        return await self._streams.read()

    async def write(self, data: bytes) -> bool:
        """Give the program input; False when it reads no more."""
        return await self._streams.write(data)

    async def write_eof(self) -> None:
        """End its input."""
        await self._streams.write_eof()

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal."""
        self._streams.resize(rows, columns)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.signal(number)

    async def wait(self) -> int:
        """Its exit status, as a shell gives it."""
        code = os.waitstatus_to_exitcode(await asyncio.shield(self._process.exited()))
        return code if code >= 0 else 128 - code

    async def close(self) -> None:
        """Kill it if it runs and give everything back; may be repeated."""
        self._process.signal(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await self._process.wait(KILL_TIMEOUT_S)
        self._streams.close()


class Container:
    """A created container; in the end comes ``delete``, which ``Runtime.close`` does otherwise."""

    def __init__(
        self,
        spec: ContainerSpec,
        made: Made,
        *,
        host: Host,
        on_deleted: Callable[[Container], None],
    ) -> None:
        self.spec = replace(spec, stdin=None)
        self.id = spec.id
        self.pid = made.process.pid
        self.address = made.address
        self.terminal: Streams | None = None
        self._host = host
        self._process = made.process
        self._cgroup = made.cgroup
        self._user = made.user
        self._output = made.output
        self._on_deleted = on_deleted
        self._started = False
        self._gone = False
        self._deleting = asyncio.Lock()
        self._exec_serial = itertools.count(1)
        self._last_usage = Usage()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[ContainerExit] = self._loop.create_future()
        exited = made.process.exited()
        exited.add_done_callback(self._on_exit)
        if made.master is not None:
            self.terminal = Streams({"stdout": made.master}, made.master, exited)
        if made.output is not None:
            made.output.begin()

    @property
    def _bundle(self) -> Path:
        return self._host.places.bundles / self.id

    @property
    def is_running(self) -> bool:
        """Whether PID 1 exists."""
        return self._process.is_running

    async def start(self) -> None:
        """Let the program run.

        Raises:
            ContainerStartError: it cannot be executed (no such file, no such user's right, …).
        """
        exited = self._process.exited()
        await self._host.oci.start(self.id, self._bundle, exited=exited)
        self._started = True
        # It holds the environment; nobody needs it any more.
        (self._bundle / "config.json").unlink(missing_ok=True)

    def drain_output(self, *, flush: bool = True) -> None:
        """Hand to the sink what the container has written until now.

        Args:
            flush: also text after the last newline, as a line of its own.
        """
        if self._output is not None:
            self._output.drain(flush=flush)

    async def wait(self) -> ContainerExit:
        """How it ended; done when PID 1 has ended and all its output was handed on."""
        return await asyncio.shield(self._ended)

    def signal(self, number: int) -> None:
        """Send a signal to PID 1; an init forwards it to the program."""
        self._process.signal(number)

    def kill(self) -> None:
        """End every process of the container now."""
        self._process.signal(signal.SIGKILL)

    async def stop(self, *, grace_s: float) -> ContainerExit:
        """SIGTERM, and SIGKILL to everything after the grace.

        Raises:
            TimeoutError: a process hangs in the kernel.
        """
        if self._started:
            self.signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(grace_s):
                    return await self.wait()
            except TimeoutError:
                pass
        self.kill()
        async with asyncio.timeout(KILL_TIMEOUT_S):
            return await self.wait()

    async def exec(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        tty: tuple[int, int] | None = None,
    ) -> ExecProcess:
        """Start one more program as the container's user, with its environment and limits.

        Args:
            args: the program and its arguments.
            env: added to the container's environment.
            cwd: None: the container's.
            tty: rows and columns of a terminal; None: pipes.

        Raises:
            ConflictError: the container does not run.
            ContainerStartError: the program cannot be executed.
        """
        if not self._started or not self.is_running:
            raise ConflictError(f"container {self.id} does not run")
        check_cwd(cwd or self.spec.cwd)
        path = self._bundle / f"exec-{next(self._exec_serial)}.json"
        self._write_process(path, args, env=env or {}, cwd=cwd, tty=tty)
        try:
            if tty is None:
                return await self._exec_with_pipes(path)
            return await self._exec_with_terminal(path, tty)
        finally:
            for suffix in (".json", ".pid", ".log"):
                path.with_suffix(suffix).unlink(missing_ok=True)

    def usage(self) -> Usage:
        """What it uses now, or used last."""
        if self.is_running:
            self._last_usage = self._cgroup.usage()
        return self._last_usage

    async def delete(self) -> None:
        """End it if it runs, and remove everything of it; may be repeated.

        Raises:
            TimeoutError: a process hangs in the kernel; a later call may succeed.
        """
        async with self._deleting:
            if self._gone:
                return
            self.kill()
            async with asyncio.timeout(KILL_TIMEOUT_S):
                await self.wait()
            if self.terminal is not None:
                self.terminal.close()
            removed = await self._loop.run_in_executor(
                self._host.executor, sweep.remove_ended, self._host.places, self.id, self._cgroup
            )
            if not removed:
                log.warning("control group not removed", container=self.id)
            self._gone = True
            self._on_deleted(self)

    def _on_exit(self, exited: asyncio.Future[int]) -> None:
        """PID 1 was reaped: read the last figures before its groups go, then wait for the pipes."""
        self._last_usage = usage = self._cgroup.usage()
        code = os.waitstatus_to_exitcode(exited.result())
        peak = usage.peak_bytes or self._process.peak_rss_bytes
        ended = ContainerExit(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            oom=code != 0 and self._cgroup.oom_kills() > 0,
            peak_bytes=peak,
            cpu_s=usage.cpu_s,
        )
        if self._output is None:
            self._ended.set_result(ended)
            return
        timer = self._loop.call_later(OUTPUT_GRACE_S, self._output.close)

        def finish(_: object) -> None:
            timer.cancel()
            self._ended.set_result(ended)

        self._output.ended.add_done_callback(finish)

    def _write_process(
        self,
        path: Path,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | None,
        tty: tuple[int, int] | None,
    ) -> None:
        process = process_object(
            list(args),
            env={**self.spec.env, **env},
            cwd=cwd or self.spec.cwd,
            user=self._user,
            profile=self.spec.profile,
            tty=tty,
            limits=self._host.limits,
        )
        path.write_text(json.dumps(process))
        path.chmod(0o600)

    async def _exec_with_terminal(self, path: Path, size: tuple[int, int]) -> ExecProcess:
        with console_socket(self._host.places.consoles) as console:
            pid = await self._host.oci.execute(self.id, path, stdio=Stdio(), console=console.path)
            process = Process(pid)
            try:
                master = await console.receive()
            except ContainerStartError:
                process.signal(signal.SIGKILL)
                await process.wait(KILL_TIMEOUT_S)
                raise
        set_size(master, *size)
        return ExecProcess(process, Streams({"stdout": master}, master, process.exited()))

    async def _exec_with_pipes(self, path: Path) -> ExecProcess:
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        (in_read, in_write), (out_read, out_write), (err_read, err_write) = pipes
        theirs, ours = (in_read, out_write, err_write), (in_write, out_read, err_read)
        try:
            pid = await self._host.oci.execute(
                self.id, path, stdio=Stdio(in_read, out_write, err_write), console=None
            )
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        process = Process(pid)
        outputs = {"stdout": out_read, "stderr": err_read}
        return ExecProcess(process, Streams(outputs, in_write, process.exited()))
