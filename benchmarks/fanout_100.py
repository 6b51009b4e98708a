"""100 containers of one image, each answering one call; beside 100 bare ``runc run`` of the same tree."""

from __future__ import annotations

import argparse
import time

from benchmarks.functions import app, once
from benchmarks.measure import daemon, report, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--containers", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    times = []
    with daemon() as process:
        for _ in range(options.rounds):
            with app.run():
                begin = time.perf_counter()
                results = list(once.map(range(options.containers)))
                times.append(time.perf_counter() - begin)
                assert results == list(range(options.containers))
                used = process.client().request("GET", "/api/v1/containers?all=1")["items"]
                assert len(used) >= options.containers
    report(
        "fanout_100",
        {
            "all_answered": summary(times, unit="s"),
            "containers": options.containers,
            "bars": {"median_s": "<= 3"},
        },
    )


if __name__ == "__main__":
    main()
