"""The content-addressed store: files named by the BLAKE3 of their bytes.

    root/objects/ab/<62 hex>   blobs; a data-only layer of every container's overlay
    root/late/ab/<62 hex>      hard links of blobs fetched on demand: overlayfs refuses a directory
                               twice, and a blob that appears during a lookup is found here
    root/tmp/<process>/        unfinished files, gone with their process (``scratch.py``)
    root/quarantine/<64 hex>   damaged blobs, the last of each name, for a person to look at
    root/verified              stamps of blobs that were found whole (``stamps.py``)

Promises:

- A name appears in ``objects`` in one step, with all of its bytes, and these are on disk by then: a
  process or a machine that dies in the middle of anything leaves unfinished files only.
- A damaged blob is never handed out: ``read`` hashes what it returns, ``open`` hashes at the first
  use in a process and whenever the file's stamp has changed, ``invalid`` whenever no process has
  hashed this very file. What does not fit its name is moved to ``quarantine``, so that whoever
  needs it fetches or builds it again. An existing blob whose stamp is unknown counts as absent when
  the same content is stored again, which heals damage without anybody's noticing it.

Methods are synchronous and thread-safe, and several processes may use one root.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from hostd.errors import BlobCorruptError, BlobMissingError
from hostd.fs.durable import storage_errors, sync_directory, syncfs
from hostd.fs.scratch import Scratch
from hostd.fs.stamps import Stamps, stamp_of
from hostd.fs.writer import BlobWriter
from hostd.ids import Digest, digest, hex_of

__all__ = ["CAS", "BlobWriter", "CASStatistics", "hash_fd"]

MMAP_MIN: Final = 8 << 20
"""From this size on hashing uses all cores; below, threads cost more than they bring (measured)."""
PIECE_BYTES: Final = 1 << 20
_FAN_OUT: Final = tuple(f"{number:02x}" for number in range(256))


@dataclass(frozen=True, slots=True, kw_only=True)
class CASStatistics:
    """What a store did since its process started."""

    blobs_written: int
    bytes_written: int
    blobs_hashed: int
    """To verify them."""
    blobs_quarantined: int
    stamps: int
    """Blobs known to be whole."""


def hash_fd(fd: int, status: os.stat_result) -> str:
    """The BLAKE3, in hexadecimal, of an open regular file with this status."""
    is_big = status.st_size >= MMAP_MIN
    hasher = blake3(max_threads=blake3.AUTO if is_big else 1)
    if is_big and status.st_blocks * 512 >= status.st_size:
        return hasher.update_mmap(f"/proc/self/fd/{fd}").hexdigest()
    # A file with holes is read: mapping them would fill a tmpfs with zeros (seen on 6.18).
    length, offset = MMAP_MIN if is_big else PIECE_BYTES, 0
    while piece := os.pread(fd, length, offset):
        hasher.update(piece)
        offset += len(piece)
    return hasher.hexdigest()


class CAS:
    """A store of blobs below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = root / "objects"
        self.late = root / "late"
        self._objects = str(self.objects)
        self._late = str(self.late)
        self._quarantine = root / "quarantine"
        with storage_errors():
            for part in (root, self.objects, self.late, self._quarantine):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_fan_out(self._objects)
            self._scratch = Scratch(root / "tmp")
        self._stamps = Stamps(root / "verified")
        self._counters = {name: itertools.count() for name in ("written", "hashed", "quarantined")}
        self._bytes_written = 0

    def close(self) -> None:
        """Remove the unfinished files. Not needed: the next start does it as well."""
        self._scratch.close()

    def path(self, name: Digest) -> Path:
        """Where the blob lies, or would."""
        return Path(self._file(name))

    def has(self, name: Digest) -> bool:
        """Whether the blob is here; says nothing of its bytes."""
        return os.path.exists(self._file(name))

    def size(self, name: Digest) -> int:
        """The blob's size in bytes.

        Raises:
            BlobMissingError: it is not here.
        """
        try:
            return os.stat(self._file(name)).st_size
        except FileNotFoundError:
            raise _missing(name) from None

    def put_bytes(self, data: bytes, *, sync: bool = True) -> Digest:
        """Store content; it is on disk when this returns (with ``sync``; see ``writer``).

        Raises:
            StorageFullError: no space is left.
        """
        name = digest(blake3(data).hexdigest())
        if not self.is_verified(name):
            with self.writer(expected=name, sync=sync) as writer:
                writer.write(data)
                writer.commit()
        return name

    def writer(
        self, *, expected: Digest | None = None, size_max: int | None = None, sync: bool = True
    ) -> BlobWriter:
        """Store content that comes in pieces; see :class:`BlobWriter`.

        Args:
            expected: the name the content must have.
            size_max: more bytes than this are refused.
            sync: False for content that can be had again: quicker, but it may be gone (never
                wrong) after a power failure, until somebody calls ``CAS.sync``.
        """
        return BlobWriter(self, expected=expected, size_max=size_max, sync=sync)

    def read(self, name: Digest) -> bytes:
        """The whole blob, verified.

        Raises:
            BlobMissingError: it is not here.
            BlobCorruptError: it was damaged, and is in quarantine now.
        """
        fd = self._open(name)
        try:
            status = os.fstat(fd)
            data = _read_all(fd, status.st_size)
        except OSError:
            data = b""
            status = os.fstat(fd)
        finally:
            os.close(fd)
        next(self._counters["hashed"])
        if digest(blake3(data).hexdigest()) != name:
            raise self._damaged(name)
        self._stamps.record([(_key(name), stamp_of(status))])
        return data

    def open(self, name: Digest) -> int:
        """A descriptor of the verified blob; the caller closes it.

        Raises:
            BlobMissingError: it is not here.
            BlobCorruptError: it was damaged, and is in quarantine now.
        """
        fd = self._open(name)
        try:
            is_known = self._stamps.is_verified_here(_key(name), stamp_of(os.fstat(fd)))
            if not is_known and not self._hash_matches(name, fd):
                raise self._damaged(name)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def verify(self, name: Digest) -> bool:
        """Hash the blob now. False: it was damaged, and is in quarantine now.

        Raises:
            BlobMissingError: it is not here.
        """
        fd = self._open(name)
        try:
            is_whole = self._hash_matches(name, fd)
        finally:
            os.close(fd)
        if not is_whole:
            self.quarantine(name)
        return is_whole

    def is_verified(self, name: Digest) -> bool:
        """Whether the blob is here and this very file was found whole before; hashes nothing."""
        text = hex_of(name)
        key = bytes.fromhex(text)
        if not self._stamps.is_known(key):
            return False
        try:
            status = os.stat(f"{self._objects}/{text[:2]}/{text[2:]}")
        except FileNotFoundError:
            return False
        return self._stamps.is_verified(key, stamp_of(status))

    def invalid(self, digests: Iterable[Digest]) -> list[Digest]:
        """Those that are missing, or damaged and therefore in quarantine now.

        About 4 µs for a blob that was verified before and has not been touched; the rest is hashed.
        """
        return [name for name in dict.fromkeys(digests) if not self._is_valid(name)]

    def quarantine(self, name: Digest) -> None:
        """Take a blob out of the store and keep its bytes aside."""
        self._stamps.forget(_key(name))
        with suppress(FileNotFoundError):
            os.rename(self._file(name), self._quarantine / hex_of(name))
            next(self._counters["quarantined"])
        with suppress(FileNotFoundError):
            os.unlink(self._late_file(name))

    def delete(self, name: Digest) -> None:
        """Remove a blob; no error if it is not here."""
        self._stamps.forget(_key(name))
        for path in (self._late_file(name), self._file(name)):
            with suppress(FileNotFoundError):
                os.unlink(path)

    def link_late(self, name: Digest) -> None:
        """Show the blob in ``late`` too. Use this and not link(2): a link changes the file's stamp.

        Raises:
            BlobMissingError: it is not here.
        """
        was_verified = self.is_verified(name)
        with storage_errors():
            with suppress(FileExistsError):
                os.mkdir(f"{self._late}/{name[7:9]}", 0o700)
            try:
                os.link(self._file(name), self._late_file(name))
            except FileExistsError:
                if os.path.samefile(self._file(name), self._late_file(name)):
                    return
                temporary = self._scratch.name()
                os.link(self._file(name), temporary)
                os.rename(temporary, self._late_file(name))
            except FileNotFoundError:
                raise _missing(name) from None
        if was_verified:
            self._stamps.record([(_key(name), stamp_of(os.stat(self._file(name))))])

    def sync(self) -> None:
        """Put on disk whatever was stored so far without ``sync`` (syncfs(2)).

        Raises:
            StorageFullError: the file system found out only now that it has no space left.
        """
        held = self._stamps.take_held()
        with storage_errors():
            syncfs(self._scratch.fd)
        self._stamps.record(held)

    def __iter__(self) -> Iterator[Digest]:
        """Every blob, in no order; those that come or go meanwhile may be left out."""
        for part in _FAN_OUT:
            with os.scandir(f"{self._objects}/{part}") as entries:
                for entry in entries:
                    if len(entry.name) == 62:
                        yield digest(part + entry.name)

    def statistics(self) -> CASStatistics:
        """Counters since the start of this process."""
        return CASStatistics(
            blobs_written=_value(self._counters["written"]),
            bytes_written=self._bytes_written,
            blobs_hashed=_value(self._counters["hashed"]),
            blobs_quarantined=_value(self._counters["quarantined"]),
            stamps=len(self._stamps),
        )

    # --- for batch.py and writer.py -------------------------------------------------------------

    def scratch_name(self) -> str:
        """A path for an unfinished file."""
        return self._scratch.name()

    def adopt(self, name: Digest, source: str | bytes) -> os.stat_result:
        """Move a finished file into place; the caller has hashed and synced it.

        The caller syncs the directory afterwards, and then calls ``record``.
        """
        target = self._file(name)
        os.rename(source, target)
        status = os.stat(target)
        next(self._counters["written"])
        self._bytes_written += status.st_size
        return status

    def record(self, stamps: Iterable[tuple[bytes, bytes]], *, persist: bool = True) -> None:
        """Note that these blobs are whole."""
        self._stamps.record(stamps, persist=persist)

    def directory_of(self, name: Digest) -> str:
        """The directory that holds the blob."""
        return f"{self._objects}/{name[7:9]}"

    # --- within ----------------------------------------------------------------------------------

    def _file(self, name: Digest) -> str:
        text = hex_of(name)
        return f"{self._objects}/{text[:2]}/{text[2:]}"

    def _late_file(self, name: Digest) -> str:
        text = hex_of(name)
        return f"{self._late}/{text[:2]}/{text[2:]}"

    def _open(self, name: Digest) -> int:
        try:
            return os.open(self._file(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _missing(name) from None

    def _hash_matches(self, name: Digest, fd: int) -> bool:
        """Hash an open blob; notes its stamp if it is whole. A read error counts as damage."""
        next(self._counters["hashed"])
        before = stamp_of(status := os.fstat(fd))
        try:
            is_whole = digest(hash_fd(fd, status)) == name
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        if is_whole and stamp_of(os.fstat(fd)) == before:
            self._stamps.record([(_key(name), before)])
        return is_whole

    def _is_valid(self, name: Digest) -> bool:
        try:
            return self.is_verified(name) or self.verify(name)
        except BlobMissingError:
            return False

    def _damaged(self, name: Digest) -> BlobCorruptError:
        self.quarantine(name)
        return BlobCorruptError(
            f"blob {name} does not have the content of its name; it is in quarantine",
            hint="build the image again, or fetch the blob from another host",
            digest=name,
        )


def _make_fan_out(root: str) -> None:
    present = set(os.listdir(root))
    for part in _FAN_OUT:
        if part not in present:
            with suppress(FileExistsError):
                os.mkdir(f"{root}/{part}", 0o700)
    if len(present) < len(_FAN_OUT):
        sync_directory(root)


def _read_all(fd: int, size: int) -> bytes:
    pieces = []
    while piece := os.read(fd, size + 1):
        pieces.append(piece)
    return b"".join(pieces)


def _key(name: Digest) -> bytes:
    return bytes.fromhex(hex_of(name))


def _value(counter: itertools.count[int]) -> int:
    return int(repr(counter)[6:-1])


def _missing(name: Digest) -> BlobMissingError:
    return BlobMissingError(f"blob {name} is not in the store", digest=name)
