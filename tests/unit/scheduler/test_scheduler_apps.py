"""Apps, their end, the daemon's end, logs, lists."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hostd.errors import ConflictError, ContainerExitedError, DaemonStoppedError, NotFoundError
from hostd.ids import AppId, CallId, ContainerId
from hostd.scheduler import service
from hostd.store import History
from tests.fakes.cluster_of_one import ClusterOfOne
from tests.fakes.fake_launcher import RecordingSink
from tests.fakes.virtual_clock import VirtualClock


async def test_stopped_app_ends_its_calls_and_containers(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    calls = [one.call(function, b"x", kind="unary") for _ in range(3)]
    one.scheduler.stop_app(one.app_id, "the client is gone")
    for call in calls:
        assert one.sink.ends[call]["problem"]["code"] == "cancelled"
        assert "the client is gone" in one.sink.ends[call]["problem"]["detail"]
    assert all(each.is_told_to_end for each in one.launcher.live)
    for each in list(one.launcher.live):
        each.exit(None)
    one.advance(100.0)
    assert one.launcher.live == []
    assert container.has_exited
    info = one.scheduler.app(one.app_id)
    assert (info.state, info.reason) == ("stopped", "the client is gone")


async def test_stopped_app_takes_no_calls_and_starts_nothing(one: ClusterOfOne) -> None:
    function = one.function(min_containers=1)
    one.scheduler.stop_app(one.app_id, "test")
    one.scheduler.stop_app(one.app_id, "again")
    with pytest.raises(NotFoundError):
        one.call(function, b"x")
    one.launcher.last.exit(ContainerExitedError("crash while ending"))
    one.advance(100.0)
    assert len(one.launcher.containers) == 1
    with pytest.raises(ConflictError):
        one.scheduler.attach(one.app_id, RecordingSink())
    one.scheduler.stop_app(AppId("ap-none"), "its client came too late")


async def test_waiting_retries_of_a_stopped_app_do_not_run(one: ClusterOfOne) -> None:
    function = one.function(max_retries=3)
    container = one.container(function)
    one.call(function, b"x", kind="unary")
    container.raise_error()
    one.scheduler.stop_app(one.app_id, "test")
    container.exit(None)
    one.advance(10.0)
    assert len(one.launcher.containers) == 1


async def test_other_apps_are_not_touched(one: ClusterOfOne) -> None:
    kept = one.function(name="kept")
    call = one.call(kept, b"x", kind="unary")
    one.function(name="ended")
    one.scheduler.stop_app(one.app_id, "test")
    one.launcher.containers[0].ready()
    one.launcher.containers[0].answer()
    assert one.sink.results(call) == [(0, "ok")]


# --- logs ---


async def test_lines_carry_the_call_that_runs(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    container.line("between")
    call = one.call(function, b"x", kind="unary")
    container.line("in it", "stderr")
    container.answer()
    last = [(each.text, each.stream, each.call_id, each.input) for each in one.sink.lines]
    assert last == [("between", "stdout", None, None), ("in it", "stderr", call, 0)]
    assert [app for app, _ in one.logs.lines] == [one.app_id] * 2
    assert [line for _, line in one.logs.lines] == one.sink.lines


async def test_bytes_that_are_no_text_are_replaced(one: ClusterOfOne) -> None:
    container = one.container()
    container.events.container_line(ContainerId(container.id), "stdout", b"a\xffb", 1)
    assert one.sink.lines[-1].text == "a\ufffdb"


async def test_every_attached_sink_gets_lines_and_states(one: ClusterOfOne) -> None:
    function = one.function()
    other = RecordingSink()
    one.scheduler.attach(one.app_id, other)
    one.scheduler.attach(one.app_id, other)
    container = one.container(function)
    container.line("x")
    assert [line.text for line in other.lines] == ["x"]
    assert [state for _, state in other.states] == ["pulling", "idle"]


async def test_log_store_learns_what_begins_and_ends(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    container.answer()
    assert {one.app_id, container.id, call} <= set(one.logs.begun)
    assert call in one.logs.ended
    one.scheduler.stop_app(one.app_id, "test")
    assert one.app_id not in one.logs.ended
    container.line("last words")
    container.exit(None)
    assert one.logs.ended[-2:] == [container.id, one.app_id]
    assert one.sink.lines[-1].text == "last words"


# --- the daemon's end ---


async def test_drain_answers_every_call_and_waits_for_containers(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    async with asyncio.TaskGroup() as tasks:
        draining = tasks.create_task(one.scheduler.drain())
        await asyncio.sleep(0)
        assert one.sink.ends[call]["problem"]["code"] == "daemon_stopped"
        assert container.is_told_to_end
        assert not draining.done()
        container.exit(None)
    with pytest.raises(DaemonStoppedError):
        one.call(function, b"x")
    assert (await one.scheduler.call(call)).state == "failed"


async def test_drain_kills_what_does_not_end(
    one: ClusterOfOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "DRAIN_TIMEOUT_S", 0.02)
    container = one.container()
    await one.scheduler.drain()
    assert container.kills == 1
    container.exit(None)


async def test_failing_timer_ends_run_with_its_error() -> None:
    one = ClusterOfOne()
    function = one.function()
    one.container(function)
    one.call(function, b"x", kind="unary")
    next(iter(one.scheduler._engine.fleet.containers.values())).handle = None
    one.timers.advance(301.0)
    with pytest.raises(AssertionError, match="was not launched"):
        await one.scheduler.run()


# --- lists ---


async def test_lists_have_what_there_is(one: ClusterOfOne) -> None:
    function = one.function(name="big")
    container = one.container(function)
    call = one.call(function, b"x", b"y")
    info = one.scheduler.container(ContainerId(container.id))
    assert (info.state, info.call_id, info.pid, info.memory_bytes) == (
        "busy", call, 4_711, 50 * 2**20,
    )  # fmt: skip
    (app,) = one.scheduler.apps()
    assert (app.functions[0].inputs_running, app.functions[0].inputs_queued) == (1, 1)
    calls = await one.scheduler.calls(limit=10)
    assert calls[0].id == call
    assert [each.state for each in calls] == ["running", "succeeded"]


async def test_ids_are_accepted_by_unique_prefix(one: ClusterOfOne) -> None:
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    assert (await one.scheduler.call(CallId(call[:-1]))).id == call
    assert one.scheduler.container(ContainerId(container.id[:-1])).id == container.id
    with pytest.raises(NotFoundError):
        one.scheduler.container(ContainerId("ct-"))
    other = one.call(function, b"x", kind="unary")
    common = CallId("".join(a for a, b in zip(call, other, strict=True) if a == b)[:10])
    with pytest.raises(ConflictError, match="several"):
        await one.scheduler.call(common)


async def test_ended_calls_and_containers_come_from_the_history(tmp_path: Path) -> None:
    history = History(tmp_path / "history.db", clock=VirtualClock())
    one = ClusterOfOne(history=history)
    function = one.function()
    container = one.container(function)
    call = one.call(function, b"x", kind="unary")
    container.answer()
    container.exit(None)
    one.scheduler._engine.answers.recent.clear()
    one.scheduler._engine.ended.clear()
    assert (await one.scheduler.call(call)).state == "succeeded"
    assert [each.id for each in await one.scheduler.calls(limit=1)] == [call]
    assert "ended after 2 inputs" in (await one.scheduler.explain(container.id)).sentence
    with pytest.raises(NotFoundError):
        await one.scheduler.call(CallId("fc-00000000"))
    history.close()
