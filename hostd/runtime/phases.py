"""The parts of a start, end to end: their sum is the time from the first moment to the last."""

from __future__ import annotations

from collections.abc import Mapping

from hostd.clock import Clock


class PhaseTimer:
    """Cuts the time since it was made into named phases without gaps."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._mark_us = clock.monotonic_us()
        self.phases_us: dict[str, int] = {}

    def end(self, name: str, at_us: int | None = None) -> None:
        """Everything since the last phase was this one.

        Args:
            at_us: when it ended, as a container claims: it is moved between the last end and now.
        """
        now_us = self._clock.monotonic_us()
        end_us = now_us if at_us is None else min(max(at_us, self._mark_us), now_us)
        self.phases_us[name] = self.phases_us.get(name, 0) + end_us - self._mark_us
        self._mark_us = end_us

    def end_parts(self, parts: Mapping[str, int]) -> None:
        """Several phases that somebody else measured; the last one also gets what is missing."""
        for name, part_us in parts.items():
            self.end(name, self._mark_us + part_us)
        if parts:
            self.end(list(parts)[-1])
