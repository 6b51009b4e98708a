"""An app of small functions that the SDK's tests run through the fake API."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator

import hostd
from hostd import exception

app = hostd.App("sample", include_source=False)
release = threading.Event()
"""``wait_for_release`` waits for it."""


class SampleError(Exception):
    """An exception of the user's, with a constructor that pickle cannot call by itself."""

    def __init__(self, text: str, *, code: int) -> None:
        super().__init__(text)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return _sample_error, (str(self), self.code)


def _sample_error(text: str, code: int) -> SampleError:
    return SampleError(text, code=code)


class StubbornError(Exception):
    """An exception that pickles and cannot be rebuilt."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


@app.function()
def square(value: int) -> int:
    return value * value


@app.function()
def describe(value: object, *more: object, prefix: str = "", suffix: str = "") -> str:
    return f"{prefix}{value}{more or ''}{suffix}"


@app.function()
def fail(value: int) -> int:
    if value < 0:
        raise SampleError(f"{value} is negative", code=value)
    return value


@app.function()
def fail_with_cause() -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise SampleError("outer", code=1) from error


@app.function()
def fail_stubbornly() -> None:
    raise StubbornError("one", "two")


@app.function()
def leave() -> None:
    sys.exit(3)


@app.function()
def time_out() -> None:
    raise exception.FunctionTimeoutError("input ran for 1 s, the timeout is 1 s", timeout_s=1)


@app.function()
def wait_for_release(value: int = 0) -> int:
    assert release.wait(30)
    return value


@app.function()
def wait_when_zero(value: int) -> int:
    if value == 0:
        assert release.wait(30)
    return value


@app.function()
def fail_when_one_else_wait(value: int) -> int:
    if value == 1:
        raise SampleError("one", code=1)
    assert release.wait(30)
    return value


@app.function()
def ids() -> tuple[str | None, str | None]:
    return hostd.current_function_call_id(), hostd.current_input_id()


@app.function()
async def double_later(value: int) -> int:
    return 2 * value


@app.function()
def count_to(n: int) -> Iterator[int]:
    yield from range(n)


@app.function()
def count_and_fail(n: int) -> Iterator[int]:
    yield from range(n)
    raise SampleError("enough", code=n)


@app.function()
def count_slowly() -> Iterator[int]:
    value = 0
    while not release.is_set():
        yield value
        value += 1
        time.sleep(0.001)


@app.function()
async def count_async(n: int) -> AsyncIterator[int]:
    for value in range(n):
        yield value
