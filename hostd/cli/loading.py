"""From ``FILE[::NAME]`` to the user's app and the function or entrypoint that is meant.

The file is imported as an ordinary module under its own name, as it will be in containers: code
below ``if __name__ == "__main__":`` does not run. A file in a package is imported as part of it, so
that relative imports work here as they do there.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from types import ModuleType
from typing import TYPE_CHECKING, Any, Union

from hostd.cli.user_code import UserCodeError, location, text_of
from hostd.errors import Error, InvalidError

if TYPE_CHECKING:
    from hostd.sdk.app import App
    from hostd.sdk.entrypoint import LocalEntrypoint
    from hostd.sdk.function import Function

    Target = Union[LocalEntrypoint[Any, Any], Function[Any, Any, Any]]


def load(ref: str, *, as_module: bool = False) -> tuple[ModuleType, str]:
    """Import the module of a reference; the module, and the name after ``::`` ("" without).

    Raises:
        InvalidError: there is no such file or module.
        UserCodeError: it raised when it was imported.
    """
    place, _, name = ref.partition("::")
    if as_module:
        sys.path.insert(0, os.getcwd())
        return _import(place, None), name
    if not os.path.isfile(place):
        what = "is a directory" if os.path.isdir(place) else "is not there"
        raise InvalidError(f"file {place} {what}", hint="hostctl run FILE.py[::FUNCTION]")
    if not place.endswith(".py"):
        raise InvalidError(f"file {place} is not a Python file: its name does not end with .py")
    root, module_name = _module_of(os.path.abspath(place))
    _check_name(place, module_name)
    sys.path.insert(0, root)
    return _import(module_name, None if "." in module_name else os.path.abspath(place)), name


def find(module: ModuleType, name: str) -> Target:
    """The function or entrypoint that is meant.

    Raises:
        InvalidError: there is none of this name, or no name was given and there are several.
    """
    targets = _targets(module)
    if name:
        found = targets.get(name)
        if found is None:
            raise InvalidError(f"{_file(module)} has no function {name}", hint=_choices(targets))
        return found
    return _only(module, targets)


def apps_of(module: ModuleType) -> list[App]:
    """The apps that a module has, each once.

    Raises:
        InvalidError: there is none.
    """
    from hostd.sdk.app import App

    apps = {id(value): value for value in vars(module).values() if isinstance(value, App)}
    if not apps:
        raise InvalidError(
            f"{_file(module)} has no app", hint='app = hostd.App("name") at its top level'
        )
    return list(apps.values())


def _module_of(path: str) -> tuple[str, str]:
    """The directory to import from and the dotted name; packages are followed upwards."""
    folder, names = os.path.dirname(path), [os.path.splitext(os.path.basename(path))[0]]
    while os.path.isfile(os.path.join(folder, "__init__.py")) and os.path.dirname(folder) != folder:
        names.insert(0, os.path.basename(folder))
        folder = os.path.dirname(folder)
    if names[-1] == "__init__" and len(names) > 1:
        names.pop()
    return folder, ".".join(names)


def _check_name(place: str, module_name: str) -> None:
    top = module_name.partition(".")[0]
    if top in getattr(sys, "stdlib_module_names", ()) or top in ("hostd", "click", "cloudpickle"):
        raise InvalidError(
            f"file {place} has the name of the module {top}, which it would hide",
            hint="give it another name",
        )


def _import(module_name: str, path: str | None) -> ModuleType:
    """Import by name, or from a file whose name need not be an identifier."""
    try:
        if path is None:
            return importlib.import_module(module_name)
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    except SyntaxError as error:
        lines = traceback.format_exception_only(SyntaxError, error)
        raise UserCodeError("".join(lines), 2) from None
    except Error as error:
        place = location(error)
        error.text = f"{place}: {error.text}" if place else error.text
        raise
    except ModuleNotFoundError as error:
        if error.name == module_name:
            raise InvalidError(f"module {module_name} cannot be found") from None
        raise UserCodeError(text_of(error), 1) from None
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        raise UserCodeError(text_of(error), 1) from None
    return module


def _targets(module: ModuleType) -> dict[str, Target]:
    """Entrypoints and functions by name; with several apps also by ``app.name``."""
    apps = apps_of(module)
    found: dict[str, Target] = {}
    for app in apps:
        named: dict[str, Target] = {**app.registered_functions, **app.registered_entrypoints}
        for name, target in named.items():
            found.setdefault(name, target)
            if len(apps) > 1 and app.name:
                found[f"{app.name}.{name}"] = target
    return found


def _only(module: ModuleType, targets: dict[str, Target]) -> Target:
    from hostd.sdk.entrypoint import LocalEntrypoint

    unique = list({id(target): target for target in targets.values()}.values())
    entrypoints = [target for target in unique if isinstance(target, LocalEntrypoint)]
    candidates = entrypoints or unique
    if len(candidates) == 1:
        return candidates[0]
    named_main = [target for target in candidates if target.name == "main"]
    if len(named_main) == 1:
        return named_main[0]
    if not candidates:
        raise InvalidError(
            f"{_file(module)} has an app without functions", hint="decorate one: @app.function()"
        )
    raise InvalidError(f"{_file(module)} has several functions", hint=_choices(targets))


def _choices(targets: dict[str, Target]) -> str:
    return f"it has {', '.join(sorted(targets)) or 'none'}"


def _file(module: ModuleType) -> str:
    return os.path.relpath(module.__file__) if module.__file__ else module.__name__
