"""A scheduler with a fake launcher, a virtual clock and a recording sink."""

from __future__ import annotations

from typing import Any

from hostd.config import LimitsConfig
from hostd.ids import AppId, CallId, ContainerId, FunctionId, ImageId, new_id
from hostd.model import FunctionDefinition, FunctionSpec, LogLine, Retries
from hostd.scheduler import Scheduler
from hostd.scheduler.capacity import Resources
from tests.fakes.fake_launcher import FakeContainer, FakeLauncher, RecordingSink
from tests.fakes.virtual_clock import VirtualClock, VirtualTimers

AMPLE = Resources(cpu=1e6, memory_mib=1 << 40)
"""A host that no test fills by accident."""


class RecordingLogs:
    """A LogWriter in memory."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, LogLine]] = []
        self.begun: list[str] = []
        self.ended: list[str] = []

    def begin(self, ident: str, app_id: str) -> None:
        self.begun.append(ident)

    def append(self, line: LogLine, app_id: str) -> None:
        self.lines.append((app_id, line))

    def end(self, ident: str) -> None:
        self.ended.append(ident)


class ClusterOfOne:
    """One host. Times are virtual: nothing happens unless the test makes it happen."""

    def __init__(
        self,
        *,
        containers_max: int = 500,
        starts_max: int = 100,
        history: Any = None,
        capacity: Resources = AMPLE,
    ):
        self.clock = VirtualClock()
        self.timers = VirtualTimers(self.clock)
        self.launcher = FakeLauncher()
        self.sink = RecordingSink()
        self.logs = RecordingLogs()
        self.scheduler = Scheduler(
            launcher=self.launcher,
            clock=self.clock,
            limits=LimitsConfig(containers_max=containers_max),
            capacity=capacity,
            history=history,
            logs=self.logs,
            timers=self.timers,
            starts_max=starts_max,
        )

    def app(self, *specs: FunctionSpec, name: str = "train") -> list[FunctionId]:
        app_id = AppId(new_id("ap"))
        functions = [
            FunctionDefinition(
                id=FunctionId(new_id("fu")),
                app_id=app_id,
                spec=spec,
                layers=(ImageId("im-" + "a" * 26),),
            )
            for spec in specs
        ]
        self.scheduler.add_app(name, functions, app_id, self.sink)
        self.app_id = app_id
        return [each.id for each in functions]

    def function(self, name: str = "big", *, max_retries: int = 0, **fields: Any) -> FunctionId:
        """An app with one function."""
        if max_retries:
            fields["retries"] = Retries(max_retries=max_retries, initial_delay_s=1.0)
        spec = FunctionSpec(
            name=name, image_id="im-" + "a" * 26, module="m", qualname=name, **fields
        )
        return self.app(spec)[0]

    def call(
        self, function: FunctionId, *payloads: bytes, kind: Any = "map", last: bool = True
    ) -> CallId:
        call_id = CallId(new_id("fc"))
        self.scheduler.open_call(call_id, function, kind, self.sink)
        if payloads or last:
            self.scheduler.add_inputs(call_id, payloads, last=last)
        return call_id

    def container(self, function: FunctionId | None = None, **fields: Any) -> FakeContainer:
        """A warm, idle container: of this function, or of a new one."""
        known = function or self.function(**fields)
        call = self.call(known, b"warm up", kind="unary")
        container = self.launcher.last
        container.ready()
        container.answer()
        assert self.sink.results(call) == [(0, "ok")]
        return container

    def advance(self, seconds: float) -> None:
        self.timers.advance(seconds)
        self.scheduler.check()

    def state(self, container: FakeContainer) -> str:
        return self.scheduler.container(ContainerId(container.id)).state
