"""How runners end, and how inputs are cancelled."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import pytest

WAIT_S = 20.0


async def closed(runner: Any) -> str | None:
    async with asyncio.timeout(WAIT_S):
        violation: str | None = await runner.closed
        return violation


@pytest.mark.parametrize(
    ("body", "code"),
    [("sys.exit(3)", 3), ("os._exit(4)", 4), ("os.abort()", -6), ("raise SystemExit", 0)],
)
async def test_container_ends_with_the_users_exit_code(runner: Any, body: str, code: int) -> None:
    await runner.load(f"import os, sys\ndef f():\n    {body}\n")
    runner.send()
    assert await closed(runner) is None
    assert await runner.exit_code() == code
    assert runner.outputs.empty()


async def test_crash_leaves_a_traceback_on_stderr(runner: Any) -> None:
    await runner.load("import os\ndef f():\n    os.abort()\n")
    runner.send()
    _, stderr = await runner.end()
    assert b"Fatal Python error: Aborted" in stderr
    assert b"app.py" in stderr


async def test_idle_runner_ends_when_the_connection_ends(runner: Any) -> None:
    await runner.load("""
        import atexit
        atexit.register(print, "goodbye")
        def f(): pass
    """)
    stdout, stderr = await runner.end()
    assert (stdout, stderr, runner.process.returncode) == (b"goodbye\n", b"", 0)


async def test_queued_inputs_are_answered_before_the_end(runner: Any) -> None:
    await runner.load("def f(): pass\n")
    tokens = [runner.send() for _ in range(3)]
    runner.link.end()
    assert [(await runner.output())[0] for _ in tokens] == tokens
    assert await runner.exit_code() == 0


async def test_sigterm_runs_finally_blocks_and_atexit_hooks(runner: Any) -> None:
    await runner.load("""
        import atexit, time
        atexit.register(print, "hook")
        def f():
            try:
                print("begun")
                time.sleep(60)
            finally:
                print("cleaned up")
    """)
    runner.send()
    await runner.printed(b"begun")
    runner.process.send_signal(signal.SIGTERM)
    stdout, _ = await runner.end()
    assert (stdout, runner.process.returncode) == (b"cleaned up\nhook\n", 143)


@pytest.mark.parametrize("keyword", ["def", "async def"])
async def test_sigterm_ends_an_idle_runner_cleanly(runner: Any, keyword: str) -> None:
    await runner.load(f"{keyword} f(): pass\n")
    await runner.call()
    runner.process.send_signal(signal.SIGTERM)
    assert await runner.exit_code() == 0


async def test_terminated_child_processes_die_by_the_signal(runner: Any) -> None:
    await runner.load("""
        import multiprocessing, time
        def f():
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            child.start()
            child.terminate()
            child.join()
            return child.exitcode
    """)
    assert await runner.call() == -signal.SIGTERM


async def test_forked_child_that_returns_does_not_answer(runner: Any) -> None:
    await runner.load("""
        import os
        def f():
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
            return pid != 0
    """)
    assert await runner.call() is True
    assert await runner.call() is True


async def problem_code(runner: Any, token: int) -> str:
    answered, status, fields, _ = await runner.output()
    assert (answered, status) == (token, "failed")
    code: str = json.loads(fields[0])["code"]
    return code


SLEEPER = """
import time
from hostd.errors import InputCancellation
seen = []
def f(seconds):
    try:
        print("begun")
        time.sleep(seconds)
    except InputCancellation:
        seen.append(1)
        raise
    return len(seen)
"""


async def test_cancel_raises_in_the_running_input_and_the_runner_lives(runner: Any) -> None:
    await runner.load(SLEEPER)
    token = runner.send(60)
    await runner.printed(b"begun")
    runner.cancel(token)
    assert await problem_code(runner, token) == "cancelled"
    assert await runner.call(0) == 1


async def test_cancel_of_a_finished_input_does_not_hit_the_next(runner: Any) -> None:
    await runner.load(SLEEPER)
    done = runner.send(0)
    assert (await runner.output())[1] == "ok"
    await runner.printed(b"begun")
    runner.send(0.2)
    await runner.printed(b"begun")
    runner.cancel(done)
    assert (await runner.output())[1] == "ok"


async def test_cancel_of_a_waiting_input_leaves_the_running_one_alone(runner: Any) -> None:
    await runner.load(SLEEPER)
    running, waiting, last = runner.send(0.2), runner.send(60), runner.send(0)
    await runner.printed(b"begun")
    runner.cancel(waiting)
    assert (await runner.output())[:2] == (running, "ok")
    assert await problem_code(runner, waiting) == "cancelled"
    assert (await runner.output())[:2] == (last, "ok")


async def test_input_cancelled_before_the_runner_is_ready_never_runs(runner: Any) -> None:
    token = runner.send(0)
    runner.socket.mark_cancelled(token)
    await runner.load(SLEEPER)
    assert await problem_code(runner, token) == "cancelled"
    stdout, _ = await runner.end()
    assert stdout == b""


async def test_function_that_swallows_its_cancellation_answers(runner: Any) -> None:
    await runner.load("""
        import time
        def f():
            try:
                print("begun")
                time.sleep(60)
            except BaseException as error:
                return type(error).__name__
    """)
    token = runner.send()
    await runner.printed(b"begun")
    runner.cancel(token)
    runner.cancel(token)
    assert (await runner.output())[:2] == (token, "ok")


async def test_async_function_gets_cancelled_error(runner: Any) -> None:
    await runner.load("""
        import asyncio
        async def f():
            try:
                print("begun")
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print("cancelled")
                raise
    """)
    token = runner.send()
    await runner.printed(b"begun")
    runner.cancel(token)
    assert await problem_code(runner, token) == "cancelled"
    await runner.printed(b"cancelled")


@pytest.mark.parametrize("keyword", ["def", "async def"])
async def test_cancel_ends_a_generator(runner: Any, keyword: str) -> None:
    text = f"""
        {keyword} f():
            try:
                i = 0
                while True:
                    yield i
                    i += 1
            finally:
                print("closed")
    """
    await runner.load(text, is_generator=True)
    token = runner.send()
    assert (await runner.output())[1] == "yield"
    runner.cancel(token)
    while (output := await runner.output())[1] == "yield":
        pass
    assert output[1] == "failed"
    await runner.printed(b"closed")


async def test_exit_in_async_function_ends_the_container(runner: Any) -> None:
    await runner.load("import sys\nasync def f():\n    sys.exit(5)\n")
    runner.send()
    assert await closed(runner) is None
    assert await runner.exit_code() == 5
