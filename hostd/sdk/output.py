"""What a person sees while an app runs.

``Observer`` is what a session tells; the CLI has its own. ``PlainOutput``, the default, writes the
lines of containers to stdout and stderr as they come, before the result of the call that wrote
them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Protocol, TextIO

    class Observer(Protocol):
        """Told of progress. Nothing may be raised, and nothing may wait for long.

        ``logs`` and ``container`` are called by the stream's reader thread, ``uploading`` and the
        others by the thread that runs the app.
        """

        def building(self, event: dict[str, Any], image: int, images: int) -> None:
            """A BuildEvent (``hostd/model.py``) of image number ``image`` of ``images``, from 1."""

        def uploading(self, done: int, total: int) -> None:
            """So many files of those that the host lacked are there."""

        def running(self, app_id: str, name: str) -> None:
            """The app runs and can be called."""

        def logs(self, event: dict[str, Any]) -> None:
            """Lines that containers wrote: a Logs record."""

        def container(self, event: dict[str, Any]) -> None:
            """A container changed its state: a ContainerEvent record."""

        def stopped(self, app_id: str) -> None:
            """The app has stopped."""


class PlainOutput:
    """Lines of containers on stdout and stderr; with ``is_verbose`` progress on stderr, too."""

    def __init__(self, *, is_verbose: bool = False) -> None:
        self.is_verbose = is_verbose

    def building(self, event: dict[str, Any], image: int, images: int) -> None:
        """Show steps and their output, when verbose."""
        if self.is_verbose and event["kind"] in ("step", "cached", "line"):
            note = {"step": "=> ", "cached": "=> (cached) "}.get(event["kind"], "   ")
            _write(sys.stderr, f"{note}{event.get('text', '')}\n")

    def uploading(self, done: int, total: int) -> None:
        """Show the last one, when verbose."""
        if self.is_verbose and done == total:
            _write(sys.stderr, f"uploaded {total} files\n")

    def running(self, app_id: str, name: str) -> None:
        """Show the id, when verbose."""
        if self.is_verbose:
            _write(sys.stderr, f"app {name} runs as {app_id}\n")

    def logs(self, event: dict[str, Any]) -> None:
        """Write the lines."""
        # The attributes are read every time: tests and notebooks replace them.
        for line in event["lines"]:
            target = sys.stdout if line["stream"] == "stdout" else sys.stderr
            _write(target, f"{line['text']}\n")
        if event.get("lost"):
            _write(sys.stderr, f"hostd: {event['lost']} lines were lost: this side was too slow\n")

    def container(self, event: dict[str, Any]) -> None:
        """Not shown."""

    def stopped(self, app_id: str) -> None:
        """Not shown."""


_default = PlainOutput()


def default_observer() -> Observer:
    """The observer of apps that are run without one."""
    return _default


class enable_output:
    """``with hostd.enable_output():`` also shows builds and uploads of the apps run inside."""

    def __enter__(self) -> None:
        _default.is_verbose = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _default.is_verbose = False


def _write(target: TextIO, text: str) -> None:
    try:
        target.write(text)
        target.flush()
    except (OSError, ValueError):
        pass  # A closed pipe or file: the app goes on without a reader.
