"""Rules of the house for all tests.

- asyncio tests run on asyncio (``anyio_backend``).
- Tests marked ``root`` need root, those marked ``gpu`` an NVIDIA device; others skip them.
- With ``HOSTD_TEST_STRICT=1`` (``make test``, CI) a skip is a failure, unless its reason begins
  with ``not here:``: the test says that this machine cannot run it, and why.
- A test may leave no mount below its own folder and no process behind.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

STRICT = os.environ.get("HOSTD_TEST_STRICT") == "1"
ALLOWED_SKIP = "not here:"
LEAK_WAIT_S = 3.0
"""Ending processes may need a moment; one that still lives after this was forgotten."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop that the daemon runs on."""
    return "asyncio"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run."""
    is_root = os.geteuid() == 0
    has_gpu = Path("/dev/nvidiactl").exists()
    for item in items:
        if item.get_closest_marker("root") and not is_root:
            item.add_marker(pytest.mark.skip(reason=_no_root()))
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason=f"{ALLOWED_SKIP} there is no NVIDIA device"))


def _no_root() -> str:
    # CI must run them: there the missing root is a broken set-up, not a property of the machine.
    return "needs root" if os.environ.get("CI") else f"{ALLOWED_SKIP} needs root"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Turn a skip that nobody allowed into a failure."""
    report = yield
    return _strict(report)  # type: ignore[return-value]  # hook wrappers return the hook's result


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """The same for a module that skips itself when it is collected."""
    report = yield
    return _strict(report)  # type: ignore[return-value]  # as above


def _strict(report: object) -> object:
    assert isinstance(report, pytest.TestReport | pytest.CollectReport)
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(ALLOWED_SKIP):
            report.outcome = "failed"
            report.longrepr = f"skipped although HOSTD_TEST_STRICT is set: {reason}"
    return report


@pytest.fixture(autouse=True)
def _leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a mount below pytest's folder, or a child process."""
    # Fixtures of wider scope were set up before this one: theirs are in the first snapshot.
    before = _mounts(request), _children()
    yield
    deadline = time.monotonic() + LEAK_WAIT_S
    while True:
        mounts, children = _mounts(request) - before[0], _children() - before[1]
        if not mounts and not children:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: mounts {sorted(mounts)}, processes {sorted(children)}")
        time.sleep(0.02)


def _mounts(request: pytest.FixtureRequest) -> set[str]:
    factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    top = f"{factory.getbasetemp()}/"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {point for line in lines if (point := line.split()[4]).startswith(top)}


def _children() -> set[str]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        for pid in _read(task / "children").split():
            command = _read(Path("/proc", pid, "cmdline")).replace("\0", " ").strip()
            if "multiprocessing.resource_tracker" not in command:
                found.add(f"{pid} {command or '(ended, not waited for)'}")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it ended while we looked
