"""User code of the end-to-end tests: what a function may do, right and wrong."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import hostd

app = hostd.App("basics")
image = hostd.Image.debian_slim()


class UserError(Exception):
    """An exception type of the user's own, with a field."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text, number)
        self.number = number


class Unbuildable(Exception):
    """Its constructor cannot be called with its args: it cannot be rebuilt elsewhere."""

    def __init__(self) -> None:
        super().__init__("lost", "arguments")


@app.function(image=image)
def square(value: int) -> int:
    return value * value


@app.function(image=image)
def add(left: int, right: int = 10) -> int:
    return left + right


@app.function(image=image, max_containers=4)
def slow_square(value: int) -> int:
    time.sleep(0.05 * (value % 3))
    return value * value


@app.function(image=image)
async def async_double(value: int) -> int:
    await asyncio.sleep(0)
    return value * 2


@app.function(image=image)
def count(to: int):
    for number in range(to):
        print("counting", number)
        yield number


@app.function(image=image)
async def async_count(to: int):
    for number in range(to):
        await asyncio.sleep(0)
        yield number


@app.function(image=image)
def count_and_fail(to: int):
    yield from range(to)
    raise UserError("after the last", to)


@app.function(image=image)
def fail(number: int) -> None:
    raise UserError("as asked", number)


@app.function(image=image)
def fail_unbuildable() -> None:
    raise Unbuildable


@app.function(image=image)
def odd_fails(value: int) -> int:
    if value % 2:
        raise UserError("odd", value)
    return value


@app.function(image=image)
def unpicklable() -> object:
    return threading.Lock()


@app.function(image=image)
def leave(status: int) -> None:
    print("leaving", flush=True)
    os._exit(status)


@app.function(image=image)
def die(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(30)


@app.function(image=image)
def system_exit(status: int) -> None:
    sys.exit(status)


@app.function(image=image, memory=(64, 64))
def eat_memory() -> int:
    held = []
    while True:
        held.append(bytearray(16 * 2**20))
        for block in held[-1:]:
            ctypes.memset((ctypes.c_char * len(block)).from_buffer(block), 1, len(block))


@app.function(image=image, timeout=60)
def fork_endlessly() -> int:
    started = 0
    try:
        while True:
            if os.fork() == 0:
                time.sleep(600)
                os._exit(0)
            started += 1
    except OSError:
        return started


@app.function(image=image)
def write_much(megabytes: int) -> int:
    line = b"x" * 1023 + b"\n"
    for _ in range(megabytes * 1024):
        os.write(1, line)
    return megabytes


@app.function(image=image)
def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
    time.sleep(600)


@app.function(image=image, timeout=1)
def too_slow() -> None:
    time.sleep(60)


@app.function(image=image)
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


_attempts = 0


@app.function(image=image, retries=3, max_containers=1)
def third_time_lucky(marker: str) -> int:
    global _attempts
    _attempts += 1
    if _attempts < 3:
        raise UserError("not yet", _attempts)
    return _attempts


@app.function(image=image)
def where() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "is_local": hostd.is_local(),
        "container": os.environ.get("HOSTD_CONTAINER_ID"),
        "input": hostd.current_input_id(),
        "call": hostd.current_function_call_id(),
        "capabilities": next(
            line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")
        ),
        "seccomp": next(
            line.split()[1] for line in open("/proc/self/status") if line.startswith("Seccomp:")
        ),
    }


@app.function(image=image)
def talk() -> None:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo from a child"], check=True)


@app.function(image=image)
def recurse(depth: int) -> int:
    return recurse.local(depth + 1)


@app.function(image=image)
def same_process(value: int) -> int:
    return os.getpid()


@app.function(image=image, single_use_containers=True)
def container_of(value: int) -> str:
    return os.environ["HOSTD_CONTAINER_ID"]


@app.function(image=image)
def double_fork() -> int:
    """Leave an orphan that ends at once; the container's init must reap it."""
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        zombies = [p for p in os.listdir("/proc") if p.isdigit() and _state(p) == "Z"]
        if not zombies:
            return 0
        time.sleep(0.01)
    return len(zombies)


def _state(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


@app.function(image=image)
def echo(value: object) -> object:
    return value
