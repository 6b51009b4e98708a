"""Flags that the reader thread raises and a thread or a task waits for."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol

    class Flag(Protocol):
        """Raised from any thread; lowered by who waits, before it looks at what it waits for."""

        def raise_(self) -> None:
            """Wake who waits, now or when it comes to wait."""

        def lower(self) -> None:
            """Forget earlier raises."""


WAIT_S = 60.0
"""One wait; the loop around it looks again. The stream itself notices a lost host."""


class ThreadFlag:
    """Waited for by a thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.raise_ = self._event.set
        self.lower = self._event.clear

    def wait(self) -> None:
        """Wait until raised, at most ``WAIT_S``."""
        self._event.wait(WAIT_S)


class LoopFlag:
    """Waited for by a task of an event loop."""

    def __init__(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self.lower = self._event.clear

    def raise_(self) -> None:
        """Wake the task; called from any thread."""
        # When the loop was closed meanwhile, nobody waits.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        """Wait until raised."""
        await self._event.wait()
