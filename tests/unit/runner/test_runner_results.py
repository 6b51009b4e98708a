"""What functions return and raise, and what the daemon is told about it."""

from __future__ import annotations

import json
import pickle
from typing import Any

import cloudpickle
import pytest

from hostd.errors import DeserializationError as NotDeserializable
from hostd.errors import FunctionImportError, InvalidError, VersionMismatchError

ADD = """
def f(a, b=1):
    return a + b
"""


async def test_sync_function_answers_with_its_value(runner: Any) -> None:
    await runner.load(ADD)
    assert await runner.call(2, b=40) == 42


async def test_inputs_sent_before_the_load_are_answered(runner: Any) -> None:
    runner.write(ADD)
    await runner.start()
    token = runner.send(1, 2)

    runner.send_load()
    await runner.loaded
    answered, status, fields, _ = await runner.output()
    assert (answered, status, pickle.loads(fields[0])) == (token, "ok", 3)


async def test_async_function_runs_on_one_loop_for_the_life_of_the_container(runner: Any) -> None:
    await runner.load("""
        import asyncio
        loops = set()
        async def f():
            loops.add(asyncio.get_running_loop())
            await asyncio.sleep(0)
            return len(loops)
    """)
    assert [await runner.call(), await runner.call()] == [1, 1]


async def test_background_tasks_of_async_functions_run_between_inputs(runner: Any) -> None:
    await runner.load("""
        import asyncio
        tasks = set()
        async def tick():
            await asyncio.sleep(0.001)
            print("ticked", flush=True)
        async def f():
            tasks.add(asyncio.create_task(tick()))
    """)
    await runner.call()
    await runner.printed(b"ticked")


@pytest.mark.parametrize("keyword", ["def", "async def"])
async def test_generator_values_come_in_order_and_then_the_end(runner: Any, keyword: str) -> None:
    text = f"""
        {keyword} f(n):
            for i in range(n):
                yield i
    """
    await runner.load(text, is_generator=True)
    token = runner.send(5)
    got = [await runner.output() for _ in range(6)]
    assert [(status, fields and pickle.loads(fields[0])) for _, status, fields, _ in got] == [
        *(("yield", i) for i in range(5)),
        ("end", []),
    ]
    assert {answered for answered, *_ in got} == {token}


async def test_generator_that_raises_keeps_its_earlier_values(runner: Any) -> None:
    await runner.load("def f():\n    yield 1\n    raise ValueError('late')\n", is_generator=True)
    runner.send()
    assert (await runner.output())[1] == "yield"
    _, status, fields, _ = await runner.output()
    assert (status, fields[:2]) == ("raised", [b"ValueError", b"late"])


RAISING = """
import functools
class Mine(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
def inner(x):
    raise ValueError(f"bad {x}")
def f(x):
    inner(x)
def chained():
    try:
        inner(1)
    except ValueError as error:
        raise KeyError("outer") from error
def stubborn():
    raise Mine(1, 2)
def stop():
    raise KeyboardInterrupt
def noisy():
    error = RuntimeError("noted")
    error.__dict__["__notes__"] = ["a note"]
    raise error
class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no")
def silent():
    raise Silent
def deep(n=0):
    return deep(n + 1)
"""


async def raised(runner: Any, qualname: str, *args: Any) -> list[bytes]:
    await runner.load(RAISING, qualname)
    runner.send(*args)
    _, status, fields, _ = await runner.output()
    assert status == "raised"
    return list(fields)


async def test_traceback_begins_at_the_users_frame(runner: Any) -> None:
    kind, message, traceback, _ = await raised(runner, "f", 7)
    assert (kind, message) == (b"ValueError", b"bad 7")
    lines = traceback.decode().splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == f'  File "{runner.source}/app.py", line 9, in f'
    assert lines[-1] == "ValueError: bad 7"
    assert "runner" not in traceback.decode().replace(str(runner.source), "")


async def test_traceback_of_async_function_has_no_frames_of_the_loop(runner: Any) -> None:
    await runner.load("async def f():\n    raise ValueError('x')\n")
    runner.send()
    _, _, fields, _ = await runner.output()
    assert "asyncio" not in fields[2].decode()
    assert fields[2].decode().splitlines()[1].endswith('app.py", line 2, in f')


