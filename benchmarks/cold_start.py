"""First call of a function: image on the host, nothing running; beside docker where it is installed.

``start`` is the daemon's decision to the first line of user code, without the import of the user's
own module, from the call's waterfall. The floors of the same run: a bare interpreter in a chroot-like
process (``python -c pass``), and ``docker run`` of the same when a docker daemon answers.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time

from benchmarks.functions import app, once
from benchmarks.measure import daemon, report, summary, timed
from hostd.sdk.client import Client

BEFORE_USER_CODE = (
    "place",
    "image_index",
    "mount",
    "overlay",
    "runc_create",
    "boot",
    "connect",
    "fetch_code",
    "enter",
    "input_load",
)


def docker_seconds(rounds: int) -> list[float] | None:
    """``docker run`` of a no-op, or None where no docker daemon answers."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True).returncode
    ):
        return None
    command = ["docker", "run", "--rm", "debian:bookworm-slim", "true"]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    return [
        timed(lambda: subprocess.run(command, capture_output=True, check=True))
        for _ in range(rounds)
    ]


def wait_quiet(client: Client) -> None:
    """Wait until nothing of the last container is left: the next start is then the only work."""
    while client.request("GET", "/api/v1/status")["statistics"]["fs"]["rootfs"]:
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    starts, walls, imports = [], [], []
    phases: dict[str, list[float]] = {}
    with daemon() as process, app.run():
        once.remote(0)
        for number in range(options.rounds):
            wait_quiet(process.client())
            walls.append(timed(lambda number=number: once.remote(number)))  # type: ignore[misc]
            call = process.client().request("GET", "/api/v1/calls?limit=1")["items"][0]
            spans = call["phases_us"]
            assert call["start"] == "cold"
            starts.append(sum(spans.get(name, 0) for name in BEFORE_USER_CODE) / 1e6)
            imports.append(spans.get("import", 0) / 1e6)
            for name, value in spans.items():
                phases.setdefault(name, []).append(value / 1e6)
    docker = docker_seconds(min(options.rounds, 5))
    python = [
        timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True))
        for _ in range(options.rounds)
    ]
    report(
        "cold_start",
        {
            "start": summary(starts),
            "import": summary(imports),
            "wall": summary(walls),
            "phases": {name: summary(values)["median_ms"] for name, values in phases.items()},
            "bare_python": summary(python),
            "docker_run": summary(docker) if docker else "no docker daemon answers here",
            "bars": {"start_median_ms": "<= 60"},
        },
    )


if __name__ == "__main__":
    main()
