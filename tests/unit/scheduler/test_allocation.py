"""A container's life: every phase and event, effects, the story."""

from __future__ import annotations

import itertools

import pytest

from hostd.ids import ContainerId
from hostd.scheduler.allocation import (
    LAUNCHING,
    LIVE,
    STORY_MAX,
    Advanced,
    Allocation,
    Announce,
    BecameReady,
    DrainRequested,
    EndStartTimer,
    Event,
    Exited,
    InvalidTransition,
    KillContainer,
    KillRequested,
    Phase,
    StopContainer,
    StopRequested,
    check,
    step,
    tell,
)

CT = ContainerId("ct-1")
STOP = StopRequested(at_us=9, reason="idle for 60 s")
KILL = KillRequested(at_us=9, reason="hangs")
DRAIN = DrainRequested(at_us=9, reason="timeout")
EXIT = Exited(at_us=9, summary="exit code 0")
READY = BecameReady(at_us=9)


def run(*events: Event) -> tuple[Allocation, list[object]]:
    allocation, effects = Allocation(id=CT, begun_us=0), []
    for event in events:
        allocation, made = step(allocation, event)
        check(allocation)
        effects.extend(made)
    return allocation, effects


def in_phase(phase: Phase) -> Allocation:
    reached: dict[Phase, tuple[Event, ...]] = {
        Phase.PULLING: (),
        Phase.CREATING: (Advanced(at_us=1, to=Phase.CREATING),),
        Phase.STARTING: (Advanced(at_us=1, to=Phase.STARTING),),
        Phase.WARMING: (Advanced(at_us=1, to=Phase.WARMING),),
        Phase.READY: (READY,),
        Phase.DRAINING: (READY, DRAIN),
        Phase.STOPPING: (STOP,),
        Phase.EXITED: (EXIT,),
    }
    return run(*reached[phase])[0]


def test_ordinary_life_announces_each_state_once() -> None:
    allocation, effects = run(
        *(Advanced(at_us=n, to=phase) for n, phase in enumerate(LAUNCHING)), READY, STOP, EXIT
    )
    assert allocation.phase is Phase.EXITED
    assert [each.state for each in effects if isinstance(each, Announce)] == [
        "creating", "starting", "warming", "idle", "stopping", "exited",
    ]  # fmt: skip


@pytest.mark.parametrize(("early", "late"), list(itertools.combinations(LAUNCHING, 2)))
def test_launch_may_skip_states_but_never_goes_back(early: Phase, late: Phase) -> None:
    assert step(in_phase(early), Advanced(at_us=9, to=late))[0].phase is late
    with pytest.raises(InvalidTransition, match=early.value):
        step(in_phase(late), Advanced(at_us=9, to=early))


def test_state_that_is_told_twice_changes_nothing() -> None:
    again = Advanced(at_us=9, to=Phase.CREATING)
    assert step(in_phase(Phase.CREATING), again)[1] == ()


@pytest.mark.parametrize("phase", LAUNCHING)
def test_stop_while_launching_ends_the_start_timer(phase: Phase) -> None:
    allocation, effects = step(in_phase(phase), STOP)
    assert allocation.phase is Phase.STOPPING
    stop = (EndStartTimer(), Announce(state="stopping"), StopContainer(grace_s=None))
    assert effects == stop


@pytest.mark.parametrize("phase", LIVE)
def test_every_live_phase_ends_with_the_container(phase: Phase) -> None:
    allocation, effects = step(in_phase(phase), EXIT)
    assert allocation.phase is Phase.EXITED
    assert Announce(state="exited") in effects
    assert "exit code 0" in allocation.reason


@pytest.mark.parametrize("event", [STOP, KILL, DRAIN, EXIT, READY])
def test_nothing_happens_after_the_end(event: Event) -> None:
    with pytest.raises(InvalidTransition, match="in phase exited of ct-1"):
        step(in_phase(Phase.EXITED), event)


def test_second_stop_does_nothing_and_a_kill_still_kills() -> None:
    stopping = in_phase(Phase.STOPPING)
    assert step(stopping, STOP)[1] == ()
    assert step(stopping, KILL)[1] == (KillContainer(),)


def test_readiness_that_comes_after_the_stop_is_ignored() -> None:
    allocation, effects = step(in_phase(Phase.STOPPING), READY)
    assert (allocation.phase, effects) == (Phase.STOPPING, ())
    late = Advanced(at_us=9, to=Phase.WARMING)
    assert step(allocation, late)[0].phase is Phase.STOPPING


def test_draining_announces_the_stop_and_the_stop_follows_silently() -> None:
    _, effects = run(READY, DRAIN, STOP, EXIT)
    told = [each.state for each in effects if isinstance(each, Announce)]
    assert told == ["idle", "stopping", "exited"]
    assert StopContainer(grace_s=None) in effects


@pytest.mark.parametrize("phase", [each for each in Phase if each is not Phase.READY])
def test_only_ready_containers_drain(phase: Phase) -> None:
    with pytest.raises(InvalidTransition):
        step(in_phase(phase), DRAIN)


def test_first_reason_is_kept_and_the_exit_is_added() -> None:
    allocation, _ = run(READY, DRAIN, KILL, EXIT)
    assert allocation.reason == "timeout; exit code 0"


def test_story_keeps_the_last_events_and_is_in_the_error() -> None:
    allocation, _ = run(READY, *[DRAIN], *[STOP] * 40)
    assert len(allocation.story) == STORY_MAX
    with pytest.raises(InvalidTransition, match=r"stop requested \(idle for 60 s\)"):
        step(allocation, DRAIN)
    assert tell(in_phase(Phase.CREATING)) == "+0.000 s creating"
