"""One container's life, as a pure state machine.

    PULLING -> CREATING -> STARTING -> WARMING -> READY -> DRAINING -> STOPPING -> EXITED

Its image is made available, its bundle and mounts are made, its processes start, the function is
imported, it takes inputs, it takes no more, it was told to end, it is gone. A launcher may leave
out states on the way up. A stop leads from every phase to STOPPING, and the container's own end
from every phase to EXITED. Whether a ready container is busy is not a phase: inputs come and go
20,000 times a second and change nothing that this machine decides.

``step`` returns what the caller has to do. The last events of each container are kept: they are the
story in the text of an InvalidTransition, and what ``explain`` tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from hostd.ids import ContainerId

STORY_MAX = 16
"""Events that are kept: a whole ordinary life has eight."""


class Phase(StrEnum):
    """Where a container is in its life; named as in ui-spec A1, save READY and DRAINING."""

    PULLING = "pulling"
    CREATING = "creating"
    STARTING = "starting"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    EXITED = "exited"


LAUNCHING = (Phase.PULLING, Phase.CREATING, Phase.STARTING, Phase.WARMING)
"""In this order; it does not take inputs yet."""
LIVE = (*LAUNCHING, Phase.READY, Phase.DRAINING, Phase.STOPPING)
"""It holds its place on the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advanced:
    """The launcher reports the next step of the start."""

    at_us: int
    to: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class BecameReady:
    """The function is imported; inputs can be sent."""

    at_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested:
    """It shall take no more inputs; what it has may end. A stop follows."""

    at_us: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested:
    """It shall end; running code may finish within the grace."""

    at_us: int
    reason: str
    grace_s: float | None = None
    """None: the launcher's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KillRequested:
    """It shall end now."""

    at_us: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """It is gone, by itself or because it was told so."""

    at_us: int
    summary: str


Event = Advanced | BecameReady | DrainRequested | StopRequested | KillRequested | Exited


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """Tell everyone who watches that the state is this one now."""

    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopContainer:
    """Ask the launcher to end it."""

    grace_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KillContainer:
    """Make the launcher end it at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndStartTimer:
    """The start is over; its time limit does not matter any more."""


Effect = Announce | StopContainer | KillContainer | EndStartTimer


class InvalidTransition(Exception):
    """An event that cannot happen in this phase: a bug of ours. The text tells the story."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One container's right to a place on this host."""

    id: ContainerId
    begun_us: int
    phase: Phase = Phase.PULLING
    reason: str = ""
    """Why it was told to stop, or how it ended."""
    story: tuple[tuple[int, str], ...] = ()
    """Times and texts of the last events, oldest first."""

    @property
    def is_launching(self) -> bool:
        """Whether it is on its way up."""
        return self.phase in LAUNCHING


def _ups() -> dict[tuple[Phase, Phase], Phase]:
    """From each launching phase to every later one."""
    return {
        (early, late): late
        for place, early in enumerate(LAUNCHING)
        for late in LAUNCHING[place + 1 :]
    }


_UPS = _ups()

TRANSITIONS: Mapping[tuple[Phase, type[Event]], Phase] = {
    **{(phase, BecameReady): Phase.READY for phase in LAUNCHING},
    (Phase.READY, DrainRequested): Phase.DRAINING,
    **{(phase, StopRequested): Phase.STOPPING for phase in LIVE},
    **{(phase, KillRequested): Phase.STOPPING for phase in LIVE},
    **{(phase, Exited): Phase.EXITED for phase in LIVE},
    # A start that was under way when the stop came may still report what it reached.
    (Phase.STOPPING, BecameReady): Phase.STOPPING,
    (Phase.STOPPING, Advanced): Phase.STOPPING,
}
"""What each event leads to. ``Advanced`` while launching is in ``_UPS``: it only goes up."""


def step(allocation: Allocation, event: Event) -> tuple[Allocation, tuple[Effect, ...]]:
    """What the event makes of the container, and what is to be done.

    Raises:
        InvalidTransition: the event cannot happen in this phase.
    """
    phase = _next_phase(allocation, event)
    if phase is None:
        raise InvalidTransition(
            f"{_told(event)} in phase {allocation.phase} of {allocation.id}; {tell(allocation)}"
        )
    effects = _effects(allocation, event, phase)
    reason = allocation.reason
    if isinstance(event, DrainRequested | StopRequested | KillRequested):
        reason = reason or event.reason
    elif isinstance(event, Exited):
        reason = event.summary if not reason else f"{reason}; {event.summary}"
    story = (*allocation.story[1 - STORY_MAX :], (event.at_us, _told(event)))
    return replace(allocation, phase=phase, reason=reason, story=story), effects


def _next_phase(allocation: Allocation, event: Event) -> Phase | None:
    if isinstance(event, Advanced) and allocation.is_launching:
        # Told twice where it is: nothing changes.
        if event.to is allocation.phase:
            return event.to
        return _UPS.get((allocation.phase, event.to))
    return TRANSITIONS.get((allocation.phase, type(event)))


def _effects(allocation: Allocation, event: Event, phase: Phase) -> tuple[Effect, ...]:
    was_stopping = allocation.phase is Phase.STOPPING
    match event:
        case Advanced():
            return (
                () if was_stopping or allocation.phase is phase else (Announce(state=phase.value),)
            )
        case BecameReady():
            return () if was_stopping else (EndStartTimer(), Announce(state="idle"))
        case DrainRequested():
            return (Announce(state=Phase.STOPPING.value),)
        case StopRequested():
            return (
                () if was_stopping else (*_ending(allocation), StopContainer(grace_s=event.grace_s))
            )
        case KillRequested():
            return (KillContainer(),) if was_stopping else (*_ending(allocation), KillContainer())
        case Exited():
            return (EndStartTimer(), Announce(state=phase.value))
        case _:
            assert_never(event)


def _ending(allocation: Allocation) -> tuple[Effect, ...]:
    """What the first stop of a container entails, whichever it is."""
    if allocation.phase is Phase.DRAINING:
        return ()
    return (EndStartTimer(), Announce(state=Phase.STOPPING.value))


def _told(event: Event) -> str:
    match event:
        case Advanced():
            return event.to.value
        case BecameReady():
            return "ready"
        case DrainRequested():
            return f"draining ({event.reason})"
        case StopRequested():
            return f"stop requested ({event.reason})"
        case KillRequested():
            return f"kill requested ({event.reason})"
        case Exited():
            return f"exited ({event.summary})"
        case _:
            assert_never(event)


def tell(allocation: Allocation) -> str:
    """The container's story in one line: when, after its beginning, what happened."""
    told = [
        f"+{(at_us - allocation.begun_us) / 1e6:.3f} s {text}" for at_us, text in allocation.story
    ]
    return ", ".join(told) or "nothing happened yet"


def check(allocation: Allocation) -> None:
    """Assert what must and must not hold at any time."""
    assert len(allocation.story) <= STORY_MAX, allocation.id
    assert all(at_us >= allocation.begun_us for at_us, _ in allocation.story), allocation.story
    if allocation.phase in (Phase.DRAINING, Phase.STOPPING, Phase.EXITED):
        assert allocation.reason, f"{allocation.id} is {allocation.phase} without a reason"
    else:
        assert not allocation.reason, f"{allocation.id} is {allocation.phase}: {allocation.reason}"
