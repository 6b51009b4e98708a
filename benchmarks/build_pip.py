"""Adding one pip package to a cached image, and a rebuild with nothing changed.

The floor of the same run is pip itself: an overlay over the same parent, chroot, ``pip install``.
"""

from __future__ import annotations

import argparse
import time

from benchmarks.measure import daemon, ratio, report, summary
from hostd.sdk.client import Client

PARENT = [{"op": "from", "image": "debian_slim"}]


def build(steps: list[dict[str, object]]) -> tuple[float, list[dict[str, object]]]:
    begin = time.perf_counter()
    events = list(Client.from_env().lines("POST", "/api/v1/builds", {"recipe": {"steps": steps}}))
    assert events[-1]["kind"] == "done", events[-1]
    return time.perf_counter() - begin, events


def pip_seconds(events: list[dict[str, object]]) -> float:
    """What pip took inside the container, by the shell's own clock."""
    line = next(
        str(e["text"]) for e in events if e["kind"] == "line" and "pip-ns" in str(e["text"])
    )
    return int(line.split()[1]) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--package", default="six")
    options = parser.parse_args()
    command = (
        f"begin=$(date +%s%N); python3 -m pip install --no-cache-dir {options.package}; status=$?; "
        "echo pip-ns $(( $(date +%s%N) - begin )); exit $status"
    )
    walls, pips, again = [], [], []
    with daemon():
        build(PARENT)
        for _ in range(options.rounds):
            steps: list[dict[str, object]] = [
                *PARENT,
                {"op": "run", "command": command, "force": True},
            ]
            wall, events = build(steps)
            walls.append(wall)
            pips.append(pip_seconds(events))
        unchanged = [*PARENT, {"op": "run", "command": "true"}]
        build(unchanged)
        again = [build(unchanged)[0] for _ in range(options.rounds)]
    over = [wall - pip for wall, pip in zip(walls, pips, strict=True)]
    figures = {"build": summary(walls, unit="s"), "pip_itself": summary(pips, unit="s")}
    report(
        "build_pip",
        {
            **figures,
            "beyond_pip": summary(over, unit="s"),
            "build_vs_pip": ratio(figures["build"]["median_s"], figures["pip_itself"]["median_s"]),
            "nothing_changed": summary(again),
            "bars": {"beyond_pip_median_s": "<= 1", "nothing_changed_median_ms": "<= 300"},
        },
    )


if __name__ == "__main__":
    main()
