"""Inputs meet containers: what happens when one arrives, is answered, takes too long, or is lost.

The engine is what the launcher reports to (``ports.ContainerEvents``). Everything runs on the
daemon's event loop, between two awaits, and nothing here awaits: an input's way from the socket of
a client into its container and back is one synchronous chain in each direction.

Order in every handler: change the state, give the container its next input, then call sinks. A sink
may call back into the scheduler and finds a consistent state.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

from hostd.clock import Clock
from hostd.config import LimitsConfig
from hostd.errors import (
    ContainerExitedError,
    Error,
    FunctionTimeoutError,
)
from hostd.ids import ContainerId
from hostd.log import get_logger
from hostd.model import ContainerInfo, InputTimings, LogLine, OutputStatus
from hostd.scheduler.allocation import LAUNCHING, Advanced, BecameReady, Phase
from hostd.scheduler.answers import Answers
from hostd.scheduler.apps import Apps
from hostd.scheduler.calls import Call, Cause, Input, InputPhase
from hostd.scheduler.capacity import Resources
from hostd.scheduler.dispatch import Container, Pool
from hostd.scheduler.explain import span
from hostd.scheduler.fleet import Fleet
from hostd.scheduler.ports import ContainerHandle, ContainerLauncher, LogWriter, Timers
from hostd.scheduler.views import container_info
from hostd.scheduler.waterfall import Start, waterfall
from hostd.store import History

log = get_logger(__name__)

CANCEL_GRACE_S = 5.0
"""What cancelled code may take to end before its container is killed."""
STUCK_CHECK_S = 0.05
"""How often inputs that were sent ahead are looked at."""
CONTAINERS_ENDED_MAX = 1_000
"""Kept in memory for those who ask at once; the history has more."""

_ADVANCES = {phase.value: phase for phase in LAUNCHING}
_STREAMS: dict[str, Literal["stdout", "stderr", "system"]] = {
    "stdout": "stdout",
    "stderr": "stderr",
}


class Engine:
    """Runs inputs in containers."""

    def __init__(
        self,
        *,
        launcher: ContainerLauncher,
        clock: Clock,
        timers: Timers,
        limits: LimitsConfig,
        capacity: Resources,
        starts_max: int,
        history: History | None,
        logs: LogWriter | None,
    ) -> None:
        self._clock = clock
        self._timers = timers
        self._history = history
        self._tokens = itertools.count(1)
        self.apps = Apps(logs)
        self.answers = Answers(
            clock=clock, timers=timers, history=history, logs=logs, pump=self.pump
        )
        self.fleet = Fleet(
            launcher=launcher,
            events=self,
            clock=clock,
            timers=timers,
            limits=limits,
            capacity=capacity,
            starts_max=starts_max,
            announce=self.apps.announce,
            logs=logs,
        )
        self.ended: OrderedDict[ContainerId, ContainerInfo] = OrderedDict()

    # --- inputs go to containers ---------------------------------------------------------------

    def add(self, call: Call, payloads: Sequence[bytes]) -> None:
        """Take inputs of an open call and run what can be run."""
        now_us = self._clock.monotonic_us()
        pool = call.pool
        for payload in payloads:
            self.answers.bytes_held += len(payload)
            pool.enqueue(call.add(payload, now_us))
        refusal = self.fleet.refusal(pool)
        if refusal is not None:
            self.refuse_waiting(pool, refusal)
        else:
            self.pump(pool)

    def pump(self, pool: Pool) -> None:
        """Give waiting inputs to containers that can take them; see to more containers."""
        now_us = self._clock.monotonic_us()
        while pool.queued:
            container = pool.free_container()
            if container is None:
                self.fleet.scale_soon(pool)
                return
            self._send(container, pool.dequeue(), now_us)

    def _send(self, container: Container, entry: Input, now_us: int) -> None:
        pool = container.pool
        token = next(self._tokens)
        pool.send(container, entry, token, now_us)
        if container.deadline_timer is None:
            self._watch_deadline(container, pool.timeout_us)
        if len(container.in_flight) > 1 and pool.stuck_timer is None:
            pool.stuck_timer = self._timers.call_later(STUCK_CHECK_S, partial(self._unstick, pool))
        call = entry.call
        handle = _handle(container)
        try:
            handle.send_input(
                token, entry.payload, call_id=call.id, input_id=f"{call.id}:{entry.index}"
            )
        except Error as error:
            if (found := pool.take_back(container, token, now_us)) is not None:
                self.answers.did_not_succeed(found, Cause.FAILED, error)

    def refuse_waiting(self, pool: Pool, error: Error) -> None:
        """Answer every waiting input of a function with an error."""
        while pool.queued:
            self.answers.refuse(pool.dequeue(), error)

    # --- containers answer (ports.ContainerEvents) ---------------------------------------------

    def input_output(
        self,
        container_id: ContainerId,
        token: int,
        status: OutputStatus,
        fields: Sequence[bytes],
        timings: InputTimings,
    ) -> None:
        """An input was answered, wholly or (``yield``) in part."""
        container = self.fleet.containers.get(container_id)
        if container is None or token not in container.in_flight:
            return  # Taken back before: one outcome counts.
        if status == "yield":
            self._pass_on(container.in_flight[token], token, fields)
            return
        now_us = self._clock.monotonic_us()
        pool = container.pool
        begun_us = container.head_us
        entry = pool.take_back(container, token, now_us)
        pool.note_run(timings)
        if pool.failures:
            pool.failures = pool.retry_start_us = 0
            pool.last_failure = None
        container.inputs_done += 1
        if entry is not None and entry.index == 0:
            self._note_phases(entry, container, begun_us, now_us, timings)
        self._next(container, now_us)
        if entry is None:
            return
        if status == "raised":
            self.answers.raised(entry, fields)
            self.pump(pool)
        elif status == "failed":
            self.answers.failed(entry, fields)
        else:
            self.answers.deliver(entry, status, fields, is_failure=False)

    def _pass_on(self, entry: Input, token: int, fields: Sequence[bytes]) -> None:
        """Hand on one value of a generator, if anybody still waits for it."""
        if entry.token == token:
            entry.yielded = True
            entry.call.sink.outputs(entry.call.id, entry.index, "yield", fields)

    def _next(self, container: Container, now_us: int) -> None:
        """A container has answered: the next input, or rest, or the end."""
        pool = container.pool
        if container.is_closed:
            if not container.in_flight and container.allocation.phase is Phase.DRAINING:
                self.fleet.stop(container, "drained")
        elif pool.limits.single_use:
            self.fleet.stop(container, "single use: it has run its input")
            if pool.queued:
                self.fleet.scale_soon(pool)
        elif pool.queued:
            depth = pool.depth
            while pool.queued and len(container.in_flight) < depth:
                self._send(container, pool.dequeue(), now_us)
        elif not container.in_flight:
            self.fleet.watch_idle(pool)

    def _note_phases(
        self,
        entry: Input,
        container: Container,
        begun_us: int,
        now_us: int,
        timings: InputTimings,
    ) -> None:
        """Keep where the time of a call's first input went."""
        call = entry.call
        is_cold = container.ready_us > entry.queued_us and container.inputs_done == 1
        start = None
        if is_cold:
            start = Start(
                decided_us=container.allocation.begun_us,
                ready_us=container.ready_us,
                phases_us=container.launch_phases_us,
            )
        call.start = "cold" if is_cold else "warm"
        call.container_id = container.id
        call.phases_us = waterfall(
            queued_us=entry.queued_us,
            begun_us=begun_us,
            answered_us=now_us,
            timings=timings,
            start=start,
        )

    def container_state(self, container_id: ContainerId, state: str) -> None:
        """It reached a state of ui-spec A1; the ones after the start are known here anyway."""
        container = self.fleet.containers.get(container_id)
        phase = _ADVANCES.get(state)
        if container is None or phase is None:
            return
        if container.allocation.phase in (Phase.READY, Phase.DRAINING):
            return  # A late report; what matters came before it.
        self.fleet.step(container, Advanced(at_us=self._clock.monotonic_us(), to=phase))

    def container_ready(self, container_id: ContainerId, phases_us: Mapping[str, int]) -> None:
        """It takes inputs."""
        container = self.fleet.containers.get(container_id)
        if container is None:
            return
        now_us = self._clock.monotonic_us()
        container.launch_phases_us = dict(phases_us)
        was_launching = container.allocation.is_launching
        self.fleet.step(container, BecameReady(at_us=now_us))
        if not was_launching:
            return  # It was told to end meanwhile.
        pool = container.pool
        pool.became_ready(container, now_us)
        self.fleet.watch_idle(pool)
        self.fleet.serve_held()
        self.pump(pool)
        self.fleet.scale(pool)

    def container_line(
        self, container_id: ContainerId, stream: str, text: bytes, at_us: int
    ) -> None:
        """It wrote a line: to those who watch, and to the log store."""
        container = self.fleet.containers.get(container_id)
        if container is None:
            return
        head = container.head
        line = LogLine(
            at_us=at_us,
            container_id=container_id,
            stream=_STREAMS.get(stream, "system"),
            text=text.decode(errors="replace"),
            call_id=head.call.id if head is not None else None,
            input=head.index if head is not None else None,
        )
        self.apps.log(container, line)

    def container_exited(
        self, container_id: ContainerId, error: Error | None, summary: str
    ) -> None:
        """It is gone with all it held."""
        container = self.fleet.containers.get(container_id)
        if container is None:
            return
        pool = container.pool
        before = container.allocation.phase
        was_useless = before in LAUNCHING or (
            before is Phase.READY and not container.inputs_done and not container.in_flight
        )
        entries = self.fleet.exited(container, summary)
        self._remember(container)
        self.apps.container_gone(container)
        died = error or ContainerExitedError(f"container {container_id} ended: {summary}")
        # Backwards: those that go back to the front of the line keep their order.
        for entry, was_running in reversed(entries):
            by_itself = was_running and before is Phase.READY
            self.answers.did_not_succeed(entry, Cause.DIED if by_itself else Cause.LOST, died)
        failure = container.start_failure or (died if was_useless else None)
        if failure is not None and self.fleet.start_failed(pool, failure):
            self.refuse_waiting(pool, failure)
        # Others may have waited longer for the place than this function has.
        self.fleet.serve_held()
        self.pump(pool)
        self.fleet.scale(pool)

    def _remember(self, container: Container) -> None:
        info = container_info(container)
        self.ended[container.id] = info
        if len(self.ended) > CONTAINERS_ENDED_MAX:
            self.ended.popitem(last=False)
        if self._history is not None:
            self._history.record_container(info)

    # --- inputs that take too long -------------------------------------------------------------

    def _watch_deadline(self, container: Container, delay_us: int) -> None:
        # One timer per container, not per input: it looks when it fires and is set again.
        container.deadline_timer = self._timers.call_later(
            delay_us / 1e6, partial(self._look_at_deadline, container)
        )

    def _look_at_deadline(self, container: Container) -> None:
        container.deadline_timer = None
        if container.is_closed or not container.in_flight:
            return
        left_us = container.head_us + container.pool.timeout_us - self._clock.monotonic_us()
        if left_us > 0:
            self._watch_deadline(container, left_us)
            return
        token, entry = next(iter(container.in_flight.items()))
        if entry.token == token:
            self._time_out(container, entry)
        else:
            # It is cancelled and ends soon; the one behind it has its own time.
            self._watch_deadline(container, min(container.pool.timeout_us, 1_000_000))

    def _time_out(self, container: Container, entry: Input) -> None:
        pool = container.pool
        limit = span(pool.timeout_us)
        error = FunctionTimeoutError(
            f"input {entry.index} of {pool.name} ran longer than timeout={limit}",
            hint="raise timeout= of the function, or make its inputs smaller",
            timeout_s=pool.timeout_us / 1e6,
        )
        self.fleet.drain(container, f"an input ran longer than {limit}")
        self._interrupt(container, entry)
        self._take_back_waiting(container)
        self.answers.did_not_succeed(entry, Cause.TIMED_OUT, error)
        self.pump(pool)

    # --- inputs nobody waits for any more ------------------------------------------------------

    def end_call(self, call: Call, error: Error) -> None:
        """End an open call before its inputs are answered."""
        for entry in self.answers.end(call, error):
            container = entry.container
            assert container is not None, call.id
            self._interrupt(container, entry)

    def _interrupt(self, container: Container, entry: Input) -> None:
        """Cancel a running input; its container is killed if that does not end it."""
        token = entry.token
        container.pool.abandon(entry)
        container.cancelled_us = self._clock.monotonic_us()
        _handle(container).cancel_input(token)
        if container.cancel_timer is None:
            self._watch_cancelled(container, CANCEL_GRACE_S)

    def _watch_cancelled(self, container: Container, delay_s: float) -> None:
        container.cancel_timer = self._timers.call_later(
            delay_s, partial(self._look_at_cancelled, container)
        )

    def _look_at_cancelled(self, container: Container) -> None:
        container.cancel_timer = None
        abandoned = [token for token, entry in container.in_flight.items() if entry.token != token]
        if not abandoned:
            return
        # Its grace counts from when its turn began: before that it waited for its neighbour.
        begun_us = max(container.head_us, container.cancelled_us)
        left_us = begun_us + round(CANCEL_GRACE_S * 1e6) - self._clock.monotonic_us()
        if next(iter(container.in_flight)) != abandoned[0]:
            left_us = round(CANCEL_GRACE_S * 1e6)
        if left_us > 0:
            self._watch_cancelled(container, left_us / 1e6)
            return
        self._take_back_waiting(container)
        self.fleet.kill(container, f"a cancelled input went on for {CANCEL_GRACE_S:g} s")
        self.pump(container.pool)

    # --- inputs that were sent ahead and wait --------------------------------------------------

    def _unstick(self, pool: Pool) -> None:
        pool.stuck_timer = None
        stuck = pool.stuck(self._clock.monotonic_us())
        if stuck:
            pool.note_slow()
        # Backwards: they go to the front of the line and keep their order.
        for container, token in reversed(stuck):
            self._take_back(container, token)
        self.pump(pool)
        if pool.stuck_timer is None and pool.has_waiting_ahead():
            pool.stuck_timer = self._timers.call_later(STUCK_CHECK_S, partial(self._unstick, pool))

    def _take_back_waiting(self, container: Container) -> None:
        """Put the inputs that wait behind the first one back into the line."""
        for token in reversed(list(container.in_flight)[1:]):
            self._take_back(container, token)

    def _take_back(self, container: Container, token: int) -> None:
        entry = container.pool.take_back(container, token, self._clock.monotonic_us())
        # The runner must not begin it; should it have, its answer finds nobody.
        _handle(container).cancel_input(token)
        if entry is not None:
            container.pool.enqueue_first(entry)

    def check(self) -> None:
        """Assert what must and must not hold at any time. O(everything): for tests."""
        self.fleet.check()
        for pool in self.apps.pools.values():
            pool.check()
        for call in self.answers.calls.values():
            call.check()
            assert call.app_id in self.apps.running, call.id
        running = sum(
            entry.phase is InputPhase.RUNNING
            for call in self.answers.calls.values()
            for entry in call.inputs.values()
        )
        waited_for = sum(
            entry.token == token
            for container in self.fleet.containers.values()
            for token, entry in container.in_flight.items()
        )
        assert running == waited_for, (running, waited_for)


def _handle(container: Container) -> ContainerHandle:
    assert container.handle is not None, f"{container.id} was not launched"
    return container.handle
