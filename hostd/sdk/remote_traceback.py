"""Show the frames of a container in a local traceback.

Tracebacks cannot be pickled. The runner sends the frames as tuples; here each becomes a traceback
entry of an empty code object with the same file, name and line, so that Python, debuggers and
logging print them below the local frames as if the call had been local (the way of tblib:
https://github.com/ionelmc/python-tblib).
"""

from __future__ import annotations

import linecache
import os
import sys
import types
from contextlib import suppress
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from collections.abc import Sequence

    Frames = Sequence[tuple[str, Optional[int], str, Optional[str]]]

FRAMES_MAX = 200
LINES_MAX = 100_000
"""Of one file in the line cache: a wrong line number must not fill the memory."""


def with_frames(error: Exception, frames: Frames) -> Exception:
    """The exception with these frames (file, line, function, source; outermost first)."""
    traceback = None
    for filename, line, name, source in reversed(list(frames)[-FRAMES_MAX:]):
        number = max(1, int(line or 1))
        _remember(str(filename), number, source)
        frame = _frame(str(filename), str(name), number)
        traceback = types.TracebackType(traceback, frame, frame.f_lasti, number)
    return error.with_traceback(traceback)


class _Stop(Exception):
    """Raised inside the empty code to get hold of its frame."""


def _frame(filename: str, name: str, line: int) -> types.FrameType:
    code = compile("raise stop", filename, "exec").replace(co_name=name, co_firstlineno=line)
    if sys.version_info >= (3, 11):
        code = code.replace(co_linetable=_one_line(len(code.co_code) // 2))
    stop = _Stop()
    with suppress(_Stop):
        exec(code, {"stop": stop, "__name__": "remote", "__file__": filename})  # noqa: S102 - our text
    here = stop.__traceback__
    assert here is not None
    assert here.tb_next is not None
    return here.tb_next.tb_frame


def _one_line(units: int) -> bytes:
    """A location table of one line without columns: no carets under code compiled elsewhere.

    Format: CPython's Objects/locations.md, entries of code 13 with a line delta of 0.
    """
    entries = [min(8, units - at) for at in range(0, units, 8)]
    return b"".join(bytes((0x80 | 13 << 3 | (length - 1), 0)) for length in entries)


def _remember(filename: str, line: int, source: Optional[str]) -> None:
    """Let the line cache know a line of a file that is only in the container."""
    if not source or line > LINES_MAX or filename.startswith("<") or os.path.exists(filename):
        return
    known = linecache.cache.get(filename)
    # Our entries have no time stamp: linecache then never drops them as stale.
    lines = list(known[2]) if known is not None and len(known) == 4 else []
    lines += ["\n"] * (line - len(lines))
    lines[line - 1] = f"{source}\n"
    linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)
