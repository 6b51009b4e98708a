"""The scheduler as the API sees it: apps, calls, questions. The launcher reports to its engine.

Everything runs on the daemon's event loop and changes state between two awaits. The decisions are
in pure modules (``allocation``, ``autoscaler``, ``calls``, ``dispatch``, ``waterfall``,
``explain``); ``engine`` brings inputs and containers together, ``fleet`` starts and ends
containers, ``answers`` brings outcomes to callers, ``lookup`` answers questions.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

from hostd.clock import Clock
from hostd.config import LimitsConfig
from hostd.errors import (
    AlreadyExistsError,
    CancelledError,
    ConflictError,
    DaemonStoppedError,
    Error,
    InvalidError,
    NotFoundError,
    PayloadTooLargeError,
    ResourceExhaustedError,
)
from hostd.ids import AppId, CallId, ContainerId, FunctionId
from hostd.log import get_logger
from hostd.model import (
    INPUTS_OUTSTANDING_MAX,
    PAYLOAD_BYTES_MAX,
    AppInfo,
    CallInfo,
    ContainerInfo,
    Explanation,
    FunctionDefinition,
)
from hostd.scheduler.apps import App
from hostd.scheduler.calls import Call
from hostd.scheduler.capacity import Resources, check_possible
from hostd.scheduler.dispatch import Pool
from hostd.scheduler.engine import Engine
from hostd.scheduler.lookup import Lookup
from hostd.scheduler.ports import (
    AppSink,
    CallSink,
    ContainerLauncher,
    LogWriter,
    Timers,
)
from hostd.scheduler.timers import GuardedTimers, LoopTimers
from hostd.scheduler.views import SchedulerStatistics
from hostd.store import History

if TYPE_CHECKING:
    from hostd.runtime.function_container import FunctionContainer

log = get_logger(__name__)

DRAIN_TIMEOUT_S = 20.0
"""For containers to end when the daemon stops: the stop grace (10 s) and the clean-up after it."""
PAYLOAD_BYTES_HELD_MAX = 2 * 2**30
"""Arguments of all unanswered inputs together; they are in the daemon's memory."""
APPS_MAX = 1_000
"""Running at a time: each holds its functions' pools."""

CallKind = Literal["unary", "map", "gen"]


