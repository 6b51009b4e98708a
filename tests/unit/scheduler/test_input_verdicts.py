"""Which outcomes of an input are tried again, and when."""

from __future__ import annotations

from typing import Any, cast

import pytest

from hostd.model import Retries
from hostd.scheduler.calls import LOSSES_MAX, Again, Cause, Final, Input, retry_delay_s

NONE = Retries()
THREE = Retries(max_retries=3, initial_delay_s=1.0, backoff_coefficient=2.0, max_delay_s=3.0)


def entry() -> Input:
    return Input(cast("Any", None), 0, b"", 0)


def test_retries_wait_longer_each_time_up_to_the_maximum() -> None:
    assert [retry_delay_s(THREE, n) for n in (1, 2, 3)] == [1.0, 2.0, 3.0]


def test_largest_settings_do_not_overflow() -> None:
    most = Retries(max_retries=100, backoff_coefficient=10.0, initial_delay_s=60.0)
    assert retry_delay_s(most, 100) == 60.0


@pytest.mark.parametrize("cause", [Cause.RAISED, Cause.TIMED_OUT, Cause.DIED])
def test_failures_use_up_the_functions_retries(cause: Cause) -> None:
    tried = entry()
    verdicts = [tried.verdict(cause, THREE) for _ in range(4)]
    assert verdicts == [Again(1.0), Again(2.0), Again(3.0), Final()]


@pytest.mark.parametrize("cause", [Cause.RAISED, Cause.TIMED_OUT, Cause.DIED, Cause.FAILED])
def test_without_retries_the_first_failure_is_final(cause: Cause) -> None:
    assert entry().verdict(cause, NONE) == Final()


def test_unpicklable_results_are_not_tried_again() -> None:
    assert entry().verdict(Cause.FAILED, THREE) == Final()


def test_lost_inputs_run_again_at_once_without_using_a_retry() -> None:
    lost = entry()
    assert [lost.verdict(Cause.LOST, NONE) for _ in range(LOSSES_MAX)] == [Again(0.0)] * LOSSES_MAX
    assert lost.verdict(Cause.LOST, NONE) == Final()
    assert lost.failures == 0


@pytest.mark.parametrize("cause", list(Cause))
def test_nothing_is_repeated_after_a_value_was_delivered(cause: Cause) -> None:
    started = entry()
    started.yielded = True
    assert started.verdict(cause, THREE) == Final()