async def test_pickled_exception_carries_cause_and_frames(runner: Any) -> None:
    *_, traceback, pickled = await raised(runner, "chained")
    record = pickle.loads(pickled)
    assert repr(record["exception"]) == "KeyError('outer')"
    assert repr(record["cause"]) == "ValueError('bad 1')"
    assert [(name, line) for _, _, name, line in record["frames"]] == [
        ("chained", 'raise KeyError("outer") from error')
    ]
    assert "direct cause" in traceback.decode()


async def test_exception_that_cannot_be_rebuilt_has_no_pickle(runner: Any) -> None:
    kind, message, _, pickled = await raised(runner, "stubborn")
    assert (kind, message, pickled) == (b"app.Mine", b"1 and 2", b"")


async def test_keyboard_interrupt_is_an_answer(runner: Any) -> None:
    assert (await raised(runner, "stop"))[0] == b"KeyboardInterrupt"


async def test_notes_of_an_exception_survive(runner: Any) -> None:
    record = pickle.loads((await raised(runner, "noisy"))[3])
    assert record["exception"].__notes__ == ["a note"]


async def test_exception_without_a_text_is_an_answer(runner: Any) -> None:
    assert (await raised(runner, "silent"))[1] == b"<str() of the exception failed>"


async def test_endless_recursion_is_an_answer_and_the_runner_lives(runner: Any) -> None:
    kind, *_, pickled = await raised(runner, "deep")
    assert kind == b"RecursionError"
    assert len(pickle.loads(pickled)["frames"]) <= 200
    runner.send()
    assert (await runner.output())[1] == "raised"


async def failed(runner: Any) -> dict[str, Any]:
    _, status, fields, _ = await runner.output()
    assert status == "failed"
    problem: dict[str, Any] = json.loads(fields[0])
    return problem


async def test_result_that_cannot_be_pickled_names_its_type(runner: Any) -> None:
    await runner.load("import threading\ndef f():\n    return threading.Lock()\n")
    runner.send()
    problem = await failed(runner)
    assert problem["code"] == "not_serializable"
    assert "the result of f is a _thread.lock that cannot be pickled" in problem["detail"]


async def test_argument_of_a_missing_module_is_named(runner: Any) -> None:
    await runner.load(ADD)
    runner.send(payload=b"\x80\x04c" + b"no_such_module\nThing\n.")
    problem = await failed(runner)
    assert problem["code"] == "not_deserializable"
    assert "module no_such_module" in problem["detail"]
    assert "no_such_module" in problem["hint"]


async def test_garbage_argument_is_refused_and_the_runner_lives(runner: Any) -> None:
    await runner.load(ADD)
    runner.send(payload=b"not a pickle")
    assert (await failed(runner))["code"] == "not_deserializable"
    assert await runner.call(1) == 2


async def test_result_over_the_limit_is_refused(runner: Any) -> None:
    await runner.load("""
        import sys
        def f():
            sys.modules["hostd.runner.values"].PAYLOAD_BYTES_MAX = 1000
            return bytes(2000)
    """)
    runner.send()
    problem = await failed(runner)
    assert problem["code"] == "payload_too_large"
    assert "the limit is 1000" in problem["detail"]


async def test_classes_of_main_are_pickled_by_value(runner: Any) -> None:
    await runner.load("""
        def f():
            class Local:
                x = 5
            Local.__module__ = "__main__"
            return Local()
    """)
    assert (await runner.call()).x == 5


async def test_large_values_pass_both_ways(runner: Any) -> None:
    await runner.load("def f(x):\n    return x\n")
    data = bytes(range(256)) * 40_000
    assert await runner.call(data) == data
    assert await runner.call(b"small") == b"small"


async def test_pipelined_inputs_are_answered_in_order(runner: Any) -> None:
    await runner.load(ADD)
    tokens = [runner.send(i) for i in range(50)]
    got = [await runner.output() for _ in tokens]
    assert [token for token, *_ in got] == tokens
    assert [pickle.loads(fields[0]) for _, _, fields, _ in got] == [i + 1 for i in range(50)]


async def test_timings_add_up_to_no_more_than_the_wall_time(runner: Any) -> None:
    await runner.load("import time\ndef f():\n    time.sleep(0.02)\n")
    runner.send()
    timings = (await runner.output())[3]
    assert 20_000 <= timings.run_us < 10_000_000
    assert timings.input_load_us >= 0
    assert timings.output_store_us >= 0


