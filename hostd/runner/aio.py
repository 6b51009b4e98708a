"""Async functions: one event loop for the container's life, in the main thread.

Loaded only for them: asyncio costs some 30 ms. Between inputs the loop goes on running, so that
background tasks and open connections of the user's stay alive.
"""

import asyncio

DRAIN_S = 1.0
"""How long background tasks may take to end when the container ends."""


class Loop:
    """The container's event loop, driven from the runner's blocking code."""

    def __init__(self, cancel):
        self._cancel = cancel
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)

    def run(self, coroutine):
        """Run it as a task of its own and return its result; a cancel of the input cancels the task."""
        task = self._loop.create_task(coroutine)
        self._cancel.interrupt = lambda: self._loop.call_soon_threadsafe(task.cancel)
        try:
            return self._loop.run_until_complete(task)
        finally:
            self._cancel.interrupt = None

    def stream(self, generator, emit):
        """Hand every value of an async generator to ``emit``, all in one task as its user expects."""

        async def drive():
            try:
                async for value in generator:
                    emit(value)
                    await asyncio.sleep(
                        0
                    )  # a cancel must get through to a generator that never waits
            finally:
                close = getattr(generator, "aclose", None)
                if close is not None:
                    await close()

        self.run(drive())

    def wait_readable(self, descriptor):
        """Run background tasks until there is something to read."""
        ready = self._loop.create_future()
        self._loop.add_reader(descriptor, _set, ready)
        try:
            self._loop.run_until_complete(ready)
        finally:
            self._loop.remove_reader(descriptor)

    def close(self):
        """End background tasks, for a bounded time."""
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=DRAIN_S))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())


def _set(future):
    if not future.done():
        future.set_result(None)
