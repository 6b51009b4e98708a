"""The file itself: versions, checksums, truncation of the log, what a damaged file says."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from hostd.errors import InternalError, VersionMismatchError
from hostd.ids import ImageId
from hostd.store import RecordLayer, commands, schema
from hostd.store.disk import LOG_ROWS_KEPT, TRUNCATE_EVERY, Disk, chain_of

IMAGE = ImageId("im-" + "a" * 26)


def opened(path: Path) -> Disk:
    disk = Disk(path, ballast_bytes=0)
    disk.open()
    return disk


def commit(disk: Disk, keys: list[str]) -> None:
    batch = [RecordLayer(at_us=1, key=key, image_id=IMAGE) for key in keys]
    disk.commit([(each, commands.encode(each)) for each in batch])


def filled(path: Path, keys: int = 10) -> None:
    disk = opened(path)
    for n in range(keys):
        commit(disk, [f"k{n}"])
    disk.close()


def edit(path: Path, sql: str, *parameters: object) -> None:
    db = sqlite3.connect(path)
    db.execute(sql, parameters)
    db.commit()
    db.close()


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    filled(path)
    edit(path, f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    with pytest.raises(VersionMismatchError, match=f"schema {schema.SCHEMA_VERSION + 1}"):
        opened(path)


def test_every_table_is_strict(tmp_path: Path) -> None:
    disk = opened(tmp_path / "state.db")
    rows = disk._open_db().execute("PRAGMA table_list").fetchall()
    assert {row[1] for row in rows if row[2] == "table" and not row[5]} <= {
        "sqlite_schema",
        "sqlite_temp_schema",
    }
    disk.close()


def test_every_column_is_documented() -> None:
    lines = [
        line for line in schema.TABLES.splitlines() if " NOT NULL" in line or "PRIMARY KEY" in line
    ]
    assert lines
    assert [line for line in lines if "-- " not in line] == []


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("UPDATE log SET command = x'7b7d' WHERE log_index = 5", "entry 5 does not match"),
        ("DELETE FROM log WHERE log_index = 5", "entry 5 is missing"),
        ("DELETE FROM log WHERE log_index = 10", "log ends at 9, state is at 10"),
        ("UPDATE meta SET chain = zeroblob(16)", "does not belong to log entry 10"),
    ],
)
def test_damaged_log_is_noticed_at_open(tmp_path: Path, sql: str, message: str) -> None:
    path = tmp_path / "state.db"
    filled(path)
    edit(path, sql)
    with pytest.raises(InternalError, match=message):
        opened(path)


def test_lost_end_of_the_write_ahead_log_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    filled(path)
    before = path.read_bytes()
    disk = opened(path)
    commit(disk, ["new"])
    disk.close()
    path.write_bytes(before)
    with pytest.raises(InternalError, match="last 1 commands are gone"):
        opened(path)


def test_lagging_or_torn_applied_note_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    filled(path)
    for content in (b"", b"\xff" * 12, b"short"):
        (tmp_path / "state.db.applied").write_bytes(content)
        opened(path).close()


def test_file_that_is_no_database_is_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"not a database at all" * 500)
    with pytest.raises(InternalError, match="damaged"):
        opened(path)


def test_entries_that_were_only_logged_are_applied_at_open(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    filled(path, keys=2)
    data = commands.encode(RecordLayer(at_us=1, key="only logged", image_id=IMAGE))
    db = sqlite3.connect(path)
    (chain,) = db.execute("SELECT chain FROM log WHERE log_index = 2").fetchone()
    db.execute("INSERT INTO log VALUES (3, ?, ?)", (data, chain_of(chain, 3, data)))
    db.commit()
    db.close()
    disk = opened(path)
    assert disk.applied == 3
    assert disk._open_db().execute("SELECT 1 FROM layers WHERE key = 'only logged'").fetchone()
    disk.close()
    opened(path).close()


def test_log_is_truncated_behind_applied_and_still_checks(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    disk = opened(path)
    total = LOG_ROWS_KEPT + TRUNCATE_EVERY + 10
    commit(disk, [f"k{n}" for n in range(total)])
    rows = (
        disk._open_db()
        .execute("SELECT count(*), min(log_index), max(log_index) FROM log")
        .fetchone()
    )
    assert rows == (LOG_ROWS_KEPT, total - LOG_ROWS_KEPT + 1, total)
    disk.close()
    again = opened(path)
    assert (again.applied, again.log_first) == (total, total - LOG_ROWS_KEPT + 1)
    again.close()


def test_write_ahead_log_stays_small(tmp_path: Path) -> None:
    disk = opened(tmp_path / "state.db")
    for n in range(1_000):
        commit(disk, [f"k{n}"])
    assert (tmp_path / "state.db-wal").stat().st_size < 16 * 2**20
    disk.close()
