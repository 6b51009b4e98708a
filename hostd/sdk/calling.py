"""One call with one result: what is behind ``remote`` and ``remote.aio``."""

from __future__ import annotations

import _thread
import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

from hostd.errors import Error, InternalError, InvalidError, from_problem
from hostd.ids import new_id
from hostd.sdk.context import is_interactive, is_local
from hostd.sdk.flag import LoopFlag
from hostd.sdk.payload import pack_input, unpack, unpack_exception

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from hostd.sdk.function import Function
    from hostd.sdk.stream import Stream

_id_lock = _thread.allocate_lock()


class Target:
    """Where a function's calls go while its app runs."""

    __slots__ = ("function_id", "stream")

    def __init__(self, stream: Stream, function_id: str) -> None:
        self.stream = stream
        self.function_id = function_id

    def header(self, call_id: str, kind: str, sizes: Sequence[int], *, last: bool) -> bytes:
        """The header of the message that opens a call."""
        # Ids and kinds need no escaping; json.dumps would take four times as long.
        return (
            f'{{"t":"call","call":"{call_id}","function":"{self.function_id}","kind":"{kind}",'
            f'"sizes":{list(sizes)},"last":{"true" if last else "false"}}}'
        ).encode()


def call(function: Function[Any, Any, Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run the function once in a container and wait for what it returns."""
    warn_if_in_loop(function.name, "remote")
    target = target_of(function)
    refuse_generator(function)
    payload = pack_input(function, args, kwargs)
    call_id = new_call_id()
    waiter = _Waiter()
    target.stream.add(call_id, waiter)
    try:
        target.stream.send(target.header(call_id, "unary", [len(payload)], last=True), [payload])
        waiter.arrived.acquire()
    except BaseException:
        # Ctrl-C, or the send failed: nobody waits for the result any more.
        target.stream.cancel(call_id)
        raise
    target.stream.drop(call_id)
    return value_of(waiter)


async def call_async(
    function: Function[Any, Any, Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """The same for event loops; a cancelled task cancels the call."""
    target = target_of(function)
    refuse_generator(function)
    payload = pack_input(function, args, kwargs)
    call_id = new_call_id()
    waiter = _AsyncWaiter()
    target.stream.add(call_id, waiter)
    header = target.header(call_id, "unary", [len(payload)], last=True)
    # Not from here: a send may wait for the host, and the loop must not.
    target.stream.later(lambda: target.stream.send(header, [payload]))
    try:
        await waiter.arrived.wait()
    except BaseException:
        target.stream.cancel(call_id)
        raise
    target.stream.drop(call_id)
    return value_of(waiter)


def new_call_id() -> str:
    """The id of a new call, from any thread."""
    with _id_lock:
        return new_id("fc")


def target_of(function: Function[Any, Any, Any]) -> Target:
    """Where calls of the function go.

    Raises:
        InvalidError: its app does not run.
    """
    target: Target | None = function.target
    if target is not None:
        return target
    if not is_local():
        raise InvalidError(
            f"function {function.name} was called from a container, which is not supported yet",
            hint=f"{function.name}.local(...) runs it in this container",
        )
    if function.app.session is not None:
        raise InvalidError(
            f"function {function.name} was defined after its app had begun to run",
            hint="define it before `with app.run():`, or run the app again",
        )
    raise InvalidError(
        f"function {function.name} cannot be called: its app is not running",
        hint="call it inside `with app.run():`, or from a local entrypoint with `hostctl run`",
    )


def refuse_generator(function: Function[Any, Any, Any], method: str = "remote") -> None:
    """Refuse a function whose values are streamed."""
    if function.is_generator:
        raise InvalidError(
            f"function {function.name} is a generator: .{method} cannot return its values",
            hint=f"iterate over {function.name}.remote_gen(...)",
        )


def warn_if_in_loop(name: str, method: str) -> None:
    """Warn when a blocking method is about to stop a running event loop."""
    events = sys.modules.get("asyncio.events")
    if events is None or events._get_running_loop() is None or is_interactive():
        return
    warnings.warn(
        f"{name}.{method}() blocks the running event loop: use {name}.{method}.aio()",
        stacklevel=4,
    )


def value_of(waiter: _Result) -> Any:
    """The result that arrived.

    Raises:
        Exception: the user's own, or the Error that ended the call.
    """
    if waiter.error is not None:
        raise waiter.error
    if waiter.item is None:
        raise InternalError("the call ended without a result")
    status, fields = waiter.item
    if status == "ok":
        return unpack(fields[0])
    raise failure_of(status, fields)


def failure_of(status: str, fields: Sequence[memoryview]) -> Exception:
    """The exception that an output which is not a value stands for."""
    if status == "raised":
        return unpack_exception(fields)
    if status == "failed":
        import json

        return from_problem(json.loads(bytes(fields[0])))
    return InternalError(f"the host answered a call with status {status!r}")


class _Result:
    """What came back: an item, or the error that ended the call; the first one counts."""

    item: tuple[str, list[memoryview]] | None = None
    error: Error | None = None
    _is_set = False

    def outputs(self, items: list[tuple[int, str, list[memoryview]]]) -> None:
        _, status, fields = items[0]
        if not self._is_set:
            self.item = (status, fields)
            self._finish()

    def done(self, problem: dict[str, Any] | None) -> None:
        if not self._is_set:
            self.error = from_problem(problem) if problem is not None else None
            self._finish()

    def lost(self, error: Error) -> None:
        if not self._is_set:
            # Every caller gets its own: raising adds to an exception's traceback.
            self.error = type(error)(error.text, hint=error.hint, **error.fields)
            self._finish()

    def _finish(self) -> None:
        self._is_set = True
        self._wake()

    def _wake(self) -> None:
        raise NotImplementedError


class _Waiter(_Result):
    """Wakes a thread. A bare lock: an Event takes twice as long, and Ctrl-C interrupts both."""

    def __init__(self) -> None:
        self.arrived = _thread.allocate_lock()
        self.arrived.acquire()

    def _wake(self) -> None:
        # A result and the end of the stream may come from two threads at once.
        with suppress(RuntimeError):
            self.arrived.release()


class _AsyncWaiter(_Result):
    """Wakes a task."""

    def __init__(self) -> None:
        self.arrived = LoopFlag()

    def _wake(self) -> None:
        self.arrived.raise_()
