"""Figures as people read them: GiB, milliseconds, ages; and text that cannot move the cursor."""

from __future__ import annotations

import time

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float | None) -> str:
    """Bytes with three digits and a binary unit."""
    if count is None:
        return "-"
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.3g} {_UNITS[unit]}"


def duration(length_us: float) -> str:
    """A duration with about three digits: ``420 us``, ``61 ms``, ``1.84 s``, ``3 m 12 s``."""
    milliseconds = length_us / 1000
    if milliseconds < 1:
        return f"{length_us:.0f} us"
    if milliseconds < 10:
        return f"{milliseconds:.1f} ms"
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.3g} s"
    return _long(int(seconds))


def _long(seconds: int) -> str:
    if seconds < 3600:
        return f"{seconds // 60} m {seconds % 60} s"
    if seconds < 86_400:
        return f"{seconds // 3600} h {seconds % 3600 // 60} m"
    return f"{seconds // 86_400} d {seconds % 86_400 // 3600} h"


def age(since_us: int | None) -> str:
    """How long ago this was, in whole seconds."""
    if not since_us:
        return "-"
    seconds = max(0, time.time_ns() // 1000 - since_us) // 1_000_000
    return f"{seconds} s" if seconds < 60 else _long(seconds)


def moment(at_us: int) -> str:
    """A point in time in the local zone, with milliseconds."""
    second = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_us // 1_000_000))
    return f"{second}.{at_us // 1000 % 1000:03}"


def plain(text: object) -> str:
    """Text on one line, with control characters made visible: names come from users."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
