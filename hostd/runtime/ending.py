"""Why a function's container ended, in the words of ``hostd/errors.py``. Pure."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hostd.errors import ContainerExitedError, ContainerStartError, Error, OutOfMemoryError
from hostd.runtime.spec import ContainerExit

TAIL_LINES = 20
"""Lines of output that the text of a failed start ends with."""
TAIL_LINE_BYTES = 500
"""Of each of them."""

MIB = 2**20


class Stage(StrEnum):
    """How far a container has come, for the text of its error."""

    PREPARING = "being prepared"
    BOOTING = "starting its interpreter"
    LOADING = "loading the function"
    READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The decision that a container has to end; the first one counts."""

    error: Error | None = None
    """None: on request, or as its exit tells."""
    by_itself: bool = False
    """Nobody asked it to end."""
    grace_s: float = 0.0


class Tail:
    """The last lines a container wrote."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=TAIL_LINES)

    def add(self, line: bytes) -> None:
        """One more line."""
        self._lines.append(line[:TAIL_LINE_BYTES])

    def text(self) -> str:
        """For the end of an error's text; empty when nothing was written."""
        if not self._lines:
            return ""
        lines = [line.decode("utf-8", "backslashreplace") for line in self._lines]
        return "\n\nits last lines of output:\n" + _indented(lines)


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def with_tail(error: Error, tail: Tail) -> Error:
    """The same error with the last lines at the end of its text."""
    return type(error)(error.text + tail.text(), hint=error.hint, **error.fields)


def exit_error(
    exited: ContainerExit, *, who: str, stage: Stage, tail: Tail, limit_bytes: int | None
) -> Error:
    """What the end of a container that nobody ended means.

    Args:
        who: ``container ct-… of function f``.
        limit_bytes: its memory limit.
    """
    if exited.oom:
        return _out_of_memory(exited, who=who, limit_bytes=limit_bytes)
    text = f"{who} {exited.describe()}"
    if stage is not Stage.READY:
        text += f" while it was {stage.value}"
    text += "" if stage is Stage.READY else tail.text()
    if stage in (Stage.PREPARING, Stage.BOOTING):
        return ContainerStartError(text, **_how(exited))
    return ContainerExitedError(text, **_how(exited))


def _how(exited: ContainerExit) -> dict[str, Any]:
    """``signal`` or ``exit_code``; an init reports a signal as 128 + its number."""
    number = exited.signal
    if number is None and exited.status > 128:
        number = exited.status - 128
    if number in set(signal.Signals):
        return {"signal": int(number)}
    return {"exit_code": exited.status}


def _out_of_memory(exited: ContainerExit, *, who: str, limit_bytes: int | None) -> Error:
    limit = f"its limit of {limit_bytes // MIB} MiB" if limit_bytes else "the limit of this host"
    peak = f" (peak {exited.peak_bytes // MIB} MiB)" if exited.peak_bytes else ""
    return OutOfMemoryError(
        f"{who} used more memory than {limit}{peak} and was killed by the kernel",
        hint="raise memory= of the function",
        limit_bytes=limit_bytes,
        peak_bytes=exited.peak_bytes,
    )
