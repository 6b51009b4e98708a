"""The launcher alone: launch decision to READY and to the first line of a function, warm inputs.

Needs root. Uses the parts of the launcher's integration tests: no API and no scheduler.
Prints one JSON line: medians in ms, phases in us. Baseline of the same run: the bare interpreter.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import structlog
import uvloop

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location(
    "launcher_conftest", HERE.parent / "tests/integration/launcher/conftest.py"
)
support = importlib.util.module_from_spec(spec)
sys.modules["launcher_conftest"] = support
spec.loader.exec_module(support)

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
TEXT = "import time\nprint(time.monotonic_ns())\ndef f():\n    print(time.monotonic_ns())\n"


async def measure(host) -> dict[str, object]:
    function = host.function(TEXT)
    phases: dict[str, list[int]] = {}
    ready, line, stop = [], [], []
    for number in range(ROUNDS + 2):
        begun = time.monotonic_ns()
        handle, events = host.launch(function)
        handle.send_input(1, support.pickle.dumps(((), {})))
        await events.is_ready()
        await events.value()
        at_ready = events.ready_at
        first_line = int(events.lines[1][1])
        stopping = time.perf_counter()
        handle.stop()
        await events.error()
        ended = time.perf_counter() - stopping
        await host.wait_cleaned()
        if number < 2:
            continue  # what is done once: checks of the image, its mount
        ready.append((at_ready * 1e9 - begun) / 1e6)
        line.append((first_line - begun) / 1e6)
        stop.append(ended * 1e3)
        for name, us in events.phases_us.items():
            phases.setdefault(name, []).append(us)
    return {
        "ready_ms": round(statistics.median(ready), 1),
        "first_line_in_function_ms": round(statistics.median(line), 1),
        "first_line_min_ms": round(min(line), 1),
        "stop_ms": round(statistics.median(stop), 1),
        "phases_us": {name: round(statistics.median(values)) for name, values in phases.items()},
    }


async def warm(host, count: int) -> dict[str, object]:
    """One no-op input at a time, then two in flight."""
    handle, events = await host.start("def f(): pass\n")
    data = support.pickle.dumps(((), {}))
    times = []
    for token in range(1, count + 1):
        begun = time.perf_counter()
        handle.send_input(token, data)
        await events.outputs.get()
        times.append((time.perf_counter() - begun) * 1e6)
    times.sort()
    begun = time.perf_counter()
    handle.send_input(count + 1, data)
    for token in range(count + 2, 2 * count + 2):
        handle.send_input(token, data)
        await events.outputs.get()
    rate = count / (time.perf_counter() - begun)
    handle.kill()
    await host.wait_cleaned()
    return {
        "warm_p50_us": round(times[count // 2], 1),
        "warm_p99_us": round(times[count * 99 // 100], 1),
        "warm_per_s_two_in_flight": round(rate),
    }


async def many(host, count: int) -> float:
    function = host.function("def f(x): return x\n")
    begun = time.perf_counter()
    pairs = [host.launch(function) for _ in range(count)]
    for number, (handle, _) in enumerate(pairs):
        handle.send_input(1, support.pickle.dumps(((number,), {})))
    for _, events in pairs:
        await events.value()
    took = time.perf_counter() - begun
    for handle, _ in pairs:
        handle.kill()
    await host.wait_cleaned()
    return took


def interpreter_alone() -> list[float]:
    """Milliseconds of starting and ending the system's Python, several times."""
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        subprocess.run(["/usr/bin/python3", "-c", "pass"], check=True)
        times.append((time.perf_counter() - begun) * 1e3)
    return times


async def main() -> None:
    with tempfile.TemporaryDirectory(dir=support.CACHE) as directory:
        _, image = support.copy_base_image(Path(directory))
        alone = interpreter_alone()
        async with support.running_host(support.StoredImage(Path(directory), image)) as host:
            figures = await measure(host)
            figures.update(await warm(host, 3000))
            figures["hundred_answered_s"] = round(await many(host, 100), 2)
    figures["interpreter_alone_ms"] = round(statistics.median(alone), 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    uvloop.run(main())
