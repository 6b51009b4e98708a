"""The directory that every function container gets as ``/run/hostd/lib``.

It holds what the runner and the SDK need and nothing of the daemon. It is made once per start of
the daemon. Bytecode is made by interpreters of the host only: what a container says is bytecode
must not run in another one.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hostd
from hostd.errors import ContainerStartError
from hostd.log import get_logger

log = get_logger(__name__)

MODULES = ("__init__.py", "errors.py", "ids.py")
PACKAGES = ("sdk", "runner")
LIBRARIES = ("cloudpickle",)
"""For values that the standard pickler refuses, also in images that do not have it."""

COMPILE_TIMEOUT_S = 30.0
"""Some thirty files; a fraction of a second when the machine is idle."""


def stage(directory: Path) -> None:
    """Make the directory afresh; blocking.

    Raises:
        ContainerStartError: a part of this installation is missing.
    """
    temporary = directory.with_name(f"{directory.name}.new")
    for path in (temporary, directory):
        shutil.rmtree(path, ignore_errors=True)
    package = temporary / "hostd"
    package.mkdir(parents=True)
    source = Path(hostd.__file__).parent
    for name in MODULES:
        shutil.copyfile(source / name, package / name)
    for name in PACKAGES:
        _copy_package(source / name, package / name)
    for name in LIBRARIES:
        _copy_package(_library(name), temporary / name)
    _make_readable(temporary)
    for python in _interpreters():
        _compile(python, temporary)
    temporary.rename(directory)


def _copy_package(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.md"))


def _library(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ContainerStartError(
            f"the library {name} is not installed", hint="install hostd again"
        )
    return Path(found.submodule_search_locations[0])


def _make_readable(directory: Path) -> None:
    """Containers may run as any user, and the daemon's umask may be strict."""
    for parent, _, names in os.walk(directory):
        os.chmod(parent, 0o755)  # noqa: S103 - they are read by any user of a container
        for name in names:
            os.chmod(os.path.join(parent, name), 0o644)


def _interpreters() -> list[str]:
    """Ours and the system's own, which images made from the host's packages have too."""
    system = shutil.which("python3", path="/usr/bin:/bin")
    ours = sys.executable
    return [ours] if system is None or os.path.samefile(system, ours) else [ours, system]


def _compile(python: str, directory: Path) -> None:
    """Write bytecode that is used without a look at the source's time; failing costs speed only."""
    command = [python, "-I", "-m", "compileall", "-qq", "--invalidation-mode", "unchecked-hash"]
    try:
        subprocess.run(
            [*command, str(directory)],
            check=False,
            timeout=COMPILE_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            umask=0o022,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("no bytecode for containers", python=python, error=str(error))