def host_capacity() -> Resources:
    """What this host has: its cores, and its memory without a tenth for the host itself."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Resources(cpu=float(os.cpu_count() or 1), memory_mib=int(memory_bytes * 0.9 / 2**20))


def default_starts_max() -> int:
    """Containers between decision and ready: enough to keep every core busy, no more.

    The launcher bounds the part of it that is heavy (2 to 4 per core); imports come on top.
    """
    return max(8, 8 * (os.cpu_count() or 1))


class Scheduler:
    """Runs the calls of all apps of this host."""

    def __init__(
        self,
        *,
        launcher: ContainerLauncher,
        clock: Clock,
        limits: LimitsConfig,
        capacity: Resources | None = None,
        history: History | None = None,
        logs: LogWriter | None = None,
        timers: Timers | None = None,
        starts_max: int | None = None,
    ) -> None:
        self._clock = clock
        self._timers = GuardedTimers(timers or LoopTimers())
        self._is_draining = False
        self._engine = Engine(
            launcher=launcher,
            clock=clock,
            timers=self._timers,
            limits=limits,
            capacity=capacity or host_capacity(),
            starts_max=starts_max or default_starts_max(),
            history=history,
            logs=logs,
        )
        self._lookup = Lookup(self._engine, clock=clock, history=history)

    async def run(self) -> None:
        """Run until cancelled; raises what a timer's callback raised: a bug of ours."""
        await self._timers.wait_failed()

    # --- apps ----------------------------------------------------------------------------------

    def add_app(
        self,
        name: str,
        functions: Sequence[FunctionDefinition],
        app_id: AppId,
        sink: AppSink | None,
    ) -> None:
        """Take an app and start the containers that its functions ask for from the beginning.

        Raises:
            AlreadyExistsError: the app, or one of its functions.
            ResourceExhaustedError: APPS_MAX are running.
            NoCapacityError: a function asks for more than this host has.
            DaemonStoppedError: the daemon is stopping.
        """
        self._refuse_when_draining()
        apps = self._engine.apps
        if len(apps.running) >= APPS_MAX:
            raise ResourceExhaustedError(f"{APPS_MAX} apps are running, the most there may be")
        for each in functions:
            check_possible(each.spec, self._engine.fleet.capacity)
        pools = {each.id: Pool(each, name, self._clock) for each in functions}
        app = App(id=app_id, name=name, created_at_us=self._clock.wall_us(), pools=pools)
        if sink is not None:
            app.sinks.append(sink)
        apps.add(app)
        for pool in pools.values():
            self._engine.fleet.scale(pool)

    def attach(self, app_id: AppId, sink: AppSink) -> None:
        """Send an app's logs and progress to this sink too.

        Raises:
            NotFoundError: there is no such app.
            ConflictError: it has stopped.
        """
        app = self._engine.apps.find(app_id)
        if not app.is_running:
            raise ConflictError(f"app {app_id} has stopped: {app.reason}")
        if not any(each is sink for each in app.sinks):
            app.sinks.append(sink)

    def stop_app(self, app_id: AppId, reason: str) -> None:
        """Cancel an app's calls and end its containers; nothing when it does not run (any more)."""
        app = self._engine.apps.running.get(app_id)
        if app is None:
            return
        self._end_calls(app, CancelledError(f"app {app.name} was stopped: {reason}"))
        for pool in app.pools.values():
            self._engine.fleet.close_pool(pool, f"app stopped: {reason}")
        self._engine.apps.stop(app, reason)

    def _end_calls(self, app: App, error: Error) -> None:
        calls = self._engine.answers.calls
        for call in [each for each in calls.values() if each.app_id == app.id]:
            if call.is_open:  # A sink may have ended it meanwhile.
                self._engine.end_call(call, error)

    # --- calls ---------------------------------------------------------------------------------

    def open_call(
        self, call_id: CallId, function_id: FunctionId, kind: CallKind, sink: CallSink
    ) -> None:
        """Begin a call; its inputs follow.

        Raises:
            NotFoundError: no running app has this function.
            AlreadyExistsError: the id was used before.
            InvalidError: the kind does not fit the function.
            DaemonStoppedError: the daemon is stopping.
        """
        self._refuse_when_draining()
        engine = self._engine
        pool = engine.apps.pools.get(function_id)
        if pool is None:
            raise NotFoundError(f"function {function_id} does not exist, or its app has stopped")
        if call_id in engine.answers.calls or call_id in engine.answers.recent:
            raise AlreadyExistsError(f"call {call_id} exists already")
        if (kind == "gen") != pool.function.spec.is_generator:
            what = "streams values" if pool.function.spec.is_generator else "returns one value"
            raise InvalidError(f"{pool.name} {what}, it cannot be called as {kind}")
        now_us, at_us = self._clock.monotonic_us(), self._clock.wall_us()
        engine.answers.open(Call(call_id, kind, pool, sink, at_us=at_us, now_us=now_us))

    def add_inputs(self, call_id: CallId, payloads: Sequence[bytes], *, last: bool) -> None:
        """Give a call more inputs; ``last``: there will be no others.

        Raises:
            NotFoundError: the call is not open.
            ConflictError: ``last`` was given before.
            InvalidError: a call that is no map has one input.
            ResourceExhaustedError: too many inputs, or bytes, wait for their answers.
            PayloadTooLargeError: see PAYLOAD_BYTES_MAX.
        """
        call = self._engine.answers.calls.get(call_id)
        if call is None:
            raise NotFoundError(f"call {call_id} is not open")
        self._check_inputs(call, payloads)
        call.is_last = last
        if payloads:
            self._engine.add(call, payloads)
        elif call.is_complete:
            self._engine.answers.end(call, None)

    def _check_inputs(self, call: Call, payloads: Sequence[bytes]) -> None:
        if call.is_last:
            raise ConflictError(f"call {call.id} has got its last input already")
        if call.kind != "map" and call.total + len(payloads) > 1:
            raise InvalidError(f"call {call.id} is {call.kind}: it has one input")
        outstanding = len(call.inputs) + len(payloads)
        if outstanding > INPUTS_OUTSTANDING_MAX:
            raise ResourceExhaustedError(
                f"{outstanding} inputs of call {call.id} would be unanswered,"
                f" at most {INPUTS_OUTSTANDING_MAX} may be"
            )
        size = sum(map(len, payloads))
        if size > PAYLOAD_BYTES_MAX and (largest := max(map(len, payloads))) > PAYLOAD_BYTES_MAX:
            raise PayloadTooLargeError(
                f"an input is {largest} bytes, at most {PAYLOAD_BYTES_MAX} fit"
            )
        held = self._engine.answers.bytes_held + size
        if held > PAYLOAD_BYTES_HELD_MAX:
            raise ResourceExhaustedError(
                f"arguments of unanswered inputs would take {held} bytes of the daemon's memory,"
                f" at most {PAYLOAD_BYTES_HELD_MAX} may",
                hint="pass paths or blobs instead of large arguments",
            )

    def cancel_call(self, call_id: CallId, reason: str) -> None:
        """End a call: waiting inputs are dropped, running ones interrupted. Nothing if it ended."""
        call = self._engine.answers.calls.get(call_id)
        if call is not None:
            self._engine.end_call(call, CancelledError(f"call {call_id} was cancelled: {reason}"))

    # --- containers ----------------------------------------------------------------------------

    def stop_container(self, container_id: ContainerId) -> None:
        """End a container; its input, if it has one, runs again elsewhere.

        Raises:
            NotFoundError: it does not exist or has ended.
        """
        self._engine.fleet.stop(self._lookup.live_container(container_id), "stopped by request")

    def handle(self, container_id: ContainerId) -> FunctionContainer:
        """The launcher's object for a live container: what ``exec`` needs.

        Raises:
            NotFoundError: it does not exist or has ended.
        """
        container = self._lookup.live_container(container_id)
        assert container.handle is not None, container_id
        return cast("FunctionContainer", container.handle)

    # --- the end -------------------------------------------------------------------------------

    def _refuse_when_draining(self) -> None:
        if self._is_draining:
            raise DaemonStoppedError("hostd is stopping and takes no more work")

    async def drain(self) -> None:
        """End everything: open calls get DaemonStoppedError, containers are stopped and awaited."""
        self._is_draining = True
        error = DaemonStoppedError("hostd was stopped while the call ran")
        engine = self._engine
        for app in list(engine.apps.running.values()):
            self._end_calls(app, error)
            for pool in app.pools.values():
                engine.fleet.close_pool(pool, "hostd stops")
            engine.apps.stop(app, "hostd stops")
        if not await self._wait_empty():
            log.warning("containers did not end in time", count=len(engine.fleet.containers))
            for container in list(engine.fleet.containers.values()):
                engine.fleet.kill(container, "hostd stops")
            await self._wait_empty()

    async def _wait_empty(self) -> bool:
        """Wait until no container is left, or for DRAIN_TIMEOUT_S."""
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await self._engine.fleet.wait_empty()
        except TimeoutError:
            return False
        return True

    # --- questions -----------------------------------------------------------------------------

    def statistics(self) -> SchedulerStatistics:
        """Counters since the daemon started, and what there is now."""
        return self._lookup.statistics()

    def apps(self) -> list[AppInfo]:
        """Running apps, then those that stopped lately; newest first."""
        return self._lookup.apps()

    def app(self, app_id: AppId) -> AppInfo:
        """An app by id or unique prefix; NotFoundError, ConflictError."""
        return self._lookup.app(app_id)

    def containers(self, everything: bool = False) -> list[ContainerInfo]:
        """Live containers, newest first; with ``everything`` also those that ended lately."""
        return self._lookup.containers(everything)

    def container(self, container_id: ContainerId) -> ContainerInfo:
        """A container by id or unique prefix; NotFoundError, ConflictError."""
        return self._lookup.container(container_id)

    async def calls(self, *, limit: int = 50) -> list[CallInfo]:
        """Open calls, then ended ones; newest first."""
        return await self._lookup.calls(limit=limit)

    async def call(self, call_id: CallId) -> CallInfo:
        """A call by id or unique prefix; NotFoundError, ConflictError."""
        return await self._lookup.call(call_id)

    async def explain(self, ref: str) -> Explanation:
        """Why this call, container, function or app is where it is; NotFoundError."""
        return await self._lookup.explain(ref)

    def check(self) -> None:
        """Assert the invariants of the whole state; for tests."""
        self._timers.check()
        self._engine.check()
