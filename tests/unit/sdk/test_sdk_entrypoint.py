"""Command lines as arguments: types, flags, positions, messages."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, Optional

import pytest

import hostd
from hostd.errors import InvalidError
from hostd.sdk.entrypoint import parameters_of, parse, usage


def all_types(
    text: str,
    count: int,
    ratio: float = 0.5,
    is_fast: bool = False,
    when: Optional[datetime] = None,
    mode: Literal["a", "b"] = "a",
    level: Literal[1, 2] = 1,
    maybe: int | None = None,
) -> None:
    pass


def untyped(a, b=3, c=1.5, d=True, e="x", f=None):
    pass


def variadic(first: int, *rest: int, scale: float = 1.0) -> None:
    pass


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--text", "t", "--count", "3"], {"text": "t", "count": 3}),
        (["--text=t", "--count=-3"], {"text": "t", "count": -3}),
        (["t", "3"], {"text": "t", "count": 3}),
        (["t", "3", "0.25", "yes"], {"text": "t", "count": 3, "ratio": 0.25, "is_fast": True}),
        (["--count", "3", "t"], {"text": "t", "count": 3}),
        (["t", "3", "--is-fast"], {"text": "t", "count": 3, "is_fast": True}),
        (["t", "3", "--no-is-fast"], {"text": "t", "count": 3, "is_fast": False}),
        (["t", "3", "--is_fast=false"], {"text": "t", "count": 3, "is_fast": False}),
        (["t", "3", "--ratio", "1e-3"], {"text": "t", "count": 3, "ratio": 0.001}),
        (["t", "3", "--mode", "b", "--level", "2"],
         {"text": "t", "count": 3, "mode": "b", "level": 2}),
        (["t", "3", "--maybe", "4"], {"text": "t", "count": 3, "maybe": 4}),
        (["t", "3", "--when", "2026-01-31T12:00"],
         {"text": "t", "count": 3, "when": datetime(2026, 1, 31, 12)}),  # noqa: DTZ001 - as given
        (["--count", "3", "--", "--text"], {"text": "--text", "count": 3}),
        (["", "3"], {"text": "", "count": 3}),
    ],
)  # fmt: skip
def test_values_have_the_types_of_the_signature(argv: list[str], expected: dict[str, Any]) -> None:
    assert parse(all_types, argv) == ([], expected)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["t"], "--count is missing"),
        (["t", "three"], "--count is 'three', expected a whole number"),
        (["t", "3", "--ratio", "x"], "--ratio is 'x', expected a number"),
        (["t", "3", "--is-fast=maybe"], "--is-fast is 'maybe', expected true or false"),
        (["t", "3", "--when", "soon"], "--when is 'soon', expected a time such as"),
        (["t", "3", "--mode", "c"], "--mode is 'c', expected one of a, b"),
        (["t", "3", "--level", "3"], "--level is '3', expected one of 1, 2"),
        (["t", "3", "--colour", "red"], "flag --colour is not known"),
        (["t", "3", "--no-ratio"], "flag --no-ratio is not known"),
        (["t", "3", "--ratio"], "--ratio has no value, expected a number"),
        (["t", "3", *"123456789"], "is one too many"),
    ],
)
def test_mistakes_are_named_with_what_was_expected(argv: list[str], message: str) -> None:
    if "one too many" in message:
        argv = ["t", "3", "0.5", "yes", "2026-01-01", "a", "1", "5", "extra"]
    with pytest.raises(InvalidError, match=message):
        parse(all_types, argv)


def test_types_without_annotations_come_from_defaults() -> None:
    argv = ["1", "--b", "2", "--c", "2", "--no-d", "--e", "5", "--f", "6"]
    assert parse(untyped, argv) == (
        [],
        {"a": "1", "b": 2, "c": 2.0, "d": False, "e": "5", "f": "6"},
    )


def test_the_rest_of_a_command_line_is_variadic() -> None:
    assert parse(variadic, ["1", "2", "3", "--scale", "2"]) == ([1, 2, 3], {"scale": 2.0})
    assert parse(variadic, ["1"]) == ([1], {})
    with pytest.raises(InvalidError, match="--rest is 'x'"):
        parse(variadic, ["1", "x"])


def test_functions_and_entrypoints_are_parsed_by_what_they_wrap() -> None:
    app = hostd.App("entry", include_source=False)
    function = app.function()(variadic)
    entry = app.local_entrypoint()(all_types)
    assert parse(function, ["1"]) == ([1], {})
    assert parse(entry, ["t", "3"]) == ([], {"text": "t", "count": 3})
    assert parse(nothing, []) == ([], {})


def test_types_that_a_command_line_cannot_give_are_refused() -> None:
    def takes_list(values: list[int]) -> None: ...

    def takes_mixed(value: Literal["a", 1]) -> None: ...

    for function, message in ((takes_list, "has type"), (takes_mixed, "all texts or all integers")):
        wrong: Callable[..., Any] = function
        with pytest.raises(InvalidError, match=message):
            parse(wrong, [])


def test_annotations_that_cannot_be_evaluated_still_work_by_name() -> None:
    def odd(count: int, other: NoSuchName = None) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(InvalidError, match="NoSuchName"):
        parse(odd, ["3"])

    def even(count: int = 3) -> None: ...

    even.__annotations__ = {"count": "int", "return": "NoSuchName"}
    assert parse(even, ["4"]) == ([], {"count": 4})


def test_usage_shows_every_parameter() -> None:
    assert usage(variadic) == "usage: variadic --first <int> [rest...] [--scale <float>]"
    assert "[--is-fast/--no-is-fast]" in usage(all_types)
    assert "[--mode <a|b>]" in usage(all_types)
    assert [parameter.name for parameter in parameters_of(nothing)] == []
