"""Where the time of a call went."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hostd.model import PHASES, InputTimings
from hostd.scheduler.waterfall import LAUNCH_PHASES, Start, waterfall

RUN = InputTimings(input_load_us=10, run_us=200, output_store_us=5)


def test_warm_call_has_its_five_phases() -> None:
    phases = waterfall(queued_us=100, begun_us=150, answered_us=450, timings=RUN, start=None)
    assert phases == {"queue": 50, "input_load": 10, "run": 200, "output_store": 5, "deliver": 85}
    assert list(phases) == [name for name in PHASES if name in phases]


def test_cold_call_waits_for_the_start_of_its_container() -> None:
    start = Start(
        decided_us=110, ready_us=900, phases_us={"mount": 100, "boot": 300, "import": 350}
    )
    phases = waterfall(queued_us=100, begun_us=905, answered_us=1_205, timings=RUN, start=start)
    assert phases["place"] == 790 - 750
    assert (phases["mount"], phases["boot"], phases["import"]) == (100, 300, 350)
    assert phases["queue"] == 10 + 5
    assert sum(phases.values()) == 1_105


def test_input_that_came_during_the_start_waits_for_its_last_part_only() -> None:
    start = Start(
        decided_us=0, ready_us=1_000, phases_us={"mount": 200, "boot": 300, "import": 500}
    )
    phases = waterfall(queued_us=400, begun_us=1_000, answered_us=1_300, timings=RUN, start=start)
    assert "mount" not in phases
    assert (phases["boot"], phases["import"]) == (100, 500)
    assert sum(phases.values()) == 900


def test_measurements_longer_than_the_start_are_scaled() -> None:
    start = Start(decided_us=0, ready_us=100, phases_us={"boot": 300, "import": 100})
    phases = waterfall(queued_us=0, begun_us=100, answered_us=400, timings=RUN, start=start)
    assert (phases["boot"], phases["import"]) == (75, 25)


def test_runner_that_claims_too_much_is_cut() -> None:
    claimed = InputTimings(input_load_us=10, run_us=10**9, output_store_us=10**9)
    phases = waterfall(queued_us=0, begun_us=0, answered_us=50, timings=claimed, start=None)
    assert phases == {"input_load": 10, "run": 40}


us = st.integers(0, 10**9)


@given(us, us, us, us, us, st.dictionaries(st.sampled_from(LAUNCH_PHASES), us), st.booleans())
def test_phases_always_sum_to_the_wall_time(
    queued: int,
    wait: int,
    run: int,
    before: int,
    start_us: int,
    measured: dict[str, int],
    cold: bool,
) -> None:
    decided = queued - before if cold else queued
    ready = decided + start_us
    begun = max(queued + wait, ready)
    start = Start(decided_us=decided, ready_us=ready, phases_us=measured) if cold else None
    phases = waterfall(
        queued_us=queued, begun_us=begun, answered_us=begun + run, timings=RUN, start=start
    )
    assert sum(phases.values()) == begun + run - queued
    assert all(value > 0 for value in phases.values())
    assert set(phases) <= set(PHASES)