async def test_lines_are_flushed_before_the_answer(runner: Any) -> None:
    await runner.load("""
        import sys
        def f():
            sys.stdout.write("half a line")
            sys.stderr.write("warned")
    """)
    await runner.call()
    import os

    assert os.read(runner.process.stdout.fileno(), 100) == b"half a line"
    assert os.read(runner.process.stderr.fileno(), 100) == b"warned"


async def test_input_ids_are_known_to_user_code_only_during_the_input(runner: Any) -> None:
    await runner.load("""
        from hostd.runner import context
        outside = context.input_id, context.call_id
        def f():
            return outside, context.input_id, context.call_id
    """)
    assert await runner.call() == ((None, None), "fc-1:0", "fc-1")


async def test_decorated_object_is_unwrapped(runner: Any) -> None:
    await runner.load("""
        class Function:
            def __init__(self, raw):
                self._hostd_raw = raw
        @Function
        def f():
            return "raw"
    """)
    assert await runner.call() == "raw"


async def test_import_error_that_the_sdk_kept_is_raised_when_the_function_is_taken(
    runner: Any,
) -> None:
    text = """
        class Function:
            @property
            def _hostd_raw(self):
                import module_of_another_image
        f = Function()
    """
    with pytest.raises(FunctionImportError, match="needs module module_of_another_image"):
        await runner.load(text)


async def test_generator_of_a_function_that_is_none_is_not_serializable(runner: Any) -> None:
    await runner.load("def f():\n    return (i for i in range(3))\n")
    runner.send()
    problem = await failed(runner)
    assert problem["code"] == "not_serializable"
    assert "the result of f is a generator" in problem["detail"]


async def test_nested_qualified_names_are_found(runner: Any) -> None:
    await runner.load("class A:\n    @staticmethod\n    def g():\n        return 9\n", "A.g")
    assert await runner.call() == 9


async def test_import_error_carries_the_users_own_traceback(runner: Any) -> None:
    with pytest.raises(FunctionImportError) as caught:
        await runner.load("x = 1\nraise RuntimeError('at import')\n")
    text = str(caught.value)
    assert "importing module app raised RuntimeError" in text
    assert "RuntimeError: at import" in text
    assert 'app.py", line 2, in <module>' in text
    assert "importlib" not in text
    assert "load.py" not in text
    assert await runner.exit_code() == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import no_such_thing\n", "module app needs module no_such_thing"),
        ("def f(:\n", "SyntaxError"),
        ("import sys\nsys.exit(3)\n", "raised SystemExit"),
        ("g = 1\n", "module app has no f"),
    ],
)
async def test_modules_that_cannot_be_loaded_say_why(runner: Any, text: str, found: str) -> None:
    with pytest.raises(FunctionImportError, match=found):
        await runner.load(text)


async def test_missing_module_of_the_user_says_where_it_was_looked_for(runner: Any) -> None:
    with pytest.raises(FunctionImportError, match="module elsewhere is not in the container"):
        await runner.load("", module="elsewhere")


async def test_something_that_is_no_function_is_refused(runner: Any) -> None:
    with pytest.raises(InvalidError, match="f is a int, not a function"):
        await runner.load("f = 1\n")


def own_version() -> str:
    import sys

    return f"{sys.version_info.major}.{sys.version_info.minor}"


async def test_serialized_closure_runs(runner: Any) -> None:
    offset = 30
    blob = cloudpickle.dumps(lambda x: x + offset)
    await runner.load(serialized=blob, python_version=own_version(), module="")
    assert await runner.call(12) == 42


async def test_python_version_is_checked_before_unpickling(runner: Any) -> None:
    with pytest.raises(VersionMismatchError, match=r"pickled by Python 2\.7") as caught:
        await runner.load(serialized=b"would explode", python_version="2.7", module="")
    assert "build the image with Python 2.7" in str(caught.value.hint)


async def test_serialized_function_of_a_missing_module_is_named(runner: Any) -> None:
    blob = b"\x80\x04cno_such_module\nf\n."
    with pytest.raises(NotDeserializable, match="needs module no_such_module"):
        await runner.load(serialized=blob, module="")
