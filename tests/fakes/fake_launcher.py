"""A launcher whose containers do what the test says; a sink that writes down what it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hostd.errors import Error
from hostd.ids import ContainerId
from hostd.model import ContainerEvent, FunctionDefinition, InputTimings, LogLine, OutputStatus
from hostd.scheduler.ports import ContainerEvents

PHASES_US = {"image_index": 1_000, "mount": 2_000, "boot": 30_000, "import": 50_000}


@dataclass(frozen=True)
class FakeUsage:
    memory_bytes: int = 50 * 2**20
    cpu_s: float = 0.5


class FakeContainer:
    """What the scheduler holds of a container, and what the test does with it."""

    def __init__(
        self, container_id: ContainerId, function: FunctionDefinition, events: ContainerEvents
    ) -> None:
        self.id = container_id
        self.function = function
        self.events = events
        self.pid: int | None = 4_711
        self.inputs: dict[int, bytes] = {}
        """Sent and not answered, in order."""
        self.sent: list[bytes] = []
        self.cancelled: list[int] = []
        self.stop_calls: list[float | None] = []
        self.kills = 0
        self.is_ready = False
        self.has_exited = False
        self.on_input: Callable[[FakeContainer, int], None] | None = None
        self.refuses: Error | None = None

    # --- what the scheduler calls ---

    def send_input(
        self, token: int, payload: bytes, *, call_id: str = "", input_id: str = ""
    ) -> None:
        if self.refuses is not None:
            raise self.refuses
        assert self.is_ready, f"{self.id} got an input before it was ready"
        assert token not in self.inputs
        if self.has_exited:
            return
        self.inputs[token] = payload
        self.sent.append(payload)
        if self.on_input is not None:
            self.on_input(self, token)

    def cancel_input(self, token: int) -> None:
        self.cancelled.append(token)

    def stop(self, *, grace_s: float | None = None) -> None:
        self.stop_calls.append(grace_s)

    def kill(self) -> None:
        self.kills += 1

    def usage(self) -> FakeUsage | None:
        return None if self.has_exited else FakeUsage()

    # --- what the test does ---

    @property
    def token(self) -> int:
        """Of the input that runs."""
        return next(iter(self.inputs))

    @property
    def payload(self) -> bytes:
        """Of the input that runs."""
        return self.inputs[self.token]

    @property
    def is_told_to_end(self) -> bool:
        return bool(self.stop_calls) or self.kills > 0

    def advance(self, *states: str) -> None:
        for state in states:
            self.events.container_state(self.id, state)

    def ready(self, phases_us: Mapping[str, int] = PHASES_US) -> None:
        self.is_ready = True
        self.events.container_ready(self.id, phases_us)

    def answer(
        self,
        status: OutputStatus = "ok",
        *fields: bytes,
        run_us: int = 5_000,
        token: int | None = None,
    ) -> None:
        """Answer the input that runs; by default with its own payload."""
        key = self.token if token is None else token
        payload = self.inputs.get(key, b"")
        if status != "yield":
            self.inputs.pop(key, None)
        values = fields or ((payload,) if status in ("ok", "yield") else ())
        self.events.input_output(self.id, key, status, values, InputTimings(run_us=run_us))

    def raise_error(self, kind: str = "ValueError", text: str = "no", run_us: int = 5_000) -> None:
        self.answer("raised", kind.encode(), text.encode(), b"traceback", b"", run_us=run_us)

    def line(self, text: str, stream: str = "stdout") -> None:
        self.events.container_line(self.id, stream, text.encode(), 1)

    def exit(self, error: Error | None = None, summary: str = "exit code 0") -> None:
        self.has_exited = True
        self.inputs = {}
        self.events.container_exited(self.id, error, summary)


class FakeLauncher:
    """Remembers every container it was asked for, in order."""

    def __init__(self) -> None:
        self.containers: list[FakeContainer] = []
        self.on_launch: Callable[[FakeContainer], None] | None = None

    def launch(
        self, container_id: ContainerId, function: FunctionDefinition, events: ContainerEvents
    ) -> FakeContainer:
        container = FakeContainer(container_id, function, events)
        self.containers.append(container)
        if self.on_launch is not None:
            self.on_launch(container)
        return container

    @property
    def live(self) -> list[FakeContainer]:
        return [each for each in self.containers if not each.has_exited]

    @property
    def last(self) -> FakeContainer:
        return self.containers[-1]


@dataclass
class RecordingSink:
    """A CallSink and AppSink that writes down what it is told, and asserts the order."""

    items: dict[str, list[tuple[int, str, tuple[bytes, ...]]]] = field(default_factory=dict)
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: list[LogLine] = field(default_factory=list)
    states: list[tuple[str, str]] = field(default_factory=list)

    def outputs(
        self, call_id: str, index: int, status: OutputStatus, fields: Sequence[bytes]
    ) -> None:
        assert call_id not in self.ends, f"{call_id}:{index} came after done"
        self.items.setdefault(call_id, []).append((index, status, tuple(fields)))

    def done(
        self,
        call_id: str,
        problem: dict[str, object] | None,
        phases_us: dict[str, int],
        start: str | None,
    ) -> None:
        assert call_id not in self.ends, f"{call_id} is done twice"
        self.ends[call_id] = {"problem": problem, "phases_us": phases_us, "start": start}

    def log(self, line: LogLine, app: str) -> None:
        self.lines.append(line)

    def container(self, event: ContainerEvent) -> None:
        self.states.append((event.container, event.state))

    def results(self, call_id: str) -> list[tuple[int, str]]:
        """Numbers and statuses, in the order they came."""
        return [(index, status) for index, status, _ in self.items.get(call_id, [])]

    def problem_codes(self, call_id: str) -> list[str]:
        """Codes of the ``failed`` answers."""
        import msgspec

        return [
            msgspec.json.decode(fields[0])["code"]
            for _, status, fields in self.items.get(call_id, [])
            if status == "failed"
        ]
