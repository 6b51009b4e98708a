"""Values as a generator function yields them: what is behind ``remote_gen``.

Values are kept until the loop takes them. The connection is shared with other calls, so a slow
loop cannot slow down the generator; beyond the bounds below the call is cancelled with an error
that says so.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from hostd.errors import InternalError, InvalidError, ResourceExhaustedError, from_problem
from hostd.sdk.calling import failure_of, new_call_id, target_of, warn_if_in_loop
from hostd.sdk.flag import LoopFlag, ThreadFlag
from hostd.sdk.payload import pack_input, unpack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from typing import Any

    from hostd.errors import Error
    from hostd.sdk.calling import Target
    from hostd.sdk.flag import Flag
    from hostd.sdk.function import Function

    Item = tuple[int, str, list[memoryview]]

VALUES_MAX = 100_000
VALUES_BYTES_MAX = 1 << 30
"""Values of one generator that wait for a slow loop: more would fill the client's memory."""


def generate(
    function: Function[Any, Any, Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> Iterator[Any]:
    """Check now, run when the first value is asked for."""
    warn_if_in_loop(function.name, "remote_gen")
    target = _checked(function)
    return _consume(target, pack_input(function, args, kwargs))


def generate_async(
    function: Function[Any, Any, Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> AsyncIterator[Any]:
    """The same for ``async for``."""
    target = _checked(function)
    return _consume_async(target, pack_input(function, args, kwargs))


def _checked(function: Function[Any, Any, Any]) -> Target:
    target = target_of(function)
    if not function.is_generator:
        raise InvalidError(
            f"function {function.name} is not a generator",
            hint=f"{function.name}.remote(...) returns its result",
        )
    return target


def _consume(target: Target, payload: bytes) -> Iterator[Any]:
    flag = ThreadFlag()
    call = _GeneratorCall(target, flag)
    try:
        call.open(payload)
        while True:
            flag.lower()
            items = call.take()
            for _, status, fields in items:
                if status == "yield":
                    yield unpack(fields[0])
                    continue
                call.end()
                if status == "end":
                    return
                raise failure_of(status, fields)
            if not items:
                call.check()
                flag.wait()
    finally:
        call.close()


async def _consume_async(target: Target, payload: bytes) -> AsyncIterator[Any]:
    flag = LoopFlag()
    call = _GeneratorCall(target, flag)
    try:
        call.open_later(payload)
        while True:
            flag.lower()
            items = call.take()
            for _, status, fields in items:
                if status == "yield":
                    yield unpack(fields[0])
                    continue
                call.end()
                if status == "end":
                    return
                raise failure_of(status, fields)
            if not items:
                call.check()
                await flag.wait()
    finally:
        call.close()


class _GeneratorCall:
    """What has arrived and was not taken yet."""

    def __init__(self, target: Target, consumer: Flag) -> None:
        self._target = target
        self._consumer = consumer
        self._lock = threading.Lock()
        self._call_id = new_call_id()
        self._items: list[Item] = []
        self._bytes = 0
        self._error: Error | None = None

    # --- the consumer -------------------------------------------------------------------------

    def open(self, payload: bytes) -> None:
        """Begin the call, from this thread."""
        self._target.stream.add(self._call_id, self)
        self._send(payload)

    def open_later(self, payload: bytes) -> None:
        """Begin the call without waiting for the connection."""
        self._target.stream.add(self._call_id, self)
        self._target.stream.later(lambda: self._send(payload))

    def take(self) -> list[Item]:
        """What arrived since."""
        with self._lock:
            taken, self._items, self._bytes = self._items, [], 0
        return taken

    def check(self) -> None:
        """Raise what ended the call, when nothing has arrived."""
        with self._lock:
            if self._error is not None and not self._items:
                raise self._error

    def end(self) -> None:
        """The generator has finished."""
        self._target.stream.drop(self._call_id)

    def close(self) -> None:
        """Nothing more is wanted: cancel the call unless it has ended."""
        self._target.stream.cancel(self._call_id)

    def _send(self, payload: bytes) -> None:
        header = self._target.header(self._call_id, "gen", [len(payload)], last=True)
        self._target.stream.send(header, [payload])

    # --- the reader thread --------------------------------------------------------------------

    def outputs(self, items: list[Item]) -> None:
        """Values arrived, or the end."""
        with self._lock:
            self._items += items
            self._bytes += sum(len(field) for _, _, fields in items for field in fields)
            is_over = len(self._items) > VALUES_MAX or self._bytes > VALUES_BYTES_MAX
            if is_over:
                self._items, self._bytes = [], 0
                self._error = ResourceExhaustedError(
                    f"over {VALUES_MAX} values or {VALUES_BYTES_MAX} bytes of a generator wait",
                    hint="take values faster, or yield less",
                )
        if is_over:
            self._target.stream.cancel(self._call_id)
        self._consumer.raise_()

    def done(self, problem: dict[str, Any] | None) -> None:
        """The call has ended."""
        ended = from_problem(problem) if problem is not None else None
        self._end(ended or InternalError("the generator ended without saying so"))

    def lost(self, error: Error) -> None:
        """The connection has ended."""
        self._end(type(error)(error.text, hint=error.hint, **error.fields))

    def _end(self, error: Error) -> None:
        with self._lock:
            # Values that arrived before stay; after a regular end nobody looks here any more.
            self._error = self._error or error
        self._consumer.raise_()
