"""What the scheduler needs from others, and what it offers to the API, as protocols.

Everything here is called on the daemon's event loop and must not block. The launcher and the log
store live in ``hostd.runtime``; the sinks are the API's client streams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from hostd.errors import Error
from hostd.ids import CallId, ContainerId
from hostd.model import (
    ContainerEvent,
    FunctionDefinition,
    InputTimings,
    LogLine,
    OutputStatus,
)


class CallSink(Protocol):
    """Where the results of a call go."""

    def outputs(
        self, call_id: CallId, index: int, status: OutputStatus, fields: Sequence[bytes]
    ) -> None:
        """One result, or one value of a generator. Never after ``done``."""

    def done(
        self,
        call_id: CallId,
        problem: dict[str, object] | None,
        phases_us: dict[str, int],
        start: str | None,
    ) -> None:
        """The call has ended; exactly once. ``problem``: it did not run to its end, and why."""


class AppSink(Protocol):
    """Where the logs and the progress of an app go."""

    def log(self, line: LogLine, app: str) -> None:
        """A line that one of the app's containers wrote."""

    def container(self, event: ContainerEvent) -> None:
        """A container of the app changed its state."""


class LogWriter(Protocol):
    """Where log lines are kept."""

    def begin(self, ident: str, app_id: str) -> None:
        """An app, container or call exists now: its log may be read and followed."""

    def append(self, line: LogLine, app_id: str) -> None:
        """Keep a line. Must not raise: a full disk loses lines, not containers."""

    def end(self, ident: str) -> None:
        """No more lines of this app, container or call will come."""


class ContainerUsage(Protocol):
    """What a container uses now."""

    @property
    def memory_bytes(self) -> int:
        """Resident memory and page cache charged to it."""

    @property
    def cpu_s(self) -> float:
        """Processor time since it was started."""


class ContainerHandle(Protocol):
    """A container as the launcher hands it out. Calls on one that has ended do nothing."""

    @property
    def pid(self) -> int | None:
        """Of its first process, on the host; None before there is one."""

    def send_input(
        self, token: int, payload: bytes, *, call_id: str = "", input_id: str = ""
    ) -> None:
        """Hand over an input; inputs are run one by one, in this order."""

    def cancel_input(self, token: int) -> None:
        """Interrupt it, or keep it from starting; an output follows in both cases."""

    def stop(self, *, grace_s: float | None = None) -> None:
        """End it: SIGTERM, then SIGKILL. ``container_exited`` follows."""

    def kill(self) -> None:
        """End it at once. ``container_exited`` follows."""

    def usage(self) -> ContainerUsage | None:
        """None when it has none yet, or no more."""


class ContainerEvents(Protocol):
    """What a launcher tells of its containers; the scheduler implements it."""

    def container_state(self, container_id: ContainerId, state: str) -> None:
        """It reached a state of ui-spec A1."""

    def container_ready(self, container_id: ContainerId, phases_us: Mapping[str, int]) -> None:
        """It takes inputs; ``phases_us``: how long the parts of its start took."""

    def input_output(
        self,
        container_id: ContainerId,
        token: int,
        status: OutputStatus,
        fields: Sequence[bytes],
        timings: InputTimings,
    ) -> None:
        """An input was answered, wholly or (``yield``) in part."""

    def container_line(
        self, container_id: ContainerId, stream: str, text: bytes, at_us: int
    ) -> None:
        """It wrote a line."""

    def container_exited(
        self, container_id: ContainerId, error: Error | None, summary: str
    ) -> None:
        """It is gone with all it held; once, and last. No error: it was stopped on request."""


class ContainerLauncher(Protocol):
    """Starts containers."""

    def launch(
        self,
        container_id: ContainerId,
        function: FunctionDefinition,
        events: ContainerEvents,
    ) -> ContainerHandle:
        """Begin to start one; returns at once. What fails is told by ``container_exited``."""


class Timer(Protocol):
    """Something that will be called once."""

    def cancel(self) -> None:
        """Do not call it; nothing when it was called or cancelled."""


class Timers(Protocol):
    """Calls things later, on the event loop."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call it once, after the delay."""
