"""exec and shell: pipes, a real terminal in raw mode, resize, exit codes."""

import os
import subprocess
import sys
import termios
from pathlib import Path

import pexpect
import pytest

from tests.fakes.fake_terminal_api import FakeTerminalAPI

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 20


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with FakeTerminalAPI(tmp_path_factory.mktemp("api")) as server:
        yield server


def environ(api):
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOSTD_SOCKET": str(api.socket_path),
        "TERM": "xterm",
    }


def hostctl(api, *arguments, text=""):
    return subprocess.run(
        [sys.executable, "-m", "hostd.cli", *arguments],
        env=environ(api),
        input=text,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def on_terminal(api, *arguments):
    return pexpect.spawn(
        sys.executable,
        ["-m", "hostd.cli", *arguments],
        env=environ(api),
        dimensions=(30, 100),
        timeout=TIMEOUT_S,
        encoding="utf-8",
    )


def test_pipes_carry_input_and_its_end(api):
    done = hostctl(api, "exec", "ct-1", "--", "cat", text="words\n")
    assert (done.stdout, done.stderr, done.returncode) == ("ready\nWORDS\neof\n", "", 0)
    assert api.requests[-1] == {"args": ["cat"], "tty": False, "env": {}}
    assert api.paths[-1] == "/api/v1/containers/ct-1/exec"


def test_streams_are_kept_apart_and_the_exit_code_is_passed_on(api):
    done = hostctl(api, "exec", "ct-1", "sh", "-c", "exit-7")
    assert (done.stdout, done.stderr, done.returncode) == ("to stdout\n", "to stderr\n", 7)
    assert api.requests[-1]["args"] == ["sh", "-c", "exit-7"]


def test_workdir_goes_into_the_request(api):
    hostctl(api, "exec", "-w", "/srv", "ct-1", "--", "exit-0")
    assert api.requests[-1]["workdir"] == "/srv"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["exec", "ct-none", "--", "fail"],
            "error: container ct-none is not known\nhint: hostctl ps",
        ),
        (["exec", "ct-1", "--", "break"], "error: the connection to hostd ended before"),
        (["shell", "absent"], "error: image absent is not known"),
    ],
)
def test_own_failures_are_125(api, arguments, said):
    done = hostctl(api, *arguments)
    assert done.returncode == 125
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("program", "status"), [("absent", 127), ("/etc/passwd", 126)])
def test_program_that_cannot_be_executed_exits_as_in_a_shell(api, program, status):
    done = hostctl(api, "exec", "ct-1", "--", program)
    assert done.returncode == status
    assert f'error: exec: "{program}"' in done.stderr


def test_exec_without_a_command_is_a_usage_error(api):
    assert hostctl(api, "exec", "ct-1").returncode == 2
    assert hostctl(api, "exec", "ct-1", "--").returncode == 2


def test_shell_command_runs_on_the_image_of_that_name(api):
    done = hostctl(api, "shell", "mine", "-c", "exit-3")
    assert done.returncode == 3
    assert api.requests[-1] == {
        "image_id": "im-found",
        "source": [],
        "args": ["/bin/sh", "-c", "exit-3"],
        "tty": False,
        "env": {},
    }


def test_terminal_is_raw_follows_its_size_and_is_restored(api):
    child = on_terminal(api, "shell", "mine")
    before = termios.tcgetattr(child.child_fd)
    child.expect_exact("ready\r\n")
    request = api.requests[-1]
    assert (request["tty"], request["rows"], request["columns"]) == (True, 30, 100)
    assert request["env"] == {"TERM": "xterm"}
    child.send("abc\x03")
    # No echo of ours, and Ctrl-C is a key like any other.
    child.expect_exact("ABC\x03")
    child.setwinsize(40, 120)
    child.expect_exact("size 40 120\r\n")
    assert termios.tcgetattr(child.child_fd) != before
    child.send("\x04")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_terminal_is_restored_when_the_connection_breaks(api, tmp_path):
    """The state of the terminal is seen by a shell that outlives hostctl."""
    script = tmp_path / "script.sh"
    command = f"{sys.executable} -m hostd.cli exec ct-1 -- break"
    script.write_text(f"stty -a > before; {command}; echo status $?; stty -a > after\n")
    child = pexpect.spawn(
        f"/bin/sh {script}", env=environ(api), cwd=tmp_path, timeout=TIMEOUT_S, encoding="utf-8"
    )
    child.expect_exact("status 125")
    child.expect(pexpect.EOF)
    child.close()
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()
