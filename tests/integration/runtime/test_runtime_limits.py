"""Limits hold, and what breaks them is named."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.root
MIB = 2**20


async def test_memory_limit_kills_and_is_reported_with_the_peak(ward):
    ended, _ = await ward.python("x = bytearray(200 << 20)", memory_limit_bytes=64 * MIB)

    assert ended.oom
    assert ended.status == 137
    assert 56 * MIB < ended.peak_bytes <= 64 * MIB
    assert "memory limit" in ended.describe()


async def test_killed_by_hand_is_no_oom(ward):
    container, _ = await ward.begin("sleep", "60", memory_limit_bytes=64 * MIB)
    container.kill()
    ended = await container.wait()
    await container.delete()

    assert (ended.oom, ended.status) == (False, 137)


async def test_shared_memory_holds_half_of_the_limit(ward):
    code = "import os; s = os.statvfs('/dev/shm'); print(s.f_blocks * s.f_frsize)"
    _, sink = await ward.python(code, memory_limit_bytes=64 * MIB)

    assert sink.text() == [str(32 * MIB)]


async def test_fork_bomb_stays_at_its_limit_and_dies_at_once(ward):
    code = (
        "import os\nprint('go', flush=True)\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    )
    container, sink = await ward.begin("python3", "-I", "-S", "-c", code, pids_max=200)
    await ward.until(lambda: container.usage().pids >= 200)
    peak = container.usage().pids
    begun = time.monotonic()
    ended = await container.stop(grace_s=0)
    took_s = time.monotonic() - begun
    await container.delete()

    assert (peak, ended.status) == (200, 137)
    assert took_s < 2
    assert sink.text()[0] == "go"


async def test_cpu_limit_slows_a_busy_loop(ward):
    code = (
        "import time\n"
        "begun, end = time.process_time(), time.monotonic() + 1\n"
        "while time.monotonic() < end: pass\n"
        "print(time.process_time() - begun)"
    )
    ended, sink = await ward.python(code, cpu_limit=0.25)
    used_s = float(sink.text()[0])

    assert 0.1 < used_s < 0.5
    assert ended.cpu_s > used_s


async def test_usage_shows_what_a_container_uses_now(ward):
    code = "x = bytearray(30 << 20); print('up', flush=True); import time; time.sleep(60)"
    container, sink = await ward.begin("python3", "-I", "-S", "-c", code)
    await ward.until(lambda: sink.lines)
    usage = container.usage()
    await container.delete()

    assert 30 * MIB < usage.memory_bytes <= usage.peak_bytes
    assert usage.pids == 2
    assert usage.cpu_s > 0
    assert container.usage().peak_bytes >= usage.peak_bytes


async def test_zombies_of_double_forks_are_collected(ward):
    code = """
import os, time
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0: os._exit(0)
        os._exit(0)
    os.wait()
time.sleep(0.2)
pids = [p for p in os.listdir('/proc') if p.isdigit()]
states = [open(f'/proc/{p}/stat').read().rpartition(')')[2].split()[0] for p in pids]
print(states.count('Z'), len(states))
"""
    _, sink = await ward.python(code)

    assert sink.text() == ["0 2"]


async def test_files_and_core_dumps_are_limited(ward):
    code = "import resource as r; print(r.getrlimit(r.RLIMIT_NOFILE), r.getrlimit(r.RLIMIT_CORE))"
    _, sink = await ward.run("python3", "-c", code)
    import resource

    hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1_048_576)
    assert sink.text() == [f"({min(hard, 65536)}, {hard}) (0, 0)"]


async def test_oom_score_prefers_containers(ward):
    _, sink = await ward.run("cat", "/proc/self/oom_score_adj")

    assert sink.text() == ["100"]
    assert int(Path("/proc/self/oom_score_adj").read_text()) < 100
