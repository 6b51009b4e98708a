"""What exists on this machine because of one daemon; equal before and after a test.

Only things that carry the run directory's own name are counted, so that other programs and other
tests of the same machine do not matter.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from hostd.runtime.naming import Names

CGROUPS = Path("/sys/fs/cgroup")
SETTLE_S = 3.0
"""For what the kernel frees in the background: network devices of an ended namespace."""


def take(run_dir: Path) -> frozenset[str]:
    """Everything that belongs to a run directory, one line each."""
    names = Names.of(run_dir)
    found = _mounts(run_dir) | _cgroups(names) | _links(names) | _tables(names)
    return frozenset(found | _processes(run_dir))


def diff(before: frozenset[str], run_dir: Path) -> list[str]:
    """What is there now and was not before; waits a moment for what is on its way out."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        more = sorted(take(run_dir) - before)
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.02)


def _mounts(run_dir: Path) -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = (line.split()[4] for line in lines)
    return {f"mount {p}" for p in points if p.startswith(f"{run_dir}/") or p == str(run_dir)}


def _cgroups(names: Names) -> set[str]:
    found: set[str] = set()
    for directory, children, _ in os.walk(CGROUPS):
        if Path(directory).name == names.cgroup:
            found.add(f"cgroup {directory}")
            found |= {f"cgroup {directory}/{child}" for child in children}
            children.clear()
    return found


def _links(names: Names) -> set[str]:
    links = os.listdir("/sys/class/net")
    return {f"link {n}" for n in links if n == names.bridge or n.startswith(names.veth_prefix)}


def _tables(names: Names) -> set[str]:
    done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, timeout=10)
    return {f"nft {line}" for line in done.stdout.splitlines() if line.endswith(names.nft_table)}


def _processes(run_dir: Path) -> set[str]:
    """Processes that name the run directory, and zombies below this process."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or entry.name == str(os.getpid()):
            continue
        try:
            command = (
                (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            )
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"{run_dir}/" in command:
            found.add(f"process {entry.name} {command}")
        elif state == "Z" and parent == str(os.getpid()):
            found.add(f"zombie {entry.name}")
    return found
