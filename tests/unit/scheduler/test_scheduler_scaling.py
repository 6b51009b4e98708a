"""How many containers there are: start, limits, idle ends, fairness between functions."""

from __future__ import annotations

from hostd.model import FunctionSpec
from hostd.scheduler.autoscaler import FIRST_STARTS
from tests.fakes.cluster_of_one import ClusterOfOne
from tests.fakes.fake_launcher import FakeContainer


def ready_all(one: ClusterOfOne) -> None:
    for container in one.launcher.live:
        if not container.is_ready and not container.is_told_to_end:
            container.ready()


def let_end(one: ClusterOfOne) -> None:
    """Containers that were told to end do so."""
    for container in one.launcher.live:
        if container.is_told_to_end:
            container.exit(None, "stopped on request")


def started(one: ClusterOfOne) -> int:
    return len(one.launcher.containers)


async def test_minimum_is_started_with_the_app_and_kept(one: ClusterOfOne) -> None:
    one.function(min_containers=3)
    assert started(one) == 3
    ready_all(one)
    one.advance(1_000)
    assert len(one.launcher.live) == 3
    assert not any(each.is_told_to_end for each in one.launcher.containers)


async def test_minimum_is_restored_after_a_loss(one: ClusterOfOne) -> None:
    one.function(min_containers=2)
    ready_all(one)
    one.launcher.containers[0].exit(None, "lost")
    one.advance(1.0)
    assert started(one) == 3


async def test_slow_function_grows_to_one_container_per_input(one: ClusterOfOne) -> None:
    one.call(one.function(), *[b"x"] * 40)
    assert started(one) == FIRST_STARTS
    for _ in range(6):
        ready_all(one)
        one.advance(0.3)
    assert started(one) == 40


async def test_maximum_is_never_exceeded(one: ClusterOfOne) -> None:
    function = one.function(max_containers=3)
    one.call(function, *[b"x"] * 40)
    for _ in range(4):
        ready_all(one)
        one.advance(1.0)
    assert started(one) == 3
    ending = one.launcher.containers[0]
    ending.answer()
    assert len(ending.sent) == 2


async def test_replacement_waits_until_the_old_one_is_gone(one: ClusterOfOne) -> None:
    function = one.function(max_containers=1, timeout_s=5.0)
    container = one.container(function)
    one.call(function, b"slow", b"next")
    one.advance(5.1)
    assert started(one) == 1
    container.exit(None)
    assert started(one) == 2


