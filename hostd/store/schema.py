"""The tables of the state database: the only description of them, and how an old file is migrated.

The state database (``<data_dir>/state.db``) holds two things in one file, so that one transaction
moves both and a power cut cannot separate them: the log of commands and the state they made. Every
table is STRICT. Times are microseconds since the Unix epoch and come from inside the commands.

``SCHEMA_VERSION`` history:
    1  log, meta, images, image_names, layers, uploads
"""

from __future__ import annotations

import sqlite3

from hostd.errors import VersionMismatchError

SCHEMA_VERSION = 1

TABLES = """
CREATE TABLE log (
    log_index   INTEGER PRIMARY KEY,   -- counts from 1 without gaps; the oldest rows are deleted
    command     BLOB NOT NULL,         -- JSON of a struct in store/commands.py
    chain       BLOB NOT NULL          -- 16 bytes: BLAKE2b(chain before, log_index, command)
) STRICT;

CREATE TABLE meta (
    one         INTEGER PRIMARY KEY CHECK (one = 1),   -- a table of one row
    applied     INTEGER NOT NULL,      -- log_index of the last command the tables below contain
    chain       BLOB NOT NULL,         -- chain of that row; 16 zero bytes before the first
    identity    TEXT NOT NULL          -- random, made with the file: a wiped host is a new member
) STRICT;

CREATE TABLE images (
    id             TEXT PRIMARY KEY,   -- im-…, derived from the manifest's content
    index_digest   TEXT NOT NULL,      -- blake3:…, the EROFS file with the names and attributes
    index_bytes    INTEGER NOT NULL,   -- size of that file
    entries        INTEGER NOT NULL,   -- files, directories and links in the image
    size_bytes     INTEGER NOT NULL,   -- sum of the sizes of its regular files
    blobs          INTEGER NOT NULL,   -- distinct blobs its index names
    python         TEXT,               -- major.minor of the interpreter found in it; NULL: none
    config         TEXT NOT NULL,      -- JSON of model.ImageConfig
    history        TEXT NOT NULL,      -- JSON list of the instructions that made it, oldest first
    created_at_us  INTEGER NOT NULL    -- when it was first recorded
) STRICT;

CREATE TABLE image_names (
    name      TEXT PRIMARY KEY,        -- chosen by the user; moves from image to image
    image_id  TEXT NOT NULL,           -- images.id
    at_us     INTEGER NOT NULL         -- when the name was given to this image
) STRICT;
CREATE INDEX image_names_by_image ON image_names (image_id);

CREATE TABLE layers (
    key       TEXT PRIMARY KEY,        -- cache key of a build step on its parent (build/recipe.py)
    image_id  TEXT NOT NULL,           -- the image that step made; it need not be in images
    at_us     INTEGER NOT NULL         -- when it was made
) STRICT;
CREATE INDEX layers_by_image ON layers (image_id);

CREATE TABLE uploads (
    sha256      TEXT PRIMARY KEY,      -- sha256:…, the name a client knows
    digest      TEXT NOT NULL,         -- blake3:…, the blob with that content
    size_bytes  INTEGER NOT NULL,      -- its length
    at_us       INTEGER NOT NULL       -- when it was uploaded last
) STRICT;
CREATE INDEX uploads_by_digest ON uploads (digest);
"""

MIGRATIONS: dict[int, str] = {0: TABLES}
"""Version of a file to the statements that bring it to the next version."""


def migrate(db: sqlite3.Connection, *, identity: str) -> None:
    """Bring the open database to ``SCHEMA_VERSION``; one transaction per version.

    Args:
        db: the write connection, in autocommit mode.
        identity: what a new file shall be called.

    Raises:
        VersionMismatchError: a newer hostd wrote the file.
    """
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise VersionMismatchError(
            f"state.db has schema {version}, this hostd knows up to {SCHEMA_VERSION}",
            hint="install the hostd version that wrote it, or a newer one",
        )
    while version < SCHEMA_VERSION:
        statements = (
            f"BEGIN IMMEDIATE; {MIGRATIONS[version]} PRAGMA user_version = {version + 1}; COMMIT;"
        )
        db.executescript(statements)
        version += 1
    db.execute("INSERT OR IGNORE INTO meta VALUES (1, 0, zeroblob(16), ?)", (identity,))
