"""What one container costs without image, runner or call: create, start, wait, delete of ``true``.

    python benchmarks/container_create.py [--oci runc|crun] [--rounds 30] [--fanout 100] [--parallel 4]

Needs root. Prints JSON: medians and p99 in ms, the time for many containers at once, and a baseline
of the same run: ``<oci> run`` of a specification with as much in it (new network namespace, masks,
seccomp list). Only ratios between the two travel from machine to machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hostd.clock import SystemClock
from hostd.config import RuntimeConfig
from hostd.runtime import ContainerSpec, Runtime, syscalls
from hostd.runtime.bundle import HostLimits, Placement, make_config
from hostd.runtime.cgroup import CgroupTree
from hostd.runtime.oci import find_program
from hostd.runtime.rootfs import User
from hostd.runtime.sweep import unmount_below
from tests import small_rootfs

BASELINE_GROUP = "hostd-bench-baseline"
STEPS = ("create", "start", "wait", "delete")


class Silence:
    """An output sink."""

    def line(self, stream: str, text: bytes, at_us: int) -> None:
        """Drop a line."""


def overlay(lower: Path, top: Path, name: str) -> Path:
    """A fresh root; 0.3 ms, not part of the figures. ``main`` unmounts all of them."""
    for part in ("upper", "work", "root"):
        (top / name / part).mkdir(parents=True)
    data = f"lowerdir={lower},upperdir={top}/{name}/upper,workdir={top}/{name}/work,volatile"
    syscalls.mount("overlay", top / name / "root", "overlay", data=data)
    return top / name / "root"


async def one(runtime: Runtime, name: str, root: Path) -> list[float]:
    """Times of the four steps, in ms."""
    marks = [time.perf_counter()]
    container = await runtime.create(
        ContainerSpec(id=name, rootfs=root, args=["true"], memory_limit_bytes=1 << 28), Silence()
    )
    marks.append(time.perf_counter())
    await container.start()
    marks.append(time.perf_counter())
    ended = await container.wait()
    marks.append(time.perf_counter())
    await container.delete()
    marks.append(time.perf_counter())
    assert ended.status == 0, ended
    return [(b - a) * 1e3 for a, b in itertools.pairwise(marks)]


async def fan_out(runtime: Runtime, roots: list[Path], parallel: int) -> float:
    """Seconds until the last of many containers has ended; deleting is not waited for."""
    gate = asyncio.Semaphore(parallel)
    containers = []

    async def through(n: int, root: Path) -> None:
        async with gate:
            spec = ContainerSpec(id=f"f{n}", rootfs=root, args=["true"])
            container = await runtime.create(spec, Silence())
            containers.append(container)
            await container.start()
            await container.wait()

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for n, root in enumerate(roots):
            group.create_task(through(n, root))
    took = time.perf_counter() - begun
    await asyncio.gather(*(container.delete() for container in containers))
    return took


def baseline(oci: str, top: Path, root: Path, n: int) -> float:
    """The same container by ``<oci> run``, in ms."""
    bundle = top / "bundle"
    bundle.mkdir(exist_ok=True)
    spec = ContainerSpec(id="base", rootfs=root, args=["true"], init=False)
    limits = HostLimits.read(swap_accounting=False, pure_v2=False)
    placement = Placement(cgroup=f"/{BASELINE_GROUP}/{n}", user=User(), netns=None)
    (bundle / "config.json").write_text(json.dumps(make_config(spec, placement, limits)))
    program = find_program(oci).path
    begun = time.perf_counter()
    command = [program, "--root", str(top / "state"), "run", "--bundle", str(bundle), f"base{n}"]
    subprocess.run(command, check=True, timeout=30)
    return (time.perf_counter() - begun) * 1e3


async def measure(options: argparse.Namespace, top: Path) -> dict[str, object]:
    """All figures; the baseline takes turns with ours."""
    lower = small_rootfs.build(top / "lower")
    config = RuntimeConfig(oci=options.oci)
    runtime = Runtime(config=config, run_dir=top / "run", clock=SystemClock())
    await runtime.start()
    ours, theirs = [], []
    try:
        root = overlay(lower, top, "single")
        for n in range(options.rounds):
            ours.append(await one(runtime, f"s{n}", root))
            if options.oci == "runc":
                theirs.append(baseline(options.oci, top, root, n))
        roots = [overlay(lower, top, f"r{n}") for n in range(options.fanout)]
        fanout_s = await fan_out(runtime, roots, options.parallel)
        program = runtime.program
    finally:
        await runtime.close()
    both = sorted(times[0] + times[1] for times in ours)
    return {
        "oci": f"{program.name} {program.version}",
        "n": options.rounds,
        "median_ms": {
            k: round(statistics.median(v), 2)
            for k, v in zip(STEPS, zip(*ours, strict=True), strict=True)
        },
        "create_and_start_ms": {
            "min": round(both[0], 1),
            "median": round(statistics.median(both), 1),
            "p99": round(both[int(len(both) * 0.99) - 1], 1),
        },
        "baseline_run_ms": round(statistics.median(theirs), 1) if theirs else None,
        "fanout": {
            "containers": options.fanout,
            "parallel": options.parallel,
            "s": round(fanout_s, 2),
        },
    }


def main() -> None:
    """Measure in a temporary directory on tmpfs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--oci", default="runc")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--fanout", type=int, default=100)
    parser.add_argument("--parallel", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostd-bench-", dir="/tmp") as directory:
        top = Path(directory)
        syscalls.mount("tmpfs", top, "tmpfs")
        try:
            print(json.dumps(uvloop.run(measure(options, top)), indent=1))
        finally:
            unmount_below(top)
            CgroupTree.read().everything(BASELINE_GROUP).remove()


if __name__ == "__main__":
    main()
