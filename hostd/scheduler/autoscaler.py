"""How many containers a function should have: pure arithmetic on what its pool looks like now.

The rule is one container per unanswered input, within ``min_containers`` and ``max_containers``,
plus ``buffer_containers`` while there is work. It is bent in one place: inputs that are short
against the start of a container do not get one each. If the backlog can be worked off by N
containers in the time that a new one takes to start, more than N would come too late to help. A map
of 10,000 no-ops then runs in one or two containers instead of filling the host with 500.

The running time is an average of what was measured, or the mean age of what runs now, whichever is
longer: a function that turned slow is noticed before any of its inputs has come back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

START_US_DEFAULT = 300_000
"""What a start takes as long as none was measured (design.md: 0.25 s above the imports)."""
START_US_MIN = 50_000
BACKOFF_FIRST_US = 250_000
BACKOFF_MAX_US = 30_000_000
"""For containers that do not start: who fixes the cause waits this long at most."""
FIRST_STARTS = 4
"""Containers of a function whose inputs nobody has timed yet; two more for each that is ready."""
START_FAILURES_MAX = 3
"""Starts that failed in a row for a reason of the host's before the waiting inputs are failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the function's author asked for."""

    min_containers: int = 0
    max_containers: int | None = None
    buffer_containers: int = 0
    scaledown_window_us: int = 60_000_000
    single_use: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A function's pool at one moment."""

    queued: int = 0
    running: int = 0
    """Inputs that containers work on."""
    run_us: float | None = None
    """Recent mean time of one input; None: none has come back yet."""
    age_us: float = 0.0
    """Mean time since the running inputs were begun."""
    start_us: float | None = None
    """Recent mean time from decision to ready; None: none was started yet."""


def desired_containers(load: Load, limits: Limits) -> int:
    """How many containers there should be, starting ones included, ending ones not."""
    wanted = load.running + _for_queue(load, limits)
    if wanted:
        wanted += limits.buffer_containers
    wanted = max(wanted, limits.min_containers)
    if limits.max_containers is not None:
        # A minimum above the maximum: the maximum is the promise to whoever pays.
        wanted = min(wanted, limits.max_containers)
    assert wanted >= 0, load
    return wanted


def _for_queue(load: Load, limits: Limits) -> int:
    """Containers beyond the busy ones that the queued inputs deserve."""
    if load.run_us is None or limits.single_use:
        return load.queued
    each_us = max(load.run_us, load.age_us)
    horizon_us = max(load.start_us or START_US_DEFAULT, START_US_MIN)
    by_work = math.ceil((load.queued + load.running) * each_us / horizon_us)
    return min(load.queued, max(by_work - load.running, 0 if load.running else 1))


def containers_to_start(
    load: Load, limits: Limits, *, starting: int, ready: int, stopping: int
) -> int:
    """How many to start now.

    Ending ones count against the maximum until they are gone. As long as nobody knows how long an
    input takes, the first few are started alone: on a busy host 16 starts at once would make the
    first of them, which may be all that is needed, four times slower.
    """
    missing = desired_containers(load, limits) - starting - ready
    if limits.max_containers is not None:
        missing = min(missing, limits.max_containers - starting - ready - stopping)
    if load.run_us is None and not limits.single_use:
        at_once = max(FIRST_STARTS, limits.min_containers) + 2 * ready
        missing = min(missing, at_once - starting)
    return max(missing, 0)


def containers_to_stop(
    idle_since_us: Sequence[int], *, ready: int, desired: int, limits: Limits, now_us: int
) -> int:
    """How many of the idle ones, oldest first, have been idle for too long and are not wanted."""
    surplus = ready - desired
    expired = sum(now_us - since >= limits.scaledown_window_us for since in idle_since_us)
    return max(0, min(surplus, expired))


def backoff_us(failures: int) -> int:
    """How long to wait before the next start, after so many failures in a row."""
    if failures <= 0:
        return 0
    return int(min(BACKOFF_FIRST_US * 2.0 ** (min(failures, 32) - 1), BACKOFF_MAX_US))


def check(load: Load, limits: Limits) -> None:
    """Assert what any answer must satisfy."""
    desired = desired_containers(load, limits)
    if limits.max_containers is not None:
        assert desired <= limits.max_containers, (load, limits)
    else:
        assert desired >= limits.min_containers, (load, limits)
        assert not load.queued or desired > 0, (load, limits)
    assert desired <= max(
        load.queued + load.running + limits.buffer_containers, limits.min_containers
    ), (load, limits)
