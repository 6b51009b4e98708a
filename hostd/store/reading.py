"""Reads of the state: one read-only connection, rows as records.

Reads see every command whose ``propose`` has returned: the writer commits before it answers, and
each query here is its own transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite
import msgspec

from hostd.errors import ConflictError
from hostd.ids import Digest, ImageId
from hostd.model import ImageConfig

PREFIX_CHARS_MIN = 4
"""Characters after ``im-`` that a shortened id must have."""

_IMAGES = """
SELECT id, index_digest, index_bytes, entries, size_bytes, blobs, python, config, history,
       created_at_us,
       (SELECT json_group_array(name) FROM (
           SELECT name FROM image_names WHERE image_id = images.id ORDER BY name)) AS names
FROM images
"""

_BY_ID_OR_NAME = """
WHERE id = ?1 OR id = (SELECT image_id FROM image_names WHERE name = ?1)
ORDER BY id != ?1 LIMIT 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """What the state knows about an image; columns as in ``schema.py``."""

    id: ImageId
    names: tuple[str, ...]
    index: Digest
    index_bytes: int
    entries: int
    size_bytes: int
    blobs: int
    python: str | None
    config: ImageConfig
    history: tuple[str, ...]
    created_at_us: int


def _image_row(row: Any) -> ImageRow:
    return ImageRow(
        id=row[0],
        index=row[1],
        index_bytes=row[2],
        entries=row[3],
        size_bytes=row[4],
        blobs=row[5],
        python=row[6],
        config=msgspec.json.decode(row[7], type=ImageConfig),
        history=msgspec.json.decode(row[8], type=tuple[str, ...]),
        created_at_us=row[9],
        names=msgspec.json.decode(row[10], type=tuple[str, ...]),
    )


class Reader:
    """Queries on the state database. Safe to use from many tasks: queries run one after another."""

    def __init__(self, db: aiosqlite.Connection) -> None:
        self._db = db

    @classmethod
    async def open(cls, path: Path) -> Reader:
        """Connect to a database that the writer has open."""
        uri = f"file:{quote(str(path))}?mode=ro"
        return cls(await aiosqlite.connect(uri, uri=True, isolation_level=None))

    async def close(self) -> None:
        """End the connection and its thread."""
        await self._db.close()

    async def rows(self, sql: str, parameters: Iterable[Any] = ()) -> list[Any]:
        """All rows of a query, as tuples."""
        return list(await self._db.execute_fetchall(sql, tuple(parameters)))

    async def image(self, ref: str) -> ImageRow | None:
        """The image with this id, this name, or the only one whose id begins so.

        Raises:
            ConflictError: several ids begin so.
        """
        found = await self.rows(_IMAGES + _BY_ID_OR_NAME, (ref,))
        if not found and len(ref) >= 3 + PREFIX_CHARS_MIN and ref.startswith("im-"):
            # The character after "z" bounds the range: ids are lower-case base32.
            found = await self.rows(_IMAGES + "WHERE id >= ? AND id < ? LIMIT 2", (ref, ref + "{"))
        if len(found) > 1:
            raise ConflictError(f"{ref} begins several image ids: {found[0][0]}, {found[1][0]}, …")
        return _image_row(found[0]) if found else None

    async def images(self) -> list[ImageRow]:
        """All images, newest first."""
        return [
            _image_row(row) for row in await self.rows(_IMAGES + "ORDER BY created_at_us DESC, id")
        ]

    async def layer(self, key: str) -> ImageId | None:
        """The image that a build step with this cache key made."""
        found = await self.rows("SELECT image_id FROM layers WHERE key = ?", (key,))
        return ImageId(found[0][0]) if found else None

    async def uploads(self, sha256s: Iterable[str]) -> dict[str, Digest]:
        """The blobs that clients know by these SHA-256; unknown ones are absent from the result."""
        wanted = msgspec.json.encode(list(sha256s)).decode()
        found = await self.rows(
            "SELECT sha256, digest FROM uploads WHERE sha256 IN (SELECT value FROM json_each(?))",
            (wanted,),
        )
        return {row[0]: Digest(row[1]) for row in found}
