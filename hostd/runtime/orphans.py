"""Collect children nobody waits for.

As a subreaper this process becomes the parent of whatever its descendants leave behind: the helper
processes of an OCI runtime that was killed, for example. A zombie that nobody collected between two
looks belongs to nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

LOOK_EVERY_S = 5.0
"""Longer than any owner of a child takes to collect it."""

LAST_LOOK_S = 0.05
"""Between the two looks at the end; an owner collects a child within a turn of its loop."""


class OrphanReaper:
    """Looks for abandoned zombies from time to time."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Look on the running loop from now on."""
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look_again)

    async def end(self) -> None:
        """Stop looking, after a last time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.look()
        await asyncio.sleep(LAST_LOOK_S)
        self.look()

    def look(self) -> int:
        """Reap the zombies that were there at the last look already; returns how many."""
        zombies = zombie_children()
        reaped = 0
        for pid in zombies & self._seen:
            with contextlib.suppress(ChildProcessError):
                reaped += os.waitpid(pid, os.WNOHANG)[0] == pid
        self._seen = zombies
        return reaped

    def _look_again(self) -> None:
        self.look()
        self.begin()


def zombie_children() -> set[int]:
    """Pids of children of this process that ended and were not collected."""
    found = set()
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in children.read_text().split() if _is_zombie(pid)}
    return found


def _is_zombie(pid: str) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[:1] == ["Z"]
