"""Many inputs, many results: what is behind ``map``, ``starmap`` and ``for_each``.

Four parties share one ``MapCall``:

- the *pump* takes inputs from the user's iterator as room appears, pickles them and queues them. It is
  a thread of its own (a task, for async iterators), because the user's iterator may block, even until
  an earlier result was used;
- the stream's *writer* thread sends what is queued: at once what there is, up to a frame. A fast
  iterator thus fills frames and a slow one never waits for them to fill;
- the stream's *reader* thread brings results;
- the *consumer*, the user's loop, unpickles them and puts them in order.

Bounds: ``OUTSTANDING_MAX`` inputs sent and not answered, or answered and not yet taken by the
consumer, together; ``HELD_MAX`` results that wait for an earlier one.
"""

from __future__ import annotations

import threading
from itertools import islice
from typing import TYPE_CHECKING

from hostd.errors import InternalError, InvalidError, from_problem
from hostd.sdk.calling import (
    failure_of,
    new_call_id,
    refuse_generator,
    target_of,
    warn_if_in_loop,
)
from hostd.sdk.flag import LoopFlag, ThreadFlag
from hostd.sdk.payload import pack_input, unpack

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
    from typing import Any, Union

    from hostd.errors import Error
    from hostd.sdk.calling import Target
    from hostd.sdk.flag import Flag
    from hostd.sdk.function import Function

    Item = tuple[int, str, list[memoryview]]

OUTSTANDING_MAX = 1_000
"""The same figure as INPUTS_OUTSTANDING_MAX in hostd/model.py; a test compares them."""
REFILL = 64
"""A full window is refilled when it has room for a frame, not for every single result."""
HELD_MAX = 10_000
"""Results behind a slow first one: ten windows may overtake it."""
FRAME_INPUTS_MAX = 64
FRAME_BYTES_MAX = 1 << 20
"""Of the inputs of one message, unless a single one is larger: other calls share the connection."""


class MapCall:
    """The state of one map; see the module for who calls what from where."""

    def __init__(self, target: Target, *, pump: Flag, consumer: Flag) -> None:
        self._target = target
        self._pump = pump
        self._consumer = consumer
        self._lock = threading.Lock()
        self.call_id = new_call_id()
        self._queued: list[bytes] = []
        self._sent = 0
        self._outstanding = 0
        self._arrived: list[Item] = []
        self._is_open = False
        self._is_last = False
        self._is_last_sent = False
        self.total: int | None = None
        """How many inputs there were; None until the iterator has ended."""
        self.held = 0
        """Results that the consumer keeps until an earlier one comes."""
        self.input_error: BaseException | None = None
        """What the input iterator raised, or pickling an input."""
        self.error: Error | None = None
        """What ended the call or the connection."""
        self.is_closed = False

    # --- the pump ------------------------------------------------------------------------------------

    def room(self) -> int:
        """How many inputs may be taken from the iterator now; 0 unless it is worth waking up for."""
        with self._lock:
            return self._room()

    def put(self, payload: bytes) -> None:
        """Queue an input."""
        with self._lock:
            self._queued.append(payload)
            self._outstanding += 1
            is_first = len(self._queued) == 1
        if is_first:
            self._target.stream.later(self.send_queued)

    def finish(self, error: BaseException | None = None) -> None:
        """The iterator has ended, or raised."""
        with self._lock:
            self._is_last = True
            self.total = self._sent + len(self._queued)
            is_sent = self.total > 0
            self.input_error = error
        if is_sent and error is None:
            self._target.stream.later(self.send_queued)
        self._consumer.raise_()

    # --- the writer thread ---------------------------------------------------------------------------

    def send_queued(self) -> None:
        """Send what is queued, in frames."""
        while True:
            with self._lock:
                if self.is_closed or not (
                    self._queued or (self._is_last and not self._is_last_sent)
                ):
                    return
                count = self._frame_size()
                payloads, self._queued = self._queued[:count], self._queued[count:]
                last = self._is_last and not self._queued
                self._is_last_sent = last
                self._sent += count
                is_open, self._is_open = self._is_open, True
            sizes = [len(payload) for payload in payloads]
            if is_open:
                header = self._inputs_header(sizes, last=last)
            else:
                header = self._target.header(self.call_id, "map", sizes, last=last)
            self._target.stream.send(header, payloads)

    # --- the reader thread ---------------------------------------------------------------------------

    def outputs(self, items: list[Item]) -> None:
        """Results arrived."""
        with self._lock:
            self._arrived += items
            self._outstanding -= len(items)
            was_empty = len(self._arrived) == len(items)
        if was_empty:
            self._consumer.raise_()

    def done(self, problem: dict[str, Any] | None) -> None:
        """The call has ended."""
        with self._lock:
            if problem is not None:
                self._fail(from_problem(problem))
            elif self._outstanding > 0 or not self._is_last:
                self._fail(
                    InternalError(f"the call ended with {self._outstanding} inputs unanswered")
                )
        self._consumer.raise_()
        self._pump.raise_()

    def lost(self, error: Error) -> None:
        """The connection has ended."""
        with self._lock:
            self._fail(type(error)(error.text, hint=error.hint, **error.fields))
        self._consumer.raise_()
        self._pump.raise_()

    # --- the consumer --------------------------------------------------------------------------------

    def take(self, held: int) -> list[Item]:
        """The results that arrived since; ``held`` of earlier ones still wait for their turn."""
        with self._lock:
            taken, self._arrived = self._arrived, []
            self.held = held
            has_room = self._room() > 0
        if has_room:
            self._pump.raise_()
        return taken

    def is_over(self, given: int, items: list[Item]) -> bool:
        """Whether all values were given.

        Raises:
            BaseException: of the input iterator at once; what ended the call after what had arrived.
        """
        if self.input_error is not None:
            raise self.input_error
        if given == self.total:
            return True
        if self.error is not None and not items:
            raise self.error
        return False

    def close(self, *, is_done: bool) -> None:
        """Nothing more is wanted: stop the pump, cancel what is not done."""
        with self._lock:
            self.is_closed = True
            is_open, self._queued = self._is_open, []
        self._pump.raise_()
        if is_open and not is_done:
            self._target.stream.cancel(self.call_id)
        else:
            self._target.stream.drop(self.call_id)

    # --- under the lock ------------------------------------------------------------------------------

    def _room(self) -> int:
        free = OUTSTANDING_MAX - self._outstanding - len(self._arrived)
        return free if free >= REFILL and self.held < HELD_MAX else 0

    def _frame_size(self) -> int:
        size = 0
        for count, payload in enumerate(self._queued[:FRAME_INPUTS_MAX]):
            size += len(payload)
            if count and size > FRAME_BYTES_MAX:
                return count
        return min(len(self._queued), FRAME_INPUTS_MAX)

    def _inputs_header(self, sizes: list[int], *, last: bool) -> bytes:
        end = "true" if last else "false"
        return f'{{"t":"inputs","call":"{self.call_id}","sizes":{sizes},"last":{end}}}'.encode()

    def _fail(self, error: Error) -> None:
        if self.error is None:
            self.error = error


