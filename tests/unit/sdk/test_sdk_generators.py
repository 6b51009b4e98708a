"""remote_gen: order, the end, failures, leaving early, slow loops."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from hostd import exception
from hostd.sdk import generating
from tests.fakes.fake_api import FakeAPI
from tests.fakes.sample_functions import (
    SampleError,
    app,
    count_and_fail,
    count_slowly,
    count_to,
    release,
    square,
)

WAIT_S = 10


def test_values_arrive_in_order(running: FakeAPI) -> None:
    assert list(count_to.remote_gen(500)) == list(range(500))


def test_a_finished_generator_is_not_cancelled(running: FakeAPI) -> None:
    assert list(count_to.remote_gen(3)) == [0, 1, 2]
    square.remote(1)
    assert running.cancelled.empty()


def test_a_generator_without_values_ends(running: FakeAPI) -> None:
    assert list(count_to.remote_gen(0)) == []


def test_an_exception_comes_after_the_values_before_it(running: FakeAPI) -> None:
    seen: list[int] = []
    with pytest.raises(SampleError, match="enough"):
        seen.extend(count_and_fail.remote_gen(3))
    assert seen == [0, 1, 2]


def test_leaving_the_loop_cancels_the_call(running: FakeAPI) -> None:
    values = count_slowly.remote_gen()
    assert list(itertools.islice(values, 3)) == [0, 1, 2]
    values.close()  # type: ignore[attr-defined]  # it is a generator
    assert running.cancelled.get(timeout=WAIT_S) == running.call_headers[0]["call"]
    release.set()


def test_other_calls_work_inside_the_loop(running: FakeAPI) -> None:
    assert [square.remote(value) for value in count_to.remote_gen(5)] == [0, 1, 4, 9, 16]


def test_a_lost_connection_ends_the_loop_with_an_error(running: FakeAPI) -> None:
    values = count_slowly.remote_gen()
    next(values)
    running.drop_streams()
    with pytest.raises(exception.ConnectionError):
        for _ in values:
            pass
    release.set()


def test_a_loop_that_is_too_slow_gets_an_error_and_the_call_is_cancelled(
    running: FakeAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generating, "VALUES_MAX", 100)
    values = count_slowly.remote_gen()
    next(values)
    assert running.cancelled.get(timeout=WAIT_S) == running.call_headers[0]["call"]
    with pytest.raises(exception.ResourceExhaustedError, match="wait"):
        list(values)
    release.set()


def test_ordinary_functions_are_refused(running: FakeAPI) -> None:
    with pytest.raises(exception.InvalidError, match="is not a generator") as caught:
        square.remote_gen(1)  # type: ignore[misc]  # which mypy says as well
    assert ".remote(...)" in str(caught.value.hint)


async def test_aio_values_arrive_in_order_and_leaving_cancels(api: FakeAPI) -> None:
    async with app.run():
        assert [value async for value in count_to.remote_gen.aio(100)] == list(range(100))
        values = count_slowly.remote_gen.aio()
        assert await values.__anext__() == 0
        await values.aclose()  # type: ignore[attr-defined]  # it is a generator
        assert await asyncio.to_thread(api.cancelled.get, True, WAIT_S)
        release.set()
