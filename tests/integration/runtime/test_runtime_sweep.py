"""Nothing is left behind: by a runtime killed in the middle, by a dead daemon, by a second one."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hostd.clock import SystemClock
from hostd.config import RuntimeConfig
from hostd.errors import ConflictError, ContainerStartError
from hostd.runtime import ContainerSpec, Runtime
from hostd.runtime.orphans import OrphanReaper, zombie_children
from tests import census

pytestmark = pytest.mark.root

KILLS = 25


async def test_killing_runc_in_the_middle_of_create_leaves_nothing(ward, run_dir):
    """The fault that leaves cgroups, state and processes behind with ``runc delete --force``."""
    chance = random.Random(4)
    root = ward.mount_root()
    idle = len(census.take(run_dir))
    failed = 0
    for n in range(KILLS):
        creating = asyncio.ensure_future(
            ward.runtime.create(ward.spec("sleep", "61", rootfs=root), None)
        )
        delay = chance.uniform(0.002, 0.035)
        await asyncio.sleep(delay)
        for pid in _runc_children(run_dir):
            os.kill(pid, signal.SIGKILL)
        try:
            await (await creating).delete()
        except ContainerStartError:
            failed += 1
        states, bundles = run_dir / "oci", run_dir / "bundles"
        assert (list(states.iterdir()), list(bundles.iterdir())) == ([], []), n
        assert not [
            line for line in census.take(run_dir) if line.startswith("cgroup") and "/t" in line
        ]

    assert failed >= KILLS // 3
    assert ward.runtime.statistics().containers == 0
    assert len([x for x in census.take(run_dir) if "netns" in x]) <= 20, idle


def _runc_children(run_dir: Path) -> list[int]:
    found = []
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"create" in command and os.fsencode(run_dir / "oci") in command:
                found.append(int(pid))
    return found


DAEMON = """
import asyncio, os, signal, sys
from pathlib import Path
from hostd.clock import SystemClock
from hostd.config import RuntimeConfig
from hostd.runtime import ContainerSpec, Runtime

async def main():
    runtime = Runtime(config=RuntimeConfig(), run_dir=Path(sys.argv[1]), clock=SystemClock())
    await runtime.start()
    root = Path(sys.argv[2])
    for n in range(3):
        args = ["sh", "-c", "trap '' TERM; sleep 700 & sleep 700"]
        spec = ContainerSpec(id=f"old{n}", rootfs=root, args=args)
        container = await runtime.create(spec, None)
        await container.start()
        print(container.pid, flush=True)
    await runtime.create(ContainerSpec(id="half", rootfs=root, args=["true"]), None)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_next_daemon_removes_everything_of_a_killed_one(run_dir, mount_root):
    before = census.take(run_dir)
    command = [sys.executable, "-c", textwrap.dedent(DAEMON), str(run_dir), str(mount_root())]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
    )
    pids = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    left = census.take(run_dir) - before
    runtime = Runtime(config=RuntimeConfig(), run_dir=run_dir, clock=SystemClock())
    await runtime.start()
    alive = [pid for pid in pids if os.path.exists(f"/proc/{pid}/exe")]
    containers = await asyncio.to_thread(lambda: sorted((run_dir / "oci").iterdir()))
    await runtime.close()

    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(pids) == 3
    assert {line.split()[0] for line in left} >= {"mount", "cgroup", "link", "nft"}
    assert (alive, containers) == ([], [])


async def test_two_daemons_on_one_run_directory_are_refused(runtime, run_dir):
    second = Runtime(config=RuntimeConfig(), run_dir=run_dir, clock=SystemClock())

    with pytest.raises(ConflictError, match="another daemon"):
        await second.start()
    await second.close()


async def test_two_daemons_on_one_machine_do_not_meet(runtime, ward, tmp_path):
    import tempfile

    with tempfile.TemporaryDirectory(prefix="hostd-rt-", dir="/tmp") as directory:
        second = Runtime(config=RuntimeConfig(), run_dir=Path(directory), clock=SystemClock())
        await second.start()
        container = await second.create(
            ContainerSpec(id="t1", rootfs=ward.mount_root(), args=["sleep", "60"]), None
        )
        await container.start()
        mine, _ = await ward.begin("sleep", "60")

        assert not second.network.block.overlaps(runtime.network.block)
        assert (container.id, mine.id) == ("t1", "t1")
        await second.close()
        assert mine.is_running
        await mine.delete()


async def test_orphans_of_the_runtime_are_collected(ward):
    await asyncio.to_thread(subprocess.run, ["sh", "-c", "sleep 0.05 &"], check=True, timeout=20)
    await ward.until(zombie_children)
    reaper = OrphanReaper()

    assert reaper.look() == 0
    assert reaper.look() == 1
    assert zombie_children() == set()


async def test_descriptors_do_not_leak(ward):
    async def one() -> None:
        container, _ = await ward.begin("sh", "-c", "exit 0", stdin=b"x")
        await container.wait()
        await container.delete()
        terminal, _ = await ward.begin("sleep", "60", tty=(24, 80))
        process = await terminal.exec(["true"])
        await process.wait()
        await process.close()
        await terminal.delete()

    await one()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await one()

    assert len(os.listdir("/proc/self/fd")) <= before
