from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fakes.cluster_of_one import ClusterOfOne


@pytest.fixture
async def one() -> AsyncIterator[ClusterOfOne]:
    """A host of its own; what the test left of it satisfies every invariant."""
    cluster = ClusterOfOne()
    yield cluster
    cluster.scheduler.check()
