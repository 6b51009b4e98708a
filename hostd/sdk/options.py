"""The keywords of ``@app.function`` in the form the API takes, with their bounds checked at once.

A wrong value fails where it is written, in the user's own file, not minutes later on a host.
"""

from __future__ import annotations

from hostd.errors import InvalidError
from hostd.sdk.retries import Retries, retries_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    Request = Union[float, tuple[float, float], None]
    """What is asked for, or that and a limit."""

TIMEOUT_S_MAX = 86_400
"""24 hours."""
CPU_MAX = 1024
MEMORY_MIB_MIN, MEMORY_MIB_MAX = 16, 1 << 24
CONTAINERS_MAX = 10_000
SCALEDOWN_S_MIN, SCALEDOWN_S_MAX = 2, 1_200
NAME_LENGTH_MAX = 64


def refuse_unsupported(what: str, given: dict[str, object]) -> None:
    """Refuse keywords of Modal's that this version does not have, when they ask for something.

    Raises:
        InvalidError: one has a value that is not its default.
    """
    for name, value in given.items():
        if value is not None and value is not False and value not in ((), [], {}, ""):
            raise InvalidError(
                f"{what}: {name}= is not supported yet (it is {value!r})",
                hint=f"leave {name}= out; docs/sdk.md lists what this version has",
            )


def check_name(what: str, name: str) -> str:
    """A name that the API accepts.

    Raises:
        InvalidError: it has other characters, or is too long.
    """
    rest = (
        name.replace("_", "a").replace("-", "a").replace(".", "a") if isinstance(name, str) else ""
    )
    good = rest.isascii() and rest.isalnum() and name[0] not in "-."
    if not good or len(name) > NAME_LENGTH_MAX:
        raise InvalidError(
            f"{what} {name!r} is not a name: letters, digits, _ - and . only, "
            f"at most {NAME_LENGTH_MAX}, not beginning with - or ."
        )
    return name


def check_env(what: str, env: dict[str, str] | None) -> dict[str, str]:
    """Environment variables: text to text.

    Raises:
        InvalidError: a key or a value is something else.
    """
    for key, value in (env or {}).items():
        if not isinstance(key, str) or not (key.isidentifier() and key.isascii()):
            raise InvalidError(f"{what}: {key!r} is not the name of an environment variable")
        if not isinstance(value, str):
            raise InvalidError(f"{what}: {key} is {value!r}, expected a str")
    return dict(env or {})


def resource_fields(cpu: Request, memory: Request) -> dict[str, object]:
    """``cpu=`` and ``memory=``: a number asks, a pair asks and limits."""
    fields: dict[str, object] = {}
    if cpu is not None:
        asked, limit = _pair("cpu", cpu, 0.001, CPU_MAX)
        fields["cpu"] = float(asked)
        if limit is not None:
            fields["cpu_limit"] = float(limit)
    if memory is not None:
        asked, limit = _pair("memory", memory, MEMORY_MIB_MIN, MEMORY_MIB_MAX)
        fields["memory_mib"] = int(asked)
        if limit is not None:
            fields["memory_limit_mib"] = int(limit)
    return fields


def scaling_fields(
    min_containers: int | None,
    max_containers: int | None,
    buffer_containers: int | None,
    scaledown_window: int | None,
) -> dict[str, object]:
    """How many containers, and for how long they stay without work."""
    fields: dict[str, object] = {}
    for name, count, low in (
        ("min_containers", min_containers, 0),
        ("max_containers", max_containers, 1),
        ("buffer_containers", buffer_containers, 0),
    ):
        if count is not None:
            fields[name] = int(_within(name, count, low, CONTAINERS_MAX, whole=True))
    if scaledown_window is not None:
        window = _within("scaledown_window", scaledown_window, SCALEDOWN_S_MIN, SCALEDOWN_S_MAX)
        fields["scaledown_window_s"] = float(window)
    if max_containers is not None and (min_containers or 0) > max_containers:
        raise InvalidError(
            f"min_containers is {min_containers}, max_containers is {max_containers}"
        )
    return fields


def time_fields(
    timeout: float | None, startup_timeout: float | None, retries: int | Retries | None
) -> dict[str, object]:
    """Time limits and retries of an input."""
    fields: dict[str, object] = {}
    if timeout is not None:
        fields["timeout_s"] = float(_within("timeout", timeout, 0.01, TIMEOUT_S_MAX))
    if startup_timeout is not None:
        limit = _within("startup_timeout", startup_timeout, 0.01, TIMEOUT_S_MAX)
        fields["startup_timeout_s"] = float(limit)
    policy = retries_of(retries)
    if policy is not None:
        fields["retries"] = policy.fields()
    return fields


def _pair(name: str, given: object, low: float, high: float) -> tuple[float, float | None]:
    if not isinstance(given, (tuple, list)):
        return _within(name, given, low, high), None
    if len(given) != 2:
        raise InvalidError(f"{name} is {given!r}, expected a number or (request, limit)")
    asked = _within(f"{name} request", given[0], low, high)
    limit = _within(f"{name} limit", given[1], low, high)
    if limit < asked:
        raise InvalidError(f"{name} limit is {limit}, less than the request {asked}")
    return asked, limit


def _within(name: str, value: object, low: float, high: float, *, whole: bool = False) -> float:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise InvalidError(f"{name} is {value!r}, expected {low} to {high}")
    return value
