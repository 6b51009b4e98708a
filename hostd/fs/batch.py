"""Store many files at once: hashed one by one, made durable together.

A blob of its own costs an fdatasync and a directory's fsync, 0.3 ms and more. A batch syncs the
file system once, renames everything into place, and syncs once more: 40,000 files a second.
Without ``sync`` the bytes are on disk after the next ``CAS.sync``, as with ``CAS.writer``.

With ``move`` the files themselves become blobs. They must not be needed any more and nobody may
write to them (a build step's upper directory after its container is gone). A file that changed
between its hash and its place is noticed and refused.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Final, Self

from blake3 import blake3

from hostd.fs.cas import CAS, hash_fd
from hostd.fs.durable import changed, storage_errors, sync_directory
from hostd.fs.stamps import stamp_of
from hostd.fs.writer import BLOB_MODE
from hostd.ids import Digest, digest

SMALL_MAX: Final = 1 << 20
"""Up to this size a file is read whole, once, for its hash and its copy."""
FILES_MAX: Final = 8
"""Up to so many files are synced one by one: syncfs waits for whatever others wrote, too."""
DIRECTORIES_MAX: Final = FILES_MAX
"""The same for directories that got names."""
_O_TMP: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class _Pending:
    """A file that is hashed and waits for its place."""

    __slots__ = ("facts", "is_copy", "path")

    def __init__(self, path: bytes, facts: tuple[int, int, int], *, is_copy: bool) -> None:
        self.path = path
        self.facts = facts
        self.is_copy = is_copy


class Batch:
    """Blobs that get their names together: ``with Batch(cas, move=…) as b: b.add(…); b.commit()``.

    Not for several threads at once.
    """

    def __init__(self, cas: CAS, *, move: bool, sync: bool = True) -> None:
        self._cas = cas
        self._move = move
        self._sync = sync
        self._pending: dict[Digest, _Pending] = {}
        self._placed: list[Digest] = []
        self.bytes_seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pending in self._pending.values():
            if pending.is_copy:
                with suppress(FileNotFoundError):
                    os.unlink(pending.path)
        self._pending.clear()

    def add(
        self, fd: int, status: os.stat_result, path: bytes, *, has_xattrs: bool = True
    ) -> Digest:
        """The digest of an open regular file, which will be stored from ``path`` at ``commit``.

        Args:
            fd: open for reading; stays the caller's.
            status: of the descriptor, from before anything was read.
            path: where the file lies, for the rename.
            has_xattrs: False if the file is known to have no extended attributes.
        """
        size = status.st_size
        self.bytes_seen += size
        data = None
        if size <= SMALL_MAX:
            data = _read_exactly(fd, size, path)
            name = digest(blake3(data).hexdigest())
        else:
            name = digest(hash_fd(fd, status))
        if name in self._pending or self._cas.is_verified(name):
            return name
        if self._move:
            _make_plain(fd, status, has_xattrs=has_xattrs)
            self._pending[name] = _Pending(path, _facts(status), is_copy=False)
            return name
        with storage_errors():
            if data is None:
                self._pending[name] = self._copied(name, fd, status, path)
            else:
                self._pending[name] = self._written(data)
        return name

    def commit(self) -> None:
        """Put every blob in its place; on disk when this returns (with ``sync``).

        Raises:
            StorageFullError: no space is left.
            ConflictError: a file changed after it was hashed.
        """
        if not self._pending:
            return
        with storage_errors():
            if self._move and not self._can_move():
                self._copy_all()
            if self._sync:
                self._sync_bytes()
            stamps = [self._place(name) for name in list(self._pending)]
            if self._sync:
                self._sync_names({self._cas.directory_of(name) for name in self._placed})
        self._cas.record(stamps, persist=self._sync)

    def _place(self, name: Digest) -> tuple[bytes, bytes]:
        pending = self._pending[name]
        status = self._cas.adopt(name, pending.path)
        del self._pending[name]
        if (status.st_ino, status.st_size, status.st_mtime_ns) != pending.facts:
            self._cas.quarantine(name)
            raise changed(pending.path)
        self._placed.append(name)
        return bytes.fromhex(name[7:]), stamp_of(status)

    def _sync_bytes(self) -> None:
        if len(self._pending) > FILES_MAX:
            self._cas.sync()
            return
        for pending in self._pending.values():
            fd = os.open(pending.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)

    def _sync_names(self, directories: set[str]) -> None:
        if len(directories) > DIRECTORIES_MAX:
            self._cas.sync()
            return
        for directory in directories:
            sync_directory(directory)

    def _can_move(self) -> bool:
        """Try the first file: the same device may still be another mount (rename(2), EXDEV)."""
        first = next(iter(self._pending.values()))
        target = os.fsencode(self._cas.scratch_name())
        try:
            os.rename(first.path, target)
        except OSError as error:
            if error.errno == errno.EXDEV:
                return False
            raise
        first.path, first.is_copy = target, True
        return True

    def _copy_all(self) -> None:
        for name, pending in self._pending.items():
            fd = os.open(pending.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self._pending[name] = self._copied(name, fd, os.fstat(fd), pending.path)
            finally:
                os.close(fd)

    def _copied(self, name: Digest, fd: int, status: os.stat_result, source: bytes) -> _Pending:
        """A copy of an open file, hashed from the copy."""
        with self._unfinished() as (path, copy):
            copy_sparse(fd, copy, status.st_size)
            if digest(hash_fd(copy, os.fstat(copy))) != name:
                raise changed(source)
            return _Pending(path, _facts(os.fstat(copy)), is_copy=True)

    def _written(self, data: bytes) -> _Pending:
        with self._unfinished() as (path, copy):
            done = os.write(copy, data)
            while done < len(data):
                done += os.write(copy, data[done:])
            return _Pending(path, _facts(os.fstat(copy)), is_copy=True)

    @contextmanager
    def _unfinished(self) -> Iterator[tuple[bytes, int]]:
        """A new file, open for writing; it is removed if the block fails."""
        path = os.fsencode(self._cas.scratch_name())
        fd = os.open(path, _O_TMP, BLOB_MODE)
        try:
            yield path, fd
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)


def copy_sparse(source: int, target: int, size: int) -> None:
    """Copy a file of this size; holes stay holes, and extents are shared where that is possible."""
    os.ftruncate(target, size)
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        position = os.lseek(source, start, os.SEEK_HOLE)
        _copy_range(source, target, start, min(position, size))


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        try:
            done = os.copy_file_range(source, target, end - start, start, start)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            done = os.pwrite(target, os.pread(source, min(SMALL_MAX, end - start), start), start)
        if not done:
            return  # The file became shorter; its hash will tell.
        start += done


def _facts(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _make_plain(fd: int, status: os.stat_result, *, has_xattrs: bool) -> None:
    """Take owner, permissions and attributes from a file that becomes a blob."""
    if status.st_uid or status.st_gid:
        os.fchown(fd, 0, 0)
    if status.st_mode & 0o7777 != BLOB_MODE:
        os.fchmod(fd, BLOB_MODE)
    for name in os.listxattr(fd) if has_xattrs else ():
        with suppress(OSError):
            os.removexattr(fd, name)


def _read_exactly(fd: int, size: int, path: bytes) -> bytes:
    data = os.read(fd, size + 1)
    if len(data) == size:
        return data
    pieces = [data]
    while piece := os.read(fd, SMALL_MAX):
        pieces.append(piece)
    data = b"".join(pieces)
    if len(data) != size:
        raise changed(path)
    return data
