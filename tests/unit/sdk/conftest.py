"""What the SDK's tests share: a fake host, and the sample app running on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd.sdk.client import Client
from tests.fakes import sample_functions
from tests.fakes.fake_api import FakeAPI


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAPI]:
    """A host that the environment names."""
    sample_functions.release.clear()
    monkeypatch.delenv("HOSTD_URL", raising=False)
    with FakeAPI(tmp_path) as fake:
        monkeypatch.setenv("HOSTD_SOCKET", str(fake.socket_path))
        yield fake
        sample_functions.release.set()


@pytest.fixture
def client(api: FakeAPI) -> Iterator[Client]:
    """A client of the fake host."""
    made = Client(socket_path=str(api.socket_path))
    yield made
    made.close()


@pytest.fixture
def running(api: FakeAPI) -> Iterator[FakeAPI]:
    """The sample app runs on the fake host."""
    with sample_functions.app.run():
        yield api
        sample_functions.release.set()
