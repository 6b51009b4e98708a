"""Calls from their inputs to their answers, with containers that work."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hostd.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NotFoundError,
    PayloadTooLargeError,
    ResourceExhaustedError,
)
from hostd.ids import CallId, FunctionId
from hostd.model import INPUTS_OUTSTANDING_MAX
from hostd.scheduler import service
from tests.fakes.cluster_of_one import ClusterOfOne
from tests.fakes.fake_launcher import RecordingSink

FAST_US = 100


async def test_first_call_starts_a_container_and_is_answered_once_it_is_ready(
    one: ClusterOfOne,
) -> None:
    call = one.call(one.function(), b"7", kind="unary")
    (container,) = one.launcher.containers
    assert container.sent == []
    container.ready()
    assert container.sent == [b"7"]
    container.answer("ok", b"49")
    assert one.sink.items[call] == [(0, "ok", (b"49",))]
    assert one.sink.ends[call]["problem"] is None


async def test_second_call_uses_the_warm_container(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    assert container.payload == b"x"
    container.answer()
    assert one.sink.ends[call]["start"] == "warm"
    assert len(one.launcher.containers) == 1


async def test_cold_and_warm_phases_sum_to_the_wall_time(one: ClusterOfOne) -> None:
    function = one.function()
    cold = one.call(function, b"x", kind="unary")
    one.clock.advance(90_000)
    container = one.launcher.last
    container.ready()
    one.clock.advance(6_000)
    container.answer(run_us=5_000)
    warm = one.call(function, b"y", kind="unary")
    one.clock.advance(5_500)
    container.answer(run_us=5_000)
    assert one.sink.ends[cold]["start"] == "cold"
    assert sum(one.sink.ends[cold]["phases_us"].values()) == 96_000
    assert one.sink.ends[cold]["phases_us"]["import"] == 50_000
    assert one.sink.ends[warm]["phases_us"] == {"run": 5_000, "deliver": 500}


async def test_container_gets_its_next_input_at_once_and_in_order(one: ClusterOfOne) -> None:
    function = one.function(max_containers=1)
    call = one.call(function, *[b"%d" % n for n in range(5)])
    container = one.launcher.last
    container.ready()
    for n in range(5):
        assert container.sent == [b"%d" % m for m in range(n + 1)]
        container.answer()
    assert one.sink.results(call) == [(n, "ok") for n in range(5)]
    assert one.sink.ends[call]["problem"] is None


async def test_map_inputs_may_come_in_parts(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"0", last=False)
    container.answer()
    assert call not in one.sink.ends
    one.scheduler.add_inputs(call, [b"1"], last=False)
    container.answer()
    one.scheduler.add_inputs(call, [], last=True)
    assert one.sink.results(call) == [(0, "ok"), (1, "ok")]
    assert call in one.sink.ends


async def test_empty_map_ends_at_once(one: ClusterOfOne) -> None:
    call = one.call(one.function(), kind="map")
    assert one.sink.ends[call] == {"problem": None, "phases_us": {}, "start": None}
    assert one.launcher.containers == []


async def test_calls_of_one_function_share_one_line(one: ClusterOfOne) -> None:
    function = one.function(max_containers=1)
    container = one.container(function)
    first, second = one.call(function, b"a", b"b"), one.call(function, b"c")
    for _ in range(3):
        container.answer()
    assert container.sent[1:] == [b"a", b"b", b"c"]
    assert (first in one.sink.ends, second in one.sink.ends) == (True, True)


async def test_container_that_was_idle_for_the_shortest_time_is_used_first(
    one: ClusterOfOne,
) -> None:
    function = one.function()
    one.call(function, b"1", b"2")
    old, new = one.launcher.containers
    old.ready()
    new.ready()
    new.answer()
    old.answer()
    one.call(function, b"3", kind="unary")
    assert (len(old.inputs), len(new.inputs)) == (1, 0)


async def test_late_answer_to_an_unknown_input_is_dropped(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    container.answer(token=99_999)
    assert one.sink.results(call) == []
    one.scheduler.check()


# --- generators ---


async def test_generator_values_pass_through_in_order(one: ClusterOfOne) -> None:
    function = one.function(is_generator=True)
    call = one.call(function, b"x", kind="gen")
    container = one.launcher.last
    container.ready()
    for value in (b"a", b"b"):
        container.answer("yield", value)
    container.answer("end")
    assert one.sink.items[call] == [(0, "yield", (b"a",)), (0, "yield", (b"b",)), (0, "end", ())]
    assert call in one.sink.ends


async def test_generator_is_not_repeated_after_its_first_value(one: ClusterOfOne) -> None:
    function = one.function(is_generator=True, max_retries=3)
    call = one.call(function, b"x", kind="gen")
    container = one.launcher.last
    container.ready()
    container.answer("yield", b"a")
    container.raise_error()
    assert one.sink.results(call) == [(0, "yield"), (0, "raised")]


async def test_generator_that_failed_before_its_first_value_is_repeated(one: ClusterOfOne) -> None:
    function = one.function(is_generator=True, max_retries=1)
    call = one.call(function, b"x", kind="gen")
    container = one.launcher.last
    container.ready()
    container.raise_error()
    one.advance(1.0)
    container.answer("yield", b"a")
    container.answer("end")
    assert one.sink.results(call) == [(0, "yield"), (0, "end")]


# --- sending ahead ---


@pytest.mark.parametrize(("run_us", "in_flight"), [(1, 8), (100, 8), (300, 3), (700, 2)])
async def test_inputs_are_sent_ahead_to_a_fast_function(
    one: ClusterOfOne, run_us: int, in_flight: int
) -> None:
    function = one.function(max_containers=1)
    container = one.container(function)
    one.call(function, *[b"%d" % n for n in range(80)])
    for _ in range(40):
        container.answer(run_us=run_us)
    assert len(container.inputs) == in_flight
    while container.inputs:
        container.answer(run_us=run_us)
        one.scheduler.check()
    assert container.sent[1:] == [b"%d" % n for n in range(80)]


@pytest.mark.parametrize(
    ("fields", "run_us"), [({}, 2_000), ({"is_generator": True}, 1), ({"single_use": True}, 1)]
)
async def test_nothing_is_sent_ahead_where_it_could_wait_long(
    one: ClusterOfOne, fields: dict[str, bool], run_us: int
) -> None:
    function = one.function(max_containers=1, **fields)
    kind = "gen" if "is_generator" in fields else "unary"
    for _ in range(20):
        one.call(function, b"x", kind=kind)
    one.launcher.last.ready()
    for _ in range(10):
        container = one.launcher.last
        if not container.is_ready:
            container.ready()
        container.answer(run_us=run_us)
        assert len(container.inputs) <= 1
        if container.is_told_to_end:
            container.exit()


async def test_input_behind_a_slow_one_is_taken_back(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, *[b"%d" % n for n in range(20)], last=False)
    for _ in range(17):
        container.answer(run_us=FAST_US)
    slow, *waiting = container.inputs.values()
    one.advance(0.4)
    other = next(each for each in one.launcher.containers if each is not container)
    other.ready()
    assert waiting[:1] == other.sent[:1]
    # Both answer in the end, the first container to the taken-back input too: it is ignored.
    for each in (container, other):
        while each.inputs:
            each.answer()
    assert sorted(one.sink.results(call)) == [(n, "ok") for n in range(20)]
    assert slow in container.sent


# --- what is refused ---


async def test_unknown_function_and_call_are_named(one: ClusterOfOne) -> None:
    with pytest.raises(NotFoundError, match="fu-none"):
        one.call(FunctionId("fu-none"), b"x")
    with pytest.raises(NotFoundError, match="fc-none"):
        one.scheduler.add_inputs(CallId("fc-none"), [b"x"], last=True)


async def test_call_id_is_used_once(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    with pytest.raises(AlreadyExistsError):
        one.scheduler.open_call(call, function, "unary", one.sink)
    container.answer()
    with pytest.raises(AlreadyExistsError):
        one.scheduler.open_call(call, function, "unary", one.sink)


async def test_kind_must_fit_the_function(one: ClusterOfOne) -> None:
    with pytest.raises(InvalidError, match="returns one value"):
        one.call(one.function(), b"x", kind="gen")
    with pytest.raises(InvalidError, match="streams values"):
        one.call(one.function(is_generator=True), b"x", kind="map")


async def test_unary_call_has_one_input(one: ClusterOfOne) -> None:
    function = one.function()
    with pytest.raises(InvalidError, match="one input"):
        one.call(function, b"a", b"b", kind="unary")


async def test_nothing_follows_the_last_input(one: ClusterOfOne) -> None:
    call = one.call(one.function(), b"a")
    with pytest.raises(ConflictError):
        one.scheduler.add_inputs(call, [b"b"], last=False)


async def test_outstanding_inputs_of_a_call_are_bounded(one: ClusterOfOne) -> None:
    function = one.function(max_containers=1)
    container = one.container(function)
    call = one.call(function, *[b"x"] * INPUTS_OUTSTANDING_MAX, last=False)
    with pytest.raises(ResourceExhaustedError, match="1001 inputs"):
        one.scheduler.add_inputs(call, [b"y"], last=False)
    container.answer()
    one.scheduler.add_inputs(call, [b"y"], last=True)


async def test_bytes_of_arguments_are_bounded_and_given_back(
    one: ClusterOfOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "PAYLOAD_BYTES_HELD_MAX", 100)
    monkeypatch.setattr(service, "PAYLOAD_BYTES_MAX", 60)
    function = one.function(max_containers=1)
    container = one.container(function)
    one.call(function, b"x" * 60, kind="unary")
    dropped = one.call(function, b"x" * 30, kind="unary")
    with pytest.raises(ResourceExhaustedError, match="150 bytes"):
        one.call(function, b"x" * 60, kind="unary")
    with pytest.raises(PayloadTooLargeError, match="61 bytes"):
        one.call(function, b"x" * 61, kind="unary")
    one.scheduler.cancel_call(dropped, "test")
    container.answer()
    assert one.scheduler.statistics().bytes_held == 0


async def test_container_that_cannot_take_an_input_fails_only_that_one(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    container.refuses = PayloadTooLargeError("an input is 9 bytes, the limit is 8")
    call = one.call(function, b"123456789", kind="unary")
    assert one.sink.problem_codes(call) == ["payload_too_large"]
    container.refuses = None
    one.call(function, b"x", kind="unary")
    assert container.payload == b"x"


async def test_sink_may_call_back_from_its_own_results(one: ClusterOfOne) -> None:
    function = one.function(max_containers=1)
    container = one.container(function)

    class Chain(RecordingSink):
        def outputs(self, call_id: str, index: int, status: str, fields: Sequence[bytes]) -> None:
            super().outputs(call_id, index, status, fields)  # type: ignore[arg-type]
            if index < 5:
                one.scheduler.add_inputs(CallId(call_id), [b"next"], last=index == 4)

    sink = Chain()
    one.scheduler.open_call(CallId("fc-chain"), function, "map", sink)
    one.scheduler.add_inputs(CallId("fc-chain"), [b"first"], last=False)
    for _ in range(6):
        container.answer()
        one.scheduler.check()
    assert sink.results("fc-chain") == [(n, "ok") for n in range(6)]
    assert "fc-chain" in sink.ends
