"""Inputs that raise, take too long, lose their container, or are cancelled."""

from __future__ import annotations

import msgspec
import pytest

from hostd.errors import (
    ContainerExitedError,
    ContainerStartError,
    FunctionImportError,
    OutOfMemoryError,
    StorageFullError,
    TimeoutError,
)
from hostd.ids import ContainerId
from hostd.scheduler.autoscaler import START_FAILURES_MAX
from hostd.scheduler.calls import LOSSES_MAX
from tests.fakes.cluster_of_one import ClusterOfOne

# --- retries ---


async def test_exception_reaches_the_caller_as_it_is(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    container.raise_error("KeyError", "'a'")
    fields = (b"KeyError", b"'a'", b"traceback", b"")
    assert one.sink.items[call] == [(0, "raised", fields)]
    info = await one.scheduler.call(call)
    assert (info.state, info.error) == (
        "failed",
        {"code": "remote_raised", "detail": "KeyError: 'a'", "exception": "KeyError"},
    )


async def test_raised_input_runs_again_after_its_delay(one: ClusterOfOne) -> None:
    function = one.function(max_retries=2)
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    container.raise_error()
    assert container.inputs == {}
    one.advance(0.9)
    assert container.inputs == {}
    one.advance(0.2)
    assert container.payload == b"x"
    container.answer()
    assert one.sink.results(call) == [(0, "ok")]


async def test_last_failure_is_delivered_when_retries_are_used_up(one: ClusterOfOne) -> None:
    function = one.function(max_retries=2)
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    for _ in range(3):
        container.raise_error()
        one.advance(1.1)
    assert one.sink.results(call) == [(0, "raised")]
    assert container.inputs == {}


async def test_waiting_retry_does_not_hold_up_other_inputs(one: ClusterOfOne) -> None:
    function = one.function(max_retries=1, max_containers=1)
    container = one.container(function)
    call = one.call(function, b"a", b"b")
    container.raise_error()
    assert container.payload == b"b"
    container.answer()
    one.advance(1.1)
    container.answer()
    assert one.sink.results(call) == [(1, "ok"), (0, "ok")]


async def test_unpicklable_result_is_delivered_without_a_retry(one: ClusterOfOne) -> None:
    function = one.function(max_retries=3)
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    problem = msgspec.json.encode({"code": "not_serializable", "detail": "a lock"})
    container.answer("failed", problem)
    assert one.sink.items[call] == [(0, "failed", (problem,))]
    assert (await one.scheduler.call(call)).why.startswith("failed after")


# --- timeouts ---


async def test_input_over_its_time_is_answered_and_its_container_replaced(
    one: ClusterOfOne,
) -> None:
    function = one.function(timeout_s=10.0)
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    token = container.token
    one.advance(9.9)
    assert call not in one.sink.ends
    one.advance(0.2)
    assert one.sink.problem_codes(call) == ["function_timed_out"]
    assert container.cancelled == [token]
    later = one.call(function, b"y", kind="unary")
    assert container.sent == [b"warm up", b"x"]
    one.advance(0.3)
    other = one.launcher.last
    other.ready()
    other.answer()
    assert one.sink.results(later) == [(0, "ok")]


async def test_code_that_ends_when_cancelled_gets_a_gentle_stop(one: ClusterOfOne) -> None:
    function = one.function(timeout_s=10.0)
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    one.advance(10.1)
    container.raise_error("InputCancellation")
    assert (len(container.stop_calls), container.kills) == (1, 0)
    assert one.sink.results(call) == [(0, "failed")]
    container.exit()


async def test_code_that_ignores_the_cancellation_is_killed(one: ClusterOfOne) -> None:
    function = one.function(timeout_s=10.0)
    container = one.container(function)
    one.call(function, b"x", kind="unary")
    one.advance(14.9)
    assert container.kills == 0
    one.advance(0.3)
    assert container.kills == 1
    container.exit()
    assert one.scheduler.containers() == []


async def test_timeout_counts_as_a_failure_for_retries(one: ClusterOfOne) -> None:
    function = one.function(timeout_s=10.0, max_retries=1)
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    one.advance(11.2)
    container.exit()
    other = one.launcher.last
    assert other is not container
    other.ready()
    one.advance(10.1)
    assert one.sink.problem_codes(call) == ["function_timed_out"]


async def test_each_input_has_its_own_time(one: ClusterOfOne) -> None:
    function = one.function(timeout_s=10.0, max_containers=1)
    container = one.container(function)
    call = one.call(function, b"a", b"b")
    one.advance(8.0)
    container.answer()
    one.advance(8.0)
    container.answer()
    assert one.sink.results(call) == [(0, "ok"), (1, "ok")]


async def test_late_result_of_a_timed_out_input_is_ignored(one: ClusterOfOne) -> None:
    function = one.function(timeout_s=10.0)
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    one.advance(10.1)
    container.answer()
    assert one.sink.results(call) == [(0, "failed")]


# --- containers that end under their inputs ---


async def test_death_of_the_container_is_the_inputs_failure(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    container.exit(ContainerExitedError("container ct-1 ended by signal 11"), "signal 11")
    assert one.sink.problem_codes(call) == ["container_exited"]


async def test_out_of_memory_is_told_with_its_fields(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    container.exit(OutOfMemoryError("out of memory", limit_bytes=100, peak_bytes=101))
    ((_, _, (problem,)),) = one.sink.items[call]
    assert msgspec.json.decode(problem)["limit_bytes"] == 100
    assert (await one.scheduler.call(call)).error == msgspec.json.decode(problem)


async def test_death_uses_a_retry_when_there_is_one(one: ClusterOfOne) -> None:
    function = one.function(max_retries=1)
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    container.exit(ContainerExitedError("gone"))
    one.advance(1.1)
    other = one.launcher.last
    other.ready()
    other.answer()
    assert one.sink.results(call) == [(0, "ok")]


async def test_input_of_a_container_that_was_stopped_runs_elsewhere(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    one.scheduler.stop_container(ContainerId(container.id))
    assert len(container.stop_calls) == 1
    container.exit(None, "stopped on request")
    other = one.launcher.last
    other.ready()
    other.answer()
    assert one.sink.results(call) == [(0, "ok")]


async def test_input_that_ends_within_the_stops_grace_is_not_repeated(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    one.scheduler.stop_container(ContainerId(container.id))
    container.answer()
    container.exit(None)
    assert one.sink.results(call) == [(0, "ok")]
    assert len(one.launcher.containers) == 1


async def test_inputs_that_are_lost_together_keep_their_order(one: ClusterOfOne) -> None:
    function = one.function(max_containers=1)
    container = one.container(function)
    one.call(function, *[b"%d" % n for n in range(30)])
    while len(container.inputs) < 2:
        container.answer(run_us=10)
    lost = list(container.inputs.values())
    one.scheduler.stop_container(ContainerId(container.id))
    container.exit(None, "stopped")
    other = one.launcher.last
    other.ready()
    assert other.sent[:1] == lost[:1]
    other.answer()
    assert other.sent[:2] == lost


async def test_neighbour_of_a_timed_out_input_runs_elsewhere_at_once(one: ClusterOfOne) -> None:
    function = one.function(max_containers=2, timeout_s=0.02)
    container = one.container(function)
    one.call(function, *[b"%d" % n for n in range(20)], last=False)
    while len(container.inputs) < 2:
        container.answer(run_us=10)
    _, neighbour = container.inputs.values()
    one.advance(0.03)
    assert len(container.cancelled) == 2
    one.advance(0.3)
    other = one.launcher.last
    other.ready()
    assert other.payload == neighbour


async def test_input_that_is_lost_again_and_again_fails_in_the_end(one: ClusterOfOne) -> None:
    call = one.call(one.function(), b"x", kind="unary")
    for _ in range(LOSSES_MAX + 1):
        container = one.launcher.last
        container.ready()
        one.scheduler.stop_container(ContainerId(container.id))
        container.exit(None, "stopped")
    assert one.sink.problem_codes(call) == ["container_exited"]


async def test_neighbour_of_a_dead_input_keeps_its_place_in_line(one: ClusterOfOne) -> None:
    function = one.function(max_containers=1)
    container = one.container(function)
    call = one.call(function, *[b"%d" % n for n in range(30)])
    while len(container.inputs) < 2:
        container.answer(run_us=10)
    first, second = container.inputs.values()
    container.exit(ContainerExitedError("gone"))
    other = one.launcher.last
    other.ready()
    assert other.payload == second
    assert (int(first), "failed") in one.sink.results(call)
    while other.inputs:
        other.answer()
    assert len(one.sink.results(call)) == 30


# --- containers that do not start ---


async def test_import_error_fails_all_waiting_inputs_at_once(one: ClusterOfOne) -> None:
    function = one.function()
    calls = [one.call(function, b"x", kind="unary") for _ in range(3)]
    one.launcher.last.exit(FunctionImportError("ModuleNotFoundError: no module named sklearn"))
    assert [one.sink.problem_codes(call) for call in calls] == [["function_import_failed"]] * 3


async def test_import_error_answers_new_calls_at_once_for_a_while(one: ClusterOfOne) -> None:
    function = one.function()
    one.call(function, b"x", kind="unary")
    one.launcher.last.exit(FunctionImportError("no module"))
    again = one.call(function, b"x", kind="unary")
    assert one.sink.problem_codes(again) == ["function_import_failed"]
    one.advance(0.3)
    later = one.call(function, b"x", kind="unary")
    assert later not in one.sink.ends
    assert len(one.launcher.containers) == 2


@pytest.mark.parametrize(
    "error", [ContainerStartError("runc failed"), StorageFullError("no space to start it")]
)
async def test_start_failure_is_tried_again_with_backoff_before_inputs_fail(
    one: ClusterOfOne, error: Exception
) -> None:
    call = one.call(one.function(), b"x", kind="unary")
    for attempt in range(START_FAILURES_MAX):
        assert len(one.launcher.containers) == attempt + 1
        assert one.sink.problem_codes(call) == []
        one.launcher.last.exit(error)  # type: ignore[arg-type]
        one.advance(1.1)
    assert one.sink.problem_codes(call) == [error.code]  # type: ignore[attr-defined]
    assert len(one.launcher.containers) == START_FAILURES_MAX


async def test_start_that_succeeds_at_last_forgets_the_failures(one: ClusterOfOne) -> None:
    function = one.function()
    call = one.call(function, b"x", kind="unary")
    one.launcher.last.exit(ContainerStartError("runc failed"))
    one.advance(0.3)
    one.launcher.last.ready()
    one.launcher.last.answer()
    assert one.sink.results(call) == [(0, "ok")]
    assert (await one.scheduler.explain(function)).lines[-1].startswith("start")


async def test_failed_start_beside_working_containers_fails_nothing(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"a", b"b")
    one.advance(0.3)
    one.launcher.last.exit(FunctionImportError("flaky"))
    container.answer()
    container.answer()
    assert one.sink.results(call) == [(0, "ok"), (1, "ok")]


async def test_start_over_its_time_fails_the_inputs(one: ClusterOfOne) -> None:
    call = one.call(one.function(startup_timeout_s=20.0), b"x", kind="unary")
    one.launcher.last.exit(TimeoutError("was not ready within 20 s"), "too slow")
    assert one.sink.problem_codes(call) == ["timed_out"]


async def test_launcher_that_forgets_the_start_limit_is_overruled(one: ClusterOfOne) -> None:
    call = one.call(one.function(startup_timeout_s=20.0), b"x", kind="unary")
    container = one.launcher.last
    one.advance(25.1)
    assert container.kills == 1
    one.launcher.last.exit(TimeoutError("this one neither"))
    container.exit(None, "stopped on request")
    assert one.sink.problem_codes(call) == ["timed_out"]


async def test_containers_that_die_idle_are_not_restarted_without_pause(one: ClusterOfOne) -> None:
    one.function(min_containers=1)
    for _ in range(6):
        one.launcher.last.ready()
        one.launcher.last.exit(ContainerExitedError("a thread crashed it"))
        before = len(one.launcher.containers)
        one.advance(0.2)
        assert len(one.launcher.containers) == before
        one.advance(30.0)
        assert len(one.launcher.containers) == before + 1


# --- cancelling ---


async def test_cancelled_call_ends_at_once_and_its_inputs_are_dropped(one: ClusterOfOne) -> None:
    function = one.function(max_containers=1)
    container = one.container(function)
    call = one.call(function, b"a", b"b", b"c")
    token = container.token
    one.scheduler.cancel_call(call, "ctrl-c")
    assert one.sink.ends[call]["problem"]["code"] == "cancelled"
    assert container.cancelled == [token]
    container.raise_error("InputCancellation")
    assert one.sink.results(call) == []
    assert container.inputs == {}
    assert (await one.scheduler.call(call)).state == "cancelled"


async def test_container_of_a_cancelled_input_is_used_again(one: ClusterOfOne) -> None:
    function = one.function(max_containers=1)
    container = one.container(function)
    one.scheduler.cancel_call(one.call(function, b"a", kind="unary"), "test")
    later = one.call(function, b"b", kind="unary")
    container.raise_error("InputCancellation")
    assert container.payload == b"b"
    container.answer()
    assert one.sink.results(later) == [(0, "ok")]
    one.advance(6.0)
    assert container.kills == 0


async def test_cancelled_input_that_goes_on_costs_its_container(one: ClusterOfOne) -> None:
    function = one.function(max_containers=1)
    container = one.container(function)
    one.scheduler.cancel_call(one.call(function, b"a", kind="unary"), "test")
    later = one.call(function, b"b", kind="unary")
    one.advance(5.1)
    assert container.kills == 1
    container.exit(None, "killed")
    other = one.launcher.last
    other.ready()
    other.answer()
    assert one.sink.results(later) == [(0, "ok")]


async def test_grace_of_a_cancelled_input_begins_when_its_turn_comes(
    one: ClusterOfOne,
) -> None:
    function = one.function(max_containers=1)
    container = one.container(function)
    for _ in range(10):
        one.call(function, b"x", kind="unary")
        container.answer(run_us=10)
    keep, drop = (
        one.call(function, b"keep", kind="unary"),
        one.call(function, b"drop", kind="unary"),
    )
    assert list(container.inputs.values()) == [b"keep", b"drop"]
    one.scheduler.cancel_call(drop, "test")
    one.advance(0.04)
    container.answer()
    assert one.sink.results(keep) == [(0, "ok")]
    one.advance(4.98)
    assert container.kills == 0
    one.advance(0.1)
    assert container.kills == 1
    container.exit(None)


async def test_cancelled_retry_does_not_run_again(one: ClusterOfOne) -> None:
    function = one.function(max_retries=3)
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    container.raise_error()
    one.scheduler.cancel_call(call, "test")
    one.advance(5.0)
    assert container.inputs == {}


async def test_cancelling_twice_or_a_finished_call_does_nothing(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    container.answer()
    one.scheduler.cancel_call(call, "late")
    assert one.sink.ends[call]["problem"] is None
