"""What is left after kill -9 and on a full disk, seen from outside the process."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hostd.store.disk import Disk

WRITER = """
import asyncio, os, sys
from pathlib import Path
from hostd.clock import SystemClock
from hostd.errors import StorageFullError
from hostd.store import RecordLayer, Store

async def main():
    store = await Store.open(Path(sys.argv[1]), clock=SystemClock(), ballast_bytes=0)
    limit = int(sys.argv[3])
    if limit:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    async def work(worker):
        for n in range(1_000_000):
            key = f"{sys.argv[2]}-{worker}-{n}"
            try:
                await store.propose(RecordLayer(at_us=n, key=key, image_id="im-" + "a" * 26))
            except StorageFullError:
                print("full", flush=True)
                return
            os.write(1, (key + "\\n").encode())

    await asyncio.gather(*(work(worker) for worker in range(16)))
    print("applied", (await store.layer(sys.argv[2] + "-0-0")) is not None, flush=True)
    await store.close()

asyncio.run(main())
"""


def start(path: Path, prefix: str, limit: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), prefix, str(limit)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def keys_of(path: Path) -> set[str]:
    disk = Disk(path, ballast_bytes=0)
    disk.open()
    db = disk._open_db()
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    keys = {row[0] for row in db.execute("SELECT key FROM layers")}
    disk.close()
    return keys


@pytest.mark.slow
def test_killed_store_has_everything_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    acknowledged: set[str] = set()
    for attempt, lines in enumerate((1, 150, 900)):
        with start(path, f"r{attempt}") as process:
            assert process.stdout is not None
            acknowledged.update(process.stdout.readline().strip() for _ in range(lines))
            process.send_signal(signal.SIGKILL)
            # What it wrote before it died was acknowledged too; the last line may be torn.
            rest = process.stdout.read()
        acknowledged.update(rest[: rest.rfind("\n") + 1].split())
        assert acknowledged <= keys_of(path), f"lost after kill {attempt}"
    assert len(acknowledged) > 1_000


@pytest.mark.slow
def test_store_that_may_not_grow_acknowledges_nothing_it_lost(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with start(path, "full", 600_000) as process:
        assert process.stdout is not None
        lines = process.stdout.read().split()
        assert process.wait(30) == 0
    assert lines.count("full") == 16
    assert lines[-2:] == ["applied", "True"]
    acknowledged = {line for line in lines if line.startswith("full-")}
    assert len(acknowledged) > 10
    assert acknowledged <= keys_of(path)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
