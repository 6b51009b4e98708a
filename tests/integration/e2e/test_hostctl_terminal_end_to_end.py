"""hostctl on a real terminal with a real daemon: shell, exec, progress, Ctrl-C."""

import sys
import time

import pexpect
import pytest

TIMEOUT_S = 60
NAP = """
import time
import hostd

app = hostd.App("terminal")

@app.function(image=hostd.Image.debian_slim())
def nap(seconds: float) -> str:
    print("napping", flush=True)
    time.sleep(seconds)
    return "rested"
"""


@pytest.fixture
def nap(program):
    return f"{program(NAP, 'nap_on_terminal.py')}::nap"


def on_terminal(daemon, *arguments):
    return pexpect.spawn(
        sys.executable,
        ["-m", "hostd.cli", *map(str, arguments)],
        env={**daemon.environ, "TERM": "xterm"},
        dimensions=(30, 100),
        timeout=TIMEOUT_S,
        encoding="utf-8",
    )


def end_of(child):
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def wait_for(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def containers(daemon):
    return daemon.client().request("GET", "/api/v1/containers")["items"]


def test_shell_is_a_terminal_of_the_right_size_that_follows_it(daemon):
    child = on_terminal(daemon, "shell")
    child.expect("[#$] ")
    child.send("test -t 0 && stty size\r")
    child.expect("30 100")
    child.setwinsize(44, 132)
    # The kernel of the container hears of it a moment later.
    child.send("until [ \"$(stty size)\" = '44 132' ]; do sleep 0.02; done; echo now-$((40 + 4))\r")
    child.expect("now-44")
    child.send("sleep 60\r\x03")
    child.send("echo status-$?\r")
    child.expect("status-130")
    child.send("exit 7\r")
    assert end_of(child) == 7


def test_shell_in_the_environment_of_a_function_has_its_code(daemon, nap):
    command = "python3 -c 'import importlib.util as u; print(u.find_spec(\"nap_on_terminal\"))'"
    done = daemon.hostctl("shell", nap, "-c", command)
    assert done.returncode == 0, done.stderr
    assert "/nap_on_terminal.py" in done.stdout


def test_exec_gives_a_running_container_a_terminal(daemon, nap):
    run = on_terminal(daemon, "run", nap, "30")
    run.expect("napping")
    (container,) = containers(daemon)
    child = on_terminal(daemon, "exec", container["id"], "--", "sh")
    child.expect("[#$] ")
    child.send("tty; exit 3\r")
    child.expect("/dev/pts/")
    assert end_of(child) == 3
    run.send("\x03")
    assert end_of(run) == 130


def test_progress_is_drawn_and_the_result_stays(daemon, nap):
    child = on_terminal(daemon, "run", nap, "1.5")
    child.expect("first container started in")
    child.expect("napping")
    child.expect("nap running for")
    child.expect("rested\r\n")
    child.expect("hostctl explain fc-")
    assert end_of(child) == 0


def test_ctrl_c_cancels_remotely_and_exits_130(daemon, nap):
    child = on_terminal(daemon, "run", nap, "60")
    child.expect("napping")
    child.send("\x03")
    child.expect("cancelling")
    assert end_of(child) == 130
    call = daemon.client().request("GET", "/api/v1/calls?limit=1")["items"][0]
    assert call["state"] == "cancelled"
    wait_for(lambda: not containers(daemon))
