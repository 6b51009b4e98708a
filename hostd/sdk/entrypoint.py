"""Local entrypoints, and command lines turned into arguments of functions.

``hostctl run file.py::fit --alpha 0.5`` calls ``fit(alpha=0.5)``: every parameter is a flag, and
may also be given by position, in order. Types come from annotations, else from defaults: str, int,
float, bool (``--flag`` and ``--no-flag``), datetime, Literal of texts or of integers, Optional of
these.
"""

from __future__ import annotations

from hostd.errors import InvalidError
from hostd.sdk.generic import Generic, P, R_co

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from hostd.sdk.app import App


class LocalEntrypoint(Generic[P, R_co]):
    """A function of the user's that runs on the client, while its app runs."""

    def __init__(self, raw: Callable[P, R_co], *, app: App, name: str) -> None:
        self.raw = raw
        self.app = app
        self.name = name
        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(self, attribute, getattr(raw, attribute, None))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call it as an ordinary function."""
        return self.raw(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<hostd.LocalEntrypoint {self.name}>"


class Parameter:
    """A parameter as the command line sees it; ``kind`` is str, int, float, bool or datetime."""

    __slots__ = ("by_position", "choices", "default", "is_required", "is_variadic", "kind", "name")

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        default: object = None,
        is_required: bool = False,
        is_variadic: bool = False,
        by_position: bool = True,
        choices: tuple[Any, ...] = (),
    ) -> None:
        self.name = name
        self.kind = kind
        self.default = default
        self.is_required = is_required
        self.is_variadic = is_variadic
        self.by_position = by_position
        self.choices = choices

    @property
    def flag(self) -> str:
        """``--max-depth`` for ``max_depth``."""
        return "--" + self.name.replace("_", "-")

    @property
    def usage(self) -> str:
        """One line for a help text."""
        if self.is_variadic:
            return f"[{self.name}...]"
        if self.kind == "bool":
            text = f"{self.flag}/--no-{self.flag[2:]}"
        else:
            text = f"{self.flag} <{'|'.join(map(str, self.choices)) or self.kind}>"
        return text if self.is_required else f"[{text}]"

    def convert(self, text: str) -> Any:
        """The value of a text.

        Raises:
            InvalidError: it is none of this type.
        """
        try:
            value = _CONVERTERS[self.kind](text)
        except ValueError:
            raise InvalidError(
                f"{self.flag} is {text!r}, expected {_EXPECTED[self.kind]}"
            ) from None
        if self.choices and value not in self.choices:
            raise InvalidError(f"{self.flag} is {text!r}, expected one of {_listed(self.choices)}")
        return value


def parameters_of(function: Callable[..., Any]) -> list[Parameter]:
    """The parameters of a function.

    Raises:
        InvalidError: one has a type that a command line cannot give.
    """
    import inspect

    raw = getattr(function, "_raw", None) or getattr(function, "raw", None) or function
    hints = _hints(raw)
    found = []
    for parameter in inspect.signature(raw).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        found.append(_parameter(parameter, hints.get(parameter.name, parameter.empty)))
    return found


def parse(function: Callable[..., Any], argv: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments that a command line means: ``function(*args, **kwargs)``.

    Raises:
        InvalidError: a flag is not known, a value is missing or of another type.
    """
    parameters = parameters_of(function)
    given, rest = _split(parameters, list(argv))
    ordinary = [parameter for parameter in parameters if not parameter.is_variadic]
    for parameter in ordinary:
        if rest and parameter.by_position and parameter.name not in given:
            given[parameter.name] = parameter.convert(rest.pop(0))
    variadic = next((parameter for parameter in parameters if parameter.is_variadic), None)
    if rest and variadic is None:
        raise InvalidError(f"argument {rest[0]!r} is one too many", hint=usage(function))
    for parameter in ordinary:
        if parameter.is_required and parameter.name not in given:
            raise InvalidError(f"{parameter.flag} is missing", hint=usage(function))
    if variadic is None:
        return [], given
    # What stands before *args must be given by position, defaults included.
    before = parameters[: parameters.index(variadic)]
    args = [given.pop(parameter.name, parameter.default) for parameter in before]
    return [*args, *map(variadic.convert, rest)], given


