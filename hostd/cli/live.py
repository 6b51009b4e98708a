"""Lines at the bottom of a terminal that are redrawn in place, and streams that write above them.

The region belongs to standard error. While it is shown, ``sys.stdout`` and ``sys.stderr`` are
replaced by streams that take it away, write, and put it back, so that output of the user's program
and of containers scrolls above it. One lock covers the region and both streams; any thread may take
it. The cursor is never hidden: whatever ends this process, the terminal stays as it was.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

REDRAW_S = 0.1
LINES_MAX = 12
"""The region never fills a small terminal: what scrolled away cannot be taken back."""
UP_AND_CLEAR = "\033[1A\033[2K"


class LiveRegion:
    """The redrawn lines; ``compose`` gives them for a width whenever they are drawn."""

    def __init__(self, stream: TextIO, compose: Callable[[int], Sequence[str]]) -> None:
        self._stream = stream
        self._compose = compose
        self._lock = threading.RLock()
        self._shown = 0
        self._is_mid_line = False
        self._stop = threading.Event()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the region during the block and take it away afterwards."""
        outer = sys.stdout, sys.stderr
        ticker = threading.Thread(target=self._tick, name="hostctl-progress", daemon=True)
        ticker.start()
        sys.stdout, sys.stderr = _Above(outer[0], self), _Above(outer[1], self)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = outer
            self._stop.set()
            ticker.join(1)
            with self._lock:
                self._put(self._taken_away())

    def write_above(self, stream: TextIO, text: str) -> int:
        """Write text where output goes, above the region."""
        with self._lock:
            self._put(self._taken_away())
            count = stream.write(text)
            stream.flush()
            # A line that is not complete yet must not be torn from its rest.
            self._is_mid_line = not text.endswith("\n") if text else self._is_mid_line
            self._put(self._drawn())
        return count

    def _tick(self) -> None:
        while not self._stop.wait(REDRAW_S):
            with self._lock:
                if not self._stop.is_set():
                    # In one write: a terminal that draws in between would flicker.
                    self._put(self._taken_away() + self._drawn())

    def _taken_away(self) -> str:
        text, self._shown = UP_AND_CLEAR * self._shown, 0
        return text

    def _drawn(self) -> str:
        if self._is_mid_line:
            return ""
        columns = _columns(self._stream)
        # The last column stays free: some terminals wrap when it is written.
        lines = [clip(line, columns - 1) for line in self._compose(columns)[:LINES_MAX]]
        self._shown = len(lines)
        return "".join(f"{line}\n" for line in lines)

    def _put(self, text: str) -> None:
        if not text:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._stop.set()  # The terminal is gone; the program goes on.


class _Above:
    """A text stream whose writes go above the region."""

    def __init__(self, stream: TextIO, region: LiveRegion) -> None:
        self._stream = stream
        self._region = region

    def write(self, text: str) -> int:
        if not self._stream.isatty():
            return self._stream.write(text)
        return self._region.write_above(self._stream, text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def clip(line: str, width: int) -> str:
    """The line cut to so many visible characters; escape sequences take no room and stay whole."""
    kept, seen, at = [], 0, 0
    while at < len(line):
        if line[at] == "\033":
            end = line.find("m", at)
            end = len(line) if end < 0 else end + 1
            kept.append(line[at:end])
            at = end
            continue
        if seen < width:
            kept.append(line[at])
            seen += 1
        at += 1
    return "".join(kept)


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
