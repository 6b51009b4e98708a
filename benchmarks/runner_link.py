"""Runner without a container: start to READY, latency of a no-op input, inputs per second.

Prints one JSON line. ``python benchmarks/runner_link.py [PYTHON]``.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

import hostd.runner
from hostd.clock import SystemClock
from hostd.runtime.runner_link import Load, RunnerLink, RunnerSocket

BOOT = Path(hostd.runner.__file__).parent / "boot.py"
PAYLOAD = pickle.dumps(((), {}))


class Events:
    """Times of everything the link tells."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.hello, self.ready, self.closed = (loop.create_future() for _ in range(3))
        self.answered = loop.create_future()
        self.left = 0
        self.on_output = lambda: None

    def link_hello(self, hello):
        self.hello.set_result(hello)

    def link_ready(self, ready):
        self.ready.set_result(ready)

    def link_load_failed(self, error):
        self.ready.set_exception(error)

    def link_output(self, token, status, fields, timings):
        self.on_output()

    def link_closed(self, violation):
        self.closed.set_result(violation)


def interpreter_alone(python: str) -> float:
    """Seconds of starting and ending it."""
    begun = time.perf_counter()
    subprocess.run([python, "-c", "pass"], check=True)
    return time.perf_counter() - begun


def spawn(python: str, io: Path) -> subprocess.Popen:
    """A runner."""
    return subprocess.Popen([python, str(BOOT), str(io)])


async def started(python: str, top: Path, number: int, *, text: str = "def f(): pass\n"):
    source = top / "source"
    source.mkdir(exist_ok=True)
    (source / "app.py").write_text(text)
    events = Events()
    link = RunnerLink(events, SystemClock())
    sock = RunnerSocket(top / f"io{number}")
    begun = time.perf_counter()
    process = spawn(python, top / f"io{number}")
    await sock.accept(link)
    hello = await events.hello
    at_hello = time.perf_counter()
    link.send_load(
        Load(name="f", module="app", qualname="f", is_generator=False, source_dir=str(source))
    )
    await events.ready
    return process, link, events, sock, (time.perf_counter() - begun), at_hello - begun, hello


async def end(process, link, sock) -> None:
    link.end()
    await asyncio.to_thread(process.wait)
    sock.close()


async def ping(link, events, count: int, first: int = 1) -> list[float]:
    times = []
    loop = asyncio.get_running_loop()
    for token in range(first, first + count):
        answer = loop.create_future()
        events.on_output = lambda answer=answer: answer.set_result(None)
        begun = time.perf_counter()
        link.send_input(token, PAYLOAD)
        await answer
        times.append(time.perf_counter() - begun)
    return times


async def rate(link, events, count: int, in_flight: int) -> float:
    done = asyncio.get_running_loop().create_future()
    sent = answered = 0

    def send() -> None:
        nonlocal sent
        sent += 1
        link.send_input(1_000_000 * in_flight + sent, PAYLOAD)

    def on_output() -> None:
        nonlocal answered
        answered += 1
        if sent < count:
            send()
        if answered == count:
            done.set_result(None)

    events.on_output = on_output
    begun = time.perf_counter()
    for _ in range(in_flight):
        send()
    await done
    return count / (time.perf_counter() - begun)


async def main() -> None:
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        ready, hello, bare = [], [], []
        for number in range(20):
            bare.append(interpreter_alone(python))
            process, link, events, sock, total, at_hello, _ = await started(python, top, number)
            ready.append(total)
            hello.append(at_hello)
            await end(process, link, sock)
        process, link, events, sock, *_ = await started(python, top, 1000)
        await ping(link, events, 500)
        times = sorted(await ping(link, events, 5000, first=1_000))
        rates = {str(n): round(await rate(link, events, 20_000, n)) for n in (1, 2, 16)}
        await end(process, link, sock)
    print(
        json.dumps(
            {
                "interpreter_alone_ms": round(statistics.median(bare) * 1e3, 2),
                "hello_ms": round(statistics.median(hello) * 1e3, 2),
                "ready_ms": round(statistics.median(ready) * 1e3, 2),
                "ready_min_ms": round(min(ready) * 1e3, 2),
                "ping_p50_us": round(times[len(times) // 2] * 1e6, 1),
                "ping_p99_us": round(times[len(times) * 99 // 100] * 1e6, 1),
                "inputs_per_s_by_in_flight": rates,
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(main())
