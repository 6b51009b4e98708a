"""hostctl as a person uses it: run, errors, explain, exec, images."""

import json
import re

import pytest

HELLO = """
import sys
import hostd

app = hostd.App("hello")

@app.function(image=hostd.Image.debian_slim())
def greet(name: str, times: int = 1) -> str:
    print("working", flush=True)
    print("a warning", file=sys.stderr, flush=True)
    return " ".join([f"hello {name}"] * times)

@app.function(image=hostd.Image.debian_slim())
def fail() -> None:
    raise ValueError("on purpose")

@app.local_entrypoint()
def main(name: str = "world", times: int = 2, loud: bool = False) -> None:
    text = greet.remote(name, times)
    print(text.upper() if loud else text)
"""


@pytest.fixture
def hello(program):
    return program(HELLO, "hello.py")


def test_run_streams_output_and_prints_the_result(daemon, hello):
    done = daemon.hostctl("run", str(hello))
    assert done.returncode == 0, done.stderr
    assert "hello world hello world" in done.stdout
    assert "working" in done.stdout
    assert "a warning" in done.stderr


def test_run_takes_typed_arguments_of_the_entrypoint(daemon, hello):
    done = daemon.hostctl("run", str(hello), "--name", "lab", "--times", "1", "--loud")
    assert done.returncode == 0, done.stderr
    assert "HELLO LAB" in done.stdout


def test_run_calls_one_function_with_arguments(daemon, hello):
    done = daemon.hostctl("run", f"{hello}::greet", "lab", "--times", "3")
    assert done.returncode == 0, done.stderr
    assert "hello lab hello lab hello lab" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["run", "/nonexistent/file.py"], 2, "file.py"),
        (["run", "{hello}::nothing"], 2, "nothing"),
        (["run", "{hello}", "--times", "many"], 2, "times"),
        (["run", "{hello}", "--colour", "red"], 2, "colour"),
        (["frobnicate"], 2, "frobnicate"),
        (["explain", "fc-00000000000000000000000000"], 3, "fc-0000"),
        (["image", "show", "no-such-image"], 3, "no-such-image"),
        (["logs", "ct-00000000000000000000000000"], 3, "ct-0000"),
        (["stop", "ct-00000000000000000000000000"], 3, "ct-0000"),
        (["exec", "ct-00000000000000000000000000", "--", "true"], 125, "ct-0000"),
    ],
)
def test_wrong_names_and_options_say_what_is_wrong(daemon, hello, arguments, status, said):
    done = daemon.hostctl(*(a.replace("{hello}", str(hello)) for a in arguments))
    assert done.returncode == status, (done.stdout, done.stderr)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_function_that_raises_shows_the_users_frames_and_exits_10(daemon, hello):
    done = daemon.hostctl("run", f"{hello}::fail")
    assert done.returncode == 10
    assert "ValueError: on purpose" in done.stderr
    assert 'raise ValueError("on purpose")' in done.stderr
    assert "hostd/runner" not in done.stderr


def test_a_syntax_error_in_the_file_is_shown_with_its_line(daemon, program):
    done = daemon.hostctl("run", str(program("import hostd\napp = hostd.App(\ndef (:\n")))
    assert done.returncode == 2
    assert "SyntaxError" in done.stderr
    assert "program.py" in done.stderr


def test_an_import_error_in_the_container_reaches_the_caller(daemon, program):
    file = program(
        'import hostd\napp = hostd.App("i")\n'
        "if not hostd.is_local():\n    import no_such_module\n"
        "@app.function(image=hostd.Image.debian_slim())\ndef f() -> int:\n    return 1\n"
    )
    done = daemon.hostctl("run", f"{file}::f")
    assert done.returncode == 10
    assert "No module named 'no_such_module'" in done.stderr
    assert "program.py" in done.stderr


def test_an_unknown_image_name_is_refused(daemon, program):
    file = program(
        'import hostd\napp = hostd.App("i")\n'
        '@app.function(image=hostd.Image.from_name("nowhere"))\ndef f() -> int:\n    return 1\n'
    )
    done = daemon.hostctl("run", f"{file}::f")
    assert done.returncode == 3
    assert "nowhere" in done.stderr


def test_a_failing_build_step_shows_its_output_and_exits_9(daemon, program):
    file = program(
        'import hostd\napp = hostd.App("b")\n'
        'image = hostd.Image.debian_slim().run_commands("echo before the end", "echo broken >&2; exit 7")\n'
        "@app.function(image=image)\ndef f() -> int:\n    return 1\n"
    )
    done = daemon.hostctl("run", f"{file}::f")
    assert done.returncode == 9
    assert "broken" in done.stderr
    assert "7" in done.stderr


