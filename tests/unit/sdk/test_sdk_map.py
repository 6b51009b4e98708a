"""map, starmap and for_each: order, laziness, bounds, failures, cancellation."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from hostd import exception
from hostd.sdk import map_call
from tests.fakes.fake_api import FakeAPI
from tests.fakes.sample_functions import (
    SampleError,
    app,
    count_to,
    describe,
    fail,
    fail_when_one_else_wait,
    release,
    square,
    wait_for_release,
    wait_when_zero,
)

WAIT_S = 10


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.002)


def cancelled(api: FakeAPI) -> str:
    return api.cancelled.get(timeout=WAIT_S)


# --- results --------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_inputs(running: FakeAPI) -> None:
    assert list(square.map(range(3_000))) == [value * value for value in range(3_000)]


def test_unordered_results_are_complete(running: FakeAPI) -> None:
    assert sorted(square.map(range(500), order_outputs=False)) == [v * v for v in range(500)]


def test_unordered_results_do_not_wait_for_a_slow_one(running: FakeAPI) -> None:
    results = wait_when_zero.map(range(5), order_outputs=False)
    assert sorted(itertools.islice(results, 4)) == [1, 2, 3, 4]
    release.set()
    assert list(results) == [0]


def test_ordered_results_wait_for_a_slow_first_one(running: FakeAPI) -> None:
    results = wait_when_zero.map(range(200))
    threading.Timer(0.05, release.set).start()
    assert list(results) == list(range(200))


def test_several_iterators_are_zipped_to_the_shortest(running: FakeAPI) -> None:
    assert list(describe.map(["a", "b", "c"], [1, 2])) == ["a(1,)", "b(2,)"]


def test_kwargs_are_the_same_for_every_input(running: FakeAPI) -> None:
    assert list(describe.map(["a", "b"], kwargs={"prefix": "-"})) == ["-a", "-b"]


def test_starmap_spreads_tuples(running: FakeAPI) -> None:
    assert list(describe.starmap([("a", 1), ("b", 2)])) == ["a(1,)", "b(2,)"]


def test_for_each_waits_and_gives_nothing(running: FakeAPI) -> None:
    assert square.for_each(range(10)) is None
    assert sum(running.frames) == 10


def test_for_each_can_ignore_exceptions(running: FakeAPI) -> None:
    fail.for_each([1, -1, 2], ignore_exceptions=True)
    with pytest.raises(SampleError):
        fail.for_each([1, -1, 2])


def test_empty_input_returns_at_once_without_a_call(running: FakeAPI) -> None:
    begin = time.monotonic()
    assert list(square.map([])) == []
    assert time.monotonic() - begin < 1
    assert running.call_headers == []


def test_without_iterators_the_mistake_is_named(running: FakeAPI) -> None:
    with pytest.raises(exception.InvalidError, match="no inputs"):
        square.map()


def test_generator_functions_cannot_be_mapped(running: FakeAPI) -> None:
    with pytest.raises(exception.InvalidError, match="is a generator"):
        count_to.map([1])


def test_map_without_a_running_app_is_refused_at_once() -> None:
    with pytest.raises(exception.InvalidError, match="not running"):
        square.map([1])


def test_a_map_can_feed_another(running: FakeAPI) -> None:
    assert list(square.map(square.map(range(100)))) == [value**4 for value in range(100)]


# --- laziness and bounds --------------------------------------------------------------------


def test_infinite_input_works_and_is_cancelled_when_left(running: FakeAPI) -> None:
    results = square.map(itertools.count())
    assert list(itertools.islice(results, 5)) == [0, 1, 4, 9, 16]
    results.close()  # type: ignore[attr-defined]  # it is a generator
    assert cancelled(running) == running.call_headers[0]["call"]


def test_nothing_is_taken_before_the_first_result_is_asked_for(running: FakeAPI) -> None:
    taken: list[int] = []
    results = square.map(taken.append(value) or value for value in range(5))  # type: ignore[func-returns-value]
    assert taken == []
    assert list(results) == [0, 1, 4, 9, 16]


def test_at_most_1000_inputs_are_outstanding(running: FakeAPI) -> None:
    running.gate.clear()
    results = square.map(itertools.count())
    consumer = threading.Thread(target=lambda: next(results))
    consumer.start()
    wait_until(lambda: running.outstanding_max >= 900)
    time.sleep(0.05)  # were there more, they would be here by now
    assert running.outstanding_max <= 1_000
    running.gate.set()
    consumer.join(WAIT_S)
    results.close()  # type: ignore[attr-defined]  # it is a generator


def test_a_consumer_that_does_not_take_stops_the_inputs(running: FakeAPI) -> None:
    taken = itertools.count()
    results = square.map(value for value in taken)
    assert next(results) == 0
    wait_until(lambda: sum(running.frames) >= 1_000)
    time.sleep(0.05)
    assert sum(running.frames) <= 2_500
    results.close()  # type: ignore[attr-defined]  # it is a generator


def test_a_slow_input_does_not_hold_back_those_before_it(running: FakeAPI) -> None:
    fed: queue.Queue[int | None] = queue.Queue()
    results = square.map(iter(fed.get, None))
    for value in range(5):  # each input is made from the result before it
        fed.put(value)
        assert next(results) == value * value
    fed.put(None)
    assert list(results) == []


def test_ready_inputs_share_frames_of_at_most_64(running: FakeAPI) -> None:
    list(square.map(range(5_000)))
    assert max(running.frames) <= 64
    assert len(running.frames) < 2_500


def test_large_inputs_go_in_frames_of_about_a_megabyte(running: FakeAPI) -> None:
    list(describe.map(["x" * 400_000] * 12))
    assert max(running.frames) <= 2


def test_large_inputs_are_not_piled_up_here(
    running: FakeAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_call, "QUEUED_BYTES_MAX", 3_000_000)
    taken: list[int] = []
    sending = threading.Event()
    stream = describe.target.stream  # type: ignore[union-attr]  # the app runs
    stream.later(lambda: sending.wait(WAIT_S) and None)

    def inputs() -> Iterator[str]:
        for value in range(30):
            taken.append(value)
            yield f"{value:06}" * 100_000

    results = describe.map(inputs())
    consumer = threading.Thread(target=lambda: taken.append(-len(list(results))))
    consumer.start()
    wait_until(lambda: len(taken) == 5)
    time.sleep(0.05)  # were there more, they would be here by now
    assert len(taken) == 5
    sending.set()
    consumer.join(WAIT_S)
    assert taken[-1] == -30


# --- failures -------------------------------------------------------------------------------


def test_the_first_failure_raises_and_cancels_the_rest(running: FakeAPI) -> None:
    with pytest.raises(SampleError, match="one"):
        list(fail_when_one_else_wait.map(range(200)))
    assert cancelled(running) == running.call_headers[0]["call"]


def test_exceptions_can_be_results_in_their_place(running: FakeAPI) -> None:
    results = list(fail.map([1, -1, 2], return_exceptions=True))
    assert results[0] == 1
    assert isinstance(results[1], SampleError)
    assert results[2] == 2


def test_an_exception_of_the_input_iterator_propagates_and_cancels(running: FakeAPI) -> None:
    def inputs() -> Iterator[int]:
        yield 1
        wait_until(lambda: bool(running.call_headers))
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(wait_for_release.map(inputs()))
    assert cancelled(running) == running.call_headers[0]["call"]


def test_an_input_iterator_that_fails_at_once_propagates(running: FakeAPI) -> None:
    def inputs() -> Iterator[int]:
        raise LookupError("none at all")
        yield 1

    with pytest.raises(LookupError, match="none at all"):
        list(square.map(inputs()))
    assert running.call_headers == []


def test_an_input_that_cannot_be_pickled_fails_the_map(running: FakeAPI) -> None:
    with pytest.raises(exception.SerializationError):
        list(square.map([1, threading.Lock()]))


def test_a_lost_connection_fails_the_map(running: FakeAPI) -> None:
    results = wait_for_release.map(range(10))
    threading.Timer(0.05, running.drop_streams).start()
    with pytest.raises(exception.ConnectionError):
        list(results)


def test_a_call_cancelled_elsewhere_fails_the_map(running: FakeAPI) -> None:
    results = wait_for_release.map(range(10))

    def cancel() -> None:
        wait_until(lambda: bool(running.call_headers))
        stream = running.streams[0]
        call = stream.calls[running.call_headers[0]["call"]]
        running.post(call.end, {"code": "cancelled", "detail": "cancelled by somebody"})

    threading.Thread(target=cancel).start()
    with pytest.raises(exception.CancelledError, match="by somebody"):
        list(results)


def test_after_a_failed_map_others_go_on(running: FakeAPI) -> None:
    with pytest.raises(SampleError):
        list(fail.map([-1, 2, 3]))
    assert list(fail.map([1, 2, 3])) == [1, 2, 3]


# --- aio ------------------------------------------------------------------------------------


async def test_aio_map_keeps_the_order(api: FakeAPI) -> None:
    async with app.run():
        assert [v async for v in square.map.aio(range(2_000))] == [v * v for v in range(2_000)]


async def test_aio_map_takes_async_iterators(api: FakeAPI) -> None:
    async def numbers() -> AsyncIterator[int]:
        for value in range(1_500):
            if value % 100 == 0:
                await asyncio.sleep(0)
            yield value

    async with app.run():
        assert [v async for v in square.map.aio(numbers())] == [v * v for v in range(1_500)]
        pairs = describe.map.aio(numbers(), ["a", "b"])
        assert [value async for value in pairs] == ["0('a',)", "1('b',)"]


async def test_aio_map_with_an_infinite_async_input_can_be_left(api: FakeAPI) -> None:
    async def numbers() -> AsyncIterator[int]:
        for value in itertools.count():
            yield value

    async with app.run():
        results = square.map.aio(numbers())
        assert [await results.__anext__() for _ in range(3)] == [0, 1, 4]
        await results.aclose()  # type: ignore[attr-defined]  # it is a generator
        assert await asyncio.to_thread(cancelled, api) == api.call_headers[0]["call"]


async def test_aio_map_propagates_exceptions_of_inputs_and_functions(api: FakeAPI) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        raise LookupError("no more")

    async with app.run():
        with pytest.raises(LookupError):
            _ = [value async for value in square.map.aio(numbers())]
        with pytest.raises(SampleError):
            _ = [value async for value in fail.map.aio([1, -1])]


async def test_an_async_input_that_is_cancelled_ends_the_map(api: FakeAPI) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError

    async with app.run():
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(WAIT_S):
                _ = [value async for value in wait_for_release.map.aio(numbers())]


async def test_aio_starmap_and_for_each_work(api: FakeAPI) -> None:
    async with app.run():
        assert [v async for v in describe.starmap.aio([("a", 1)])] == ["a(1,)"]
        await square.for_each.aio(range(5))
