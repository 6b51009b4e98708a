"""Inputs per second through the scheduler alone, and what it adds to one warm call.

Containers answer at once, from the event loop, with no process behind them: what is measured is the
scheduler's own work per input. The floor of the same run is the same loop around a plain deque.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import time
from collections import deque
from collections.abc import Sequence

from hostd.clock import SystemClock
from hostd.config import LimitsConfig
from hostd.ids import AppId, CallId, ContainerId, FunctionId, ImageId, new_id
from hostd.model import FunctionDefinition, FunctionSpec, InputTimings
from hostd.scheduler import ContainerEvents, Scheduler

TIMINGS = InputTimings(input_load_us=2, run_us=3, output_store_us=2)
OK = (b"\x80\x04K\x01.",)


class EchoContainer:
    """Takes inputs; ``answer_all`` answers what it has."""

    pid = None

    def __init__(self, container_id: ContainerId, events: ContainerEvents) -> None:
        self.id = container_id
        self.events = events
        self.tokens: deque[int] = deque()

    def send_input(
        self, token: int, payload: bytes, *, call_id: str = "", input_id: str = ""
    ) -> None:
        self.tokens.append(token)

    def answer_all(self) -> None:
        tokens = self.tokens
        while tokens:
            self.events.input_output(self.id, tokens.popleft(), "ok", OK, TIMINGS)

    def cancel_input(self, token: int) -> None: ...

    def stop(self, *, grace_s: float | None = None) -> None:
        self.events.container_exited(self.id, None, "stopped")

    kill = stop

    def usage(self) -> None:
        return None


class EchoLauncher:
    def __init__(self) -> None:
        self.containers: list[EchoContainer] = []

    def launch(
        self, container_id: ContainerId, function: FunctionDefinition, events: ContainerEvents
    ) -> EchoContainer:
        container = EchoContainer(container_id, events)
        self.containers.append(container)
        asyncio.get_running_loop().call_soon(events.container_ready, container_id, {"boot": 1})
        return container


class CountingSink:
    def __init__(self) -> None:
        self.answered = 0
        self.ended = 0

    def outputs(self, call_id: CallId, index: int, status: str, fields: Sequence[bytes]) -> None:
        self.answered += 1

    def done(self, *_: object) -> None:
        self.ended += 1


async def _scheduler(containers: int) -> tuple[Scheduler, EchoLauncher, FunctionId]:
    launcher = EchoLauncher()
    scheduler = Scheduler(
        launcher=launcher, clock=SystemClock(), limits=LimitsConfig(), starts_max=containers
    )
    app_id = AppId(new_id("ap"))
    spec = FunctionSpec(
        name="noop",
        image_id="im-1",
        module="m",
        qualname="noop",
        min_containers=containers,
        max_containers=containers,
    )
    function = FunctionDefinition(
        id=FunctionId(new_id("fu")), app_id=app_id, spec=spec, layers=(ImageId("im-1"),)
    )
    scheduler.add_app("bench", [function], app_id, None)
    await asyncio.sleep(0.01)
    return scheduler, launcher, function.id


async def map_rate(inputs: int, containers: int) -> float:
    """Inputs per second of one map with 1,000 outstanding."""
    scheduler, launcher, function = await _scheduler(containers)
    sink = CountingSink()
    call = CallId(new_id("fc"))
    begin = time.perf_counter()
    scheduler.open_call(call, function, "map", sink)
    sent = 0
    while sink.answered < inputs:
        batch = min(49, inputs - sent, 1_000 - (sent - sink.answered))
        if batch > 0:
            sent += batch
            scheduler.add_inputs(call, [b"x" * 40] * batch, last=sent == inputs)
        for container in launcher.containers:
            container.answer_all()
        await asyncio.sleep(0)
    took = time.perf_counter() - begin
    assert sink.ended == 1
    await scheduler.drain()
    return inputs / took


async def call_costs(calls: int) -> list[float]:
    """Seconds that one warm call spends in the scheduler, one in flight."""
    scheduler, launcher, function = await _scheduler(1)
    sink = CountingSink()
    (container,) = launcher.containers
    costs = []
    for _ in range(calls):
        call = CallId(new_id("fc"))
        begin = time.perf_counter()
        scheduler.open_call(call, function, "unary", sink)
        scheduler.add_inputs(call, [b"x" * 40], last=True)
        container.answer_all()
        costs.append(time.perf_counter() - begin)
    assert sink.ended == calls
    await scheduler.drain()
    return costs


def floor_rate(inputs: int) -> float:
    """The same traffic through a deque and a dict: what Python itself takes."""
    queue: deque[tuple[int, bytes]] = deque()
    running: dict[int, bytes] = {}
    begin = time.perf_counter()
    for index in range(inputs):
        queue.append((index, b"x" * 40))
        token, payload = queue.popleft()
        running[token] = payload
        running.pop(token)
    return inputs / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=50_000)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    gc.freeze()
    figures: dict[str, object] = {"floor_inputs_per_s": round(floor_rate(options.inputs))}
    for containers in (1, 16, 100):
        rates = [asyncio.run(map_rate(options.inputs, containers)) for _ in range(options.rounds)]
        figures[f"map_inputs_per_s_{containers}_containers"] = round(statistics.median(rates))
    costs = sorted(asyncio.run(call_costs(options.calls)))
    figures["warm_call_us"] = {
        "median": round(statistics.median(costs) * 1e6, 1),
        "p99": round(costs[int(len(costs) * 0.99)] * 1e6, 1),
        "n": len(costs),
    }
    figures["bars"] = {"map_inputs_per_s": ">= 20000", "warm_call_us_median": "< 50"}
    print(json.dumps({"benchmark": "scheduler_rate", **figures, "cpus": os.cpu_count()}, indent=2))


if __name__ == "__main__":
    main()
