"""The log of one build: events in order, kept for readers that come late or read slowly.

Concurrency: on the event loop. ``add`` never waits; each reader has its own place and is woken when
something is new. What is kept is bounded: the oldest events go first, and a reader who was further
back goes on with what is there (its events' ``seq`` then jump).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

from hostd.clock import Clock
from hostd.model import BuildEvent

EVENTS_MAX = 20_000
"""A build of LLVM prints 6,000 lines."""
BYTES_MAX = 16 * 2**20
"""Of text; keeps a build that prints long lines from filling the memory."""
LINE_CHARACTERS_MAX = 8 * 1024
"""A line is cut here; progress bars of minutes are one line."""

Kind = Literal["step", "cached", "line", "step_done", "done", "failed"]


class EventLog:
    """Events of one build, the last ones of a long one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._events: list[BuildEvent] = []
        self._first = 0
        """Sequence number of the first event that is kept."""
        self._bytes = 0
        self._changed = asyncio.Event()
        self.is_closed = False

    def add(self, kind: Kind, **fields: Any) -> None:
        """Append an event; ``done`` and ``failed`` are the last."""
        assert not self.is_closed, "a log ends with its first done or failed"
        event = BuildEvent(
            kind=kind, seq=self._first + len(self._events), at_us=self._clock.wall_us(), **fields
        )
        self._events.append(event)
        self._bytes += len(event.text)
        self.is_closed = kind in ("done", "failed")
        if len(self._events) > EVENTS_MAX or self._bytes > BYTES_MAX:
            self._forget()
        self._changed.set()
        self._changed = asyncio.Event()

    def line(self, text: str, *, step: int, stream: Literal["stdout", "stderr"]) -> None:
        """Append a line of a step's output."""
        if len(text) > LINE_CHARACTERS_MAX:
            text = text[:LINE_CHARACTERS_MAX] + "…"
        self.add("line", text=text, step=step, stream=stream)

    async def read(self, after: int = 0) -> AsyncIterator[BuildEvent]:
        """Events from number ``after`` on, as they come; ends after ``done`` or ``failed``."""
        at = after
        while True:
            changed = self._changed
            at = max(at, self._first)
            # A copy of a slice: while the reader is busy, the list goes on growing.
            for event in self._events[at - self._first :]:
                yield event
                at = event.seq + 1
            if at < self._first + len(self._events):
                continue
            if self.is_closed:
                return
            await changed.wait()

    def _forget(self) -> None:
        """Drop the oldest quarter: rarely, so that it costs nothing per event."""
        dropped = self._events[: max(1, len(self._events) // 4)]
        del self._events[: len(dropped)]
        self._first += len(dropped)
        self._bytes -= sum(len(event.text) for event in dropped)
