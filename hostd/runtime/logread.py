"""Reading log files: JSON lines of ``model.LogLine``, from the end. Synchronous, for threads."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from hostd.model import LogLine

BLOCK_BYTES = 256 * 1024

_decoder = msgspec.json.Decoder(LogLine)


@dataclass(frozen=True, slots=True)
class Part:
    """A file, as far as it belongs to one reading."""

    path: Path
    end: int
    """Bytes from the beginning; what lies behind was written after the reading had begun."""


def last_lines(parts: Iterable[Part], count: int, *, call_id: str | None = None) -> list[LogLine]:
    """The latest lines of all files together, by time; of one call only, if it is given."""
    if count <= 0:
        return []
    latest: list[tuple[int, int, bytes]] = []
    order = 0
    for part in parts:
        # Backwards, so that a file stops being read when only older lines can follow.
        for raw in _matching(part, count, call_id):
            line = _decoded(raw)
            if line is None:
                continue
            order -= 1
            entry = (line.at_us, order, raw)
            if len(latest) < count:
                heapq.heappush(latest, entry)
            elif entry > latest[0]:
                heapq.heapreplace(latest, entry)
    return [_decoder.decode(raw) for _, _, raw in sorted(latest)]


def _matching(part: Part, count: int, call_id: str | None) -> Iterator[bytes]:
    """Lines of a file, the last first, at most ``count``."""
    needle = b'"' + call_id.encode() + b'"' if call_id is not None else b""
    found = 0
    for raw in _backwards(part):
        if needle and needle not in raw:
            continue
        if call_id is not None:
            line = _decoded(raw)
            if line is None or line.call_id != call_id:
                continue
        yield raw
        found += 1
        if found >= count:
            return


def _backwards(part: Part) -> Iterator[bytes]:
    """Lines of a file, the last first, without their ends."""
    try:
        file = part.path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return  # Deleted by retention meanwhile.
    with file:
        yield from _lines_backwards(file, min(part.end, file.seek(0, 2)))


def _lines_backwards(file: BinaryIO, position: int) -> Iterator[bytes]:
    rest: deque[bytes] = deque()
    while position > 0:
        start = max(0, position - BLOCK_BYTES)
        file.seek(start)
        block = file.read(position - start)
        position = start
        pieces = block.split(b"\n")
        # The last piece goes on in what was read before, behind it.
        rest.appendleft(pieces.pop())
        if pieces:
            yield from _joined(rest)
            yield from (piece for piece in reversed(pieces[1:]) if piece)
            rest = deque((pieces[0],))
    yield from _joined(rest)


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    whole = b"".join(pieces)
    if whole:
        yield whole


def _decoded(raw: bytes) -> LogLine | None:
    """None for a line that was cut by a full disk or a crash."""
    try:
        return _decoder.decode(raw)
    except msgspec.DecodeError:
        return None
