"""The host's containers: when one is started, why one is not, and when one is ended.

Performs the effects of ``allocation.step`` and the decisions of ``autoscaler``. Knows inputs only
as numbers. All of it runs on the event loop, between two awaits.

A pool that should have more containers than it may have now is *held*; ``Pool.is_held_by`` says by
what. Held pools are looked at again when a place becomes free, those without any container first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import assert_never

from hostd.clock import Clock
from hostd.config import LimitsConfig
from hostd.errors import (
    BlobError,
    ContainerExitedError,
    ContainerStartError,
    Error,
    InternalError,
    ResourceExhaustedError,
    TimeoutError,
)
from hostd.ids import ContainerId, FunctionId, new_id
from hostd.log import get_logger
from hostd.scheduler import allocation, autoscaler
from hostd.scheduler.allocation import (
    Announce,
    EndStartTimer,
    Event,
    Exited,
    KillContainer,
    KillRequested,
    StopContainer,
    StopRequested,
)
from hostd.scheduler.autoscaler import START_FAILURES_MAX, backoff_us
from hostd.scheduler.calls import Input
from hostd.scheduler.capacity import NOTHING, Resources, demand_of
from hostd.scheduler.dispatch import Container, Pool
from hostd.scheduler.ports import ContainerEvents, ContainerLauncher, LogWriter, Timers

log = get_logger(__name__)

GATHER_S = 0.005
"""Inputs that arrive together are counted together, once a pool has its first container."""
RESCALE_S = 0.25
"""How often a pool with waiting inputs is looked at again."""
START_SLACK_S = 5.0
"""The launcher ends a start that takes too long and can say where it hung; this is the net."""

_MAY_PASS = (
    ContainerStartError,
    ContainerExitedError,
    BlobError,
    ResourceExhaustedError,
    InternalError,
)
"""Failed starts that are tried again; every other one has its cause in the function itself."""


class Fleet:
    """Every container of this host that has not ended."""

    def __init__(  # noqa: PLR0913 - what it works with, handed in by the engine
        self,
        *,
        launcher: ContainerLauncher,
        events: ContainerEvents,
        clock: Clock,
        timers: Timers,
        limits: LimitsConfig,
        capacity: Resources,
        starts_max: int,
        announce: Callable[[Container, str], None],
        logs: LogWriter | None,
    ) -> None:
        self._launcher = launcher
        self._events = events
        self._clock = clock
        self._timers = timers
        self._announce = announce
        self._logs = logs
        self.containers_max = limits.containers_max
        self.capacity = capacity
        self.promised = NOTHING
        """To all containers together."""
        self.starts_max = starts_max
        """Containers that start at the same time: more would only slow each other down."""
        self.containers: dict[ContainerId, Container] = {}
        self.starting = 0
        self.started = 0
        self._held: dict[FunctionId, Pool] = {}
        self._empty = asyncio.Event()

    # --- how many ------------------------------------------------------------------------------

    def scale_soon(self, pool: Pool) -> None:
        """Look at the pool's size: at once for its first container, else in a moment."""
        if pool.containers or pool.function.id in self._held:
            self._scale_later(pool, GATHER_S)
        else:
            self.scale(pool)

    def _scale_later(self, pool: Pool, delay_s: float) -> None:
        """Look at the pool's size after the delay, or earlier when that was planned already."""

        def scale() -> None:
            pool.scale_timer = None
            self.scale(pool)

        due_us = self._clock.monotonic_us() + round(delay_s * 1e6)
        if pool.scale_timer is not None:
            if pool.scale_due_us <= due_us:
                return
            pool.scale_timer.cancel()
        pool.scale_due_us = due_us
        pool.scale_timer = self._timers.call_later(delay_s, scale)

    def scale(self, pool: Pool) -> None:
        """Start what the pool lacks, as far as limits allow; look again while inputs wait."""
        if pool.is_closed:
            return
        now_us = self._clock.monotonic_us()
        missing = autoscaler.containers_to_start(
            pool.load(now_us),
            pool.limits,
            starting=pool.starting,
            ready=pool.ready,
            stopping=pool.stopping,
        )
        pool.is_held_by = ""
        if missing and now_us < pool.retry_start_us:
            pool.is_held_by = "backoff"
            self._scale_later(pool, (pool.retry_start_us - now_us) / 1e6)
            return
        while missing and not (held_by := self._obstacle(pool)):
            self._launch(pool, now_us)
            missing -= 1
        if missing:
            pool.is_held_by = held_by
            self._held[pool.function.id] = pool
            if held_by in ("host", "capacity"):
                self._make_room(pool, missing)
        else:
            self._held.pop(pool.function.id, None)
        if pool.queued:
            self._scale_later(pool, RESCALE_S)

    def _obstacle(self, pool: Pool) -> str:
        """Why no container of this function may be started now; empty: one may."""
        if len(self.containers) >= self.containers_max:
            return "host"
        if not demand_of(pool.function.spec).fits(self.room):
            return "capacity"
        return "starts" if self.starting >= self.starts_max else ""

    def serve_held(self) -> None:
        """A place became free: let those have it who have nothing, then those who wait longest."""
        for pool in sorted(self._held.values(), key=_urgency):
            if not self._obstacle(pool):
                self.scale(pool)

    @property
    def room(self) -> Resources:
        """What the host has and promised to nobody."""
        return self.capacity.minus(self.promised)

    def _make_room(self, pool: Pool, missing: int) -> None:
        """End idle containers of other functions, the longest idle first; or a busy one, gently."""
        ending = sum(each.stopping for each in {c.pool for c in self.containers.values()})
        idle = [
            each
            for each in self.containers.values()
            if each.pool is not pool and each.is_ready and not each.in_flight
        ]
        for container in sorted(idle, key=lambda each: each.idle_us):
            if ending >= missing:
                return
            other = container.pool
            if other.ready > other.limits.min_containers:
                self.stop(container, f"idle, and {pool.name} needs its place")
                ending += 1
        if not ending and not pool.containers:
            self._share(pool)

    def _share(self, pool: Pool) -> None:
        """Let the function with the most containers give one up, after the input it runs."""
        others = {each.pool for each in self.containers.values()} - {pool}
        greedy = max(others, key=lambda each: each.ready - each.limits.min_containers, default=None)
        if greedy is not None and greedy.ready > max(greedy.limits.min_containers, 1):
            busy = (each for each in reversed(greedy.containers.values()) if each.in_flight)
            newest = next((each for each in busy if each.is_ready), None)
            if newest is not None:
                self.drain(newest, f"{pool.name} has no container yet")

    # --- a container's life --------------------------------------------------------------------

    def _launch(self, pool: Pool, now_us: int) -> None:
        container_id = ContainerId(new_id("ct"))
        container = Container(container_id, pool, now_us=now_us, wall_us=self._clock.wall_us())
        self.containers[container_id] = container
        self.promised = self.promised.plus(demand_of(pool.function.spec))
        self.starting += 1
        self.started += 1
        pool.launched(container)
        container.start_timer = self._timers.call_later(
            pool.startup_timeout_s + START_SLACK_S, lambda: self._start_timed_out(container)
        )
        if self._logs is not None:
            self._logs.begin(container_id, pool.function.app_id)
        self._announce(container, container.state)
        container.handle = self._launcher.launch(container_id, pool.function, self._events)

    def _start_timed_out(self, container: Container) -> None:
        limit_s = container.pool.startup_timeout_s
        reached = container.allocation.phase
        container.start_timer = None
        container.start_failure = TimeoutError(
            f"container of {container.pool.name} was not ready within startup_timeout={limit_s:g} s"
            f" (it was {reached})",
            hint="raise startup_timeout, or import less at the top of the module",
        )
        self.kill(container, f"not ready within {limit_s:g} s")

    def step(self, container: Container, event: Event) -> None:
        """Let an event happen to a container and perform what follows from it."""
        before = container.allocation
        container.allocation, effects = allocation.step(before, event)
        if before.is_launching and not container.allocation.is_launching:
            self.starting -= 1
        for effect in effects:
            match effect:
                case Announce():
                    self._announce(container, effect.state)
                case EndStartTimer():
                    if container.start_timer is not None:
                        container.start_timer.cancel()
                        container.start_timer = None
                case StopContainer():
                    if container.handle is not None:
                        container.handle.stop(grace_s=effect.grace_s)
                case KillContainer():
                    if container.handle is not None:
                        container.handle.kill()
                case _:
                    assert_never(effect)

    def _close(self, container: Container) -> None:
        if not container.is_closed:
            container.pool.closes(container, was_launching=container.allocation.is_launching)

    def drain(self, container: Container, reason: str) -> None:
        """Give it no more inputs; ``stop`` follows when it has answered what it has."""
        if container.allocation.phase is allocation.Phase.READY:
            self._close(container)
            at_us = self._clock.monotonic_us()
            self.step(container, allocation.DrainRequested(at_us=at_us, reason=reason))

    def stop(self, container: Container, reason: str, *, grace_s: float | None = None) -> None:
        """Tell it to end; nothing when it was told already."""
        self._close(container)
        at_us = self._clock.monotonic_us()
        self.step(container, StopRequested(at_us=at_us, reason=reason, grace_s=grace_s))

    def kill(self, container: Container, reason: str) -> None:
        """Make it end now."""
        self._close(container)
        at_us = self._clock.monotonic_us()
        self.step(container, KillRequested(at_us=at_us, reason=reason))

    def exited(self, container: Container, summary: str) -> list[tuple[Input, bool]]:
        """It has ended; the inputs that waited for it, and whether each was the running one."""
        before = container.allocation.phase
        entries = container.pool.gone(container, before=before)
        self.step(container, Exited(at_us=self._clock.monotonic_us(), summary=summary))
        for timer in container.timers():
            timer.cancel()
        del self.containers[container.id]
        self.promised = self.promised.minus(demand_of(container.pool.function.spec))
        if not self.containers:
            self._empty.set()
        return entries

    async def wait_empty(self) -> None:
        """Wait until no container is left. Callers bound it."""
        while self.containers:
            self._empty.clear()
            await self._empty.wait()

    # --- starts that fail ----------------------------------------------------------------------

    def start_failed(self, pool: Pool, error: Error) -> bool:
        """Note a container that ended without use; whether waiting inputs must be failed now."""
        pool.failures += 1
        pool.last_failure = error
        pool.retry_start_us = self._clock.monotonic_us() + backoff_us(pool.failures)
        count = pool.failures
        log.info("container did not start", function=pool.name, failures=count, why=str(error))
        # Containers that run prove that it can work.
        return not pool.ready and _is_certain(pool, error)

    def refusal(self, pool: Pool) -> Error | None:
        """Why a new input need not wait: its function's containers fail to start these days."""
        error = pool.last_failure
        if error is None or pool.ready or pool.starting:
            return None
        is_recent = self._clock.monotonic_us() < pool.retry_start_us
        return error if is_recent and _is_certain(pool, error) else None

    # --- idle containers -----------------------------------------------------------------------

    def watch_idle(self, pool: Pool) -> None:
        """A container became idle: see to its end when it stays so."""
        if pool.idle_timer is None and not pool.is_closed:
            self._watch_idle_for(pool, pool.limits.scaledown_window_us)

    def _watch_idle_for(self, pool: Pool, delay_us: int) -> None:
        pool.idle_timer = self._timers.call_later(delay_us / 1e6, lambda: self._end_idle(pool))

    def _end_idle(self, pool: Pool) -> None:
        pool.idle_timer = None
        now_us = self._clock.monotonic_us()
        idle = list(pool.idle.values())
        desired = autoscaler.desired_containers(pool.load(now_us), pool.limits)
        count = autoscaler.containers_to_stop(
            [each.idle_us for each in idle],
            ready=pool.ready,
            desired=desired,
            limits=pool.limits,
            now_us=now_us,
        )
        for container in idle[:count]:
            self.stop(container, f"idle for {(now_us - container.idle_us) / 1e6:.0f} s")
        if pool.idle and pool.ready > desired:
            oldest_us = next(iter(pool.idle.values())).idle_us
            due_us = oldest_us + pool.limits.scaledown_window_us
            self._watch_idle_for(pool, max(due_us - now_us, 10_000))

    def close_pool(self, pool: Pool, reason: str) -> None:
        """Start no more containers of this function and end those it has."""
        pool.is_closed = True
        self._held.pop(pool.function.id, None)
        for timer in (pool.scale_timer, pool.idle_timer, pool.stuck_timer):
            if timer is not None:
                timer.cancel()
        for container in list(pool.containers.values()):
            self.stop(container, reason)

    def check(self) -> None:
        """Assert what must and must not hold at any time."""
        launching = [each for each in self.containers.values() if each.allocation.is_launching]
        assert self.starting == len(launching), (self.starting, len(launching))
        assert len(self.containers) <= self.containers_max
        assert self.starting <= self.starts_max
        for container in self.containers.values():
            allocation.check(container.allocation)
            assert container.pool.containers.get(container.id) is container, container.id
            assert (container.start_timer is not None) == container.allocation.is_launching


def _is_certain(pool: Pool, error: Error) -> bool:
    """Whether one more start would most likely fail the same way."""
    return pool.failures >= START_FAILURES_MAX or not isinstance(error, _MAY_PASS)


def _urgency(pool: Pool) -> tuple[bool, int]:
    first = next(pool.waiting(), None)
    return (pool.ready + pool.starting > 0, first.queued_us if first is not None else 0)
