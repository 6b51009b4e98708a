"""Read an image's index: the EROFS file of ``erofs.py``, through mmap and without the kernel.

Opening maps the file and looks at 128 bytes. A directory is parsed at the first lookup in it and
then kept as a dictionary, so that the next costs a fraction of a microsecond; the memory for that
is bounded by :data:`NAMES_MAX`. Inodes are addressed by nid, the kernel's ``st_ino``.

The reader trusts what it reads, because an index is a blob whose digest was checked and that this
code wrote. An index from elsewhere must pass :meth:`IndexReader.validate` first: until then its
methods may raise ``struct.error``, ``IndexError`` or ``KeyError``, and ``walk`` may not end.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hostd.errors import BlobCorruptError, InvalidError
from hostd.fs import erofs_format as erofs
from hostd.fs.erofs import write_index
from hostd.fs.tree import Node, Tree
from hostd.ids import Digest, is_digest

NAMES_MAX = 400_000
"""Directory entries kept parsed by one reader, about 170 bytes each; the oldest go first."""
_TYPES = {number: kind for kind, number in erofs.FILE_TYPES.items()}
_HEAD = struct.Struct("<HHHHQI")
_DOTS = (b".", b"..")


class Attributes(NamedTuple):
    """What stat(2) shows of an inode."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    nlink: int
    rdev: int


