"""Content that must reach the host: hashed here, uploaded only where it is missing there."""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Union

from hostd.errors import BlobCorruptError, InvalidError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hostd.sdk.client import Client
    from hostd.sdk.output import Observer
    from hostd.sdk.source import Entry

READ_BYTES = 1 << 20
ASK_MAX = 50_000
"""Digests in one question for missing ones; the API takes 100,000."""
UPLOADS_AT_ONCE = 4
"""Enough to hide the round trips of small files; more only share the same wire."""
_hashes: dict[tuple[str, int, int, int], str] = {}
"""Digests of files by path, inode, size and time: notebooks run an app again and again."""
HASHES_MAX = 200_000
SETTLED_NS = 2_000_000_000
"""The coarsest time stamps of common file systems are 2 s apart."""


class Contents:
    """Digests of local content, and where to read it again when the host asks for it."""

    def __init__(self) -> None:
        self._sources: dict[str, Union[str, bytes]] = {}
        self._bytes = 0

    def describe(self, entries: Iterable[Entry]) -> list[dict[str, object]]:
        """The entries as SourceFile records; their content is noted for upload."""
        return [self._record(entry) for entry in entries]

    def add_bytes(self, data: bytes) -> str:
        """Note a piece of content made here; its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._sources[digest] = data
        return digest

    def upload(self, client: Client, observer: Observer) -> None:
        """Upload what the host lacks, and forget it.

        Raises:
            InvalidError: a file changed or vanished after it was hashed.
        """
        missing: list[str] = []
        digests = list(self._sources)
        for begin in range(0, len(digests), ASK_MAX):
            asked = digests[begin : begin + ASK_MAX]
            reply = client.request("POST", "/api/v1/blobs/missing", {"digests": asked})
            missing += dict.fromkeys(reply["missing"])
        if missing:
            self._put_all(client, observer, missing)
        self._sources.clear()

    def _put_all(self, client: Client, observer: Observer, missing: list[str]) -> None:
        observer.uploading(0, len(missing))

        def put(digest: str) -> None:
            source = self._sources[digest]
            try:
                client.put_blob(digest, source)
            except (OSError, BlobCorruptError) as error:
                if isinstance(source, bytes) or isinstance(error, ConnectionError):
                    raise
                raise InvalidError(
                    f"file {source} changed while it was uploaded: {error}"
                ) from error

        with ThreadPoolExecutor(min(UPLOADS_AT_ONCE, len(missing))) as pool:
            for done, _ in enumerate(pool.map(put, missing), 1):
                observer.uploading(done, len(missing))

    def _record(self, entry: Entry) -> dict[str, object]:
        record: dict[str, object] = {"path": entry.remote, "kind": entry.kind, "mode": entry.mode}
        if entry.kind == "file":
            digest, size = file_digest(entry.local)
            self._sources[digest] = entry.local
            record.update(digest=digest, size_bytes=size)
        elif entry.kind == "symlink":
            record["target"] = entry.target
        return record


def file_digest(path: str) -> tuple[str, int]:
    """The ``sha256:`` digest of a file and its size; remembered while the file is unchanged.

    Raises:
        InvalidError: it cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
            known = _hashes.get(key)
            if known is not None:
                return known, status.st_size
            sha256 = hashlib.sha256()
            size = 0
            while chunk := file.read(READ_BYTES):
                sha256.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise InvalidError(f"file {path}: {error.strerror}") from error
    digest = f"sha256:{sha256.hexdigest()}"
    # A file that was written just now may change again without a new time stamp.
    is_settled = time.time_ns() - status.st_mtime_ns > SETTLED_NS
    if is_settled and size == status.st_size and len(_hashes) < HASHES_MAX:
        _hashes[key] = digest
    return digest, size
