"""The runner on every Python that this machine has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hostd.runner

VERSIONS = ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14"]

MODULE = """
import asyncio
def f(x):
    return x + 1
async def later(x):
    await asyncio.sleep(0)
    return x + 1
async def stream(n):
    for i in range(n):
        yield i
def bad():
    raise ValueError("remote")
"""


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def python(version: str, find_python: Callable[[str], str]) -> str:
    """Instead of the interpreter that runs the tests."""
    return find_python(version)


@pytest.mark.parametrize("qualname", ["f", "later"])
async def test_functions_run_on_every_version(runner: Any, version: str, qualname: str) -> None:
    await runner.load(MODULE, qualname)
    assert (await runner.hello).python.startswith(version + ".")
    assert await runner.call(41) == 42
    assert await runner.end() == (b"", b"")


async def test_generators_run_on_every_version(runner: Any) -> None:
    await runner.load(MODULE, "stream", is_generator=True)
    runner.send(2)
    assert [(await runner.output())[1] for _ in range(3)] == ["yield", "yield", "end"]


async def test_exceptions_are_described_on_every_version(runner: Any) -> None:
    await runner.load(MODULE, "bad")
    runner.send()
    _, status, (kind, message, traceback, pickled), _ = await runner.output()
    assert (status, kind, message) == ("raised", b"ValueError", b"remote")
    assert traceback.decode().splitlines()[1].endswith('app.py", line 12, in bad')
    assert pickled


async def test_cancel_works_on_every_version(runner: Any) -> None:
    await runner.load("import time\ndef f():\n    print('begun')\n    time.sleep(60)\n")
    token = runner.send()
    await runner.printed(b"begun")
    runner.cancel(token)
    assert (await runner.output())[1] == "failed"


@pytest.mark.parametrize("old", ["2.7", "3.6", "3.7"])
def test_versions_that_are_too_old_are_named(old: str, find_python: Callable[[str], str]) -> None:
    boot = Path(hostd.runner.__file__).parent / "boot.py"
    done = subprocess.run(
        [find_python(old), boot, "/nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"hostd needs Python 3.8 or later in the image, this is {old}\n"


HEAVY = ("asyncio", "json", "logging", "traceback", "typing", "re", "pickle", "socket", "hostd.sdk")


def test_runner_loads_no_heavy_module_before_user_code() -> None:
    code = "import sys, hostd.runner.serve, hostd.runner.load; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=Path(hostd.runner.__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(HEAVY) & set(done.stdout.split())
