"""Taking inputs from the user's iterators: the pump of a map (see ``map_call.py``)."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterable
from itertools import islice
from typing import TYPE_CHECKING

from hostd.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from typing import Any, Union

    from hostd.sdk.flag import LoopFlag, ThreadFlag
    from hostd.sdk.map_call import MapCall

    Pack = Callable[[Any], bytes]
    """From the arguments of one input to its payload."""
    AnyIterable = Union[Iterable[Any], AsyncIterable[Any]]


def start_pump(call: MapCall, flag: ThreadFlag, inputs: Iterable[Any], pack: Pack) -> None:
    """Pump from a thread of its own."""
    thread = threading.Thread(
        target=_pump, args=(call, flag, inputs, pack), name="hostd-map-inputs", daemon=True
    )
    thread.start()


def _pump(call: MapCall, flag: ThreadFlag, inputs: Iterable[Any], pack: Pack) -> None:
    try:
        iterator = iter(inputs)
        while room := _wait_for_room(call, flag):
            for args in islice(iterator, room):
                room -= 1
                if not call.put(pack(args)):
                    break
            else:
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


class AsyncPump:
    """The pump of an async iterator: a task of the consumer's loop."""

    def __init__(
        self, call: MapCall, flag: LoopFlag, inputs: AsyncIterable[Any], pack: Pack
    ) -> None:
        import asyncio

        self._call = call
        self._flag = flag
        self._inputs = inputs
        self._pack = pack
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
                room = room - 1 if self._call.put(self._pack(args)) else 0
                while room < 1:
                    self._flag.lower()
                    room = self._call.room()
                    if room < 1:
                        await self._flag.wait()
            self._call.finish()
        except asyncio.CancelledError as error:
            # By stop(), when nobody looks any more, or by the user's iterator.
            self._call.finish(error)
            raise
        except Exception as error:  # noqa: BLE001 - the user's iterator: the consumer raises it
            self._call.finish(error)


async def _each(inputs: AnyIterable) -> AsyncIterator[Any]:
    if isinstance(inputs, AsyncIterable):
        async for value in inputs:
            yield value
    else:
        for value in inputs:
            yield value


def zipped_async(
    inputs: tuple[AnyIterable, ...],
) -> AnyIterable:
    """The inputs as tuples of arguments; asynchronous when one of them is.

    Raises:
        InvalidError: there are none.
    """
    if not inputs:
        raise InvalidError(
            "map was given no inputs", hint="pass at least one iterable: f.map([1, 2])"
        )
    plain = [each for each in inputs if not isinstance(each, AsyncIterable)]
    if len(plain) == len(inputs):
        return zip(*plain)
    return _zip_async(inputs)


async def _zip_async(
    inputs: tuple[AnyIterable, ...],
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