def usage(function: Callable[..., Any]) -> str:
    """One line that shows what a function takes from a command line."""
    words = [parameter.usage for parameter in parameters_of(function)]
    return "usage: " + " ".join([getattr(function, "__name__", "function"), *words])


def _split(parameters: list[Parameter], argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """What flags give, and the arguments that are left."""
    flags = {parameter.flag: parameter for parameter in parameters if not parameter.is_variadic}
    given: dict[str, Any] = {}
    rest: list[str] = []
    while argv:
        word = argv.pop(0)
        if word == "--":
            return given, rest + argv
        if not word.startswith("--"):
            rest.append(word)
            continue
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        negated = flags.get(f"--{flag[5:]}") if flag.startswith("--no-") else None
        parameter = flags.get(flag)
        if parameter is None and negated is not None and negated.kind == "bool" and not equals:
            given[negated.name] = False
        elif parameter is None:
            raise InvalidError(f"flag {flag} is not known", hint=_known(flags))
        elif parameter.kind == "bool" and not equals:
            given[parameter.name] = True
        elif equals or argv:
            given[parameter.name] = parameter.convert(value if equals else argv.pop(0))
        else:
            raise InvalidError(f"{flag} has no value, expected {_EXPECTED[parameter.kind]}")
    return given, rest


def _known(flags: dict[str, Parameter]) -> str:
    return f"it takes {', '.join(flags)}" if flags else "it takes no flags"


def _hints(raw: Callable[..., Any]) -> dict[str, Any]:
    import typing

    try:
        return typing.get_type_hints(raw)
    except Exception:  # noqa: BLE001 - annotations are code: what cannot be evaluated is no type
        return dict(getattr(raw, "__annotations__", {}))


def _parameter(parameter: Any, hint: Any) -> Parameter:
    is_required = parameter.default is parameter.empty
    default = None if is_required else parameter.default
    kind, choices = _type_of(parameter.name, hint, default, has_hint=hint is not parameter.empty)
    is_variadic = parameter.kind is parameter.VAR_POSITIONAL
    return Parameter(
        parameter.name,
        kind,
        default=default,
        is_required=is_required and not is_variadic,
        is_variadic=is_variadic,
        by_position=parameter.kind is not parameter.KEYWORD_ONLY,
        choices=choices,
    )


def _type_of(
    name: str, hint: Any, default: object, *, has_hint: bool
) -> tuple[str, tuple[Any, ...]]:
    import typing

    if not has_hint or hint is typing.Any:
        guess = type(default).__name__
        return (guess if guess in _CONVERTERS else "str"), ()
    hint = _without_none(hint)
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        kinds = {type(choice) for choice in choices}
        if kinds == {str} or kinds == {int}:
            return kinds.pop().__name__, choices
        raise InvalidError(f"parameter {name}: a Literal must be all texts or all integers")
    # A text is an annotation that could not be evaluated; its name may still tell.
    kind = hint if isinstance(hint, str) else getattr(hint, "__name__", "")
    if kind in _CONVERTERS:
        return kind, ()
    raise InvalidError(
        f"parameter {name} has type {hint!r}, which a command line cannot give",
        hint="str, int, float, bool, datetime, Literal and Optional of these can be given",
    )


def _without_none(hint: Any) -> Any:
    """``X`` for ``Optional[X]`` and ``X | None``."""
    import typing

    if str(typing.get_origin(hint)) in ("typing.Union", "<class 'types.UnionType'>"):
        kept = [part for part in typing.get_args(hint) if part is not type(None)]
        if len(kept) == 1:
            return kept[0]
    return hint


def _listed(choices: tuple[Any, ...]) -> str:
    return ", ".join(map(str, choices))


def _to_bool(text: str) -> bool:
    lowered = text.lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise ValueError(text)


def _to_datetime(text: str) -> Any:
    from datetime import datetime

    return datetime.fromisoformat(text)


_CONVERTERS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": _to_bool,
    "datetime": _to_datetime,
}
"""By the name of the type: importing datetime for its type alone would cost every container."""
_EXPECTED = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "datetime": "a time such as 2026-01-31 or 2026-01-31T12:00",
}
