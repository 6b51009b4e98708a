"""Why something waits, was slow or failed: one sentence with numbers, then lines of detail. Pure.

The sentence names the first thing that would have to change. Lines are ``word  text``; the words
are needs, pool, host, start, story, inputs, error and try.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from hostd.model import CallInfo, ContainerInfo, Explanation
from hostd.scheduler.allocation import tell
from hostd.scheduler.calls import Call, CallState, Input, InputPhase
from hostd.scheduler.capacity import Resources, demand_of
from hostd.scheduler.dispatch import Container, Pool
from hostd.scheduler.waterfall import LAUNCH_PHASES

LINE_MAX = 1_000
"""Waiting inputs that are looked through to find a place in line, for each call of a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """What the sentence needs to know of the host."""

    now_us: int
    containers: int
    containers_max: int
    room: Resources
    capacity: Resources
    starting: int
    starts_max: int


def span(us: float) -> str:
    """A duration as a person says it: 850 us, 12 ms, 0.64 s, 3 m 12 s, 2 h 5 m."""
    if us < 1_000:
        return f"{us:.0f} us"
    if us < 100_000:
        return f"{us / 1e3:.3g} ms"
    seconds = us / 1e6
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} m {whole % 60} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60} m"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, …"""
    ends = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ends.get(number % 10, 'th')}"


# --- calls that have ended ------------------------------------------------------------------------


def ended_call(call: Call) -> str:
    """One sentence on a call that has ended."""
    took_us = call.ended_us - call.begun_us
    if call.state is CallState.CANCELLED:
        return f"cancelled after {span(took_us)}: {_detail(call.error)}"
    if call.state is CallState.FAILED:
        what = f"{call.failed} of {call.total} inputs failed" if call.total > 1 else "failed"
        return f"{what} after {span(took_us)}: {_detail(call.error)}"
    what = f"{call.total} inputs took" if call.total != 1 else "took"
    return f"{what} {span(took_us)}{_where(call.phases_us, call.start)}"


def _detail(error: dict[str, object] | None) -> str:
    text = str((error or {}).get("detail") or (error or {}).get("code") or "no reason is known")
    return text.partition("\n")[0][:500]


def _where(phases_us: dict[str, int], start: str | None) -> str:
    """The greatest part of the first input's time."""
    if not phases_us:
        return ""
    start_us = sum(phases_us.get(name, 0) for name in LAUNCH_PHASES)
    queue_us, run_us = phases_us.get("queue", 0), phases_us.get("run", 0)
    if start == "cold" and start_us >= max(queue_us, run_us):
        most = max(LAUNCH_PHASES, key=lambda name: phases_us.get(name, 0))
        most_us = phases_us.get(most, 0)
        return f", of which the start of a container {span(start_us)} ({most} {span(most_us)})"
    if queue_us > run_us:
        return f", of which {span(queue_us)} in the queue and {span(run_us)} running"
    return f", of which {span(run_us)} running in a {start} container"


def past_call(info: CallInfo) -> Explanation:
    """A call that has ended, from its record."""
    wall_us = sum(info.phases_us.values())
    lines = [f"{name:12} {span(us)}" for name, us in info.phases_us.items()]
    if info.inputs_total > 1:
        failed = f", {info.inputs_failed} failed" if info.inputs_failed else ""
        lines.insert(0, f"inputs  {info.inputs_done} of {info.inputs_total} answered{failed}")
    if info.error is not None:
        lines.append(f"error   {_detail(info.error)}")
        if info.error.get("hint"):
            lines.append(f"try     {info.error['hint']}")
    return Explanation(
        id=info.id,
        sentence=f"{info.id} {info.function} {info.why}",
        lines=lines,
        phases_us=info.phases_us,
        wall_us=wall_us,
    )


# --- calls that are open --------------------------------------------------------------------------


def why_open(call: Call, host: HostView) -> str:
    """One sentence on a call that has not ended, without its name."""
    waited = span(host.now_us - call.begun_us)
    if not call.inputs:
        return f"waits for inputs from its caller for {waited} ({call.done} answered)"
    running = [each for each in call.inputs.values() if each.phase is InputPhase.RUNNING]
    if running:
        return _why_running(call, running, host)
    delayed = [each for each in call.inputs.values() if each.phase is InputPhase.DELAYED]
    if delayed and len(delayed) == len(call.inputs):
        return _why_delayed(call, delayed[0], host)
    place = _place_in_line(call)
    in_line = f" ({ordinal(place)} in line)" if place else ""
    return f"is queued for {waited}{in_line}: {why_pool_waits(call.pool, host)}"


def _why_running(call: Call, running: list[Input], host: HostView) -> str:
    oldest = min(running, key=lambda each: each.container.head_us if each.container else 0)
    container = oldest.container
    assert container is not None, call.id
    since = span(host.now_us - container.head_us)
    limit = span(call.pool.timeout_us)
    if call.kind != "map":
        return f"runs for {since} of at most {limit} in {container.id}"
    queued = len(call.inputs) - len(running)
    return (
        f"runs {len(running)} of {len(call.inputs)} open inputs ({call.done} answered,"
        f" {queued} waiting); the oldest for {since} of at most {limit} in {container.id}"
    )


def _why_delayed(call: Call, entry: Input, host: HostView) -> str:
    most = call.pool.function.spec.retries.max_retries
    wait = span(max(entry.retry_at_us - host.now_us, 0))
    return f"failed {entry.failures} of {most + 1} times, runs again in {wait}"


def _place_in_line(call: Call) -> int:
    """Counted from 1; 0 when it is too far back to be worth counting."""
    for place, entry in enumerate(islice(call.pool.waiting(), LINE_MAX), 1):
        if entry.call is call:
            return place
    return 0


