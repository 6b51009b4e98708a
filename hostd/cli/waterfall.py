"""Where the time of a call went, as bars below each other.

Each phase begins where the one before it ended, so the bars make a staircase from the upper left to
the lower right; their lengths add up to the wall time.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from hostd.cli.units import duration

BAR_CELLS = 44
_EIGHTHS = " ▏▎▍▌▋▊▉"


def waterfall(phases_us: Mapping[str, int], wall_us: int) -> list[str]:
    """One line per phase that took any time, then the wall time."""
    present = {name: length for name, length in phases_us.items() if length > 0}
    if not present:
        return []
    total = max(wall_us, sum(present.values()))
    width = max(len(name) for name in (*present, "wall"))
    lines, begun = [], 0
    for name, length in present.items():
        figures = f"{duration(length):>8} {100 * length / total:5.1f} %"
        lines.append(f"{name:{width}}  {figures}  {_bar(begun, length, total)}")
        begun += length
    lines.append(f"{'wall':{width}}  {duration(wall_us):>8}")
    return lines


def _bar(begun: int, length: int, total: int) -> str:
    first, last = BAR_CELLS * begun / total, BAR_CELLS * (begun + length) / total
    start = min(int(first), BAR_CELLS - 1)
    cells = last - start
    if not _has_blocks():
        return " " * start + "#" * max(1, round(cells))
    whole, eighths = int(cells), int(cells % 1 * 8)
    bar = "█" * whole + _EIGHTHS[eighths].strip()
    return " " * start + (bar or "▏")


def _has_blocks() -> bool:
    try:
        "█▏".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