class IndexReader:
    """One index, open for reading; may be used from several threads."""

    def __init__(self, path: Path) -> None:
        """Open an index.

        Raises:
            BlobCorruptError: it is not an EROFS image of ours.
        """
        self.path = path
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            if length < erofs.BLOCK or length % erofs.BLOCK:
                raise BlobCorruptError(f"index {path} has {length} bytes, not whole 4 KiB blocks")
            self._map = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)
        self.size_bytes = length
        fields = erofs.SUPER.unpack_from(self._map, erofs.SUPER_OFFSET)
        self._check_super(fields)
        self.root_nid: int = fields[5]
        self.inodes: int = fields[6]
        self._names: dict[int, dict[bytes, tuple[int, int]]] = {}
        self._names_count = 0
        self._lock = threading.Lock()

    def _check_super(self, fields: tuple[int, ...]) -> None:
        expected = {0: erofs.MAGIC, 2: erofs.FEATURE_COMPAT_MTIME, 3: erofs.BLOCK_BITS, 10: 0}
        expected |= {9: self.size_bytes // erofs.BLOCK, 14: erofs.FEATURE_INCOMPAT_CHUNKED_FILE}
        wrong = [place for place, value in expected.items() if fields[place] != value]
        if wrong:
            raise BlobCorruptError(
                f"index {self.path} has field {wrong[0]} of its superblock {fields[wrong[0]]:#x}, "
                f"expected {expected[wrong[0]]:#x}"
            )

    def lookup(self, nid: int, name: bytes) -> int | None:
        """The nid of a name in a directory, or None; knows ``.`` and ``..``."""
        entry = (self._names.get(nid) or self._load(nid)).get(name)
        return None if entry is None else entry[0]

    def stat(self, nid: int) -> Attributes:
        """The attributes of an inode."""
        fields = erofs.INODE.unpack_from(self._map, nid * erofs.SLOT)
        mode = fields[2]
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        return Attributes(
            mode,
            fields[7],
            fields[8],
            fields[4],
            fields[9] * 1_000_000_000 + fields[10],
            fields[11],
            fields[5] if is_device else 0,
        )

    def readdir(self, nid: int) -> Iterator[tuple[bytes, int, int]]:
        """Name, nid and type (``S_IFREG``, …) of each entry, sorted, without ``.`` and ``..``."""
        for name, (child, kind) in (self._names.get(nid) or self._parse(nid)).items():
            if name not in _DOTS:
                yield name, child, _TYPES[kind]

    def readlink(self, nid: int) -> bytes:
        """The target of a symbolic link."""
        return self._data(nid)

    def inline_data(self, nid: int) -> bytes | None:
        """The content of a file that lies in the index; None if a blob holds it."""
        if self._layout(nid) == erofs.LAYOUT_CHUNKS:
            return None
        return self._data(nid)

    def digest(self, nid: int) -> Digest | None:
        """The blob with the content of a file; None if it lies in the index or is no file."""
        start = nid * erofs.SLOT
        if self._map[start] >> 1 != erofs.LAYOUT_CHUNKS:
            return None
        path = start + erofs.REDIRECT_OFFSET
        text = self._map[path : path + erofs.REDIRECT_BYTES]
        return Digest("blake3:" + (text[1:3] + text[4:]).decode("ascii"))

    redirect = digest

    def xattrs(self, nid: int) -> dict[bytes, bytes]:
        """The extended attributes a process may see: all but ``trusted.overlay.*``."""
        _, count, *_ = _HEAD.unpack_from(self._map, nid * erofs.SLOT)
        if not count:
            return {}
        start = nid * erofs.SLOT + erofs.INODE_BYTES
        found = _parse_xattrs(self._map[start : start + _xattr_bytes(count)])
        return {name: value for name, value in found if not name.startswith(erofs.OVERLAY)}

    def resolve(self, path: bytes) -> int | None:
        """The nid at an absolute path, links not followed, or None."""
        nid: int | None = self.root_nid
        for name in path.split(b"/"):
            if nid is None or not stat.S_ISDIR(self.stat(nid).mode):
                return None
            if name:
                nid = self.lookup(nid, name)
        return nid

    def walk(self) -> Iterator[tuple[bytes, int]]:
        """Every path with its nid, the root (``/``) first, directories before what they hold."""
        stack = [(b"", self.root_nid, stat.S_IFDIR)]
        while stack:
            path, nid, kind = stack.pop()
            yield path or b"/", nid
            if kind == stat.S_IFDIR:
                children = [
                    (path + b"/" + name, at, type_) for name, at, type_ in self.readdir(nid)
                ]
                stack.extend(reversed(children))

    def digests(self) -> set[Digest]:
        """Every blob that the image needs."""
        found = set()
        stack = [self.root_nid]
        while stack:
            for _, nid, kind in self.readdir(stack.pop()):
                if kind == stat.S_IFDIR:
                    stack.append(nid)
                elif kind == stat.S_IFREG and (digest := self.digest(nid)) is not None:
                    found.add(digest)
        return found

    def to_tree(self) -> Tree:
        """The whole tree in memory; hard links become one node."""
        shared: dict[int, Node] = {}
        root = self._node(self.root_nid)
        stack = [(root, self.root_nid)]
        while stack:
            parent, parent_nid = stack.pop()
            children = parent.children
            for name, nid, kind in self.readdir(parent_nid):
                node = shared.get(nid)
                if node is None:
                    node = self._node(nid)
                    if kind == stat.S_IFDIR:
                        stack.append((node, nid))
                    else:
                        shared[nid] = node
                children[name] = node
        return Tree(root)

    def validate(self) -> None:
        """Check that the file is what ``write_index`` makes, byte for byte.

        First every offset, name, type and redirect is checked, which also proves that directories
        form a tree; then the tree is written again and compared, which leaves no room for anything
        that only another reader would see.

        Raises:
            BlobCorruptError: it is not; the text names the place.
        """
        try:
            self._check_directories()
            written = write_index(self.to_tree())
        except (struct.error, LookupError, ValueError, OverflowError) as error:
            raise BlobCorruptError(
                f"index {self.path} has an offset outside itself: {error}"
            ) from error
        except InvalidError as error:
            raise BlobCorruptError(f"index {self.path}: {error}") from error
        if written != self._map[:]:
            raise BlobCorruptError(f"index {self.path} is not in the form that hostd writes")

    def _layout(self, nid: int) -> int:
        return int.from_bytes(self._map[nid * erofs.SLOT : nid * erofs.SLOT + 2], "little") >> 1

    def _data(self, nid: int) -> bytes:
        """The content of an inode that is not in chunks: full blocks elsewhere, the rest inline."""
        start = nid * erofs.SLOT
        format_, count, _, _, size, union = _HEAD.unpack_from(self._map, start)
        if not size:
            return b""
        if format_ >> 1 == erofs.LAYOUT_PLAIN:
            return self._map[union * erofs.BLOCK : union * erofs.BLOCK + size]
        tail = start + erofs.INODE_BYTES + _xattr_bytes(count)
        whole = (size - 1) // erofs.BLOCK * erofs.BLOCK
        before = self._map[union * erofs.BLOCK : union * erofs.BLOCK + whole] if whole else b""
        return before + self._map[tail : tail + size - whole]

    def _load(self, nid: int) -> dict[bytes, tuple[int, int]]:
        names = self._parse(nid)
        with self._lock:
            self._names[nid] = names
            self._names_count += len(names)
            while self._names_count > NAMES_MAX and len(self._names) > 1:
                oldest = next(iter(self._names))
                self._names_count -= len(self._names.pop(oldest))
        return names

    def _parse(self, nid: int) -> dict[bytes, tuple[int, int]]:
        data = self._data(nid)
        names: dict[bytes, tuple[int, int]] = {}
        for start in range(0, len(data), erofs.BLOCK):
            names.update(_parse_block(data[start : start + erofs.BLOCK]))
        return names

    def _node(self, nid: int) -> Node:
        fields = erofs.INODE.unpack_from(self._map, nid * erofs.SLOT)
        mode = fields[2]
        kind = mode & 0o170000
        digest, inline, target, size, rdev = None, None, b"", 0, 0
        if kind == stat.S_IFREG:
            size = fields[4]
            digest = self.digest(nid)
            inline = None if digest is not None else self._data(nid)
        elif kind == stat.S_IFLNK:
            target = self._data(nid)
            size = len(target)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            rdev = fields[5]
        has_own = fields[1] > (erofs.BLOB_XATTR_COUNT if digest is not None else 0)
        return Node(
            mode=mode,
            uid=fields[7],
            gid=fields[8],
            mtime_ns=fields[9] * 1_000_000_000 + fields[10],
            xattrs=self.xattrs(nid) if has_own else {},
            rdev=rdev,
            target=target,
            digest=digest,
            inline=inline,
            size=size,
        )

    def _check_directories(self) -> None:
        """Every directory is entered once from one parent, and every inode lies inside the file."""
        seen = {self.root_nid}
        stack = [(self.root_nid, self.root_nid)]
        while stack:
            nid, parent = stack.pop()
            self._check_inode(nid, stat.S_IFDIR)
            names = self._parse(nid)
            if names.get(b".") != (nid, 2) or names.get(b"..") != (parent, 2):
                raise BlobCorruptError(f"index {self.path}: directory {nid} has a wrong . or ..")
            for name, child, kind in self.readdir(nid):
                if kind == stat.S_IFDIR:
                    if child in seen:
                        raise BlobCorruptError(
                            f"index {self.path}: {name!r} is a second way to {child}"
                        )
                    seen.add(child)
                    stack.append((child, nid))
                else:
                    self._check_inode(child, kind)

    def _check_inode(self, nid: int, kind: int) -> None:
        start = nid * erofs.SLOT
        format_, count, mode, _, size, union = _HEAD.unpack_from(self._map, start)
        end = start + erofs.INODE_BYTES + _xattr_bytes(count)
        if format_ >> 1 != erofs.LAYOUT_CHUNKS:
            if size > self.size_bytes:
                raise BlobCorruptError(f"index {self.path}: inode {nid} has {size} bytes")
            inline = (size - 1) % erofs.BLOCK + 1 if format_ >> 1 == erofs.LAYOUT_INLINE else 0
            elsewhere = size - inline
            end = max(end + inline, union * erofs.BLOCK + elsewhere if elsewhere > 0 else 0)
        if stat.S_IFMT(mode) != kind or format_ & 1 != 1 or not self._inside(start, end):
            raise BlobCorruptError(
                f"index {self.path}: inode {nid} has mode {mode:o} and ends at {end}"
            )
        if format_ >> 1 == erofs.LAYOUT_CHUNKS and not is_digest(self.digest(nid) or ""):
            raise BlobCorruptError(f"index {self.path}: inode {nid} has no digest of a blob")

    def _inside(self, start: int, end: int) -> bool:
        return erofs.FIRST_OFFSET <= start <= end <= self.size_bytes


def _xattr_bytes(count: int) -> int:
    return len(erofs.XATTR_HEADER) + 4 * (count - 1) if count else 0


def _parse_xattrs(area: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = len(erofs.XATTR_HEADER)
    while position < len(area):
        name_length, number, value_length = erofs.XATTR_ENTRY.unpack_from(area, position)
        name_at = position + erofs.XATTR_ENTRY.size
        value_at = name_at + name_length
        end = value_at + value_length
        yield erofs.PREFIX_OF[number] + area[name_at:value_at], area[value_at:end]
        position = (end + 3) & -4


def _parse_block(block: bytes) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Names with nid and type number, as one block of a directory lists them."""
    table = int.from_bytes(block[8:10], "little")
    entries = list(erofs.DIRENT.iter_unpack(block[:table]))
    ends = [offset for _, offset, _ in entries[1:]]
    ends.append(len(block))
    for (nid, offset, kind), end in zip(entries, ends, strict=True):
        yield block[offset:end].rstrip(b"\0"), (nid, kind)
