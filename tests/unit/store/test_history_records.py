"""History: records come back, old ones go, trouble with the file is survived."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd.errors import ConflictError, VersionMismatchError
from hostd.model import CallInfo, ContainerInfo
from hostd.store import History, history
from tests.fakes.virtual_clock import VirtualClock

NOW_US = VirtualClock().wall_us()


@pytest.fixture
def past(tmp_path: Path) -> Iterator[History]:
    opened = History(tmp_path / "history.db", clock=VirtualClock())
    yield opened
    opened.close()


def call(tail: str, *, at_us: int = NOW_US, app_id: str = "ap-1", error: str = "") -> CallInfo:
    return CallInfo(
        id=f"fc-{tail}",
        app_id=app_id,
        function_id="fu-1",
        function="train",
        kind="map",
        state="failed" if error else "succeeded",
        created_at_us=at_us,
        finished_at_us=at_us + 5,
        inputs_total=3,
        inputs_done=3,
        phases_us={"queue": 1, "run": 4},
        start="cold",
        error={"code": error} if error else None,
    )


def container(tail: str) -> ContainerInfo:
    return ContainerInfo(
        id=f"ct-{tail}",
        function_id="fu-1",
        function="train",
        app_id="ap-1",
        app="a",
        image_id="im-1",
        state="exited",
        started_at_us=NOW_US,
        inputs_done=3,
        reason="idle for 60 s",
    )


async def test_recorded_call_is_read_at_once_and_whole(past: History) -> None:
    record = call("1", error="out_of_memory")
    past.record_call(record)
    assert await past.call("fc-1") == record
    assert await past.calls(limit=10) == [record]


async def test_recorded_container_is_read_at_once_and_whole(past: History) -> None:
    past.record_container(container("1"))
    assert await past.container("ct-1") == container("1")
    assert await past.containers(limit=10, app_id="ap-1") == [container("1")]


async def test_calls_come_newest_first_and_by_app(past: History) -> None:
    for n in range(5):
        past.record_call(call(str(n), at_us=NOW_US + n, app_id=f"ap-{n % 2}"))
    assert [each.id for each in await past.calls(limit=2)] == ["fc-4", "fc-3"]
    assert [each.id for each in await past.calls(limit=9, app_id="ap-1")] == ["fc-3", "fc-1"]


async def test_call_is_found_by_unique_prefix(past: History) -> None:
    past.record_call(call("aab"))
    past.record_call(call("abb"))
    found = await past.call("fc-aa")
    assert found is not None
    assert found.id == "fc-aab"
    assert await past.call("fc-c") is None
    with pytest.raises(ConflictError, match="several"):
        await past.call("fc-a")


async def test_whole_id_wins_over_longer_ones(past: History) -> None:
    past.record_call(call("aa"))
    past.record_call(call("aab"))
    found = await past.call("fc-aa")
    assert found is not None
    assert found.id == "fc-aa"


async def test_old_calls_are_forgotten(past: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "PRUNE_EVERY", 1)
    past.record_call(call("old", at_us=NOW_US - history.AGE_MAX_US - 1))
    past.record_call(call("new"))
    assert [each.id for each in await past.calls(limit=9)] == ["fc-new"]


async def test_only_the_latest_rows_are_kept(
    past: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = tuple((delete, times, 3) for delete, times, _ in history._PRUNE)
    monkeypatch.setattr(history, "_PRUNE", limits)
    monkeypatch.setattr(history, "PRUNE_EVERY", 1)
    for n in range(10):
        past.record_call(call(str(n), at_us=NOW_US + n))
        await past.calls(limit=1)
    assert [each.id for each in await past.calls(limit=9)] == ["fc-9", "fc-8", "fc-7"]


async def test_close_writes_what_waits(tmp_path: Path) -> None:
    first = History(tmp_path / "history.db", clock=VirtualClock())
    for n in range(5_000):
        first.record_call(call(str(n)))
    first.close()
    first.close()
    second = History(tmp_path / "history.db", clock=VirtualClock())
    assert len(await second.calls(limit=10_000)) == 5_000
    second.close()


async def test_records_beyond_the_buffer_are_counted_not_kept(
    past: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "BUFFER_MAX", 10)
    with past._wake:  # The thread cannot take anything meanwhile.
        for n in range(25):
            past._record(call(str(n)))
    await past.calls(limit=1)
    assert (past.statistics().written, past.statistics().lost) == (10, 15)


async def test_refused_writes_are_counted_and_later_ones_succeed(past: History) -> None:
    past._db.execute("ALTER TABLE calls RENAME TO elsewhere")
    past.record_call(call("1"))
    assert await past.containers(limit=1) == []
    assert past.statistics().lost == 1
    past._db.execute("ALTER TABLE elsewhere RENAME TO calls")
    past.record_call(call("2"))
    assert [each.id for each in await past.calls(limit=9)] == ["fc-2"]


async def test_damaged_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    path.write_bytes(b"no database" * 1_000)
    past = History(path, clock=VirtualClock())
    assert await past.calls(limit=1) == []
    past.close()
    assert (tmp_path / "history.db.damaged").exists()


def test_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    History(path, clock=VirtualClock()).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(VersionMismatchError, match="99"):
        History(path, clock=VirtualClock())