async def test_no_ops_stay_in_one_container(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    one.call(function, *[b"x"] * 900)
    for _ in range(900):
        one.clock.advance(100)
        container.answer(run_us=50)
    one.advance(1.0)
    assert started(one) <= 4


async def test_buffer_stands_by_while_there_is_work(one: ClusterOfOne) -> None:
    function = one.function(buffer_containers=2)
    one.call(function, b"x", kind="unary")
    assert started(one) == 3


async def test_idle_container_ends_after_its_window(one: ClusterOfOne) -> None:
    function = one.function(scaledown_window_s=60.0)
    container = one.container(function)
    one.advance(59.0)
    assert not container.is_told_to_end
    one.advance(2.0)
    assert len(container.stop_calls) == 1
    let_end(one)
    assert one.scheduler.containers() == []
    assert "idle for 60 s" in one.scheduler.containers(True)[0].reason


async def test_use_restarts_the_window(one: ClusterOfOne) -> None:
    function = one.function(scaledown_window_s=60.0)
    container = one.container(function)
    for _ in range(3):
        one.advance(40.0)
        one.call(function, b"x", kind="unary")
        container.answer()
    assert not container.is_told_to_end
    one.advance(61.0)
    assert container.is_told_to_end
    container.exit(None)


async def test_those_that_are_used_stay_and_the_others_end(one: ClusterOfOne) -> None:
    function = one.function(scaledown_window_s=10.0)
    one.call(function, *[b"x"] * 3)
    ready_all(one)
    for container in one.launcher.containers:
        container.answer()
    for _ in range(5):
        one.advance(5.0)
        one.call(function, b"x", kind="unary")
        next(each for each in one.launcher.live if each.inputs).answer()
        let_end(one)
    assert len(one.launcher.live) == 1


async def test_input_after_scaling_to_zero_starts_again(one: ClusterOfOne) -> None:
    function = one.function(scaledown_window_s=10.0)
    one.container(function)
    one.advance(11.0)
    let_end(one)
    call = one.call(function, b"x", kind="unary")
    one.clock.advance(50_000)
    one.launcher.last.ready()
    one.launcher.last.answer()
    assert one.sink.ends[call]["start"] == "cold"


async def test_single_use_container_ends_after_its_input(one: ClusterOfOne) -> None:
    function = one.function(single_use=True, max_containers=2)
    call = one.call(function, b"a", b"b", b"c")
    assert started(one) == 2
    ready_all(one)
    for container in list(one.launcher.live):
        container.answer()
        assert len(container.stop_calls) == 1
    let_end(one)
    ready_all(one)
    one.launcher.last.answer()
    assert one.sink.results(call) == [(0, "ok"), (1, "ok"), (2, "ok")]
    assert all(len(each.sent) <= 1 for each in one.launcher.containers)


async def test_hundred_single_uses_are_started_as_fast_as_starts_allow(one: ClusterOfOne) -> None:
    function = one.function(single_use=True, max_containers=100)
    call = one.call(function, *[b"%d" % n for n in range(100)])
    assert started(one) == 100
    ready_all(one)
    for container in list(one.launcher.live):
        container.answer()
        container.exit(None)
    assert len(one.sink.results(call)) == 100
    assert started(one) == 100


async def test_only_so_many_start_at_a_time() -> None:
    one = ClusterOfOne(starts_max=5)
    one.call(one.function(single_use=True), *[b"x"] * 20)
    assert started(one) == 5
    one.launcher.containers[0].ready()
    one.scheduler.check()
    assert started(one) == 6
    assert one.scheduler.statistics().containers_starting == 5


async def test_function_without_any_container_is_served_first() -> None:
    one = ClusterOfOne(starts_max=2)
    greedy, modest = one.app(
        FunctionSpec(name="a", image_id="im-1", module="m", qualname="a", single_use=True),
        FunctionSpec(name="b", image_id="im-1", module="m", qualname="b"),
    )
    one.call(greedy, *[b"x"] * 50)
    one.call(modest, b"x", kind="unary")
    one.launcher.containers[0].ready()
    assert one.launcher.last.function.id == modest


async def test_host_limit_is_kept_and_told() -> None:
    one = ClusterOfOne(containers_max=3)
    function = one.function()
    one.container(function)
    call = one.call(function, *[b"x"] * 10)
    for _ in range(4):
        ready_all(one)
        one.advance(1.0)
    other = one.function(name="other")
    waiting = one.call(other, b"y", kind="unary")
    one.advance(1.0)
    assert started(one) == 3
    sentence = (await one.scheduler.explain(waiting)).sentence
    assert "this host runs 3 containers, limits.containers_max = 3" in sentence
    assert call not in one.sink.ends


async def test_idle_container_makes_room_for_another_function() -> None:
    one = ClusterOfOne(containers_max=2)
    first, second = one.function(name="a"), one.function(name="b")
    old = one.container(first)
    one.clock.advance(1_000)
    new = one.container(second)
    call = one.call(one.function(name="c"), b"x", kind="unary")
    assert (old.is_told_to_end, new.is_told_to_end) == (True, False)
    old.exit(None)
    one.launcher.last.ready()
    one.launcher.last.answer()
    assert one.sink.results(call) == [(0, "ok")]
    one.scheduler.check()


async def test_minimum_of_others_is_not_taken_to_make_room() -> None:
    one = ClusterOfOne(containers_max=1)
    one.function(name="a", min_containers=1)
    keeper = one.launcher.last
    keeper.ready()
    one.call(one.function(name="b"), b"x", kind="unary")
    one.advance(10.0)
    assert not keeper.is_told_to_end


async def test_no_container_idles_while_inputs_wait(one: ClusterOfOne) -> None:
    function = one.function()
    one.call(function, *[b"%d" % n for n in range(12)])
    answered = 0
    for _ in range(40):
        ready_all(one)
        busy: list[FakeContainer] = [each for each in one.launcher.live if each.inputs]
        if busy:
            busy[0].answer()
            answered += 1
        one.advance(0.1)
    assert answered == 12


async def test_function_that_fills_the_host_shares_it_after_an_input() -> None:
    one = ClusterOfOne(containers_max=3)
    greedy = one.function(name="greedy")
    map_call = one.call(greedy, *[b"x"] * 20)
    for _ in range(3):
        ready_all(one)
        one.advance(0.3)
    call = one.call(one.function(name="modest"), b"y", kind="unary")
    assert not any(each.stop_calls for each in one.launcher.containers)
    for container in list(one.launcher.live):
        container.answer()
    (given_up,) = [each for each in one.launcher.live if each.is_told_to_end]
    given_up.exit(None)
    one.launcher.last.ready()
    one.launcher.last.answer()
    assert one.sink.results(call) == [(0, "ok")]
    assert [status for _, status in one.sink.results(map_call)] == ["ok"] * 3
    one.scheduler.check()
