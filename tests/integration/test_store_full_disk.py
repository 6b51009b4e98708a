"""The store on a disk that is full to the last block."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd.clock import SystemClock
from hostd.errors import StorageFullError
from hostd.ids import ImageId
from hostd.store import RecordLayer, Store

pytestmark = pytest.mark.root

IMAGE = ImageId("im-" + "a" * 26)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "disk"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(point)], check=True)
    yield point
    subprocess.run(["umount", str(point)], check=True)


def fill(point: Path) -> Path:
    filler = point / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return filler


async def propose_until_full(store: Store) -> list[str]:
    """Keys that were acknowledged before the disk was full."""
    keys: list[str] = []
    for n in range(10_000):
        key = f"{len(keys)}-" + "x" * 2_000
        try:
            await store.propose(RecordLayer(at_us=n, key=key, image_id=IMAGE))
        except StorageFullError:
            return keys
        keys.append(key)
    raise AssertionError("the disk never became full")


async def test_full_disk_is_an_error_and_heals_when_space_returns(small_disk: Path) -> None:
    store = await Store.open(small_disk / "state.db", clock=SystemClock(), ballast_bytes=0)
    await store.propose(RecordLayer(at_us=1, key="before", image_id=IMAGE))
    filler = fill(small_disk)
    keys = await propose_until_full(store)
    assert await store.layer("before") == IMAGE
    filler.unlink()
    await store.propose(RecordLayer(at_us=2, key="after", image_id=IMAGE))
    assert [await store.layer(key) for key in (*keys, "after")] == [IMAGE] * (len(keys) + 1)
    await store.close()


async def test_ballast_lets_a_store_open_on_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "state.db"
    store = await Store.open(path, clock=SystemClock(), ballast_bytes=512 * 1024)
    await store.propose(RecordLayer(at_us=1, key="before", image_id=IMAGE))
    # A crash leaves the write-ahead log behind: keep a copy of it as it is now.
    files = {name: (small_disk / name).read_bytes() for name in ("state.db", "state.db-wal")}
    await store.close()
    for name, data in files.items():
        (small_disk / name).write_bytes(data)
    (small_disk / "state.db-shm").unlink(missing_ok=True)
    fill(small_disk)
    again = await Store.open(path, clock=SystemClock(), ballast_bytes=512 * 1024)
    assert await again.layer("before") == IMAGE
    assert not (small_disk / "state.db.ballast").exists()
    await again.close()


async def test_full_disk_without_ballast_is_named_at_open(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(StorageFullError) as raised:
        await Store.open(small_disk / "state.db", clock=SystemClock(), ballast_bytes=0)
    assert raised.value.hint == "free space in data_dir"
