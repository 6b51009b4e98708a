"""From a container's pipes to lines: bounded in memory, in line length and in total.

A container writes into pipes that this process made; nothing goes through files of the image. One
read takes at most a pipe's worth, so a flood from one container cannot starve the event loop; a
container that is faster than the daemon waits in its own ``write``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from hostd.clock import Clock
from hostd.runtime.spec import OutputSink

LINE_BYTES_MAX = 65_536
"""Longer lines come in pieces: a line is one record everywhere behind this point."""

READ_BYTES = 65_536
"""A Linux pipe's default capacity."""

SYSTEM = "system"


class LineSplitter:
    """Cuts a byte stream into lines of at most ``LINE_BYTES_MAX``. Pure."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Take more bytes; return the lines that are complete now."""
        parts = (self._partial + data).split(b"\n")
        self._partial = parts.pop()
        lines = [piece for line in parts for piece in _pieces(line)]
        while len(self._partial) >= LINE_BYTES_MAX:
            lines.append(self._partial[:LINE_BYTES_MAX])
            self._partial = self._partial[LINE_BYTES_MAX:]
        return lines

    def flush(self) -> list[bytes]:
        """What came after the last newline, if anything did."""
        rest, self._partial = self._partial, b""
        return [rest] if rest else []


def _pieces(line: bytes) -> list[bytes]:
    if len(line) <= LINE_BYTES_MAX:
        return [line]
    return [line[n : n + LINE_BYTES_MAX] for n in range(0, len(line), LINE_BYTES_MAX)]


class Budget:
    """How many bytes of a container's output are still handed on; both streams share it."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._left = bytes_max
        self.dropped = 0

    def admit(self, line: bytes) -> bool:
        """Whether there is room for this line; counts it either way."""
        if self.dropped or len(line) + 1 > self._left:
            self.dropped += len(line) + 1
            return False
        self._left -= len(line) + 1
        return True


class OutputPipe:
    """One stream of a container, from its pipe to the sink."""

    def __init__(self, stream: str, sink: OutputSink, *, clock: Clock, budget: Budget) -> None:
        self._stream = stream
        self._sink = sink
        self._clock = clock
        self._budget = budget
        self._splitter = LineSplitter()
        self._fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._fd, False)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._at_eof: Callable[[], None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether more may come."""
        return self._fd >= 0

    def close_write_end(self) -> None:
        """The container has its copy; ours would keep the pipe open for ever."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def begin(self, at_eof: Callable[[], None]) -> None:
        """Read on the running loop from now on; ``at_eof`` is called once, at the end."""
        self._at_eof = at_eof
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)

    def drain(self, *, flush: bool) -> None:
        """Hand on what is in the pipe now; with ``flush`` also text without a newline."""
        # Two reads empty a pipe that was full; a writer that goes on gets no third.
        for _ in range(2):
            if self._fd < 0 or not self._read():
                break
        if flush:
            self._emit(self._splitter.flush())

    def close(self) -> None:
        """Stop reading; what is still in the pipe is read first."""
        self.close_write_end()
        self.drain(flush=True)
        self._end()

    def discard(self) -> None:
        """Close both ends unread."""
        self.close_write_end()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._end()
            return False
        self._emit(self._splitter.feed(data))
        return True

    def _emit(self, lines: list[bytes]) -> None:
        if not lines:
            return
        now_us = self._clock.wall_us()
        for line in lines:
            if self._budget.admit(line):
                self._sink.line(self._stream, line, now_us)

    def _end(self) -> None:
        if self._fd < 0:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._emit(self._splitter.flush())
        if self._at_eof is not None:
            self._at_eof()


class ContainerOutput:
    """Both streams of a container and the promise that they end."""

    def __init__(self, sink: OutputSink, *, clock: Clock, bytes_max: int) -> None:
        self._sink = sink
        self._clock = clock
        self._budget = Budget(bytes_max)
        self._pipes = [
            OutputPipe(name, sink, clock=clock, budget=self._budget)
            for name in ("stdout", "stderr")
        ]
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def write_fds(self) -> tuple[int, int]:
        """What becomes descriptors 1 and 2 of the container."""
        return self._pipes[0].write_fd, self._pipes[1].write_fd

    def begin(self) -> None:
        """The container holds the other ends now: close ours and read."""
        for pipe in self._pipes:
            pipe.close_write_end()
            pipe.begin(self._one_ended)

    def drain(self, *, flush: bool) -> None:
        """Hand on what is in both pipes now."""
        for pipe in self._pipes:
            pipe.drain(flush=flush)

    def close(self) -> None:
        """Read what is there and end, whoever still holds a pipe."""
        for pipe in self._pipes:
            pipe.close()
        self._one_ended()

    def discard(self) -> None:
        """Close everything and hand nothing on: the container was never made."""
        for pipe in self._pipes:
            pipe.discard()

    def _one_ended(self) -> None:
        if self.ended.done() or any(pipe.is_open for pipe in self._pipes):
            return
        self.ended.set_result(None)
        if self._budget.dropped:
            dropped, kept = self._budget.dropped, self._budget.bytes_max
            note = f"{dropped} bytes of output were dropped after {kept}"
            self._sink.line(SYSTEM, note.encode(), self._clock.wall_us())
