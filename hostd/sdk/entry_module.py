"""Which module a function belongs to, seen from a container.

A script that runs as ``__main__`` here is an ordinary module there: ``python sweep.py`` becomes
module ``sweep``, ``python -m lab.sweep`` becomes ``lab.sweep``. A prompt or a notebook has no
module: its functions travel by value (``serialized=True``).
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


def container_name(module_name: str) -> str | None:
    """What a module is called in a container; None when it has no file to bring there."""
    if module_name != "__main__":
        return module_name
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return str(spec.name)
    path: str | None = getattr(main, "__file__", None)
    if not path or not os.path.isfile(path):
        return None
    return os.path.splitext(os.path.basename(path))[0]


def file_of(module: ModuleType) -> str | None:
    """The source file of a module, absolute; None when there is none (a prompt, a builtin)."""
    path: str | None = getattr(module, "__file__", None)
    if not path or not path.endswith((".py", ".pyc")) or not os.path.isfile(path):
        return None
    return os.path.abspath(path)


def bring_script() -> None:
    """Note that the running script is in the containers, under its name as a module.

    Results name their classes as the container sees them (``sweep.Point``). The script is therefore
    known here under that name as well: otherwise unpickling one would import the script again and
    build objects of a second class ``Point``.
    """
    name = container_name("__main__")
    if name is not None and name != "__main__":
        sys.modules.setdefault(name, sys.modules["__main__"])
        _brought.add(name)


def script_name() -> str | None:
    """The name of the running script in containers; None when it is not brought there."""
    name = container_name("__main__")
    return name if name in _brought else None


_brought: set[str] = set()