class _Order:
    """Turns results in the order of their arrival into values in the order that was asked for."""

    def __init__(self, *, is_ordered: bool, returns_exceptions: bool) -> None:
        self._is_ordered = is_ordered
        self._returns_exceptions = returns_exceptions
        self._held: dict[int, Item] = {}
        self.count = 0
        """Values given so far; the index of the next one, when in order."""

    @property
    def held(self) -> int:
        """Results that wait for an earlier one."""
        return len(self._held)

    def values(self, items: list[Item]) -> Iterator[Any]:
        """The values that may be given now.

        Raises:
            Exception: a failure, unless exceptions are values; it does not wait for its turn.
        """
        for item in items:
            index, status, fields = item
            if status != "ok" and not self._returns_exceptions:
                raise failure_of(status, fields)
            if self._is_ordered and index != self.count:
                self._held[index] = item
                continue
            following: Item | None = item
            while following is not None:
                self.count += 1
                yield _value(following)
                following = self._held.pop(self.count, None) if self._held else None


def _value(item: Item) -> Any:
    _, status, fields = item
    return unpack(fields[0]) if status == "ok" else failure_of(status, fields)


def map_inputs(
    function: Function[Any, Any, Any],
    inputs: Iterable[Any],
    *,
    kwargs: Mapping[str, Any],
    order_outputs: bool,
    return_exceptions: bool,
) -> Iterator[Any]:
    """Check now, run when the first result is asked for."""
    warn_if_in_loop(function.name, "map")
    target = target_of(function)
    refuse_generator(function, "map")
    order = _Order(is_ordered=order_outputs, returns_exceptions=return_exceptions)
    return _consume(function.name, target, inputs, dict(kwargs), order)


def map_inputs_async(
    function: Function[Any, Any, Any],
    inputs: Union[Iterable[Any], AsyncIterable[Any]],
    *,
    kwargs: Mapping[str, Any],
    order_outputs: bool,
    return_exceptions: bool,
) -> AsyncIterator[Any]:
    """The same for ``async for``."""
    target = target_of(function)
    refuse_generator(function, "map")
    order = _Order(is_ordered=order_outputs, returns_exceptions=return_exceptions)
    return _consume_async(function.name, target, inputs, dict(kwargs), order)


