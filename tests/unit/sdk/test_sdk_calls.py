"""remote: results, errors of every kind, cancellation, loss of the connection."""

from __future__ import annotations

import asyncio
import threading
import traceback

import pytest

import hostd
from hostd import exception
from hostd.sdk.client import Client
from tests.fakes.fake_api import FakeAPI
from tests.fakes.sample_functions import (
    SampleError,
    app,
    count_to,
    describe,
    double_later,
    fail,
    fail_stubbornly,
    fail_with_cause,
    ids,
    leave,
    square,
    time_out,
    wait_for_release,
)

WAIT_S = 10


def test_remote_gives_the_result(running: FakeAPI) -> None:
    assert square.remote(7) == 49


def test_arguments_travel_by_position_and_by_name(running: FakeAPI) -> None:
    assert describe.remote("a", "b", prefix="<", suffix=">") == "<a('b',)>"


def test_large_arguments_and_results_travel_whole(running: FakeAPI) -> None:
    big = "x" * 5_000_000
    assert describe.remote(big, suffix="!") == big + "!"


def test_coroutine_functions_give_what_they_return(running: FakeAPI) -> None:
    assert double_later.remote(4) == 8


def test_local_runs_here(api: FakeAPI) -> None:
    assert square.local(3) == 9
    assert api.messages == []


def test_direct_call_is_refused_with_both_ways_out() -> None:
    with pytest.raises(exception.InvalidError, match="square was called directly") as caught:
        square(3)
    assert "square.remote(...)" in str(caught.value.hint)
    assert "square.local(...)" in str(caught.value.hint)


def test_remote_without_a_running_app_says_how_to_run_it() -> None:
    with pytest.raises(exception.InvalidError, match="its app is not running") as caught:
        square.remote(3)
    assert "app.run()" in str(caught.value.hint)


def test_functions_cannot_be_called_after_the_app_has_stopped(api: FakeAPI) -> None:
    with app.run():
        square.remote(1)
    with pytest.raises(exception.InvalidError, match="not running"):
        square.remote(1)


def test_generator_functions_are_refused_by_remote(running: FakeAPI) -> None:
    with pytest.raises(exception.InvalidError, match="is a generator") as caught:
        count_to.remote(3)
    assert "remote_gen" in str(caught.value.hint)


