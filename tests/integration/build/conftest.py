"""Real builds: mmdebstrap's base image, runc, overlays, the store."""

from pathlib import Path

import pytest

from hostd.config import BuildConfig
from tests.integration.build.workshop import open_workshop

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(item.fspath).parents:
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
async def workshop(tmp_path_factory, anyio_backend):
    """One builder for the tests of a module."""
    data_dir = tmp_path_factory.mktemp("build") / "data"
    async with open_workshop(data_dir, BuildConfig()) as opened:
        yield opened
