"""Promises of cpu and memory: never more than the host has, and nothing waits for ever."""

from __future__ import annotations

import pytest

from hostd.errors import NoCapacityError
from hostd.scheduler.capacity import Resources
from tests.fakes.cluster_of_one import ClusterOfOne
from tests.unit.scheduler.test_scheduler_scaling import ready_all, started

TWO_CORES = Resources(cpu=2.0, memory_mib=4_096)


@pytest.fixture
def small() -> ClusterOfOne:
    return ClusterOfOne(capacity=TWO_CORES)


async def test_promised_cores_never_exceed_those_there_are(small: ClusterOfOne) -> None:
    small.call(small.function(cpu=1.0), *[b"x"] * 40)
    for _ in range(4):
        ready_all(small)
        small.advance(1.0)
    assert started(small) == 2


async def test_promised_memory_never_exceeds_what_there_is(small: ClusterOfOne) -> None:
    small.call(small.function(memory_mib=1_500), *[b"x"] * 40)
    for _ in range(4):
        ready_all(small)
        small.advance(1.0)
    assert started(small) == 2


async def test_fractions_of_a_core_add_up_exactly(small: ClusterOfOne) -> None:
    small.function(cpu=0.1, min_containers=20)
    assert started(small) == 20


async def test_who_asks_for_nothing_always_fits(small: ClusterOfOne) -> None:
    small.function("full", cpu=2.0, min_containers=1)
    small.call(small.function("free"), b"x", kind="unary")
    assert started(small) == 2


async def test_a_full_host_gives_way_when_a_container_ends(small: ClusterOfOne) -> None:
    small.container(small.function("first", cpu=2.0))
    second = small.function("second", cpu=2.0)
    call = small.call(second, b"x", kind="unary")
    small.advance(1.0)
    (idle,) = (each for each in small.launcher.live if each.is_told_to_end)
    idle.exit(None, "stopped on request")
    small.advance(1.0)
    small.launcher.last.ready()
    small.launcher.last.answer()
    assert small.sink.results(call) == [(0, "ok")]


async def test_waiting_for_room_is_explained_with_numbers(small: ClusterOfOne) -> None:
    busy = small.function("busy", cpu=2.0)
    small.call(busy, b"x", kind="unary")
    small.launcher.last.ready()
    call = small.call(small.function("late", cpu=1.5, memory_mib=100), b"x", kind="unary")
    small.advance(0.5)
    sentence = (await small.scheduler.explain(call)).sentence
    assert "cpu=1.5 and memory=100 MiB" in sentence
    assert "cpu=0 and memory=4096 MiB left" in sentence


@pytest.mark.parametrize("fields", [{"cpu": 2.5}, {"memory_mib": 5_000}])
async def test_what_could_never_run_is_refused_at_once(small: ClusterOfOne, fields) -> None:
    with pytest.raises(NoCapacityError, match="the largest has"):
        small.function(**fields)
