"""One container of a function, from the decision to start it until nothing of it is left.

    slot -> rootfs, socket -> create -> start -> HELLO -> LOAD -> READY -> … -> end -> clean up

The life is one task. It waits for a *verdict*, the decision that the container must end, from
whoever is first: the container's own exit, a failed step of the start, the start's deadline, a
broken protocol, ``stop`` or ``kill``. Then the processes are ended, the owner is told once, and
what is left is removed in the background.
"""

from __future__ import annotations

import asyncio
import builtins
import errno
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from hostd.errors import (
    ContainerExitedError,
    ContainerStartError,
    Error,
    InternalError,
    StorageFullError,
    TimeoutError,
)
from hostd.ids import ContainerId
from hostd.log import get_logger
from hostd.model import FunctionDefinition, InputTimings, OutputStatus
from hostd.runner import wire
from hostd.runtime.ending import Stage, Tail, Verdict, exit_error, with_tail
from hostd.runtime.function_spec import allow_source, container_spec, memory_limit_bytes
from hostd.runtime.phases import PhaseTimer
from hostd.runtime.runner_link import Hello, Load, Ready, RunnerLink, RunnerSocket
from hostd.runtime.spec import ContainerExit, ContainerSpec, Usage
from hostd.runtime.workshop import Workshop

if TYPE_CHECKING:
    from hostd.fs import RootFS
    from hostd.runtime.container import Container

log = get_logger(__name__)

KILL_TIMEOUT_S = 30.0
"""For a killed container to end; only a process that hangs in the kernel takes longer."""
CLOSED_GRACE_S = 2.0
"""Between the end of the connection and the end of the process; after it the process is killed."""
FAILED_GRACE_S = 1.0
"""For a runner that could not load its function to end by itself."""


class ContainerEvents(Protocol):
    """What the owner of a container is told, on the event loop; must not wait."""

    def container_state(self, container_id: ContainerId, state: str) -> None:
        """It reached ``pulling``, ``creating``, ``starting`` or ``warming``."""

    def container_ready(self, container_id: ContainerId, phases_us: Mapping[str, int]) -> None:
        """It takes inputs; ``phases_us``: the parts of its start, whose sum is the wall time."""

    def input_output(
        self,
        container_id: ContainerId,
        token: int,
        status: OutputStatus,
        fields: Sequence[bytes],
        timings: InputTimings,
    ) -> None:
        """An input was answered, wholly or (``yield``) in part; its lines were handed on before."""

    def container_line(
        self, container_id: ContainerId, stream: str, text: bytes, at_us: int
    ) -> None:
        """It wrote a line."""

    def container_exited(
        self, container_id: ContainerId, error: Error | None, summary: str
    ) -> None:
        """Its processes have ended; once, and last. No error: it was stopped on request."""


