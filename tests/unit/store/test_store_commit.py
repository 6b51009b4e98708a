"""Group commit, time limits, poisonous commands, failing disks."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hostd.clock import SystemClock
from hostd.errors import InternalError, ResourceExhaustedError, StorageFullError, TimeoutError
from hostd.ids import ImageId
from hostd.store import NameImage, RecordLayer, Store
from hostd.store import store as store_module
from hostd.store.commands import Command
from hostd.store.disk import Disk, Outcome
from hostd.store.reading import Reader

IMAGE = ImageId("im-" + "a" * 26)


class HeldDisk(Disk):
    """A disk whose commits wait until the test lets them go, or fail as it says."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ballast_bytes=0)
        self.go = threading.Event()
        self.begun = threading.Event()
        self.batches: list[int] = []
        self.failure: Exception | None = None

    def commit(self, batch: Sequence[tuple[Command, bytes]]) -> list[Outcome]:
        self.batches.append(len(batch))
        self.begun.set()
        assert self.go.wait(10)
        if self.failure is not None:
            raise self.failure
        return super().commit(batch)


async def held_store(tmp_path: Path) -> tuple[HeldDisk, Store]:
    disk = HeldDisk(tmp_path / "state.db")
    disk.open()
    return disk, Store(disk, await Reader.open(disk.path), clock=SystemClock())


def layer(key: str) -> RecordLayer:
    return RecordLayer(at_us=1, key=key, image_id=IMAGE)


async def begun(disk: HeldDisk) -> None:
    assert await asyncio.to_thread(disk.begun.wait, 10)


async def test_commands_that_wait_share_one_commit(tmp_path: Path) -> None:
    disk, store = await held_store(tmp_path)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(store.propose(layer("first")))
        await begun(disk)
        for n in range(100):
            tasks.create_task(store.propose(layer(f"k{n}")))
        await asyncio.sleep(0)
        disk.go.set()
    assert disk.batches == [1, 100]
    assert store.statistics().batch_max == 100
    assert await store.layer("k99") == IMAGE
    await store.close()


async def test_rejected_command_does_not_disturb_its_batch(tmp_path: Path) -> None:
    disk, store = await held_store(tmp_path)
    disk.go.set()
    results = await asyncio.gather(
        store.propose(layer("a")),
        store.propose(NameImage(at_us=1, name="web", image_id=IMAGE)),
        store.propose(layer("b")),
        return_exceptions=True,
    )
    assert [type(each).__name__ for each in results] == ["NoneType", "NotFoundError", "NoneType"]
    assert await store.layer("b") == IMAGE
    await store.close()


async def test_late_command_that_was_not_begun_surely_did_not_happen(tmp_path: Path) -> None:
    disk, store = await held_store(tmp_path)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(store.propose(layer("first")))
        await begun(disk)
        with pytest.raises(TimeoutError) as raised:
            await store.propose(layer("late"), timeout_s=0.01)
        disk.go.set()
    assert raised.value.fields == {"certain": True}
    await store.propose(layer("after"))
    assert await store.layer("late") is None
    await store.close()


async def test_late_command_that_was_begun_may_still_happen(tmp_path: Path) -> None:
    disk, store = await held_store(tmp_path)
    with pytest.raises(TimeoutError) as raised:
        await store.propose(layer("late"), timeout_s=0.05)
    disk.go.set()
    assert raised.value.fields == {"certain": not disk.batches}
    await store.close()


async def test_cancelled_proposal_leaves_the_queue(tmp_path: Path) -> None:
    disk, store = await held_store(tmp_path)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(store.propose(layer("first")))
        await begun(disk)
        gone = tasks.create_task(store.propose(layer("gone")))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        disk.go.set()
    assert store.statistics().queued == 0
    assert await store.layer("gone") is None
    await store.close()


async def test_queue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "QUEUE_MAX", 3)
    disk, store = await held_store(tmp_path)
    async with asyncio.TaskGroup() as tasks:
        for n in range(3):
            tasks.create_task(store.propose(layer(f"k{n}")))
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError, match="at most 3"):
            await store.propose(layer("one too many"))
        disk.go.set()
    await store.close()


async def test_full_disk_fails_the_batch_and_the_store_goes_on(tmp_path: Path) -> None:
    disk, store = await held_store(tmp_path)
    disk.go.set()
    disk.failure = StorageFullError("state.db cannot grow")
    with pytest.raises(StorageFullError):
        await store.propose(layer("a"))
    disk.failure = None
    await store.propose(layer("a"))
    assert (store.failure, await store.layer("a")) == (None, IMAGE)
    await store.close()


@pytest.mark.parametrize("failure", [InternalError("fsync failed"), OSError("gone")])
async def test_failed_disk_stops_the_store_for_good(tmp_path: Path, failure: Exception) -> None:
    disk, store = await held_store(tmp_path)
    disk.go.set()
    disk.failure = failure
    with pytest.raises(InternalError):
        await store.propose(layer("a"))
    disk.failure = None
    with pytest.raises(InternalError, match="stopped"):
        await store.propose(layer("b"))
    assert store.failure is not None
    await store.close()


async def test_close_writes_what_is_queued(tmp_path: Path) -> None:
    disk, store = await held_store(tmp_path)
    async with asyncio.TaskGroup() as tasks:
        for n in range(5):
            tasks.create_task(store.propose(layer(f"k{n}")))
        await asyncio.sleep(0)
        disk.go.set()
        await store.close()
    again = await Store.open(disk.path, clock=SystemClock(), ballast_bytes=0)
    assert await again.layer("k4") == IMAGE
    await again.close()


def test_poisonous_command_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hostd.store import commands, machine

    real = machine.apply

    def apply(db: sqlite3.Connection, index: int, command: Any) -> object:
        result = real(db, index, command)
        if command.key == "poison":
            raise ZeroDivisionError("a bug of ours")
        return result

    monkeypatch.setattr(machine, "apply", apply)
    disk = Disk(tmp_path / "state.db", ballast_bytes=0)
    disk.open()
    batch = [layer("a"), layer("poison"), layer("b")]
    outcomes = disk.commit([(each, commands.encode(each)) for each in batch])
    assert [type(each.error).__name__ for each in outcomes] == [
        "NoneType",
        "InternalError",
        "NoneType",
    ]
    keys = disk._open_db().execute("SELECT key FROM layers ORDER BY key").fetchall()
    assert keys == [("a",), ("b",)]
    assert disk.applied == 3
    disk.close()
