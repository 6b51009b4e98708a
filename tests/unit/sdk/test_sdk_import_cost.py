"""Defining an app in a container loads next to nothing; the sources are Python 3.9."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
BUDGET_MS = 15
TRIES = 7

DEFINE = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
before = set(sys.modules)
begin = time.perf_counter()
import hostd
image = hostd.Image.debian_slim().pip_install("numpy").apt_install("git").env({{"A": "1"}})
image = image.add_local_dir("data", "/data").add_local_python_source("lab")
app = hostd.App("cost", image=image)

@app.function(cpu=1, memory=(128, 256), retries=3, timeout=10)
def work(value):
    return value

@app.local_entrypoint()
def main():
    pass

assert work._hostd_raw(1) == 1
took_ms = (time.perf_counter() - begin) * 1e3
loaded = sorted(set(sys.modules) - before)
import json
print(json.dumps([took_ms, loaded]))
"""


def define() -> tuple[float, list[str]]:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", DEFINE],
        env={**os.environ, "HOSTD_IS_REMOTE": "1"},
        capture_output=True, text=True, check=True, timeout=30, cwd="/",
    )  # fmt: skip
    took_ms, modules = json.loads(done.stdout)
    return took_ms, modules


@pytest.mark.slow
def test_defining_an_app_takes_less_than_its_budget() -> None:
    assert min(define()[0] for _ in range(TRIES)) < BUDGET_MS


def test_defining_an_app_loads_only_small_modules() -> None:
    loaded = set(define()[1])
    assert {name for name in loaded if name.startswith("hostd")} == {
        "hostd", "hostd.errors", "hostd.sdk", "hostd.sdk.app", "hostd.sdk.context",
        "hostd.sdk.entry_module", "hostd.sdk.entrypoint", "hostd.sdk.function", "hostd.sdk.generic",
        "hostd.sdk.image", "hostd.sdk.local_files", "hostd.sdk.options", "hostd.sdk.retries",
    }  # fmt: skip
    assert loaded.isdisjoint(
        ["asyncio", "collections", "dataclasses", "enum", "functools", "inspect", "json", "pickle",
         "re", "shlex", "socket", "threading", "typing", "cloudpickle", "http", "pathlib"]
    )  # fmt: skip


def test_importing_hostd_alone_loads_nothing() -> None:
    code = "import sys; before = set(sys.modules); import hostd; print(set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, timeout=30,
        env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert set(ast.literal_eval(done.stdout)) <= {"hostd", "__future__"}


@pytest.mark.parametrize(
    "path",
    [ROOT / "hostd/__init__.py", ROOT / "hostd/errors.py", ROOT / "hostd/ids.py",
     *sorted((ROOT / "hostd/sdk").glob("*.py"))],
    ids=lambda path: path.name,
)  # fmt: skip
def test_sources_parse_as_python_3_9(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 9))