class FunctionContainer:
    """A container as its owner holds it. Methods run on the event loop and return at once."""

    def __init__(
        self,
        container_id: ContainerId,
        function: FunctionDefinition,
        events: ContainerEvents,
        workshop: Workshop,
    ) -> None:
        self.id = container_id
        self._function = function
        self._events = events
        self._shop = workshop
        self._loop = asyncio.get_running_loop()
        self._link = RunnerLink(self, workshop.clock)
        self._socket: RunnerSocket | None = None
        self._container: Container | None = None
        self._rootfs: RootFS | None = None
        self._verdict: asyncio.Future[Verdict] = self._loop.create_future()
        self._tasks: asyncio.TaskGroup | None = None
        self._steps: list[asyncio.Task[None]] = []
        """Parts of the start that may still run; the verdict ends them."""
        self._timers: list[asyncio.TimerHandle] = []
        self._memory_limit_bytes = memory_limit_bytes(
            function, workshop.config.runtime.memory_default_mib
        )
        self._cancelled_early: list[int] = []
        self._tail = Tail()
        self._stage = Stage.PREPARING
        self._is_reported = False
        self._phases = PhaseTimer(workshop.clock)

    # --- for the owner -------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """Of PID 1, on the host; None before there is one."""
        return self._container.pid if self._container is not None else None

    @property
    def container(self) -> Container | None:
        """The container below, for ``exec``; None before there is one."""
        return self._container

    @property
    def who(self) -> str:
        """For texts."""
        return f"container {self.id} of function {self._function.spec.name}"

    def send_input(
        self, token: int, payload: bytes, *, call_id: str = "", input_id: str = ""
    ) -> None:
        """Hand over an input; they are run one by one, in this order. Also before it is ready.

        Raises:
            ResourceExhaustedError, PayloadTooLargeError: see RunnerLink.
        """
        if not self._is_reported:
            self._link.send_input(token, payload, call_id=call_id, input_id=input_id)

    def cancel_input(self, token: int) -> None:
        """Interrupt it, or keep it from starting; an output follows in both cases."""
        if self._is_reported or not self._link.has_input(token):
            return
        if self._socket is None:
            self._cancelled_early.append(token)
        else:
            self._socket.mark_cancelled(token)
        # Earlier the signal would kill: the runner has no handler yet. It reads the cell first.
        if self._stage is Stage.READY and self._container is not None:
            self._container.signal(signal.SIGUSR1)

    def stop(self, *, grace_s: float | None = None) -> None:
        """End it: SIGTERM, then SIGKILL. ``container_exited`` follows."""
        grace = self._shop.config.runtime.stop_grace_s if grace_s is None else grace_s
        self._decide(Verdict(grace_s=grace))

    def kill(self) -> None:
        """End it at once, also in the grace of a stop. ``container_exited`` follows."""
        self._decide(Verdict())
        if self._container is not None:
            self._container.kill()

    def usage(self) -> Usage | None:
        """What it uses now, or used last; None before there is a container."""
        return self._container.usage() if self._container is not None else None

    # --- its life ------------------------------------------------------------------------------

    async def live(self) -> None:
        """Run it from beginning to end; never raises, whatever happens to the container."""
        limit_s = self._function.spec.startup_timeout_s or self._function.spec.timeout_s
        deadline = self._call_later(limit_s, lambda: self._on_deadline(limit_s))
        exited: ContainerExit | None = None
        self._shop.under_way.begin(self.id)
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._task(self._start)
                verdict = await self._verdict
                for step in self._steps:
                    step.cancel()
            exited = await self._end(verdict)
            self._report(*self._explain(verdict, exited))
        except Exception as error:  # the root of a container's task: its owner must hear of the end
            log.exception("a container's task failed", container=self.id)
            self._report(InternalError(f"{self.who} was lost: {error}"), "lost by a bug of hostd")
        finally:
            deadline.cancel()
            for timer in self._timers:
                timer.cancel()
            self._shop.under_way.end(self.id)
            async with self._shop.clean_ups:
                await self._shop.under_way.wait_none()
                await self._clean_up()

    async def _guarded(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do a part of the start; what it raises is the verdict."""
        try:
            await step()
        except Error as error:
            self._decide(Verdict(error=error, by_itself=True))
        except OSError as error:
            self._decide(Verdict(error=self._from_os(error), by_itself=True))

    def _from_os(self, error: OSError) -> Error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageFullError(f"no space to start {self.who}")
        return ContainerStartError(f"{self.who} cannot be started: {error}")

    async def _start(self) -> None:
        """Bring it up, then wait for its end."""
        shop = self._shop
        await shop.staged.wait()
        async with shop.starts:
            self._phases.end("place")
            self._events.container_state(self.id, "pulling")
            self._rootfs = await shop.fs.mount_rootfs(self.id, self._function.layers)
            self._phases.end_parts(self._rootfs.phases_us)
            self._events.container_state(self.id, "creating")
            spec = await self._in_thread(self._prepare)
            self._container = await shop.runtime.create(spec, self)
            self._phases.end("runc_create")
            self._stage = Stage.BOOTING
            self._events.container_state(self.id, "starting")
            self._task(self._accept)
            await self._container.start()
        await self._container.wait()
        self._decide(Verdict(by_itself=True))

    def _prepare(self) -> ContainerSpec:
        """In a thread: what reads or writes files."""
        assert self._rootfs is not None, self.id
        shop, root = self._shop, self._rootfs.path
        image = self._function.layers[-1]
        config = shop.images.manifest(image).config
        directory = shop.run_dir / "ct" / self.id / "io"
        allow_source(root, config.user)
        self._socket = RunnerSocket(directory)
        for token in self._cancelled_early:
            self._socket.mark_cancelled(token)
        return container_spec(
            self.id,
            self._function,
            config,
            root=root,
            python=shop.python(image, root, config.env),
            lib=shop.lib,
            io=directory,
            memory_limit_bytes=self._memory_limit_bytes,
        )

    async def _in_thread(self, step: Callable[[], ContainerSpec]) -> ContainerSpec:
        """Also when it is cancelled it waits for the thread, whose work must not be lost."""
        work = self._loop.run_in_executor(None, step)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            raise

    async def _accept(self) -> None:
        assert self._socket is not None, self.id
        await self._socket.accept(self._link)

    async def _send_load(self) -> None:
        """Tell the runner what to load; a serialized function is read from the store first."""
        spec, blob = self._function.spec, b""
        if self._function.serialized is not None:
            blob = await asyncio.to_thread(self._shop.cas.read, self._function.serialized)
        self._link.send_load(
            Load(
                name=spec.name,
                module=spec.module,
                qualname=spec.qualname,
                is_generator=spec.is_generator,
                serialized=blob,
                python_version=spec.python_version or "",
            )
        )

    # --- its end -------------------------------------------------------------------------------

    def _decide(self, verdict: Verdict) -> None:
        if not self._verdict.done():
            self._verdict.set_result(verdict)

    async def _end(self, verdict: Verdict) -> ContainerExit | None:
        """End the processes; None when there were none.

        Raises:
            TimeoutError: a process hangs in the kernel (the builtin one).
        """
        container = self._container
        if container is None:
            return None
        if verdict.grace_s > 0 and container.is_running:
            self._link.end()
            container.signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(verdict.grace_s):
                    return await container.wait()
            except builtins.TimeoutError:
                pass
        container.kill()
        async with asyncio.timeout(KILL_TIMEOUT_S):
            return await container.wait()

    def _explain(self, verdict: Verdict, exited: ContainerExit | None) -> tuple[Error | None, str]:
        """The error for callers, and a few words for lists."""
        error = verdict.error
        if error is None and not verdict.by_itself:
            return None, "stopped on request"
        if exited is not None and (error is None or exited.oom):
            error = exit_error(
                exited,
                who=self.who,
                stage=self._stage,
                tail=self._tail,
                limit_bytes=self._memory_limit_bytes,
            )
        assert error is not None, self.id
        return error, error.text.splitlines()[0] if error.text else error.code

    def _report(self, error: Error | None, summary: str) -> None:
        if not self._is_reported:
            self._is_reported = True
            self._events.container_exited(self.id, error, summary)

    async def _clean_up(self) -> None:
        """Remove everything; what cannot be removed is logged, and swept at the next start."""
        if self._socket is not None:
            self._socket.close()
        if self._container is not None:
            await self._attempt(self._container.delete)
        if (rootfs := self._rootfs) is not None:
            await self._attempt(lambda: self._shop.fs.unmount_rootfs(rootfs))
        directory = self._shop.run_dir / "ct" / self.id
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except Exception:  # the other steps must be tried, and other containers live in this group
            log.exception("container not cleaned up", container=self.id)

    # --- phases and timers ---------------------------------------------------------------------

    def _call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        timer = self._loop.call_later(delay_s, callback)
        self._timers.append(timer)
        return timer

    def _task(self, step: Callable[[], Awaitable[None]]) -> None:
        if self._tasks is not None and not self._verdict.done():
            self._steps.append(self._tasks.create_task(self._guarded(step)))

    def _on_deadline(self, limit_s: float) -> None:
        if self._stage is Stage.READY:
            return
        error = TimeoutError(
            f"{self.who} was not ready within {limit_s:g} s, it was {self._stage.value}",
            hint="raise startup_timeout, or import less at the top of the module",
        )
        self._decide(Verdict(error=with_tail(error, self._tail), by_itself=True))

    # --- OutputSink ----------------------------------------------------------------------------

    def line(self, stream: str, text: bytes, at_us: int) -> None:
        """A line of its output."""
        self._tail.add(text)
        if not self._is_reported:
            self._events.container_line(self.id, stream, text, at_us)

    # --- LinkEvents ----------------------------------------------------------------------------

    def link_hello(self, hello: Hello) -> None:
        """Its interpreter runs."""
        self._phases.end("boot", hello.connecting_us)
        self._phases.end("connect")
        if hello.protocol != str(wire.PROTOCOL_VERSION):
            text = f"{self.who} speaks runner protocol {hello.protocol!r}"
            self._decide(Verdict(error=ContainerStartError(text), by_itself=True))
            return
        self._stage = Stage.LOADING
        self._events.container_state(self.id, "warming")
        self._task(self._send_load)

    def link_ready(self, ready: Ready) -> None:
        """Its function is loaded."""
        self._phases.end("fetch_code", ready.load_begun_us)
        self._phases.end("import", ready.load_done_us)
        self._phases.end("enter")
        self._stage = Stage.READY
        self._shop.under_way.end(self.id)
        self._drain()
        if not self._verdict.done():
            self._events.container_ready(self.id, self._phases.phases_us)

    def link_load_failed(self, error: Error) -> None:
        """Its function cannot be loaded."""
        self._drain()
        self._decide(Verdict(error=error, by_itself=True, grace_s=FAILED_GRACE_S))

    def link_output(
        self, token: int, status: OutputStatus, fields: Sequence[bytes], timings: InputTimings
    ) -> None:
        """It answers; first what it wrote until then."""
        self._drain()
        if not self._is_reported:
            self._events.input_output(self.id, token, status, fields, timings)

    def link_closed(self, violation: str | None) -> None:
        """Its runner is gone: usually its process too, in a moment."""
        if violation is not None:
            text = f"{self.who} was killed: its runner broke the protocol ({violation})"
            self._decide(Verdict(error=ContainerExitedError(text), by_itself=True))
        elif not self._verdict.done():
            text = f"{self.who} was killed: its runner closed the connection and did not end"
            verdict = Verdict(error=ContainerExitedError(text), by_itself=True)
            self._call_later(CLOSED_GRACE_S, lambda: self._decide(verdict))

    def _drain(self) -> None:
        if self._container is not None:
            self._container.drain_output()
