"""Payloads: arguments, results, exceptions; tracebacks as Python prints them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from hostd import exception
from hostd.errors import InputCancellation
from hostd.runner import outcome
from hostd.sdk import payload
from hostd.sdk.remote_traceback import with_frames
from tests.fakes.sample_functions import SampleError, describe

ROOT = Path(__file__).resolve().parents[3]


def views(fields: Any) -> list[memoryview]:
    return [memoryview(field) for field in fields]


def raised(error: BaseException) -> list[memoryview]:
    """What the real runner sends."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - the runner catches all
        return views(outcome.raised(caught))


def test_inputs_are_pickles_of_args_and_kwargs() -> None:
    data = payload.pack_input(describe, (1, [2]), {"a": None})
    assert pickle.loads(data) == ((1, [2]), {"a": None})
    assert data[:2] == b"\x80\x05"


def test_what_pickle_refuses_goes_by_value() -> None:
    data = payload.pack_input(describe, (lambda value: value + 1,), {})
    ((function,), _) = pickle.loads(data)
    assert function(1) == 2


def test_bytecode_of_another_python_is_refused_before_it_can_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    data = payload.pack_input(describe, (lambda: 1,), {})
    monkeypatch.undo()
    with pytest.raises(exception.VersionMismatchError, match=r"are of Python 3\.99, here runs 3\."):
        pickle.loads(data)


def test_large_payloads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "PAYLOAD_BYTES_MAX", 100)
    with pytest.raises(exception.PayloadTooLargeError, match="the limit is 100"):
        payload.pack_input(describe, (b"x" * 101,), {})


def test_results_whose_module_is_not_here_name_it() -> None:
    with pytest.raises(exception.DeserializationError, match="no_such_module") as caught:
        payload.unpack(b"cno_such_module.inner\nThing\n.")
    assert "install no_such_module here" in str(caught.value.hint)


def test_damaged_results_are_an_error() -> None:
    with pytest.raises(exception.DeserializationError):
        payload.unpack(b"\x80\x05")


# --- exceptions --------------------------------------------------------------------------------


def test_exceptions_of_the_real_runner_are_rebuilt() -> None:
    error = payload.unpack_exception(raised(SampleError("text", code=7)))
    assert isinstance(error, SampleError)
    assert (str(error), error.code) == ("text", 7)
    assert traceback.extract_tb(error.__traceback__)[-1].name == "raised"


def test_causes_and_contexts_are_kept() -> None:
    inner = KeyError("k")
    outer = ValueError("v")
    outer.__cause__ = inner
    error = payload.unpack_exception(raised(outer))
    assert repr(error.__cause__) == "KeyError('k')"


def test_without_a_pickle_the_text_is_kept() -> None:
    fields = views([b"lab.Odd", b"message", b"Traceback ...\nlab.Odd: message\n", b""])
    error = payload.unpack_exception(fields)
    assert isinstance(error, exception.RemoteError)
    assert "lab.Odd: message" in str(error)
    assert "Traceback ..." in str(error)


@pytest.mark.parametrize(
    "data", [b"garbage", pickle.dumps([1]), pickle.dumps({"exception": "text"})]
)
def test_strange_records_fall_back_to_the_text(data: bytes) -> None:
    fields = views([b"Odd", b"m", b"trace", data])
    assert isinstance(payload.unpack_exception(fields), exception.RemoteError)


def test_cancellation_inside_an_input_is_cancelled_error() -> None:
    error = payload.unpack_exception(raised(InputCancellation()))
    assert isinstance(error, exception.CancelledError)


@pytest.mark.parametrize("hostile", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_exceptions_that_would_end_this_process_are_wrapped(hostile: BaseException) -> None:
    error = payload.unpack_exception(raised(hostile))
    assert isinstance(error, exception.RemoteError)
    assert type(hostile).__name__ in str(error)


class UntouchableError(Exception):
    """Refuses what unpack_exception does to it."""

    def with_traceback(self, tb: Any) -> UntouchableError:
        raise RuntimeError("hands off")


def test_hostile_exception_classes_do_not_hide_the_failure() -> None:
    error = payload.unpack_exception(raised(UntouchableError("it")))
    assert isinstance(error, exception.RemoteError)
    assert "UntouchableError: it" in str(error)
    assert "hands off" in str(error)


# --- tracebacks --------------------------------------------------------------------------------

FRAMES = [
    ("/root/sweep.py", 120, "fit", "    return helper(alpha)"),
    ("/root/sweep.py", 7, "helper", "    raise ValueError(alpha)"),
    ("<string>", 1, "<module>", None),
]


def test_frames_are_entries_with_file_line_function_and_source() -> None:
    error = with_frames(ValueError(1), FRAMES)
    entries = traceback.extract_tb(error.__traceback__)
    assert [(entry.filename, entry.lineno, entry.name) for entry in entries] == [
        frame[:3] for frame in FRAMES
    ]
    assert [entry.line for entry in entries[:2]] == [
        "return helper(alpha)",
        "raise ValueError(alpha)",
    ]


def test_local_files_keep_their_own_source() -> None:
    error = with_frames(ValueError(1), [(__file__, 1, "f", "something else")])
    (entry,) = traceback.extract_tb(error.__traceback__)
    assert str(entry.line).startswith('"""Payloads')


@pytest.mark.slow
def test_python_itself_prints_them_without_carets() -> None:
    script = (
        "from hostd.sdk.remote_traceback import with_frames\n"
        f"raise with_frames(ValueError('x'), {FRAMES!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (
        done.stderr
        == (
            "Traceback (most recent call last):\n"
            '  File "<string>", line 2, in <module>\n'
            '  File "/root/sweep.py", line 120, in fit\n'
            '  File "/root/sweep.py", line 7, in helper\n'
            '  File "<string>", line 1, in <module>\n'
            "ValueError: x\n"
        )
        or "    return helper(alpha)\n" in done.stderr
    )
    assert "^" not in done.stderr


def test_serialized_functions_open_with_plain_pickle() -> None:
    offset = 5

    def shift(value: int) -> int:
        return value + offset

    data = payload.pack_function(shift, "shift")
    assert pickle.loads(data)(1) == 6
    assert isinstance(data, bytes)
    assert cloudpickle.loads(data)(2) == 7