def _consume(
    name: str, target: Target, inputs: Iterable[Any], kwargs: dict[str, Any], order: _Order
) -> Iterator[Any]:
    pump_flag, flag = ThreadFlag(), ThreadFlag()
    call = MapCall(target, pump=pump_flag, consumer=flag)
    target.stream.add(call.call_id, call)
    try:
        _start_pump(name, call, pump_flag, inputs, kwargs)
        while True:
            flag.lower()
            items = call.take(order.held)
            if call.is_over(order.count, items):
                return
            yield from order.values(items)
            if not items:
                flag.wait()
    finally:
        call.close(is_done=order.count == call.total)


async def _consume_async(
    name: str,
    target: Target,
    inputs: Union[Iterable[Any], AsyncIterable[Any]],
    kwargs: dict[str, Any],
    order: _Order,
) -> AsyncIterator[Any]:
    flag = LoopFlag()
    pump: _AsyncPump | None = None
    pump_flag = LoopFlag() if hasattr(inputs, "__aiter__") else ThreadFlag()
    call = MapCall(target, pump=pump_flag, consumer=flag)
    target.stream.add(call.call_id, call)
    try:
        if isinstance(pump_flag, LoopFlag):
            pump = _AsyncPump(name, call, pump_flag, inputs, kwargs)
        else:
            _start_pump(name, call, pump_flag, inputs, kwargs)
        while True:
            flag.lower()
            items = call.take(order.held)
            if call.is_over(order.count, items):
                return
            for value in order.values(items):
                yield value
            if not items:
                await flag.wait()
    finally:
        call.close(is_done=order.count == call.total)
        if pump is not None:
            await pump.stop()


def _start_pump(
    name: str, call: MapCall, flag: ThreadFlag, inputs: Iterable[Any], kwargs: dict[str, Any]
) -> None:
    thread = threading.Thread(
        target=_pump, args=(name, call, flag, inputs, kwargs), name=f"hostd-map-{name}", daemon=True
    )
    thread.start()


def _pump(
    name: str, call: MapCall, flag: ThreadFlag, inputs: Iterable[Any], kwargs: dict[str, Any]
) -> None:
    try:
        iterator = iter(inputs)
        while room := _wait_for_room(call, flag):
            for args in islice(iterator, room):
                call.put(pack_input(name, args, kwargs))
                room -= 1
                if call.is_closed:
                    return
            if room:
                call.finish()
                return
    except BaseException as error:  # noqa: BLE001 - the user's iterator: the consumer raises it
        call.finish(error)


def _wait_for_room(call: MapCall, flag: ThreadFlag) -> int:
    """How many inputs may be taken now; 0 when no more are wanted."""
    while not call.is_closed:
        flag.lower()
        room = call.room()
        if room:
            return room
        flag.wait()
    return 0


class _AsyncPump:
    """The pump of an async iterator: a task of the consumer's loop."""

    def __init__(
        self, name: str, call: MapCall, flag: LoopFlag, inputs: Any, kwargs: dict[str, Any]
    ) -> None:
        import asyncio

        self._name = name
        self._call = call
        self._flag = flag
        self._inputs = inputs
        self._kwargs = kwargs
        # Referenced here and ended by stop(); a TaskGroup needs Python 3.11.
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End the task and wait for it."""
        import asyncio

        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        import asyncio

        room = self._call.room()
        try:
            async for args in self._inputs:
                self._call.put(pack_input(self._name, args, self._kwargs))
                room -= 1
                while room < 1:
                    self._flag.lower()
                    room = self._call.room()
                    if room < 1:
                        await self._flag.wait()
            self._call.finish()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the user's iterator: the consumer raises it
            self._call.finish(error)


async def _each(inputs: Union[Iterable[Any], AsyncIterable[Any]]) -> AsyncIterator[Any]:
    if hasattr(inputs, "__aiter__"):
        async for value in inputs:
            yield value
    else:
        for value in inputs:
            yield value


def zipped_async(
    inputs: tuple[Union[Iterable[Any], AsyncIterable[Any]], ...],
) -> Union[Iterable[Any], AsyncIterable[Any]]:
    """The inputs as tuples of arguments; asynchronous when one of them is.

    Raises:
        InvalidError: there are none.
    """
    if not inputs:
        raise InvalidError(
            "map was given no inputs", hint="pass at least one iterable: f.map([1, 2])"
        )
    if not any(hasattr(each, "__aiter__") for each in inputs):
        return zip(*inputs)  # type: ignore[arg-type]  # noqa: B905 - none is asynchronous
    return _zip_async(inputs)


async def _zip_async(
    inputs: tuple[Union[Iterable[Any], AsyncIterable[Any]], ...],
) -> AsyncIterator[tuple[Any, ...]]:
    iterators = [_each(each) for each in inputs]
    while True:
        row = []
        for iterator in iterators:
            try:
                row.append(await iterator.__anext__())
            except StopAsyncIteration:
                return
        yield tuple(row)
