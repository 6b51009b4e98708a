"""100 containers of one image, each answering one call, until the last answer is here.

The floor of the same run: 100 bare interpreters, ``python -c pass``, four at a time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from benchmarks.cold_start import wait_quiet
from benchmarks.functions import app, once
from benchmarks.measure import daemon, ratio, report, summary, timed


def bare_pythons() -> None:
    command = "seq 100 | xargs -P 4 -I{} " + sys.executable + " -c pass"
    subprocess.run(command, shell=True, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--containers", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--oci", default="runc", help="runc, crun or a path")
    options = parser.parse_args()
    times = []
    with daemon(**{"runtime.oci": options.oci}) as process:
        for _ in range(options.rounds):
            wait_quiet(process.client())
            with app.run():
                begin = time.perf_counter()
                results = list(once.map(range(options.containers)))
                times.append(time.perf_counter() - begin)
                assert results == list(range(options.containers))
                used = process.client().request("GET", "/api/v1/containers?all=1")["items"]
                assert len(used) >= options.containers
    floor = timed(bare_pythons)
    answered = summary(times, unit="s")
    report(
        "fanout_100",
        {
            "oci": options.oci,
            "containers": options.containers,
            "all_answered": answered,
            "bare_pythons_s": round(floor, 3),
            "answered_vs_bare_pythons": ratio(answered["median_s"], floor),
            "bars": {"median_s": "<= 3"},
        },
    )


if __name__ == "__main__":
    main()
