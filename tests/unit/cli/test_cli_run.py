"""hostctl run and build as a person sees them, against the fake host."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

from tests.fakes.fake_api import FakeAPI

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 30

PROGRAM = '''
import sys, time
import hostd

app = hostd.App("cli-run")

@app.function()
def greet(name: str, times: int = 1) -> str:
    """Say hello."""
    return " ".join([f"hello {name}"] * times)

@app.function()
def table(size: int = 2):
    return {"rows": list(range(size))}

@app.function()
def fail() -> None:
    raise ValueError("on purpose")

@app.function()
def count(n: int):
    yield from range(n)

@app.function()
def sleep() -> None:
    time.sleep(5)

@app.local_entrypoint()
def main(name: str = "world", loud: bool = False) -> None:
    text = greet.remote(name)
    print(text.upper() if loud else text)

@app.local_entrypoint()
def leave(code: int) -> None:
    sys.exit(code)

@app.local_entrypoint()
def wrong() -> None:
    [][1]

@app.local_entrypoint()
def wait() -> None:
    print("begun", flush=True)
    try:
        sleep.remote()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        raise

@app.local_entrypoint()
def stuck() -> None:
    print("begun", flush=True)
    try:
        sleep.remote()
    finally:
        print("stuck", flush=True)
        time.sleep(20)

@app.local_entrypoint()
async def later() -> None:
    print(await greet.remote.aio("async"))
'''


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    (folder / "program_of_cli.py").write_text(PROGRAM)
    sys.path.insert(0, str(folder))
    with FakeAPI(folder) as server:
        server.folder = folder
        yield server
    sys.path.remove(str(folder))


def environ(api):
    return {**os.environ, "PYTHONPATH": str(ROOT), "HOSTD_SOCKET": str(api.socket_path)}


def hostctl(api, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "hostd.cli", *arguments],
        cwd=api.folder,
        env=environ(api),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        (["run", "program_of_cli.py"], "hello world\n"),
        (["run", "program_of_cli.py", "--name", "lab", "--loud"], "HELLO LAB\n"),
        (["run", "program_of_cli.py::greet", "lab", "--times", "2"], "hello lab hello lab\n"),
        (["run", "program_of_cli.py::table"], "{'rows': [0, 1]}\n"),
        (["run", "--json", "program_of_cli.py::table", "3"], '{"rows": [0, 1, 2]}\n'),
        (["--json", "run", "program_of_cli.py::count", "3"], "0\n1\n2\n"),
        (["run", "-m", "program_of_cli::later"], "hello async\n"),
    ],
)
def test_results_and_output_go_to_stdout(api, arguments, out):
    done = hostctl(api, *arguments)
    assert (done.stdout, done.returncode) == (out, 0), done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["run", "absent.py"], 2, "error: file absent.py is not there"),
        (["run", "program_of_cli.py::absent"], 2, "has no function absent"),
        (["run", "program_of_cli.py", "--colour", "red"], 2, "error: flag --colour is not known"),
        (["run", "program_of_cli.py::greet"], 2, "error: --name is missing"),
        (["run", "program_of_cli.py::greet", "a", "--times", "x"], 2, "--times is 'x', expected"),
        (["run", "program_of_cli.py::leave", "7"], 7, ""),
        (["run", "program_of_cli.py::wrong"], 1, "IndexError"),
        (["run", "-d", "program_of_cli.py"], 2, "not supported yet"),
        (["build", "program_of_cli.py::main"], 2, "main is a local entrypoint"),
        (["build", "."], 2, "Dockerfile ./Dockerfile is not there"),
        (["build", "program_of_cli.py", "-f", "x"], 2, "is no directory"),
    ],
)
def test_failures_say_what_is_wrong_and_set_the_status(api, arguments, status, said):
    done = hostctl(api, *arguments)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "hostd/cli" not in done.stderr


def test_remote_exception_shows_the_users_frames_and_exits_10(api):
    done = hostctl(api, "run", "program_of_cli.py::fail")
    assert done.returncode == 10
    assert 'raise ValueError("on purpose")' in done.stderr
    assert done.stderr.rstrip().endswith("ValueError: on purpose")
    assert "hostd/sdk" not in done.stderr


def test_help_after_the_file_is_that_of_the_function(api):
    done = hostctl(api, "run", "program_of_cli.py::greet", "--help")
    assert done.stdout == "usage: greet --name <str> [--times <int>]\n\nSay hello.\n"


def test_no_host_is_status_6_with_a_hint(api):
    done = subprocess.run(
        [sys.executable, "-m", "hostd.cli", "run", "program_of_cli.py"],
        cwd=api.folder,
        env={**environ(api), "HOSTD_SOCKET": "/nonexistent/hostd.sock"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 6
    assert "error: hostd at unix socket /nonexistent/hostd.sock cannot be reached" in done.stderr
    assert "hint: " in done.stderr


def test_build_prints_ids_and_sends_name_and_force(api):
    done = hostctl(
        api, "build", "program_of_cli.py::greet", "--name", "mine", "--no-cache", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["id"].startswith("im-")
    assert (api.builds[-1]["name"], api.builds[-1]["force"]) == ("mine", True)


def test_build_of_a_directory_sends_its_dockerfile(api):
    place = api.folder / "context"
    place.mkdir(exist_ok=True)
    (place / "Dockerfile").write_text("FROM scratch\nARG COLOUR\nCOPY data /data\n")
    (place / "data").write_text("content")
    done = hostctl(api, "build", "context", "--build-arg", "COLOUR=blue")
    assert done.returncode == 0, done.stderr
    (step,) = api.builds[-1]["recipe"]["steps"]
    assert step["build_args"] == {"COLOUR": "blue"}
    assert "data" in {file["path"] for file in step["context"]}


def test_failed_build_shows_the_output_of_its_step_and_exits_9(api):
    problem = {"code": "image_build_failed", "detail": "step 2 exited with status 7"}
    api.build_events = [
        {"kind": "step", "step": 2, "steps": 2, "text": "RUN false"},
        {"kind": "line", "step": 2, "steps": 2, "text": "broken here"},
        {"kind": "failed", "step": 2, "steps": 2, "problem": problem},
    ]
    try:
        done = hostctl(api, "-q", "run", "program_of_cli.py")
    finally:
        api.build_events = None
    assert done.returncode == 9
    assert done.stderr == "error: step 2 exited with status 7\n    broken here\n"


def begin(api, name):
    child = subprocess.Popen(
        [sys.executable, "-m", "hostd.cli", "run", f"program_of_cli.py::{name}"],
        cwd=api.folder,
        env=environ(api),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    deadline = time.monotonic() + TIMEOUT_S
    calls = len(api.call_headers)
    while not any(stream.calls for stream in api.streams):
        assert time.monotonic() < deadline, calls
        time.sleep(0.01)
    return child


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_cancels_the_call_and_stops_the_app(api, number, status):
    child = begin(api, "wait")
    call = api.call_headers[-1]["call"]
    child.send_signal(number)
    out, err = child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == status, err
    assert ("interrupted" in out) == (number == signal.SIGINT)
    assert "Traceback" not in err
    assert api.cancelled.get(timeout=TIMEOUT_S) == call


def test_second_signal_leaves_at_once(api):
    child = begin(api, "stuck")
    child.send_signal(signal.SIGINT)
    assert child.stdout is not None
    assert child.stdout.readline() == "stuck\n"
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=5)
    assert child.returncode == 130


def test_terminal_shows_progress_and_keeps_the_result(api):
    child = pexpect.spawn(
        sys.executable,
        ["-m", "hostd.cli", "run", "program_of_cli.py"],
        cwd=api.folder,
        env={**environ(api), "TERM": "xterm"},
        timeout=TIMEOUT_S,
        encoding="utf-8",
    )
    child.expect_exact("(cached)")
    child.expect_exact("hello world")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
