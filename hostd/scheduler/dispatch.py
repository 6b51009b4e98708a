"""A function's pool: its waiting inputs, its containers, and which input goes where.

Everything an input passes through here is O(1). Inputs wait in one line per function, oldest first.
The container that became idle last is used first, so that the others stay idle and can be ended.

A container runs one input at a time. Of a function whose inputs take less than ``FAST_US``, more
are sent ahead and wait in the container, as many as it runs in that time, 2 to 8 in all: an input
then costs no round trip, and answers come in batches. Functions that are slow, stream values or use
a container once never have more than one. Inputs that wait behind a slow one are taken back
(``stuck``).

Times are monotonic microseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hostd.clock import Clock
from hostd.errors import Error
from hostd.ids import ContainerId
from hostd.model import FunctionDefinition, InputTimings
from hostd.scheduler.allocation import Allocation, Phase
from hostd.scheduler.autoscaler import Limits, Load
from hostd.scheduler.calls import CallState, Input, InputPhase

if TYPE_CHECKING:
    from hostd.scheduler.ports import ContainerHandle, Timer

FAST_US = 1_000.0
"""Below it, waiting for the next input costs a container as much as running it."""
FAST_SAMPLES_MIN = 4
IN_FLIGHT_MAX = 8
"""Of one container. A map of no-ops in one container, 2 busy cores, 2026-11: with 2 in flight 3,800
to 5,300 inputs/s and 66 to 89 us of the daemon's processor time each, with 8 7,400 to 11,400/s
and 41 to 49 us, with 16 7,300 to 9,700/s and 38 to 42 us."""
STUCK_US = 50_000
"""An input sent ahead is taken back after waiting so long: its function is not fast today."""
_WEIGHT = 0.2
"""Of the newest measurement in the running average: the last ten or so matter."""


class Container:
    """What the scheduler knows of one container. Changed only between two awaits."""

    __slots__ = (
        "allocation",
        "begun_wall_us",
        "cancel_timer",
        "cancelled_us",
        "deadline_timer",
        "handle",
        "head_us",
        "id",
        "idle_us",
        "in_flight",
        "inputs_done",
        "inputs_sent",
        "is_closed",
        "last_call_id",
        "launch_phases_us",
        "pool",
        "ready_us",
        "start_failure",
        "start_timer",
    )

    def __init__(self, container_id: ContainerId, pool: Pool, *, now_us: int, wall_us: int) -> None:
        self.id = container_id
        self.pool = pool
        self.allocation = Allocation(id=container_id, begun_us=now_us)
        self.begun_wall_us = wall_us
        self.handle: ContainerHandle | None = None
        self.in_flight: dict[int, Input] = {}
        """By token, in the order they were sent; the first runs, even if nobody waits for it."""
        self.head_us = 0
        """When the first one's turn began."""
        self.idle_us = 0
        self.ready_us = 0
        self.launch_phases_us: dict[str, int] = {}
        self.inputs_sent = 0
        self.inputs_done = 0
        self.is_closed = False
        """Takes no more inputs: it ends, or shall."""
        self.last_call_id: str | None = None
        self.start_failure: Error | None = None
        """Why the scheduler itself ended the start."""
        self.start_timer: Timer | None = None
        self.deadline_timer: Timer | None = None
        self.cancel_timer: Timer | None = None
        self.cancelled_us = 0
        """When an input in it was cancelled last."""

    @property
    def head(self) -> Input | None:
        """The input that runs now."""
        for entry in self.in_flight.values():
            return entry
        return None

    @property
    def is_ready(self) -> bool:
        """Whether inputs may be sent to it."""
        return self.allocation.phase is Phase.READY and not self.is_closed

    @property
    def state(self) -> str:
        """As ui-spec A1 names it."""
        if self.allocation.phase is Phase.READY:
            return "busy" if self.in_flight else "idle"
        if self.allocation.phase is Phase.DRAINING:
            return Phase.STOPPING.value
        return self.allocation.phase.value

    def timers(self) -> Iterator[Timer]:
        """Those that are set."""
        for timer in (self.start_timer, self.deadline_timer, self.cancel_timer):
            if timer is not None:
                yield timer


