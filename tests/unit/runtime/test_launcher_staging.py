"""The directory that containers get: complete, readable, without the daemon's code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hostd.runtime.staging import stage


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stage") / "lib"
    before = os.umask(0o077)
    try:
        stage(directory)
        stage(directory)  # once more, as a daemon that starts again
    finally:
        os.umask(before)
    return directory


def test_sdk_works_with_nothing_but_the_staged_files(lib: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(lib)!r})\n"
        "import hostd, cloudpickle, hostd.errors, hostd.runner.serve\n"
        "assert hostd.App and hostd.is_local\n"
        "print(hostd.__file__, cloudpickle.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.split() == [f"{lib}/hostd/__init__.py", f"{lib}/cloudpickle/__init__.py"]


def test_nothing_of_the_daemon_is_there(lib: Path) -> None:
    names = {path.name for path in (lib / "hostd").iterdir()} - {"__pycache__"}
    assert names == {"__init__.py", "errors.py", "ids.py", "runner", "sdk"}


def test_everything_is_readable_by_everybody(lib: Path) -> None:
    for path in lib.rglob("*"):
        wanted = 0o555 if path.is_dir() else 0o444
        assert path.stat().st_mode & wanted == wanted, path


def test_bytecode_of_this_interpreter_is_there(lib: Path) -> None:
    tag = sys.implementation.cache_tag
    for module in (lib / "hostd" / "runner").glob("*.py"):
        assert (module.parent / "__pycache__" / f"{module.stem}.{tag}.pyc").exists(), module
