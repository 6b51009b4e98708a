"""Ctrl-C and SIGTERM: the first one ends the command in order, the second one at once.

In order means: KeyboardInterrupt (or Terminated) rises through the command, whose context managers
cancel what runs remotely; the exit status is 130 (or 143).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM arrived."""


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Handle SIGINT and SIGTERM like this inside the block."""
    is_ending = False

    def end(number: int, _: FrameType | None) -> None:
        nonlocal is_ending
        if is_ending:
            os._exit(128 + number)
        is_ending = True
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    previous = {
        number: signal.signal(number, end)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