def test_explain_tells_where_the_time_of_a_call_went(daemon, hello):
    assert daemon.hostctl("run", str(hello)).returncode == 0
    (call,) = json.loads(daemon.hostctl("calls", "list", "--json").stdout)["items"][:1]
    done = daemon.hostctl("explain", call["id"])
    assert done.returncode == 0, done.stderr
    for phase in ("runc_create", "boot", "import", "run"):
        assert phase in done.stdout
    spans, wall = call["phases_us"], call["finished_at_us"] - call["created_at_us"]
    assert abs(sum(spans.values()) - wall) <= max(0.02 * wall, 2_000)
    assert daemon.hostctl("why", call["id"]).stdout == done.stdout


def test_logs_of_a_finished_call_can_be_read_again(daemon, hello):
    assert daemon.hostctl("run", str(hello)).returncode == 0
    call = json.loads(daemon.hostctl("calls", "list", "--json").stdout)["items"][0]
    done = daemon.hostctl("logs", call["id"])
    assert done.returncode == 0, done.stderr
    assert "working" in done.stdout
    assert "a warning" in done.stdout + done.stderr


def test_exec_ps_and_stop_on_a_running_container(daemon, program):
    import subprocess
    import sys
    import time

    file = program(
        'import hostd, time\napp = hostd.App("long")\n'
        '@app.function(image=hostd.Image.debian_slim())\ndef f() -> None:\n    print("on", flush=True); time.sleep(120)\n'
    )
    run = subprocess.Popen([sys.executable, "-m", "hostd.cli", "run", f"{file}::f"], env=daemon.environ,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        rows = []
        while not any(r["state"] == "busy" for r in rows):
            rows = json.loads(daemon.hostctl("ps", "--json").stdout)["items"]
            assert time.monotonic() < deadline
        (row,) = (r for r in rows if r["state"] == "busy")
        done = daemon.hostctl("exec", row["id"], "--", "sh", "-c", "echo inside; exit 5")
        assert (done.stdout.strip(), done.returncode) == ("inside", 5)
        piped = daemon.hostctl("exec", row["id"], "--", "cat", input="through stdin\n")
        assert (piped.stdout, piped.returncode) == ("through stdin\n", 0)
        missing = daemon.hostctl("exec", row["id"], "--", "no-such-command")
        assert missing.returncode == 127
        assert re.search(r"\bf\b", daemon.hostctl("ps").stdout)
        # A container that is stopped gives its input back: it runs again in another one.
        assert daemon.hostctl("stop", row["id"]).returncode == 0
        while not any(r["state"] == "busy" and r["id"] != row["id"] for r in rows):
            rows = json.loads(daemon.hostctl("ps", "--json").stdout)["items"]
            assert time.monotonic() < deadline + 60
        assert daemon.hostctl("stop", row["app_id"]).returncode == 0
        _, errors = run.communicate(timeout=60)
        assert run.returncode == 11, errors
    finally:
        run.kill()
        run.communicate()


def test_images_are_listed_named_and_deleted(daemon, tmp_path):
    (tmp_path / "Dockerfile").write_text(
        "FROM debian:bookworm-slim\nENV COLOUR=blue\nRUN echo made > /made\n"
    )
    done = daemon.hostctl("build", str(tmp_path), "--name", "made-here")
    assert done.returncode == 0, done.stderr
    images = json.loads(daemon.hostctl("image", "list", "--json").stdout)["items"]
    (image,) = (i for i in images if "made-here" in i["names"])
    assert image["config"]["env"]["COLOUR"] == "blue"
    shell = daemon.hostctl("shell", "made-here", "-c", "cat /made; echo $COLOUR")
    assert (shell.stdout.split(), shell.returncode) == (["made", "blue"], 0)
    assert daemon.hostctl("image", "delete", "made-here", "-y").returncode == 0
    assert daemon.hostctl("image", "show", "made-here").returncode == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FROM debian:bookworm-slim\nRUUN true\n", "2"),
        ("RUN true\n", "FROM"),
        ("FROM debian:bookworm-slim\nCOPY ../secret /x\n", "context"),
        ("FROM debian:bookworm-slim\nCOPY absent.txt /x\n", "absent.txt"),
        ("FROM nowhere/unknown:tag\n", "nowhere/unknown:tag"),
    ],
)
def test_a_wrong_dockerfile_is_refused_with_its_place(daemon, tmp_path, text, said):
    (tmp_path / "Dockerfile").write_text(text)
    done = daemon.hostctl("build", str(tmp_path))
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_status_and_doctor_answer(daemon):
    assert json.loads(daemon.hostctl("status", "--json").stdout)["data_dir"] == str(daemon.data_dir)
    done = daemon.hostctl("doctor")
    assert "kernel" in done.stdout