def test_calls_from_many_threads_get_their_own_results(running: FakeAPI) -> None:
    results: dict[int, int] = {}

    def work(value: int) -> None:
        results[value] = square.remote(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert results == {value: value * value for value in range(40)}


def test_inputs_know_their_ids_and_others_have_none(running: FakeAPI) -> None:
    call_id, input_id = ids.remote()
    assert str(call_id).startswith("fc-")
    assert input_id == f"{call_id}:0"
    assert (hostd.current_function_call_id(), hostd.current_input_id()) == (None, None)


# --- errors ---------------------------------------------------------------------------------


def test_the_users_own_exception_arrives_with_its_fields(running: FakeAPI) -> None:
    with pytest.raises(SampleError, match="-3 is negative") as caught:
        fail.remote(-3)
    assert caught.value.code == -3


def test_the_traceback_ends_with_the_remote_frames(running: FakeAPI) -> None:
    with pytest.raises(SampleError) as caught:
        fail.remote(-3)
    entries = traceback.extract_tb(caught.value.__traceback__)
    assert (entries[-1].name, entries[-1].filename.endswith("sample_functions.py")) == (
        "fail",
        True,
    )
    assert entries[-1].line == 'raise SampleError(f"{value} is negative", code=value)'
    assert entries[0].filename == __file__


def test_the_cause_of_a_remote_exception_arrives(running: FakeAPI) -> None:
    with pytest.raises(SampleError) as caught:
        fail_with_cause.remote()
    assert repr(caught.value.__cause__) == "KeyError('inner')"
    assert caught.value.__suppress_context__


def test_an_exception_that_cannot_be_rebuilt_becomes_remote_error_with_its_text(
    running: FakeAPI,
) -> None:
    with pytest.raises(exception.RemoteError) as caught:
        fail_stubbornly.remote()
    text = str(caught.value)
    assert "StubbornError: one and two" in text
    assert 'raise StubbornError("one", "two")' in text


def test_a_remote_exit_does_not_end_this_process(running: FakeAPI) -> None:
    with pytest.raises(exception.RemoteError, match="SystemExit: 3"):
        leave.remote()


def test_failures_of_the_host_arrive_as_their_class_with_fields(running: FakeAPI) -> None:
    with pytest.raises(exception.FunctionTimeoutError, match="ran for 1 s") as caught:
        time_out.remote()
    assert caught.value.fields["timeout_s"] == 1
    assert isinstance(caught.value, TimeoutError)


def test_arguments_that_cannot_be_pickled_are_refused_before_anything_is_sent(
    running: FakeAPI,
) -> None:
    with pytest.raises(exception.SerializationError, match="arguments of describe"):
        describe.remote(threading.Lock())
    assert running.call_headers == []


def test_lambdas_travel_as_arguments(running: FakeAPI) -> None:
    assert describe.remote(lambda: 1).startswith("<function")


# --- the connection -------------------------------------------------------------------------


def test_a_lost_connection_fails_every_waiting_call(running: FakeAPI) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            wait_for_release.remote()
        except BaseException as error:  # noqa: BLE001 - all of them are compared
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    _wait_until(lambda: len(running.call_headers) == 3)
    running.drop_streams()
    for thread in threads:
        thread.join(WAIT_S)
    assert [type(error) for error in errors] == [exception.ConnectionError] * 3
    assert len({id(error) for error in errors}) == 3
    with pytest.raises(exception.ConnectionError):
        square.remote(1)


def test_without_a_host_the_error_says_where_it_was_looked_for(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTD_SOCKET", f"{tmp_path}/none.sock")
    with pytest.raises(exception.ConnectionError, match=r"none\.sock cannot be reached") as caught:
        app.run().__enter__()
    assert "HOSTD_SOCKET" in str(caught.value.hint)
    assert app.session is None


def test_app_stops_when_the_block_ends_also_by_an_error(api: FakeAPI) -> None:
    with pytest.raises(ZeroDivisionError), app.run():
        1 / 0  # noqa: B018 - for its error
    assert api.stopped == list(api.apps)
    assert app.session is None


def test_running_twice_at_once_is_refused(running: FakeAPI) -> None:
    with pytest.raises(exception.InvalidError, match="running already"):
        app.run().__enter__()


def test_a_given_client_is_used(
    api: FakeAPI, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTD_SOCKET", "/nowhere")
    with app.run(client=client):
        assert square.remote(2) == 4


# --- aio ------------------------------------------------------------------------------------


async def test_aio_gives_the_result_without_blocking_the_loop(api: FakeAPI) -> None:
    async with app.run():
        results = await asyncio.gather(*(square.remote.aio(value) for value in range(20)))
    assert results == [value * value for value in range(20)]
    assert api.stopped == list(api.apps)


async def test_aio_raises_the_users_exception(api: FakeAPI) -> None:
    async with app.run():
        with pytest.raises(SampleError):
            await fail.remote.aio(-1)


async def test_cancelling_the_task_cancels_the_call(api: FakeAPI) -> None:
    async with app.run():
        task = asyncio.ensure_future(wait_for_release.remote.aio())
        await asyncio.to_thread(_wait_until, lambda: bool(api.call_headers))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled = await asyncio.to_thread(api.cancelled.get, True, WAIT_S)
    assert cancelled == api.call_headers[0]["call"]


async def test_aio_notices_a_lost_connection(api: FakeAPI) -> None:
    async with app.run():
        task = asyncio.ensure_future(wait_for_release.remote.aio())
        await asyncio.to_thread(_wait_until, lambda: bool(api.call_headers))
        api.drop_streams()
        with pytest.raises(exception.ConnectionError):
            await asyncio.wait_for(task, WAIT_S)


async def test_blocking_form_in_a_running_loop_warns(api: FakeAPI) -> None:
    async with app.run():
        with pytest.warns(UserWarning, match=r"use square\.remote\.aio\(\)"):
            assert square.remote(2) == 4


# --- what containers write ------------------------------------------------------------------


def test_lines_of_containers_are_written_as_they_come(
    running: FakeAPI, capsys: pytest.CaptureFixture[str]
) -> None:
    running.log("to out")
    running.log("to err", stream="stderr", lost=2)
    square.remote(1)  # its result comes after the lines
    captured = capsys.readouterr()
    assert captured.out == "to out\n"
    assert captured.err.startswith("to err\n")
    assert "2 lines were lost" in captured.err


def _wait_until(condition: object) -> None:
    deadline = threading.Event()
    for _ in range(WAIT_S * 200):
        if condition():  # type: ignore[operator]  # a plain callable
            return
        deadline.wait(0.005)
    raise AssertionError("not in time")
