"""A real daemon, and the SDK of this process pointed at it."""

import os
import sys
from pathlib import Path

import pytest

from tests.daemon_process import DaemonProcess, shared_data_dir

PROGRAMS = Path(__file__).parent / "programs"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in Path(item.fspath).parents:
            item.add_marker(pytest.mark.root)


# Tests import the users' programs by name, as their users would.
sys.path.insert(0, str(PROGRAMS))


@pytest.fixture(scope="module")
def daemon():
    """One daemon for a module of tests, on the data directory that keeps built images."""
    with DaemonProcess(shared_data_dir()) as process:
        before = os.environ.get("HOSTD_SOCKET")
        os.environ["HOSTD_SOCKET"] = str(process.socket)
        yield process
        os.environ.pop("HOSTD_SOCKET", None)
        if before is not None:
            os.environ["HOSTD_SOCKET"] = before


@pytest.fixture
def program(tmp_path):
    """Write a user's file and return its path."""

    def write(text: str, name: str = "program.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
