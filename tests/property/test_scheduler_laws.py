"""Laws of the scheduler over any order of events.

Safety, after every step: all invariants (``Scheduler.check``), one answer per input, one ``done``
per call and nothing after it, container counts within every limit, no input in two places.

Liveness, at the end of every run: when containers start and answer again, every call ends, and each
of its inputs was answered or the call ended with a problem.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from hostd.errors import (
    ContainerExitedError,
    ContainerStartError,
    Error,
    FunctionImportError,
    NotFoundError,
    OutOfMemoryError,
)
from hostd.ids import AppId, CallId, ContainerId, FunctionId
from hostd.model import FunctionSpec, Retries
from tests.fakes.cluster_of_one import ClusterOfOne
from tests.fakes.fake_launcher import FakeContainer

pytestmark = pytest.mark.slow

CONTAINERS_MAX = 6
STARTS_MAX = 3

specs = st.builds(
    FunctionSpec,
    name=st.sampled_from(["a", "b"]),
    image_id=st.just("im-1"),
    module=st.just("m"),
    qualname=st.just("f"),
    is_generator=st.booleans(),
    timeout_s=st.sampled_from([5.0, 300.0]),
    retries=st.builds(
        Retries, max_retries=st.integers(0, 2), initial_delay_s=st.sampled_from([0.0, 1.0])
    ),
    min_containers=st.integers(0, 2),
    max_containers=st.none() | st.integers(1, 3),
    buffer_containers=st.integers(0, 1),
    scaledown_window_s=st.sampled_from([2.0, 60.0]),
    single_use=st.booleans(),
)
ends = st.sampled_from(
    [
        None,
        ContainerExitedError("signal 11"),
        OutOfMemoryError("out of memory"),
        ContainerStartError("runc failed"),
        FunctionImportError("no module"),
    ]
)
any_number = st.integers(0, 1_000)


class SchedulerLaws(RuleBasedStateMachine):
    """One host, any number of apps; the test plays launcher, client and time."""

    functions = Bundle("functions")
    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.one = ClusterOfOne(containers_max=CONTAINERS_MAX, starts_max=STARTS_MAX)
        self.specs: dict[FunctionId, FunctionSpec] = {}
        self.app_of: dict[FunctionId, AppId] = {}
        self.inputs: Counter[CallId] = Counter()
        self.is_last: set[CallId] = set()

    # --- what a test may do ---

    @property
    def scheduler(self) -> Any:
        return self.one.scheduler

    def pick(self, number: int, wanted: Callable[[FakeContainer], bool]) -> FakeContainer | None:
        found = [each for each in self.one.launcher.live if wanted(each)]
        return found[number % len(found)] if found else None

    @rule(target=functions, spec=specs)
    def add_app(self, spec: FunctionSpec) -> FunctionId:
        # Minimums are promises: if they fill the host, other functions wait for ever, by design.
        pools = self.scheduler._engine.apps.pools.values()
        promised = sum(each.limits.min_containers for each in pools)
        if promised + spec.min_containers >= CONTAINERS_MAX:
            spec = msgspec.structs.replace(spec, min_containers=0)
        (function,) = self.one.app(spec)
        self.specs[function] = spec
        self.app_of[function] = self.one.app_id
        return function

    @rule(target=calls, function=functions, count=st.integers(0, 6), last=st.booleans())
    def call(self, function: FunctionId, count: int, last: bool) -> CallId:
        kind = "gen" if self.specs[function].is_generator else "map"
        count = min(count, 1) if kind == "gen" else count
        call = CallId(f"fc-{len(self.inputs):026d}")
        try:
            self.scheduler.open_call(call, function, kind, self.one.sink)
        except NotFoundError:
            self.one.sink.ends[call] = {"problem": {"code": "app stopped"}}
        self.inputs[call] = 0
        self.add(call, count, last)
        return call

    @rule(call=calls, count=st.integers(0, 4), last=st.booleans())
    def add_inputs(self, call: CallId, count: int, last: bool) -> None:
        open_calls = self.scheduler._engine.answers.calls
        if call in open_calls and open_calls[call].kind == "map":
            self.add(call, count, last)

    def add(self, call: CallId, count: int, last: bool) -> None:
        if call in self.one.sink.ends or call in self.is_last:
            return
        first = self.inputs[call]
        self.inputs[call] += count
        if last:
            self.is_last.add(call)
        payloads = [f"{call}:{n}".encode() for n in range(first, first + count)]
        self.scheduler.add_inputs(call, payloads, last=last)

    @rule(number=any_number)
    def container_becomes_ready(self, number: int) -> None:
        container = self.pick(number, lambda each: not each.is_ready)
        if container is not None:
            container.ready()

    @rule(number=any_number, run_us=st.sampled_from([10, 5_000]))
    def input_is_answered(self, number: int, run_us: int) -> None:
        container = self.pick(number, lambda each: bool(each.inputs))
        if container is not None:
            status = "end" if container.function.spec.is_generator else "ok"
            container.answer(status, run_us=run_us)  # type: ignore[arg-type]

    @rule(number=any_number)
    def input_raises(self, number: int) -> None:
        container = self.pick(number, lambda each: bool(each.inputs))
        if container is not None:
            container.raise_error()

    @rule(number=any_number)
    def result_cannot_be_sent(self, number: int) -> None:
        container = self.pick(number, lambda each: bool(each.inputs))
        if container is not None:
            container.answer("failed", b'{"code":"not_serializable","detail":"x"}')

    @rule(number=any_number)
    def value_is_yielded(self, number: int) -> None:
        def streams(each: FakeContainer) -> bool:
            return bool(each.inputs) and each.function.spec.is_generator

        container = self.pick(number, streams)
        if container is not None:
            container.answer("yield")

    @rule(number=any_number, error=ends)
    def container_ends(self, number: int, error: Error | None) -> None:
        container = self.pick(number, lambda each: True)
        if container is not None:
            container.exit(error, "ended")

    @rule(number=any_number)
    def container_obeys(self, number: int) -> None:
        container = self.pick(number, lambda each: each.is_told_to_end)
        if container is not None:
            container.exit(None, "stopped on request")

    @rule(number=any_number)
    def operator_stops_a_container(self, number: int) -> None:
        container = self.pick(number, lambda each: True)
        if container is not None:
            self.scheduler.stop_container(ContainerId(container.id))

    @rule(seconds=st.sampled_from([0.005, 0.06, 0.3, 1.1, 5.1, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.one.timers.advance(seconds)

    @rule(call=calls)
    def call_is_cancelled(self, call: CallId) -> None:
        self.scheduler.cancel_call(call, "test")

    @rule(function=consumes(functions))
    def app_is_stopped(self, function: FunctionId) -> None:
        self.scheduler.stop_app(self.app_of[function], "test")

    @precondition(lambda self: self.one.launcher.live)
    @rule(number=any_number)
    def unknown_token_is_answered(self, number: int) -> None:
        container = self.pick(number, lambda each: each.is_ready)
        if container is not None:
            container.answer(token=10**9)

    # --- what always holds ---

    @invariant()
    def everything_is_consistent(self) -> None:
        self.scheduler.check()

    @invariant()
    def each_input_has_at_most_one_answer(self) -> None:
        for call, items in self.one.sink.items.items():
            finals = [index for index, status, _ in items if status != "yield"]
            assert len(finals) == len(set(finals)), (call, items)
            assert set(finals) <= set(range(self.inputs[CallId(call)])), call
            for index, status, fields in items:
                if status in ("ok", "yield"):
                    assert fields == (f"{call}:{index}".encode(),), "an answer of another input"

    @invariant()
    def nothing_follows_a_generators_last_value(self) -> None:
        for items in self.one.sink.items.values():
            ended: set[int] = set()
            for index, status, _ in items:
                assert index not in ended
                if status != "yield":
                    ended.add(index)

    @invariant()
    def containers_keep_every_limit(self) -> None:
        live = self.one.launcher.live
        assert len(live) <= CONTAINERS_MAX
        for function, count in Counter(each.function.id for each in live).items():
            most = self.specs[function].max_containers
            assert most is None or count <= most
        for container in live:
            assert not container.function.spec.single_use or len(container.sent) <= 1

    # --- what holds in the end ---

    def teardown(self) -> None:
        for call in self.inputs:
            self.add(call, 0, last=True)
        for _ in range(400):
            if all(call in self.one.sink.ends for call in self.inputs):
                break
            self.work_through()
        for call, count in self.inputs.items():
            end = self.one.sink.ends.get(call)
            assert end is not None, self.scheduler._engine.answers.calls[call].inputs
            if end["problem"] is None:
                answered = {
                    index for index, status in self.one.sink.results(call) if status != "yield"
                }
                assert answered == set(range(count)), call
        statistics = self.scheduler.statistics()
        assert (statistics.calls_open, statistics.inputs_queued) == (0, 0)
        assert statistics.bytes_held == 0
        self.everything_is_consistent()
        self.containers_keep_every_limit()

    def work_through(self) -> None:
        """Let every container do the next thing it should."""
        for container in list(self.one.launcher.live):
            if container.is_told_to_end:
                container.exit(None, "stopped on request")
            elif not container.is_ready:
                container.ready()
            elif container.inputs:
                status = "end" if container.function.spec.is_generator else "ok"
                container.answer(status)  # type: ignore[arg-type]
        self.one.timers.advance(0.5)
        self.each_input_has_at_most_one_answer()


SchedulerLaws.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
test_scheduler_keeps_its_laws = SchedulerLaws.TestCase