class Pool:
    """A function's inputs and containers."""

    def __init__(self, function: FunctionDefinition, app_name: str, clock: Clock) -> None:
        spec = function.spec
        self.function = function
        self.app_name = app_name
        self.name = f"{app_name}.{spec.name}"
        self._clock = clock
        self.limits = Limits(
            min_containers=spec.min_containers,
            max_containers=spec.max_containers,
            buffer_containers=spec.buffer_containers,
            scaledown_window_us=round(spec.scaledown_window_s * 1e6),
            single_use=spec.single_use,
        )
        self.timeout_us = round(spec.timeout_s * 1e6)
        self.startup_timeout_s = spec.startup_timeout_s or spec.timeout_s
        self.may_send_ahead = not (spec.single_use or spec.is_generator)
        self.queue: deque[Input] = deque()
        """Inputs in the order they run; those that are not QUEUED any more are skipped."""
        self.queued = 0
        """How many of them are QUEUED."""
        self.containers: dict[ContainerId, Container] = {}
        self.idle: dict[ContainerId, Container] = {}
        """Ready ones without an input; the longest idle first."""
        self.open: dict[ContainerId, Container] = {}
        """Ready ones with some, but fewer than IN_FLIGHT_MAX, when more may be sent ahead."""
        self.starting = 0
        self.stopping = 0
        self.busy = 0
        self._heads_us = 0
        """Sum of the ``head_us`` of the busy ones: their mean age without a walk."""
        self.run_us: float | None = None
        self.start_us: float | None = None
        self.samples = 0
        self.failures = 0
        """Containers in a row that ended without having answered anything."""
        self.retry_start_us = 0
        """No start before this time."""
        self.last_failure: Error | None = None
        self.is_closed = False
        self.is_held_by = ""
        """What keeps it from having the containers it should have, in words."""
        self.scale_timer: Timer | None = None
        self.scale_due_us = 0
        self.idle_timer: Timer | None = None
        self.stuck_timer: Timer | None = None

    # --- the line ------------------------------------------------------------------------------

    def enqueue(self, entry: Input) -> None:
        """Put an input at the end of the line."""
        entry.phase = InputPhase.QUEUED
        self.queue.append(entry)
        self.queued += 1

    def enqueue_first(self, entry: Input) -> None:
        """Put an input back at the front: it waited its time already."""
        entry.phase = InputPhase.QUEUED
        self.queue.appendleft(entry)
        self.queued += 1

    def dequeue(self) -> Input:
        """Take the first input of the line; there must be one."""
        assert self.queued > 0, self.name
        while (entry := self.queue.popleft()).phase is not InputPhase.QUEUED:
            pass
        self.queued -= 1
        return entry

    def drop(self, entry: Input) -> None:
        """Note that a queued input is not to run."""
        assert entry.phase is InputPhase.QUEUED, entry.phase
        entry.phase = InputPhase.DROPPED
        self.queued -= 1
        if self.queued == 0:
            self.queue.clear()

    def waiting(self) -> Iterator[Input]:
        """The queued inputs in their order."""
        return (entry for entry in self.queue if entry.phase is InputPhase.QUEUED)

    # --- who takes the next one ----------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Inputs that one container may have now."""
        run_us = self.run_us
        if not self.may_send_ahead or run_us is None or run_us >= FAST_US:
            return 1
        if self.samples < FAST_SAMPLES_MIN:
            return 1
        return max(2, min(IN_FLIGHT_MAX, int(FAST_US / max(run_us, 1.0))))

    def free_container(self) -> Container | None:
        """The container that should take the next input, if one can."""
        if self.idle:
            # The last key went in last: it was idle for the shortest time.
            return self.idle[next(reversed(self.idle))]
        if self.open and (depth := self.depth) > 1:
            container = self.open[next(reversed(self.open))]
            # Others may have room; they are filled up when they answer.
            return container if len(container.in_flight) < depth else None
        return None

    def send(self, container: Container, entry: Input, token: int, now_us: int) -> None:
        """Give a queued input to a container that ``free_container`` named."""
        in_flight = container.in_flight
        if not in_flight:
            self.idle.pop(container.id, None)
            if self.may_send_ahead:
                self.open[container.id] = container
            container.head_us = now_us
            self.busy += 1
            self._heads_us += now_us
        in_flight[token] = entry
        if len(in_flight) == IN_FLIGHT_MAX:
            del self.open[container.id]
        container.inputs_sent += 1
        entry.phase = InputPhase.RUNNING
        entry.container = container
        entry.token = token
        call = entry.call
        if call.state is CallState.QUEUED:
            call.state = CallState.RUNNING

    def take_back(self, container: Container, token: int, now_us: int) -> Input | None:
        """Remove an input from its container, answered or not; the one behind it begins.

        Returns:
            The input, or None when nobody waits for this attempt any more.
        """
        in_flight = container.in_flight
        was_head = next(iter(in_flight)) == token
        entry = in_flight.pop(token)
        if was_head:
            self._heads_us -= container.head_us
            if in_flight:
                container.head_us = now_us
                self._heads_us += now_us
            else:
                self.busy -= 1
        is_current = entry.token == token
        if is_current:
            self.abandon(entry)
        if in_flight:
            if self.may_send_ahead and container.is_ready:
                self.open[container.id] = container
        else:
            self.open.pop(container.id, None)
            if container.is_ready:
                container.idle_us = now_us
                self.idle[container.id] = container
        return entry if is_current else None

    def abandon(self, entry: Input) -> None:
        """Nobody waits for this attempt any more; its container stays busy until it ends."""
        assert entry.token != 0, entry.index
        entry.token = 0
        entry.container = None

    def note_run(self, timings: InputTimings) -> None:
        """Learn how long inputs take."""
        took_us = timings.input_load_us + timings.run_us + timings.output_store_us
        known = self.run_us
        self.run_us = took_us if known is None else known + _WEIGHT * (took_us - known)
        self.samples += 1

    def note_slow(self) -> None:
        """Some input takes long after all: send none ahead until many fast ones were seen."""
        self.run_us = max(self.run_us or 0.0, float(STUCK_US))

    def stuck(self, now_us: int) -> list[tuple[Container, int]]:
        """Inputs sent ahead that wait behind a slow one: container and token."""
        return [
            (container, token)
            for container in self.containers.values()
            if len(container.in_flight) > 1 and now_us - container.head_us >= STUCK_US
            for token in list(container.in_flight)[1:]
        ]

    def has_waiting_ahead(self) -> bool:
        """Whether some input waits inside a container."""
        return any(len(container.in_flight) > 1 for container in self.containers.values())

    # --- containers ----------------------------------------------------------------------------

    @property
    def ready(self) -> int:
        """Containers that take inputs."""
        return len(self.containers) - self.starting - self.stopping

    def launched(self, container: Container) -> None:
        """A container is being started."""
        self.containers[container.id] = container
        self.starting += 1

    def became_ready(self, container: Container, now_us: int) -> None:
        """A starting container takes inputs now."""
        self.starting -= 1
        container.ready_us = container.idle_us = now_us
        took_us = now_us - container.allocation.begun_us
        known = self.start_us
        self.start_us = took_us if known is None else known + _WEIGHT * (took_us - known)
        self.idle[container.id] = container

    def closes(self, container: Container, *, was_launching: bool) -> None:
        """A container takes no more inputs: it was told to end."""
        container.is_closed = True
        self.idle.pop(container.id, None)
        self.open.pop(container.id, None)
        self.stopping += 1
        if was_launching:
            self.starting -= 1

    def gone(self, container: Container, *, before: Phase) -> list[tuple[Input, bool]]:
        """A container has ended; the inputs that still waited for it, and which one it ran."""
        del self.containers[container.id]
        self.idle.pop(container.id, None)
        self.open.pop(container.id, None)
        if before in (Phase.DRAINING, Phase.STOPPING):
            self.stopping -= 1
        elif before is not Phase.READY:
            self.starting -= 1
        if container.in_flight:
            self.busy -= 1
            self._heads_us -= container.head_us
        container.is_closed = True
        entries = []
        for place, (token, entry) in enumerate(container.in_flight.items()):
            if entry.token == token:
                self.abandon(entry)
                entries.append((entry, place == 0))
        container.in_flight = {}
        return entries

    def load(self, now_us: int) -> Load:
        """What the autoscaler looks at."""
        age_us = now_us - self._heads_us / self.busy if self.busy else 0.0
        return Load(
            queued=self.queued,
            running=self.busy,
            run_us=self.run_us,
            age_us=age_us,
            start_us=self.start_us,
        )

    def check(self) -> None:
        """Assert what must and must not hold at any time."""
        assert self.queued == sum(1 for _ in self.waiting()), self.name
        states = [container.allocation.phase for container in self.containers.values()]
        assert Phase.EXITED not in states, self.name
        ending = states.count(Phase.STOPPING) + states.count(Phase.DRAINING)
        assert self.stopping == ending, self.name
        assert self.ready == states.count(Phase.READY), self.name
        busy = [each for each in self.containers.values() if each.in_flight]
        assert self.busy == len(busy), self.name
        assert self._heads_us == sum(each.head_us for each in busy), self.name
        for container in self.containers.values():
            depth = len(container.in_flight)
            assert depth <= (IN_FLIGHT_MAX if self.may_send_ahead else 1), (container.id, depth)
            assert (container.id in self.idle) == (container.is_ready and depth == 0), container.id
            has_room = self.may_send_ahead and container.is_ready and 0 < depth < IN_FLIGHT_MAX
            assert (container.id in self.open) == has_room, container.id
            for token, entry in container.in_flight.items():
                if entry.token == token:
                    assert entry.container is container, container.id
                    assert entry.phase is InputPhase.RUNNING, (container.id, entry.phase)
        most = self.limits.max_containers
        assert most is None or len(self.containers) <= most, self.name
        # Idle containers and waiting inputs do not stay side by side.
        assert not (self.idle and self.queued), self.name
