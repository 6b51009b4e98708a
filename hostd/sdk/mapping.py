"""Many inputs, many results: what is behind ``map``, ``starmap`` and ``for_each``.

This is the consumer's side: results in order, failures, the end. How inputs and results travel is
told in ``map_call.py``.
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import TYPE_CHECKING

from hostd.sdk.calling import failure_of, refuse_generator, target_of, warn_if_in_loop
from hostd.sdk.flag import LoopFlag, ThreadFlag
from hostd.sdk.map_call import MapCall
from hostd.sdk.payload import pack_input, unpack
from hostd.sdk.pump import AsyncPump, start_pump

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
    from typing import Any

    from hostd.sdk.calling import Target
    from hostd.sdk.function import Function
    from hostd.sdk.map_call import Item
    from hostd.sdk.pump import AnyIterable, Pack


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
    return _consume(target, inputs, _packer(function, kwargs), order)


def map_inputs_async(
    function: Function[Any, Any, Any],
    inputs: AnyIterable,
    *,
    kwargs: Mapping[str, Any],
    order_outputs: bool,
    return_exceptions: bool,
) -> AsyncIterator[Any]:
    """The same for ``async for``."""
    target = target_of(function)
    refuse_generator(function, "map")
    order = _Order(is_ordered=order_outputs, returns_exceptions=return_exceptions)
    return _consume_async(target, inputs, _packer(function, kwargs), order)


def _packer(function: Function[Any, Any, Any], kwargs: Mapping[str, Any]) -> Pack:
    fixed = dict(kwargs)
    return lambda args: pack_input(function, args, fixed)


def _consume(target: Target, inputs: Iterable[Any], pack: Pack, order: _Order) -> Iterator[Any]:
    pump_flag, flag = ThreadFlag(), ThreadFlag()
    call = MapCall(target, pump=pump_flag, consumer=flag)
    target.stream.add(call.call_id, call)
    try:
        start_pump(call, pump_flag, inputs, pack)
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
    target: Target, inputs: AnyIterable, pack: Pack, order: _Order
) -> AsyncIterator[Any]:
    flag = LoopFlag()
    thread_flag, loop_flag = ThreadFlag(), LoopFlag()
    is_async = isinstance(inputs, AsyncIterable)
    call = MapCall(target, pump=loop_flag if is_async else thread_flag, consumer=flag)
    pump: AsyncPump | None = None
    target.stream.add(call.call_id, call)
    try:
        if isinstance(inputs, AsyncIterable):
            pump = AsyncPump(call, loop_flag, inputs, pack)
        else:
            start_pump(call, thread_flag, inputs, pack)
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
