"""What a type checker infers in a user's module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

MODULE = """
from typing import AsyncIterator, Iterator
import hostd

app = hostd.App("typed", image=hostd.Image.debian_slim().pip_install("numpy"))

@app.function(cpu=1, memory=(128, 256), retries=hostd.Retries(max_retries=2))
def fit(alpha: float, *, steps: int = 3) -> dict[str, float]: ...

@app.function()
async def fetch(url: str) -> bytes: ...

@app.function()
def count(n: int) -> Iterator[int]: ...

@app.function()
async def count_async(n: int) -> AsyncIterator[int]:
    yield 1

@app.local_entrypoint()
def main(n: int = 1) -> str: ...

reveal_type(fit.remote(0.5))
reveal_type(fit.local(0.5))
reveal_type(fit.map([0.5]))
reveal_type(fit.starmap([(0.5,)], return_exceptions=True))
reveal_type(fetch.remote("u"))
reveal_type(count.remote_gen(3))
reveal_type(main(2))
reveal_type(hostd.is_local())
fit.remote("wrong")
fit.remote(0.5, stepz=3)
fit.remote_gen(0.5)
app.function(cpus=1)

async def others() -> None:
    reveal_type(await fit.remote.aio(0.5))
    reveal_type(fit.map.aio([0.5]))
    reveal_type(await fetch.local("u"))
    reveal_type(count.remote_gen.aio(3))
    reveal_type(count_async.local(3))
"""

REVEALED = {
    "fit.remote": "dict[str, float]",
    "fit.local": "dict[str, float]",
    "fit.map": "Iterator[dict[str, float]]",
    "fit.starmap": "Iterator[dict[str, float] | Exception]",
    "fetch.remote": "bytes",
    "count.remote_gen": "Iterator[int]",
    "main": "str",
    "is_local": "bool",
    "fit.remote.aio": "dict[str, float]",
    "fit.map.aio": "AsyncIterator[dict[str, float]]",
    "fetch.local": "bytes",
    "count.remote_gen.aio": "AsyncIterator[int]",
    "count_async.local": "AsyncIterator[int]",
}


@pytest.mark.slow
def test_mypy_infers_arguments_and_results(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="not here: mypy is not installed")
    (tmp_path / "typed.py").write_text(MODULE)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--follow-imports=silent",
         "--disable-error-code=empty-body", "--config-file=", "--cache-dir", f"{tmp_path}/cache",
         "typed.py"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
        env={"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    revealed = [line.split('"')[1] for line in lines if "Revealed type" in line]
    short = [text.replace("typing.", "").replace("builtins.", "") for text in revealed]
    assert short == list(REVEALED.values()), done.stdout + done.stderr
    errors = [line.rpartition("[")[2] for line in lines if ": error:" in line]
    assert errors == ["arg-type]", "call-arg]", "misc]", "call-arg]"], done.stdout
