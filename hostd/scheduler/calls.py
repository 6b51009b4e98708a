"""Calls and their inputs: what is known of each, and what an outcome means for it. Pure.

A call is open from ``open_call`` to its one ``done``. Its inputs are numbered as they come. An
input is answered at most once: the first outcome that is not tried again is delivered, whatever
comes later (a late result, the exit of its container) finds it answered and is dropped.

    QUEUED -> RUNNING -> ANSWERED
      ^          |  \\
      |          v    -> DROPPED      the call ended before the input did
      +------ DELAYED                 a retry waits for its time

What is tried again:
- ``raised`` and timed out, and the container died under it: by the function's ``retries``, with
  back-off, while nothing of a generator was delivered.
- lost, since we ended its container for another reason (an operator, a neighbour's timeout): at
  once, not counted, at most ``LOSSES_MAX`` times.
- ``failed`` (a result that cannot be pickled, …): never, it would fail again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from hostd.ids import AppId, CallId, FunctionId
from hostd.model import Retries

if TYPE_CHECKING:
    from hostd.scheduler.dispatch import Container, Pool
    from hostd.scheduler.ports import CallSink, Timer

LOSSES_MAX = 8
"""Times that one input may lose its container through no fault of its own (Modal's figure)."""


class InputPhase(StrEnum):
    """Where an input is."""

    QUEUED = "queued"
    RUNNING = "running"
    DELAYED = "delayed"
    ANSWERED = "answered"
    DROPPED = "dropped"


class CallState(StrEnum):
    """What the API says of a call; the first two are open."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Cause(StrEnum):
    """Why an input did not succeed."""

    RAISED = "raised"
    TIMED_OUT = "timed_out"
    DIED = "died"
    LOST = "lost"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Again:
    """Run the input again after the delay; 0: at once, before those that wait."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Final:
    """Deliver the outcome."""


class Input:
    """One input. Changed only by the scheduler, between two awaits."""

    __slots__ = (
        "call",
        "container",
        "failures",
        "index",
        "losses",
        "payload",
        "phase",
        "queued_us",
        "retry_at_us",
        "timer",
        "token",
        "yielded",
    )

    def __init__(self, call: Call, index: int, payload: bytes, now_us: int) -> None:
        self.call = call
        self.index = index
        self.payload = payload
        self.queued_us = now_us
        """When it arrived; retries do not change it."""
        self.phase = InputPhase.QUEUED
        self.container: Container | None = None
        self.token = 0
        """Names the attempt that runs; 0: none."""
        self.failures = 0
        self.losses = 0
        self.yielded = False
        """Something of it was delivered: it must not run again."""
        self.timer: Timer | None = None
        self.retry_at_us = 0

    def verdict(self, cause: Cause, retries: Retries) -> Again | Final:
        """Whether it runs again; counts the attempt."""
        if cause is Cause.LOST:
            self.losses += 1
            return Again(0.0) if self.losses <= LOSSES_MAX and not self.yielded else Final()
        self.failures += 1
        if cause is Cause.FAILED or self.yielded or self.failures > retries.max_retries:
            return Final()
        return Again(retry_delay_s(retries, self.failures))


def retry_delay_s(retries: Retries, failures: int) -> float:
    """How long to wait after the n-th failure: initial x coefficient^(n-1), at most the maximum."""
    assert failures >= 1, failures
    # The exponent is bounded by max_retries (100) and the coefficient by 10: no overflow.
    delay_s = retries.initial_delay_s * retries.backoff_coefficient ** (failures - 1)
    return min(delay_s, retries.max_delay_s)


class Call:
    """One call of a function. Changed only by the scheduler, between two awaits."""

    __slots__ = (
        "app_id",
        "begun_us",
        "container_id",
        "created_at_us",
        "done",
        "ended_us",
        "error",
        "failed",
        "function_id",
        "function_name",
        "id",
        "inputs",
        "is_last",
        "kind",
        "phases_us",
        "pool",
        "sink",
        "start",
        "state",
        "total",
    )

    def __init__(
        self, call_id: CallId, kind: str, pool: Pool, sink: CallSink, *, at_us: int, now_us: int
    ) -> None:
        self.id = call_id
        self.kind = kind
        self.pool = pool
        self.sink = sink
        self.app_id: AppId = pool.function.app_id
        self.function_id: FunctionId = pool.function.id
        self.function_name: str = pool.function.spec.name
        self.created_at_us = at_us
        """Wall clock; the other times are monotonic."""
        self.begun_us = now_us
        self.ended_us = 0
        self.state = CallState.QUEUED
        self.inputs: dict[int, Input] = {}
        """Those that are not answered, by their number, in order."""
        self.total = 0
        self.done = 0
        """Answered, in whatever way."""
        self.failed = 0
        self.is_last = False
        """No more inputs will come."""
        self.phases_us: dict[str, int] = {}
        self.start: str | None = None
        self.container_id: str | None = None
        self.error: dict[str, object] | None = None

    @property
    def is_open(self) -> bool:
        """Whether ``done`` is still to come."""
        return self.state is CallState.QUEUED or self.state is CallState.RUNNING

    def add(self, payload: bytes, now_us: int) -> Input:
        """Take one more input."""
        assert self.is_open, self.id
        entry = Input(self, self.total, payload, now_us)
        self.inputs[self.total] = entry
        self.total += 1
        return entry

    def answered(self, entry: Input, *, is_failure: bool) -> None:
        """Note that an input has its answer."""
        removed = self.inputs.pop(entry.index, None)
        assert removed is entry, f"{self.id}:{entry.index} was answered twice"
        entry.phase = InputPhase.ANSWERED
        entry.payload = b""
        self.done += 1
        self.failed += is_failure

    @property
    def is_complete(self) -> bool:
        """Whether every input is answered and no more will come."""
        return self.is_last and not self.inputs

    def ended(self, state: CallState, now_us: int) -> None:
        """Close it; ``done`` is sent by the caller."""
        assert self.is_open, f"{self.id} ended twice"
        assert state not in (CallState.QUEUED, CallState.RUNNING), state
        self.state = state
        self.ended_us = now_us
        self.inputs = {}

    def check(self) -> None:
        """Assert what must and must not hold at any time."""
        assert self.failed <= self.done <= self.total, self.id
        if not self.is_open:
            assert not self.inputs, self.id
            return
        assert self.done + len(self.inputs) == self.total, self.id
        assert not self.is_complete, f"{self.id} is complete and open"
        for index, entry in self.inputs.items():
            assert entry.index == index, (self.id, index)
            assert entry.call is self, self.id
            is_running = entry.phase is InputPhase.RUNNING
            assert is_running == (entry.token != 0), (self.id, index, entry.phase)
            assert is_running == (entry.container is not None), (self.id, index)
            assert (entry.phase is InputPhase.DELAYED) == (entry.timer is not None), (
                self.id,
                index,
            )
            assert entry.phase in (InputPhase.QUEUED, InputPhase.RUNNING, InputPhase.DELAYED)
