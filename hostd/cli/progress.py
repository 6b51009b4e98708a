"""What a person sees while images are built and an app runs: the SDK's Observer, in two forms.

``Progress`` says each fact once, as a line on standard error: for pipes and logs. ``LiveProgress``
also draws what is going on now below them (``hostd/cli/live.py``). Lines of containers go to the
stream on which they were written.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Optional, TextIO

from hostd.cli.settings import Settings
from hostd.cli.units import age, duration, plain

STARTING = ("pulling", "creating", "starting", "warming")
BUILD_LINES_SHOWN = 4
"""Of the running step's output, in the live display."""
TEXT_MAX = 120
"""Of an instruction in a line: heredocs and long lists are cut."""
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Progress:
    """Says facts as lines; knows what is going on for the live form."""

    def __init__(self, settings: Settings) -> None:
        self._is_quiet = settings.quiet
        self.app_id: Optional[str] = None
        self._steps: dict[int, str] = {}
        self._cached: list[str] = []
        self._is_cached = True
        self._build_began = 0.0
        self._step_began = 0.0
        self.step = ""
        """The instruction that is being executed, with its number; empty when none is."""
        self.output: list[str] = []
        """The last lines of its output."""
        self.uploads: Optional[tuple[int, int]] = None
        self._containers: dict[str, str] = {}
        self._started: set[str] = set()

    # --- images --------------------------------------------------------------------------------

    def building(self, event: Mapping[str, Any], image: int, images: int) -> None:
        """Say what a build does; an image whose steps were all cached is one line."""
        kind = event["kind"]
        number = event.get("step", 0)
        if not self._build_began:
            self._begin_build()
        if kind in ("step", "cached"):
            self._steps[number] = event.get("text") or self._steps.get(number, "")
        label = self._label(event, image, images)
        if kind == "cached":
            self._end_cached(f"{label} (cached)")
        elif kind == "step":
            self._begin_step(label)
        elif kind == "line":
            self._step_output(plain(event.get("text", "")))
        elif kind == "step_done":
            self._end_step(label, event.get("duration_us", 0))
        elif kind in ("done", "failed"):
            self._end_build(event)

    def _begin_build(self) -> None:
        self._steps, self._cached, self._is_cached = {}, [], True
        self._build_began = time.monotonic()

    def _end_cached(self, line: str) -> None:
        self.step = ""
        if self._is_cached:
            self._cached.append(line)
        else:
            self.say(f"=> {line}")

    def _begin_step(self, label: str) -> None:
        self.step, self.output, self._step_began = label, [], time.monotonic()

    def _step_output(self, text: str) -> None:
        # The first line proves that the step runs; a cached one never says anything.
        self._say_step()
        self.output = [*self.output[1 - BUILD_LINES_SHOWN :], text]
        self._say_output(f"   {text}")

    def _say_step(self) -> None:
        if self._is_cached:
            self._is_cached = False
            for line in self._cached:
                self.say(f"=> {line}")
            self._cached = []

    def _end_step(self, label: str, length_us: int) -> None:
        self._say_step()
        self.say(f"=> {label} {duration(length_us)}")
        self.step, self.output = "", []

    def _end_build(self, event: Mapping[str, Any]) -> None:
        image_id = event.get("image_id")
        took = duration((time.monotonic() - self._build_began) * 1e6)
        if event["kind"] == "done":
            self.say(f"image {image_id} " + ("(cached)" if self._is_cached else f"built in {took}"))
        self.step, self.output, self._build_began = "", [], 0.0

    def _label(self, event: Mapping[str, Any], image: int, images: int) -> str:
        number = event.get("step", 0)
        text = " ".join(plain(self._steps.get(number, "").replace("\n", " ")).split())
        if len(text) > TEXT_MAX:
            text = text[: TEXT_MAX - 1] + "…"
        which = f"{image}/{images} " if images > 1 else ""
        return f"[{which}{number}/{event.get('steps', 0)}] {text}"

    # --- the app -------------------------------------------------------------------------------

    def uploading(self, done: int, total: int) -> None:
        """Say when everything is there."""
        self.uploads = (done, total) if done < total else None
        if done == total:
            self.say(f"uploaded {total} file{'s' if total != 1 else ''}")

    def running(self, app_id: str, name: str) -> None:
        """Remember the app."""
        self.app_id = app_id

    def logs(self, event: Mapping[str, Any]) -> None:
        """Write the lines of containers."""
        for is_stdout, lines in groupby(event["lines"], lambda line: line["stream"] == "stdout"):
            target = sys.stdout if is_stdout else sys.stderr
            _write(target, "".join(f"{line['text']}\n" for line in lines))
        if event.get("lost"):
            self.say(f"{event['lost']} lines were lost: this side was too slow")

    def container(self, event: Mapping[str, Any]) -> None:
        """Say how long the first container of each function took to start."""
        self._containers[event["container"]] = event["state"]
        function, phases = event["function"], event.get("phases_us")
        if phases and function not in self._started:
            self._started.add(function)
            self.say(f"{function}: first container started in {duration(sum(phases.values()))}")
        if event["state"] == "exited":
            del self._containers[event["container"]]

    def stopped(self, app_id: str) -> None:
        """Nothing is going on any more."""
        self._containers = {}

    def containers(self) -> Counter[str]:
        """How many containers are starting, busy, idle and stopping now."""
        states = list(self._containers.values())
        return Counter("starting" if state in STARTING else state for state in states)

    # --- lines ---------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """One line of talk, unless quiet."""
        if not self._is_quiet:
            _write(sys.stderr, f"{text}\n")

    def _say_output(self, text: str) -> None:
        self.say(text)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The length of the command; the live form draws during it."""
        yield


class LiveProgress(Progress):
    """Draws what is going on below the lines that were said."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._calls = _Calls(settings)

    def running(self, app_id: str, name: str) -> None:
        """Look at the app's calls from now on."""
        super().running(app_id, name)
        self._calls.follow(app_id)

    def stopped(self, app_id: str) -> None:
        """Look no more."""
        super().stopped(app_id)
        self._calls.end()

    def _say_output(self, text: str) -> None:
        """The output of build steps is in the live lines, and in the error if one fails."""

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw during the block."""
        from hostd.cli.live import LiveRegion

        try:
            with LiveRegion(sys.stderr, self.compose).shown():
                yield
        finally:
            self._calls.end()

    def compose(self, width: int) -> Sequence[str]:
        """The lines that show what is going on now."""
        spin = SPINNER[int(time.monotonic() * 10) % len(SPINNER)]
        lines = []
        if self.step:
            took = duration((time.monotonic() - self._step_began) * 1e6)
            lines.append(f"{spin} {clipped(self.step, width - 14)} {took}")
            lines += [f"\033[2m   {line}\033[0m" for line in self.output]
        if self.uploads is not None:
            lines.append(f"{spin} uploading files {bar(*self.uploads, width)}")
        lines += [f"{spin} {line}" for line in self._calls.lines(width)]
        counts = self.containers()
        if counts["starting"] and not self.step:
            ready = sum(counts.values()) - counts["starting"]
            lines.append(f"{spin} containers: {counts['starting']} starting, {ready} ready")
        return lines


class _Calls:
    """The open calls of an app, asked of the API twice a second by a thread of its own."""

    PERIOD_S = 0.5
    SHOWN_MAX = 6

    def __init__(self, settings: Settings) -> None:
        import threading

        self._settings = settings
        self._stop = threading.Event()
        self._open: list[Mapping[str, Any]] = []

    def follow(self, app_id: str) -> None:
        import threading

        threading.Thread(target=self._ask, args=(app_id,), daemon=True).start()

    def end(self) -> None:
        self._stop.set()
        self._open = []

    def lines(self, width: int) -> list[str]:
        """How far each call is; beyond some, how many more there are."""
        calls = self._open
        lines = [_call_line(call, width) for call in calls[: self.SHOWN_MAX]]
        if len(calls) > self.SHOWN_MAX:
            lines.append(f"and {len(calls) - self.SHOWN_MAX} more calls")
        return lines

    def _ask(self, app_id: str) -> None:
        from hostd.errors import Error

        client = self._settings.client()
        while not self._stop.wait(self.PERIOD_S):
            try:
                calls = client.request("GET", "/api/v1/calls?limit=100", timeout=5)["items"]
            except Error:
                return  # The display goes without; the call itself says what is wrong.
            self._open = [
                call for call in calls if call["app_id"] == app_id and not call["finished_at_us"]
            ]


def _call_line(call: Mapping[str, Any], width: int) -> str:
    name = plain(call["function"])
    if call["kind"] == "map":
        failed = f", {call['inputs_failed']} failed" if call["inputs_failed"] else ""
        return f"{name} {bar(call['inputs_done'], call['inputs_total'], width)}{failed}"
    return f"{name} {call['state']} for {age(call['created_at_us'])}"


def progress(settings: Settings) -> Progress:
    """The form that fits standard error."""
    return LiveProgress(settings) if settings.is_live else Progress(settings)


def bar(done: int, total: int, width: int) -> str:
    """A bar with its figures: ``━━━━━━━━────────  8/16``."""
    cells = max(8, min(40, width - 50))
    full = cells * done // total if total else 0
    return f"{'━' * full}{'─' * (cells - full)} {done}/{total}"


def clipped(text: str, width: int) -> str:
    """The text, cut with an ellipsis when it is longer."""
    return text if len(text) <= width else text[: max(1, width - 1)] + "…"


def _write(target: TextIO, text: str) -> None:
    try:
        target.write(text)
        target.flush()
    except (OSError, ValueError):
        pass  # Nobody reads any more; what runs goes on to its end.
