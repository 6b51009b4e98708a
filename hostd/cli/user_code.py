"""Exceptions of the user's own code: shown with the user's frames, without those of hostd."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import hostd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from traceback import TracebackException
    from types import TracebackType
    from typing import Optional

OURS = (os.path.dirname(os.path.abspath(hostd.__file__)) + os.sep, "/run/hostd/lib/", "<frozen ")
REMOTE = "remote"
"""The module name of frames that came from a container (hostd/sdk/remote_traceback.py)."""


class UserCodeError(Exception):
    """The user's own code raised here or remotely; ``text`` is what to show."""

    def __init__(self, text: str, exit_status: int) -> None:
        super().__init__(text)
        self.text = text
        self.exit_status = exit_status


def text_of(error: BaseException) -> str:
    """The traceback of an exception and of those behind it, the user's frames only."""
    import traceback

    summary = traceback.TracebackException.from_exception(error)
    _trim(summary)
    return "".join(summary.format())


def is_remote(error: BaseException) -> bool:
    """Whether the exception was raised in a container."""
    frames = list(_frames(error.__traceback__))
    return bool(frames) and frames[-1].tb_frame.f_globals.get("__name__") == REMOTE


def location(error: BaseException) -> str:
    """``file:line`` of the user's innermost frame; empty when there is none."""
    for entry in reversed(list(_frames(error.__traceback__))):
        filename = entry.tb_frame.f_code.co_filename
        if not filename.startswith(OURS):
            return f"{os.path.relpath(filename)}:{entry.tb_lineno}"
    return ""


def _frames(entry: Optional[TracebackType]) -> Iterator[TracebackType]:
    while entry is not None:
        yield entry
        entry = entry.tb_next


def _trim(summary: TracebackException) -> None:
    from traceback import StackSummary

    kept = [frame for frame in summary.stack if not frame.filename.startswith(OURS)]
    summary.stack = StackSummary.from_list(kept)
    behind = [summary.__cause__, summary.__context__, *(getattr(summary, "exceptions", None) or ())]
    for other in behind:
        if other is not None:
            _trim(other)
