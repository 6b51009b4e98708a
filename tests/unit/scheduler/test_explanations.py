"""Sentences with numbers, for whatever a person may ask about."""

from __future__ import annotations

import pytest

from hostd.errors import ContainerStartError, NotFoundError
from hostd.ids import ContainerId
from hostd.scheduler.explain import ordinal, span
from tests.fakes.cluster_of_one import ClusterOfOne


async def why(one: ClusterOfOne, ref: str) -> str:
    """The sentence without the id and the name."""
    explanation = await one.scheduler.explain(ref)
    assert explanation.id == ref
    return explanation.sentence.removeprefix(f"{ref} ").removeprefix("train.big ")


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (850, "850 us"), (1_234, "1.23 ms"), (88_500, "88.5 ms"), (640_000, "0.64 s"),
        (12_400_000, "12 s"), (192_000_000, "3 m 12 s"), (7_500_000_000, "2 h 5 m"),
    ],
)  # fmt: skip
def test_durations_read_well(us: int, text: str) -> None:
    assert span(us) == text


def test_ordinals_read_well() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th",
    ]  # fmt: skip


async def test_call_waits_for_its_containers_start(one: ClusterOfOne) -> None:
    call = one.call(one.function(), b"x", kind="unary")
    container = one.launcher.last
    container.advance("creating", "starting", "warming")
    one.advance(2.0)
    assert await why(one, call) == (
        f"is queued for 2.00 s (1st in line): its container is starting,"
        f" {container.id} is warming after 2.00 s"
    )


async def test_call_waits_behind_max_containers(one: ClusterOfOne) -> None:
    function = one.function(max_containers=1)
    one.container(function)
    one.call(function, b"x", kind="unary")
    one.call(function, b"x", kind="unary")
    call = one.call(function, b"x", kind="unary")
    one.advance(192.0)
    assert await why(one, call) == (
        "is queued for 3 m 12 s (2nd in line): all 1 containers that max_containers allows are"
        " busy, the longest for 3 m 12 s"
    )


async def test_call_waits_for_the_next_try_after_failed_starts(one: ClusterOfOne) -> None:
    call = one.call(one.function(), b"x", kind="unary")
    one.launcher.last.exit(ContainerStartError("runc create failed: no such cgroup\nmore"))
    assert await why(one, call) == (
        "is queued for 0 us (1st in line): 1 container starts in a row failed, the next is in"
        " 0.25 s (runc create failed: no such cgroup)"
    )


async def test_call_waits_for_a_start_slot() -> None:
    one = ClusterOfOne(starts_max=1)
    one.call(one.function(name="other"), b"x", kind="unary")
    call = one.call(one.function(), b"x", kind="unary")
    assert (await why(one, call)).endswith("1 containers are starting, at most 1 may at a time")


async def test_running_call_tells_its_container_and_limit(one: ClusterOfOne) -> None:
    function = one.function(timeout_s=300.0)
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    one.advance(12.0)
    assert await why(one, call) == f"runs for 12 s of at most 5 m 0 s in {container.id}"


async def test_running_map_counts_its_inputs(one: ClusterOfOne) -> None:
    function = one.function(max_containers=1)
    container = one.container(function)
    call = one.call(function, *[b"x"] * 10)
    container.answer()
    assert await why(one, call) == (
        "runs 1 of 9 open inputs (1 answered, 8 waiting); the oldest for 0 us of at most"
        f" 5 m 0 s in {container.id}"
    )


async def test_call_without_inputs_waits_for_its_caller(one: ClusterOfOne) -> None:
    call = one.call(one.function(), last=False)
    one.advance(3.0)
    assert await why(one, call) == "waits for inputs from its caller for 3.00 s (0 answered)"


async def test_retry_tells_when_it_comes(one: ClusterOfOne) -> None:
    function = one.function(max_retries=3)
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    container.raise_error()
    assert await why(one, call) == "failed 1 of 4 times, runs again in 1.00 s"


async def test_finished_calls_name_the_greatest_part(one: ClusterOfOne) -> None:
    function = one.function(max_containers=1)
    cold = one.call(function, b"x", kind="unary")
    one.clock.advance(83_000)
    container = one.launcher.last
    container.ready()
    one.clock.advance(5_500)
    container.answer()
    warm = one.call(function, b"x", kind="unary")
    queued = one.call(function, b"y", kind="unary")
    one.clock.advance(5_000)
    container.answer()
    one.clock.advance(2_000)
    container.answer(run_us=1_000)
    assert (await one.scheduler.call(cold)).why == (
        "took 88.5 ms, of which the start of a container 83 ms (import 50 ms)"
    )
    assert (await one.scheduler.call(warm)).why == (
        "took 5 ms, of which 5 ms running in a warm container"
    )
    assert (await one.scheduler.call(queued)).why == (
        "took 7 ms, of which 5 ms in the queue and 1 ms running"
    )


async def test_failed_and_cancelled_calls_say_after_what_and_why(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    failed = one.call(function, b"x", b"y")
    one.clock.advance(1_200_000)
    container.raise_error("ValueError", "bad\nmore")
    container.answer()
    cancelled = one.call(function, b"x", kind="unary")
    one.scheduler.cancel_call(cancelled, "ctrl-c")
    assert await why(one, failed) == "big 1 of 2 inputs failed after 1.20 s: ValueError: bad"
    assert (await one.scheduler.call(cancelled)).why.endswith("was cancelled: ctrl-c")


async def test_containers_explain_themselves(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    one.advance(5.0)
    assert (await why(one, container.id)).startswith("is idle for 5.00 s; it is ended after 1 m")
    call = one.call(function, b"x", kind="unary")
    assert await why(one, container.id) == f"works on {call}:0 for 0 us"
    lines = (await one.scheduler.explain(container.id)).lines
    assert lines[-1] == "story   +0.000 s ready"
    container.answer()
    one.scheduler.stop_container(ContainerId(container.id))
    assert await why(one, container.id) == "is stopping: stopped by request"
    container.exit(None, "exit code 0")
    assert await why(one, container.id) == "ended after 2 inputs: stopped by request; exit code 0"


async def test_functions_and_apps_explain_themselves(one: ClusterOfOne) -> None:
    function = one.function(max_containers=1)
    one.container(function)
    one.call(function, b"x", b"y")
    sentence = (await one.scheduler.explain(function)).sentence
    assert sentence.startswith("train.big: 1 inputs wait: all 1 containers that max_containers")
    assert "runs 1 containers; 1 inputs wait" in (await one.scheduler.explain(one.app_id)).sentence
    one.scheduler.stop_app(one.app_id, "done")
    assert (await one.scheduler.explain(one.app_id)).sentence.endswith("stopped: done")


async def test_unknown_things_are_not_found(one: ClusterOfOne) -> None:
    for ref in ("fc-00000000", "ct-00000000", "ap-00000000", "fu-00000000", "xx-1", ""):
        with pytest.raises(NotFoundError):
            await one.scheduler.explain(ref)
