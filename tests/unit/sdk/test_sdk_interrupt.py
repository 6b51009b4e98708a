"""Ctrl-C during a wait: the call is cancelled on the host, the exception passes, the app stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.fake_api import FakeAPI

ROOT = Path(__file__).resolve().parents[3]
WAIT_S = 20
SCRIPT = """
import sys
from tests.fakes.sample_functions import app, count_slowly, square, wait_for_release

with app.run():
    print("running", flush=True)
    try:
        {statement}
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        if {goes_on}:
            print(square.remote(4), flush=True)
        else:
            raise
"""


def start(api: FakeAPI, statement: str, *, goes_on: bool = False) -> subprocess.Popen[str]:
    environ = {**os.environ, "HOSTD_SOCKET": str(api.socket_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(statement=statement, goes_on=goes_on)],
        env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    return process


def interrupt(api: FakeAPI, process: subprocess.Popen[str]) -> tuple[str, str]:
    for _ in range(WAIT_S * 100):
        if api.call_headers:
            break
        api._ready.wait(0.01)
        signal.sigtimedwait([], 0.01)
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "wait_for_release.remote()",
        "list(wait_for_release.map(range(10)))",
        "list(count_slowly.remote_gen())",
    ],
)
def test_interrupt_cancels_the_call_and_stops_the_app(api: FakeAPI, statement: str) -> None:
    out, err = interrupt(api, start(api, statement))
    assert out == "interrupted\n"
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert "Traceback (most recent call last):\n" in err
    assert api.cancelled.get(timeout=WAIT_S) == api.call_headers[0]["call"]
    assert api.stopped == list(api.apps)


@pytest.mark.slow
def test_other_calls_work_after_an_interrupt(api: FakeAPI) -> None:
    out, _ = interrupt(api, start(api, "wait_for_release.remote()", goes_on=True))
    assert out == "interrupted\n16\n"
