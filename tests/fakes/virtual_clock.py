"""A clock that only moves when a test moves it, and timers that run on it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class VirtualClock:
    """Both clocks of ``hostd.clock.Clock``; microseconds."""

    def __init__(self, *, wall_us: int = 1_700_000_000_000_000) -> None:
        self._wall_us = wall_us
        self._now_us = 0

    def wall_us(self) -> int:
        return self._wall_us + self._now_us

    def monotonic_us(self) -> int:
        return self._now_us

    def advance(self, us: int) -> None:
        assert us >= 0, us
        self._now_us += us


class VirtualTimer:
    """What ``VirtualTimers.call_later`` returns."""

    def __init__(self, due_us: int, callback: Callable[[], None]) -> None:
        self.due_us = due_us
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class VirtualTimers:
    """Timers that fire when a test advances the clock: in the order they are due."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self._order = itertools.count()
        self._heap: list[tuple[int, int, VirtualTimer]] = []

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> VirtualTimer:
        timer = VirtualTimer(self.clock.monotonic_us() + round(delay_s * 1e6), callback)
        heapq.heappush(self._heap, (timer.due_us, next(self._order), timer))
        return timer

    def call_soon(self, callback: Callable[[], None]) -> VirtualTimer:
        return self.call_later(0, callback)

    def pending(self) -> int:
        """Timers that will still fire."""
        return sum(not timer.is_cancelled for _, _, timer in self._heap)

    def run_due(self) -> None:
        """Fire everything that is due now, and what that makes due."""
        self.advance(0)

    def advance(self, seconds: float) -> None:
        """Move the clock, stopping at every timer on the way."""
        end_us = self.clock.monotonic_us() + round(seconds * 1e6)
        while self._heap and self._heap[0][0] <= end_us:
            due_us, _, timer = heapq.heappop(self._heap)
            if timer.is_cancelled:
                continue
            self.clock.advance(max(0, due_us - self.clock.monotonic_us()))
            timer.callback()
        self.clock.advance(end_us - self.clock.monotonic_us())
