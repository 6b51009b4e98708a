"""Timers on the event loop whose failures are not lost.

An exception in a timer's callback would only be printed by asyncio, while the scheduler's state may
be half changed. Here it is kept, and ``wait_failed`` raises it in the daemon's task group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hostd.scheduler.ports import Timer, Timers


class LoopTimers:
    """The running loop's own timers."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call it once, after the delay."""
        return asyncio.get_running_loop().call_later(max(delay_s, 0.0), callback)


class GuardedTimers:
    """Timers that remember the first exception of any callback."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._error: Exception | None = None
        self._failed = asyncio.Event()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call it once, after the delay."""

        def guarded() -> None:
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - the callback's root: wait_failed raises it
                self._error = self._error or error
                self._failed.set()

        return self._timers.call_later(delay_s, guarded)

    async def wait_failed(self) -> None:
        """Wait until a callback fails, and raise what it raised."""
        await self._failed.wait()
        self.check()

    def check(self) -> None:
        """Raise what a callback raised, if one did."""
        if self._error is not None:
            raise self._error
