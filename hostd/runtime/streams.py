"""Interactive byte streams to a process in a container: pipes or a terminal.

Nothing is buffered here: bytes are read when somebody asks, so a slow reader slows the process and
costs no memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import os
import struct
import termios
from collections.abc import Iterable, Mapping

CHUNK_BYTES = 65_536
WRITE_TIMEOUT_S = 60.0
"""A process that does not read its input for so long does not get the rest of it."""

_END_OF_FILE = b"\x04"


def _wake(future: asyncio.Future[None], *_: object) -> None:
    if not future.done():
        future.set_result(None)


async def wait_readable(
    fds: Iterable[int], also: asyncio.Future[int] | None = None, *, timeout_s: float | None
) -> None:
    """Wait until one of the descriptors can be read or ``also`` is done.

    Raises:
        TimeoutError: nothing happened in time.
    """
    loop = asyncio.get_running_loop()
    woken = loop.create_future()

    wake = functools.partial(_wake, woken)
    watched = list(fds)
    for fd in watched:
        loop.add_reader(fd, wake)
    if also is not None:
        also.add_done_callback(wake)
    try:
        async with asyncio.timeout(timeout_s):
            await woken
    finally:
        for fd in watched:
            loop.remove_reader(fd)
        if also is not None:
            also.remove_done_callback(wake)


async def _wait_writable(fd: int, timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    woken = loop.create_future()
    loop.add_writer(fd, _wake, woken)
    try:
        async with asyncio.timeout(timeout_s):
            await woken
    finally:
        loop.remove_writer(fd)


class Streams:
    """The standard streams of one process. One reader and one writer at a time.

    Args:
        outputs: descriptors to read by stream name; a terminal has ``stdout`` only.
        stdin: descriptor to write to, or None; for a terminal the same as its output.
        exited: done when the process has ended; what it wrote before can still be read.
    """

    def __init__(
        self, outputs: Mapping[str, int], stdin: int | None, exited: asyncio.Future[int]
    ) -> None:
        self._outputs = dict(outputs)
        self._stdin = stdin
        self._exited = exited
        for fd in {*outputs.values(), *([stdin] if stdin is not None else [])}:
            os.set_blocking(fd, False)

    @property
    def is_terminal(self) -> bool:
        """Whether there is a terminal, which can be resized."""
        return self._stdin is not None and self._stdin in self._outputs.values()

    async def read(self) -> tuple[str, bytes] | None:
        """The next piece and its stream; None when the process has ended and all is read.

        A child that lives on with the streams of an ended process does not hold this up.
        """
        while True:
            # The order matters: what a process wrote before it ended is there when we see its end.
            over = self._exited.done()
            for stream, fd in list(self._outputs.items()):
                data = _read_now(fd)
                if data:
                    self._outputs[stream] = self._outputs.pop(stream)  # The others come first next.
                    return stream, data
                if data == b"":
                    self._forget(stream)
            if over or not self._outputs:
                return None
            await wait_readable(self._outputs.values(), self._exited, timeout_s=None)

    async def write(self, data: bytes) -> bool:
        """Give bytes to the process; waits while it is slow. False when it reads no more."""
        view = memoryview(data)
        while view:
            if self._stdin is None:
                return False
            try:
                view = view[os.write(self._stdin, view[:CHUNK_BYTES]) :]
            except BlockingIOError:
                try:
                    await _wait_writable(self._stdin, WRITE_TIMEOUT_S)
                except TimeoutError:
                    return False
            except OSError:
                return False
        return True

    async def write_eof(self) -> None:
        """End the input: closes a pipe, types ^D at a terminal."""
        if self.is_terminal:
            await self.write(_END_OF_FILE)
        elif self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal, if there is one, its size; the process gets SIGWINCH."""
        if self.is_terminal and self._stdin is not None:
            set_size(self._stdin, rows, columns)

    def close(self) -> None:
        """Close everything; a terminal's processes get SIGHUP."""
        fds = {*self._outputs.values(), *([self._stdin] if self._stdin is not None else [])}
        self._outputs.clear()
        self._stdin = None
        for fd in fds:
            os.close(fd)

    def _forget(self, stream: str) -> None:
        fd = self._outputs.pop(stream)
        if fd != self._stdin:
            os.close(fd)


def set_size(fd: int, rows: int, columns: int) -> None:
    """Set a terminal's size, within what the kernel's field holds."""
    rows, columns = (max(1, min(n, 0xFFFF)) for n in (rows, columns))
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _read_now(fd: int) -> bytes | None:
    """Bytes, b"" at the end, or None when there is nothing yet."""
    try:
        return os.read(fd, CHUNK_BYTES)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno == errno.EIO:  # A terminal whose other side is closed (pty(7)).
            return b""
        raise
