"""Start a program and wait for it, without threads: posix_spawn and pidfds on the event loop.

``subprocess`` would do, but its asyncio form starts one waiting thread per child, and here the
child is often not ours by birth: processes in containers are orphans that this process adopts as a
subreaper, known by their pid only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hostd.runtime import syscalls

GROUP_POLL_S = 0.002
"""Between looks at a killed group; its members end within some milliseconds."""

DEVNULL = -1
"""Stands for /dev/null as a standard descriptor."""

# Python ignores these; a program that inherits that would not end on a closed pipe.
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGQUIT)


@dataclass(frozen=True, slots=True)
class Stdio:
    """Descriptors that become 0, 1 and 2 of a child."""

    stdin: int = DEVNULL
    stdout: int = DEVNULL
    stderr: int = DEVNULL


def spawn(
    args: Sequence[str], *, env: Mapping[str, str], stdio: Stdio, executable: str | None = None
) -> Process:
    """Start a program in a session of its own, so that ^C at the daemon's terminal spares it.

    Raises:
        OSError: it cannot be executed.
    """
    actions: list[tuple[object, ...]] = []
    for target, fd in enumerate((stdio.stdin, stdio.stdout, stdio.stderr)):
        if fd == DEVNULL:
            actions.append((os.POSIX_SPAWN_OPEN, target, "/dev/null", os.O_RDWR, 0))
        else:
            actions.append((os.POSIX_SPAWN_DUP2, fd, target))
    pid = os.posix_spawn(
        executable or args[0],
        list(args),
        dict(env),
        file_actions=actions,
        setsid=True,
        setsigmask=[],
        setsigdef=_DEFAULT_SIGNALS,
    )
    return Process(pid)


class Process:
    """A child of this process, by birth or adopted. ``wait`` or ``close`` must be called once."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._exited: asyncio.Future[int] | None = None
        self.peak_rss_bytes = 0

    def exited(self) -> asyncio.Future[int]:
        """A future with the wait status; the process is reaped when it is done."""
        if self._exited is None:
            loop = asyncio.get_running_loop()
            self._exited = loop.create_future()
            loop.add_reader(self._pidfd, self._on_exit, loop)
        return self._exited

    async def wait(self, timeout_s: float) -> int:
        """The wait status (see ``os.waitstatus_to_exitcode``).

        Raises:
            TimeoutError: it runs on.
        """
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(self.exited())

    def _on_exit(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._pidfd)
        try:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status, usage = self.pid, 0, None
        assert pid == self.pid, "a readable pidfd means that the process has ended"
        if usage is not None:
            self.peak_rss_bytes = usage.ru_maxrss * 1024
        os.close(self._pidfd)
        self._pidfd = -1
        if self._exited is not None and not self._exited.done():
            self._exited.set_result(status)

    @property
    def is_running(self) -> bool:
        """Whether it was not reaped yet."""
        return self._pidfd >= 0

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended. Never hits another process."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)


async def end_group(process: Process, timeout_s: float) -> None:
    """Kill and reap a process that ``spawn`` started, and those it left in its process group.

    crun works in a second process: killing the first one alone would let it go on making groups and
    mounts while they are swept.

    Raises:
        TimeoutError: one hangs in the kernel.
    """
    process.signal(signal.SIGKILL)
    async with asyncio.timeout(timeout_s):
        await process.wait(timeout_s)
        while True:
            if _reap_group(process.pid):
                return
            await asyncio.sleep(GROUP_POLL_S)


def _reap_group(group: int) -> bool:
    """Kill and collect members of a process group that are children of ours; True: none is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    try:
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def adopt_orphans() -> None:
    """From now on this process is the parent of whatever its descendants leave behind."""
    syscalls.become_subreaper()
