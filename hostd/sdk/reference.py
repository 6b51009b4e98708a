"""Pickling SDK objects and names of the running script, so that containers find their own copy.

Small, because containers import it when they open such a pickle.
"""

from __future__ import annotations

import sys

from hostd.errors import VersionMismatchError
from hostd.sdk.entry_module import container_name, script_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hostd.sdk.function import Function


def resolve(module: str, qualname: str) -> Any:
    """The object that a container knows under this name."""
    found: Any = __import__(module, None, None, ["*"] if "." in module else [])
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def resolve_raw(module: str, qualname: str) -> Any:
    """The plain function behind a decorated one."""
    found = resolve(module, qualname)
    return getattr(found, "_hostd_raw", found)


def detached_function(raw: Any, app_name: str | None, name: str) -> Function[Any, Any, Any]:
    """A Function that came by value: it can run locally, where it arrived."""
    from hostd.sdk.app import App
    from hostd.sdk.function import Function

    return Function(raw, app=App(app_name), name=name)


def open_by_value(data: bytes, major: int, minor: int) -> Any:
    """Open a pickle that holds bytecode, which another version of Python could crash on.

    Raises:
        VersionMismatchError: it was made by another version.
    """
    if sys.version_info[:2] != (major, minor):
        raise VersionMismatchError(
            f"functions or classes sent by value are of Python {major}.{minor}, "
            f"here runs {sys.version_info[0]}.{sys.version_info[1]}",
            hint="define them at the top level of a module that is on both sides",
        )
    import pickle

    return pickle.loads(data)


class ByValue:
    """What pickles to the opening of a pickle that holds bytecode."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return open_by_value, (self.data, sys.version_info[0], sys.version_info[1])


def named_in_main(value: Any) -> bool:
    """Whether the running script has this object under its own name."""
    found: Any = sys.modules.get("__main__")
    for part in str(getattr(value, "__qualname__", "<none>")).split("."):
        found = getattr(found, part, None)
    return found is value or getattr(found, "_raw", None) is value


def reduce_function(function: Function[Any, Any, Any]) -> tuple[Any, ...]:
    """How a Function is pickled: by name where its module can be imported, else by value."""
    module = sys.modules.get(function.__module__)
    found: Any = module
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    is_main = function.__module__ == "__main__"
    name = script_name() if is_main else container_name(function.__module__)
    if found is function and name is not None:
        return resolve, (name, function.__qualname__)
    return detached_function, (function.get_raw_f(), function.app.name, function.name)
