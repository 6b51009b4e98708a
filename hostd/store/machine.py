"""The state machine: what each command does to the tables.

``apply`` is deterministic: it reads only the database and the command. It decides first and writes
then; what it refuses, it refuses before its first write, so that a refused command costs no
rollback and is refused again wherever the log is replayed.
"""

from __future__ import annotations

import sqlite3
from typing import assert_never

import msgspec

from hostd.errors import Error, NotFoundError
from hostd.store.commands import (
    Command,
    DeleteImage,
    DropLayers,
    ForgetUploads,
    NameImage,
    RecordImage,
    RecordLayer,
    RecordUploads,
    UnnameImage,
)


class Reject(Exception):
    """The command does not fit the state; nothing was written. Holds the error for the proposer."""

    def __init__(self, error: Error) -> None:
        super().__init__(str(error))
        self.error = error


def apply(db: sqlite3.Connection, index: int, command: Command) -> object:
    """Do what the command says and return what its proposer learns.

    Args:
        db: inside a transaction of the caller.
        index: place of the command in the log; later entries have greater ones.
        command: decoded from the log.

    Raises:
        Reject: the command does not fit the state; the database is unchanged.
    """
    assert index > 0, index
    match command:
        case RecordImage():
            return _record_image(db, command)
        case NameImage():
            return _name_image(db, command)
        case UnnameImage():
            return _unname_image(db, command)
        case DeleteImage():
            return _delete_image(db, command)
        case RecordLayer():
            return _record_layer(db, command)
        case DropLayers():
            return _drop_layers(db, command)
        case RecordUploads():
            return _record_uploads(db, command)
        case ForgetUploads():
            return _forget_uploads(db, command)
        case _:
            assert_never(command)


def _has_image(db: sqlite3.Connection, image_id: str) -> bool:
    return db.execute("SELECT 1 FROM images WHERE id = ?", (image_id,)).fetchone() is not None


def _record_image(db: sqlite3.Connection, command: RecordImage) -> bool:
    """Whether the image was new."""
    row = (
        command.id,
        command.index,
        command.index_bytes,
        command.entries,
        command.size_bytes,
        command.blobs,
        command.python,
        msgspec.json.encode(command.config).decode(),
        msgspec.json.encode(command.history).decode(),
        command.at_us,
    )
    found = db.execute(
        "INSERT OR IGNORE INTO images (id, index_digest, index_bytes, entries, size_bytes, blobs,"
        " python, config, history, created_at_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        row,
    )
    return found.rowcount == 1


def _name_image(db: sqlite3.Connection, command: NameImage) -> object:
    if not _has_image(db, command.image_id):
        raise Reject(NotFoundError(f"image {command.image_id} does not exist"))
    db.execute(
        "INSERT INTO image_names (name, image_id, at_us) VALUES (?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET image_id = excluded.image_id, at_us = excluded.at_us",
        (command.name, command.image_id, command.at_us),
    )
    return None


def _unname_image(db: sqlite3.Connection, command: UnnameImage) -> object:
    found = db.execute("SELECT 1 FROM image_names WHERE name = ?", (command.name,)).fetchone()
    if found is None:
        raise Reject(NotFoundError(f"no image is named {command.name}"))
    db.execute("DELETE FROM image_names WHERE name = ?", (command.name,))
    return None


def _delete_image(db: sqlite3.Connection, command: DeleteImage) -> object:
    if not _has_image(db, command.image_id):
        raise Reject(NotFoundError(f"image {command.image_id} does not exist"))
    db.execute("DELETE FROM image_names WHERE image_id = ?", (command.image_id,))
    db.execute("DELETE FROM layers WHERE image_id = ?", (command.image_id,))
    db.execute("DELETE FROM images WHERE id = ?", (command.image_id,))
    return None


def _record_layer(db: sqlite3.Connection, command: RecordLayer) -> object:
    db.execute(
        "INSERT INTO layers (key, image_id, at_us) VALUES (?, ?, ?)"
        " ON CONFLICT (key) DO UPDATE SET image_id = excluded.image_id, at_us = excluded.at_us",
        (command.key, command.image_id, command.at_us),
    )
    return None


def _drop_layers(db: sqlite3.Connection, command: DropLayers) -> int:
    """How many steps were forgotten."""
    return db.execute("DELETE FROM layers WHERE image_id = ?", (command.image_id,)).rowcount


def _record_uploads(db: sqlite3.Connection, command: RecordUploads) -> object:
    db.executemany(
        "INSERT INTO uploads (sha256, digest, size_bytes, at_us) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (sha256) DO UPDATE SET digest = excluded.digest,"
        " size_bytes = excluded.size_bytes, at_us = excluded.at_us",
        [(each.sha256, each.digest, each.size_bytes, command.at_us) for each in command.uploads],
    )
    return None


def _forget_uploads(db: sqlite3.Connection, command: ForgetUploads) -> object:
    db.executemany("DELETE FROM uploads WHERE digest = ?", [(each,) for each in command.digests])
    return None
