"""How many containers a function gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.scheduler.autoscaler import (
    BACKOFF_MAX_US,
    FIRST_STARTS,
    Limits,
    Load,
    backoff_us,
    check,
    containers_to_start,
    containers_to_stop,
    desired_containers,
)

SECOND = 1_000_000
MINUTE = Limits(scaledown_window_us=60 * SECOND)


def desired(queued: int = 0, running: int = 0, *, limits: Limits = MINUTE, **load: float) -> int:
    return desired_containers(Load(queued=queued, running=running, **load), limits)


def test_idle_function_needs_nothing() -> None:
    assert desired() == 0


def test_each_input_gets_a_container_while_nobody_knows_how_long_it_takes() -> None:
    assert desired(queued=7, running=2) == 9


def test_each_long_input_gets_a_container() -> None:
    assert desired(queued=100, running=1, run_us=10 * SECOND, start_us=300_000) == 101


def test_no_ops_do_not_get_a_container_each() -> None:
    assert desired(queued=1_000, running=1, run_us=100, start_us=300_000) == 1
    assert desired(queued=1_000, running=1, run_us=1_000, start_us=300_000) == 4


def test_queue_without_containers_gets_one_however_short_its_inputs() -> None:
    assert desired(queued=5, run_us=10) == 1


def test_function_that_turned_slow_is_noticed_before_its_inputs_return() -> None:
    assert desired(queued=50, running=4, run_us=100, age_us=20 * SECOND) == 54


def test_single_use_always_gets_a_container_per_input() -> None:
    limits = Limits(single_use=True)
    assert desired(queued=100, running=3, run_us=10, limits=limits) == 103


def test_minimum_holds_without_work_and_maximum_with_it() -> None:
    limits = Limits(min_containers=2, max_containers=3)
    assert desired(limits=limits) == 2
    assert desired(queued=50, limits=limits) == 3
    assert desired(limits=Limits(min_containers=9, max_containers=3)) == 3


def test_buffer_is_added_while_there_is_work_only() -> None:
    limits = Limits(buffer_containers=2)
    assert desired(limits=limits) == 0
    assert desired(running=1, limits=limits) == 3


def start(queued: int, *, limits: Limits = MINUTE, run_us: float | None = 9e9, **have: int) -> int:
    counts = {"starting": 0, "ready": 0, "stopping": 0, **have}
    load = Load(queued=queued, running=counts["ready"], run_us=run_us)
    return containers_to_start(load, limits, **counts)


def test_only_what_is_missing_is_started() -> None:
    assert start(10) == 10
    assert start(10, starting=4) == 6
    assert start(3, starting=4) == 0


def test_ending_containers_count_against_the_maximum() -> None:
    limits = Limits(max_containers=5)
    assert start(10, limits=limits, stopping=3) == 2
    assert start(10, limits=limits, ready=2, stopping=3) == 0


def test_first_starts_of_an_unknown_function_are_few() -> None:
    assert start(100, run_us=None) == FIRST_STARTS
    assert start(100, run_us=None, starting=FIRST_STARTS) == 0
    assert start(100, run_us=None, ready=3) == FIRST_STARTS + 6
    assert start(100, run_us=None, limits=Limits(single_use=True)) == 100
    assert start(0, run_us=None, limits=Limits(min_containers=20)) == 20


def test_only_containers_idle_for_the_whole_window_are_ended() -> None:
    idle = [0, 10 * SECOND, 50 * SECOND]
    common = {"ready": 3, "limits": MINUTE}
    assert containers_to_stop(idle, desired=0, now_us=59 * SECOND, **common) == 0
    assert containers_to_stop(idle, desired=0, now_us=70 * SECOND, **common) == 2
    assert containers_to_stop(idle, desired=2, now_us=200 * SECOND, **common) == 1
    assert containers_to_stop(idle, desired=5, now_us=200 * SECOND, **common) == 0


def test_backoff_doubles_up_to_its_maximum() -> None:
    assert [backoff_us(n) for n in range(4)] == [0, 250_000, 500_000, 1_000_000]
    assert backoff_us(1_000) == BACKOFF_MAX_US


counts = st.integers(0, 5_000)


@given(
    load=st.builds(
        Load,
        queued=counts,
        running=counts,
        run_us=st.none() | st.floats(0, 1e12),
        age_us=st.floats(0, 1e12),
        start_us=st.none() | st.floats(0, 1e9),
    ),
    limits=st.builds(
        Limits,
        min_containers=st.integers(0, 50),
        max_containers=st.none() | st.integers(1, 50),
        buffer_containers=st.integers(0, 9),
        single_use=st.booleans(),
    ),
)
def test_any_load_gets_a_number_within_its_limits(load: Load, limits: Limits) -> None:
    check(load, limits)


@pytest.mark.parametrize("run_us", [None, 1.0, 1e9])
def test_limits_hold_whatever_the_running_time(run_us: float | None) -> None:
    assert desired(queued=1_000, run_us=run_us or 0.0, limits=Limits(max_containers=7)) <= 7
