"""Scripts and prompts as users run them: ``python sweep.py``, ``python -``, a notebook's cells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.fake_api import FakeAPI

ROOT = Path(__file__).resolve().parents[3]
WAIT_S = 30

SWEEP = """
import pathlib, sys
import hostd

app = hostd.App("sweep")

class Point:
    def __init__(self, x):
        self.x = x

class PointError(Exception):
    pass

@app.function()
def move(point):
    assert type(point).__module__ == "sweep", type(point).__module__
    import sweep
    assert isinstance(point, sweep.Point)
    return Point(point.x + 1)

@app.function()
def fail():
    raise PointError("no point")

@app.function()
def apply(function, value):
    return function(value)

def twice(value):
    return 2 * value

if __name__ == "__main__":
    with app.run():
        moved = move.remote(Point(1))
        assert type(moved) is Point, type(moved)
        print(moved.x, apply.remote(twice, 4), apply.remote(lambda v: v + 1, 4))
        try:
            fail.remote()
        except PointError as error:
            print("caught", error)
"""


def run(api: FakeAPI, args: list[str], cwd: Path, text: str | None = None) -> str:
    environ = {**os.environ, "HOSTD_SOCKET": str(api.socket_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *args], env=environ, cwd=cwd, input=text, capture_output=True, text=True,
        timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def as_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the fake host, which runs here, import what the script brought."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "sweep.py").write_text(SWEEP)
    return tmp_path


@pytest.mark.slow
def test_classes_of_a_script_are_the_same_on_both_sides(api: FakeAPI, as_container: Path) -> None:
    try:
        out = run(api, ["sweep.py"], as_container)
    finally:
        sys.modules.pop("sweep", None)
    assert out == "2 8 5\ncaught no point\n"
    (app,) = api.apps.values()
    move = app["functions"][0]
    assert (app["name"], move["module"], move["qualname"]) == ("sweep", "sweep", "move")
    assert [file["path"] for file in move["source"]] == ["/root/sweep.py"]


PROMPT = """
import hostd
app = hostd.App()
{decorator}
def add(a, b=1):
    return a + b + OFFSET
OFFSET = 100
class Box:
    def __init__(self, value): self.value = value
@app.function(serialized=True)
def unbox(box): return Box(box.value + add.local(1))
with app.run():
    print(add.remote(1), unbox.remote(Box(5)).value)
"""


@pytest.mark.slow
def test_functions_of_a_prompt_travel_by_value(api: FakeAPI, tmp_path: Path) -> None:
    out = run(api, ["-"], tmp_path, PROMPT.format(decorator="@app.function(serialized=True)"))
    assert out == "102 107\n"
    (app,) = api.apps.values()
    assert app["functions"][0]["python_version"] == "{}.{}".format(*sys.version_info)
    assert app["functions"][0]["source"] == []


@pytest.mark.slow
def test_functions_of_a_prompt_that_are_not_serialized_get_the_hint(
    api: FakeAPI, tmp_path: Path
) -> None:
    text = PROMPT.format(decorator="@app.function()")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-"], env=environ, cwd=tmp_path, input=text, capture_output=True,
        text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert "InvalidError: function add was defined at a prompt or in a notebook" in done.stderr


NOTEBOOK = """
import sys, warnings
warnings.simplefilter("error")
sys.ps1 = ">>> "
cells = [
    "import hostd; app = hostd.App('notes')",
    "@app.function(serialized=True)\\ndef f(x): return x + 1",
    "with app.run(): print(f.remote(1))",
    "@app.function(serialized=True)\\ndef f(x): return x + 2",
    "with app.run(): print(f.remote(1), list(f.map([1, 2])))",
    "@app.local_entrypoint()\\ndef main(): pass",
    "@app.local_entrypoint()\\ndef main(): pass",
]
for cell in cells:
    exec(compile(cell, "<cell>", "exec"), globals())
"""


@pytest.mark.slow
def test_cells_can_be_run_again(api: FakeAPI, tmp_path: Path) -> None:
    assert run(api, ["-"], tmp_path, NOTEBOOK) == "2\n3 [3, 4]\n"
    assert len(api.stopped) == 2