def why_pool_waits(pool: Pool, host: HostView) -> str:
    """Why the first input in line has no container."""
    most = pool.limits.max_containers
    if pool.is_held_by == "backoff":
        wait = span(max(pool.retry_start_us - host.now_us, 0))
        why = str(pool.last_failure).partition("\n")[0][:300]
        return f"{pool.failures} container starts in a row failed, the next is in {wait} ({why})"
    if most is not None and len(pool.containers) >= most and pool.ready:
        return f"all {most} containers that max_containers allows are busy{_longest(pool, host)}"
    if pool.starting:
        return _why_starting(pool, host)
    if pool.is_held_by == "host":
        return (
            f"this host runs {host.containers} containers, limits.containers_max ="
            f" {host.containers_max}, and none of them can be ended for it"
        )
    if pool.is_held_by == "capacity":
        need = demand_of(pool.function.spec)
        return f"it needs {need}; of this host's {host.capacity} there is {host.room} left"
    if pool.is_held_by == "starts":
        return f"{host.starting} containers are starting, at most {host.starts_max} may at a time"
    if pool.stopping and not pool.ready:
        return f"{pool.stopping} containers must end before a new one may start"
    return f"{pool.busy} of {pool.ready} containers are busy{_longest(pool, host)}"


def _why_starting(pool: Pool, host: HostView) -> str:
    first = next(each for each in pool.containers.values() if each.allocation.is_launching)
    since = span(host.now_us - first.allocation.begun_us)
    count = f"{pool.starting} containers are" if pool.starting > 1 else "its container is"
    usual = f"; a start takes {span(pool.start_us)}" if pool.start_us is not None else ""
    return f"{count} starting, {first.id} is {first.state} after {since}{usual}"


def _longest(pool: Pool, host: HostView) -> str:
    ages = [host.now_us - each.head_us for each in pool.containers.values() if each.in_flight]
    return f", the longest for {span(max(ages))}" if ages else ""


def open_call(call: Call, host: HostView) -> Explanation:
    """A call that has not ended."""
    pool = call.pool
    lines = [
        f"inputs  {call.total} sent, {call.done} answered, {call.failed} failed",
        f"pool    {_containers(pool)}, {pool.queued} inputs waiting",
        f"host    {host.containers} of {host.containers_max} containers, {host.starting} starting",
    ]
    if pool.run_us is not None:
        lines.append(f"usual   an input takes {span(pool.run_us)}")
    lines.extend(
        f"story   {container.id}: {tell(container.allocation)}"
        for container in islice(pool.containers.values(), 3)
    )
    if call.error is not None:
        lines.append(f"error   {_detail(call.error)}")
    return Explanation(
        id=call.id,
        sentence=f"{call.id} {pool.name} {why_open(call, host)}",
        lines=lines,
        phases_us=call.phases_us,
        wall_us=host.now_us - call.begun_us,
    )


# --- containers, functions, apps ------------------------------------------------------------------


def live_container(container: Container, host: HostView) -> Explanation:
    """A container that has not ended."""
    pool = container.pool
    age_us = host.now_us - container.allocation.begun_us
    return Explanation(
        id=container.id,
        sentence=f"{container.id} {pool.name} {_why_container(container, host)}",
        lines=[
            f"inputs  {container.inputs_done} done",
            f"pool    {_containers(pool)}, {pool.queued} inputs waiting",
            f"story   {tell(container.allocation)}",
        ],
        phases_us=dict(container.launch_phases_us),
        wall_us=age_us,
    )


def _why_container(container: Container, host: HostView) -> str:
    age = span(host.now_us - container.allocation.begun_us)
    if container.allocation.is_launching:
        limit = span(container.pool.startup_timeout_s * 1e6)
        return f"is {container.state} for {age} of at most {limit}"
    head = container.head
    if container.state == "busy" and head is not None:
        since = span(host.now_us - container.head_us)
        return f"works on {head.call.id}:{head.index} for {since}"
    if container.state == "idle":
        idle = span(host.now_us - container.idle_us)
        window = span(container.pool.limits.scaledown_window_us)
        return f"is idle for {idle}; it is ended after {window}, unless min_containers keeps it"
    return f"is stopping: {container.allocation.reason}"


def past_container(info: ContainerInfo) -> Explanation:
    """A container that has ended, from its record."""
    return Explanation(
        id=info.id,
        sentence=f"{info.id} {info.app}.{info.function} ended after {info.inputs_done} inputs:"
        f" {info.reason or 'no reason is known'}",
    )


def function(pool: Pool, host: HostView) -> Explanation:
    """A function of a running app."""
    wanted = f"{pool.queued} inputs wait" if pool.queued else "no input waits"
    why = f": {why_pool_waits(pool, host)}" if pool.queued else ""
    lines = [f"pool    {_containers(pool)}"]
    if pool.run_us is not None:
        lines.append(f"usual   an input takes {span(pool.run_us)}")
    if pool.start_us is not None:
        lines.append(f"start   a container takes {span(pool.start_us)}")
    if pool.last_failure is not None:
        lines.append(f"error   {str(pool.last_failure)[:500]}")
    return Explanation(id=pool.function.id, sentence=f"{pool.name}: {wanted}{why}", lines=lines)


def _containers(pool: Pool) -> str:
    most = pool.limits.max_containers
    now = f"{pool.busy} busy, {len(pool.idle)} idle, {pool.starting} starting"
    bounds = f"at least {pool.limits.min_containers}, at most {most or 'any number'}"
    return f"{len(pool.containers)} containers ({now}, {pool.stopping} stopping; {bounds})"
