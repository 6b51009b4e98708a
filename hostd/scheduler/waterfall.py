"""Where the time of a call's first input went: the 16 phases of ``model.PHASES``. Pure.

The spans lie end to end from the arrival of the input to the hand-over of its output, so their sum
is the wall time. What nobody measured is not lost: of a start it goes to ``place`` (between the
decision and the launcher's first step), of a run to ``deliver`` (the way to the container and
back).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hostd.model import PHASES, InputTimings

LAUNCH_PHASES = PHASES[PHASES.index("place") : PHASES.index("input_load")]
"""Parts of a start, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The start of the container that took the input."""

    decided_us: int
    ready_us: int
    phases_us: Mapping[str, int]
    """As the launcher measured them."""


def waterfall(
    *,
    queued_us: int,
    begun_us: int,
    answered_us: int,
    timings: InputTimings,
    start: Start | None,
) -> dict[str, int]:
    """Phase to microseconds; absent ones are 0.

    Args:
        queued_us: the input arrived.
        begun_us: it was the container's turn: sent, and nothing before it in the container.
        answered_us: its output arrived.
        timings: what the runner measured.
        start: of a container that became ready after the input had arrived; None: a warm start.
    """
    assert queued_us <= begun_us <= answered_us, (queued_us, begun_us, answered_us)
    phases = _launch(queued_us, start) if start is not None else {}
    phases["queue"] = begun_us - queued_us - sum(phases.values())
    left = answered_us - begun_us
    for name, measured in (
        ("input_load", timings.input_load_us),
        ("run", timings.run_us),
        ("output_store", timings.output_store_us),
    ):
        phases[name] = min(max(measured, 0), left)
        left -= phases[name]
    phases["deliver"] = left
    assert sum(phases.values()) == answered_us - queued_us, phases
    return {name: phases[name] for name in PHASES if phases.get(name)}


def _launch(queued_us: int, start: Start) -> dict[str, int]:
    """The part of the start that the input waited for."""
    elapsed = start.ready_us - start.decided_us
    waited = start.ready_us - max(queued_us, start.decided_us)
    if waited <= 0 or elapsed <= 0:
        return {}
    spans = {name: max(0, start.phases_us.get(name, 0)) for name in LAUNCH_PHASES}
    total = sum(spans.values())
    if total > elapsed:
        # Steps that overlapped: keep their proportions.
        spans = {name: span * elapsed // total for name, span in spans.items()}
    spans["place"] += elapsed - sum(spans.values())
    # An input that arrived in the middle of the start waited for its last part only.
    skip = elapsed - waited
    for name in LAUNCH_PHASES:
        cut = min(skip, spans[name])
        spans[name] -= cut
        skip -= cut
    assert sum(spans.values()) == waited, (spans, waited)
    return spans
