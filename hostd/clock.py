"""Time, as something that is handed in: real in the daemon, virtual in tests."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What code that needs time takes as an argument."""

    def wall_us(self) -> int:
        """Microseconds since the Unix epoch; may jump."""
        ...

    def monotonic_us(self) -> int:
        """Microseconds since some start; never goes back. For durations and deadlines."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall_us(self) -> int:
        """Microseconds since the Unix epoch."""
        return time.time_ns() // 1_000

    def monotonic_us(self) -> int:
        """Microseconds since boot (CLOCK_MONOTONIC)."""
        return time.monotonic_ns() // 1_000
