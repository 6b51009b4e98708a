"""Write a tree as an EROFS image: the index of an image, which the kernel mounts as it is.

The index holds every attribute, directory and link target, and files up to 1 KiB. A larger file is
an inode without data (one chunk, a hole) with two attributes that overlayfs understands:
``trusted.overlay.metacopy`` (empty) and ``trusted.overlay.redirect`` = ``/ab/<62 hex>``, the path
of its blob in a data-only lower layer. One such file is 192 bytes.

Format: https://docs.kernel.org/filesystems/erofs.html and ``fs/erofs/erofs_fs.h``; of overlayfs:
https://docs.kernel.org/filesystems/overlayfs.html (data-only lower layers). What we use of it:

- 4 KiB blocks, 64-byte inodes only, at block 0 (``meta_blkaddr`` = 0), so nid = offset / 32.
- A record (inode, attributes, inline data) of up to 4 KiB never crosses a block. The kernel demands
  that of inline data; for the rest it is simplest, and costs 1.5 %.
- Directories: full blocks lie behind all inodes, the last piece inline when it fits beside its
  inode.
- The same tree gives the same bytes: depth first, names sorted, no times of our own, no random
  UUID. ``i_ino`` stays 0, since Linux numbers inodes by nid.

Bytes, not a stream: an index of 500,000 entries is about 120 MB, and its directories cannot be
written before the place of every child is known.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from itertools import accumulate, pairwise
from struct import Struct
from typing import Final

from hostd.errors import InvalidError
from hostd.fs.tree import Node, Tree

BLOCK: Final = 4096
BLOCK_BITS: Final = 12
SLOT: Final = 32
"""A nid counts these."""
SUPER_OFFSET: Final = 1024
MAGIC: Final = 0xE0F5E1E2
FIRST_OFFSET: Final = SUPER_OFFSET + 128
"""Of the root, or block 1 if it does not fit: older kernels have 16 bits for its nid."""
INLINE_MAX: Final = 1024
"""Files up to this size lie in the index: 4,887 of 20,852 blobs of a measured image vanish so."""
NAME_MAX: Final = 255
XATTR_VALUE_MAX: Final = 65_535
"""``e_value_size`` has 16 bits."""
TARGET_MAX: Final = 4095

FEATURE_COMPAT_MTIME: Final = 0x2
FEATURE_INCOMPAT_CHUNKED_FILE: Final = 0x4

LAYOUT_PLAIN: Final = 0
LAYOUT_INLINE: Final = 2
LAYOUT_CHUNKS: Final = 4
CHUNK_BITS_MAX: Final = BLOCK_BITS + 31
HOLE: Final = b"\xff\xff\xff\xff"

SUPER = Struct("<IIIBBHQQIIII16s16sIHHHBBIQB3xIQ8x")
INODE = Struct("<HHHHQIIIIqII16x")
"""format, xattr count, mode, -, size, union, ino, uid, gid, mtime s, mtime ns, nlink."""
INODE_BYTES: Final = INODE.size
NLINK_OFFSET: Final = 44
UNION_OFFSET: Final = 16
NLINK = Struct("<I")
XATTR_HEADER: Final = bytes(12)
XATTR_ENTRY = Struct("<BBH")
DIRENT = Struct("<QHBx")

_PREFIXES: tuple[tuple[bytes, int], ...] = (
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
)
_WHOLE_NAMES: Mapping[bytes, int] = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
PREFIX_OF: Mapping[int, bytes] = {
    **{number: name for name, number in _WHOLE_NAMES.items()},
    **{number: prefix for prefix, number in _PREFIXES},
}
FILE_TYPES: Mapping[int, int] = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
OVERLAY: Final = b"trusted.overlay."
REDIRECT_BYTES: Final = 66
"""``/ab/`` and 62 hexadecimal digits."""


def xattr_entry(name: bytes, value: bytes) -> bytes:
    """One attribute as it lies in the image, padded to 4 bytes.

    Raises:
        InvalidError: EROFS cannot hold it.
    """
    number, rest = _WHOLE_NAMES.get(name, 0), b""
    for prefix, candidate in _PREFIXES:
        if name.startswith(prefix):
            number, rest = candidate, name[len(prefix) :]
    if not number or len(rest) > NAME_MAX or len(value) > XATTR_VALUE_MAX:
        raise InvalidError(
            f"attribute {name!r} with {len(value)} bytes does not fit an index",
            hint=f"known: user., trusted., security., ACLs; up to {XATTR_VALUE_MAX} bytes",
        )
    entry = XATTR_ENTRY.pack(len(rest), number, len(value)) + rest + value
    return entry + bytes(-len(entry) % 4)


_REDIRECT_ENTRY: Final = xattr_entry(OVERLAY + b"redirect", b"/ab/" + bytes(62))
BLOB_PREFIX: Final = (
    XATTR_HEADER
    + xattr_entry(OVERLAY + b"metacopy", b"")
    + _REDIRECT_ENTRY[: 4 + len(b"overlay.redirect")]
)
"""What follows the inode of every file with a blob; the redirect's value comes next."""
_BLOB_SUFFIX: Final = bytes(-(len(BLOB_PREFIX) + REDIRECT_BYTES) % 4)
_BLOB_XATTR_BYTES: Final = len(BLOB_PREFIX) + REDIRECT_BYTES + len(_BLOB_SUFFIX)
REDIRECT_OFFSET: Final = INODE_BYTES + len(BLOB_PREFIX)


def write_index(tree: Tree) -> bytes:
    """The EROFS image of a tree; equal trees give equal bytes.

    Raises:
        InvalidError: the tree cannot be an image: a name or attribute that does not fit, a file
            without content, a directory in two places, a mark that belongs to layers.
    """
    return _Writer().write(tree.root)


def is_file_with_blob(node: Node) -> bool:
    """Whether the index refers to a blob for this node."""
    return node.digest is not None and node.inline is None and node.size > 0


def _xattrs(node: Node) -> bytes:
    """The attributes of a node that are the user's own, without a header."""
    entries = []
    for name in sorted(node.xattrs):
        if name.startswith(OVERLAY):
            raise InvalidError(f"attribute {name!r} belongs to overlayfs, not to an image")
        entries.append(xattr_entry(name, node.xattrs[name]))
    return b"".join(entries)


def _xattr_count(length: int) -> int:
    """``i_xattr_icount`` of an attribute area of so many bytes, header included."""
    return (length - len(XATTR_HEADER)) // 4 + 1 if length else 0


def _inode(
    node: Node, layout: int, *, xattr_bytes: int, size: int, union: int, nlink: int
) -> bytes:
    seconds, nanoseconds = divmod(node.mtime_ns, 1_000_000_000)
    return INODE.pack(
        layout << 1 | 1,
        _xattr_count(xattr_bytes),
        node.mode,
        0,
        size,
        union,
        0,
        node.uid,
        node.gid,
        seconds,
        nanoseconds,
        nlink,
    )


def _blob_record(node: Node, digest: str) -> bytes:
    size = node.size
    bits = min(max(BLOCK_BITS, (size - 1).bit_length()), CHUNK_BITS_MAX)
    if len(digest) != 71 or not digest.startswith("blake3:"):
        raise InvalidError(f"{digest!r} is not the digest of a blob")
    xattrs = b"%b/%b/%b%b" % (
        BLOB_PREFIX,
        digest[7:9].encode(),
        digest[9:].encode(),
        _BLOB_SUFFIX,
    )
    if node.xattrs:
        xattrs += _xattrs(node)
    union = bits - BLOCK_BITS
    inode = _inode(node, LAYOUT_CHUNKS, xattr_bytes=len(xattrs), size=size, union=union, nlink=1)
    return inode + xattrs + HOLE * ((size - 1 >> bits) + 1)


def _content(node: Node) -> bytes:
    """What lies beside the inode of a node that is neither a directory nor a file with a blob."""
    kind = stat.S_IFMT(node.mode)
    if kind == stat.S_IFLNK:
        if not 0 < len(node.target) <= TARGET_MAX:
            raise InvalidError(
                f"a symbolic link's target has {len(node.target)} bytes, not 1 to 4095"
            )
        return node.target
    if kind == stat.S_IFREG:
        if node.inline is None and node.size:
            raise InvalidError(f"a file of {node.size} bytes has neither a blob nor inline content")
        data = node.inline or b""
        if len(data) > INLINE_MAX:
            raise InvalidError(f"inline content has {len(data)} bytes, at most {INLINE_MAX}")
        return data
    if kind not in FILE_TYPES:
        raise InvalidError(f"mode {node.mode:o} has no known file type")
    return b""


class _Directory:
    """A directory whose inode has a place and whose content is written at the end."""

    __slots__ = ("blocks", "names", "node", "nodes", "offset", "parent_nid", "tail", "xattrs")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.parent_nid = 0
        self.names = sorted([*node.children, b".", b".."])
        self.xattrs = _xattrs(node) if node.xattrs else b""
        if self.xattrs:
            self.xattrs = XATTR_HEADER + self.xattrs
        self.blocks = _fill_blocks(self.names)
        self.tail = sum(map(len, self.names[self.blocks[-1] :])) + DIRENT.size * (
            len(self.names) - self.blocks[-1]
        )
        self.offset = 0

    @property
    def is_inline(self) -> bool:
        return INODE_BYTES + len(self.xattrs) + self.tail <= BLOCK

    @property
    def length(self) -> int:
        return INODE_BYTES + len(self.xattrs) + (self.tail if self.is_inline else 0)

    @property
    def size(self) -> int:
        return (len(self.blocks) - 1) * BLOCK + self.tail


def _fill_blocks(names: list[bytes]) -> list[int]:
    """Where each block's names begin: as many as fit go into one block."""
    if sum(map(len, names)) + DIRENT.size * len(names) <= BLOCK:
        return [0]
    starts, used = [0], 0
    for number, name in enumerate(names):
        need = DIRENT.size + len(name)
        if used + need > BLOCK:
            starts.append(number)
            used = 0
        used += need
    return starts


class _Writer:
    """One image in the making: first every record gets its place, then directories are filled."""

    def __init__(self) -> None:
        self.out = bytearray(FIRST_OFFSET)
        self.nid_of: dict[int, int] = {}
        self.nlink_of: dict[int, int] = {}
        self.directories: list[_Directory] = []
        self.behind: list[tuple[int, bytes]] = []

    def write(self, root: Node) -> bytes:
        if not root.is_dir:
            raise InvalidError("the root of an image is not a directory")
        self._place_all(root)
        out = self.out
        for nid, count in self.nlink_of.items():
            NLINK.pack_into(out, nid * SLOT + NLINK_OFFSET, count)
        self._pad_to_block()
        for offset, data in self.behind:
            NLINK.pack_into(out, offset + UNION_OFFSET, len(out) // BLOCK)
            out += data
            self._pad_to_block()
        for entry in self.directories:
            self._fill(entry)
        self._write_super()
        return bytes(out)

    def _pad_to_block(self) -> None:
        self.out += bytes(-len(self.out) % BLOCK)

    def _reserve(self, length: int) -> int:
        """The offset where a record of this length may lie; the output ends there afterwards."""
        end = len(self.out)
        start = (end + SLOT - 1) & -SLOT
        if length > BLOCK - (start & (BLOCK - 1)) and length <= BLOCK:
            start = (start + BLOCK - 1) & -BLOCK
        self.out += bytes(start - end)
        return start

    def _place_all(self, root: Node) -> None:
        stack: list[tuple[Node, int | None]] = [(root, None)]
        while stack:
            node, parent_nid = stack.pop()
            entry = self._place_directory(node, parent_nid)
            children = node.children
            below: list[tuple[Node, int | None]] = []
            for name in entry.names:
                if name in (b".", b".."):
                    continue
                child = children[name]
                if child.is_dir:
                    below.append((child, entry.offset // SLOT))
                else:
                    self._place_file(child)
            stack.extend(reversed(below))

    def _place_directory(self, node: Node, parent_nid: int | None) -> _Directory:
        if id(node) in self.nid_of:
            raise InvalidError("a directory stands in two places of a tree")
        if node.opaque or node.implicit:
            raise InvalidError("a directory has a mark that belongs to layers")
        _check_names(node)
        entry = _Directory(node)
        entry.offset = self._reserve(entry.length)
        entry.parent_nid = entry.offset // SLOT if parent_nid is None else parent_nid
        self.out += bytes(entry.length)
        self.nid_of[id(node)] = entry.offset // SLOT
        self.directories.append(entry)
        return entry

    def _place_file(self, node: Node) -> None:
        nid = self.nid_of.get(id(node))
        if nid is not None:
            self.nlink_of[nid] = self.nlink_of.get(nid, 1) + 1
            return
        if node.digest is not None and node.inline is None and node.size:
            record, behind = _blob_record(node, node.digest), b""
        else:
            record, behind = _plain_record(node)
        offset = self._reserve(len(record))
        self.out += record
        self.nid_of[id(node)] = offset // SLOT
        if behind:
            self.behind.append((offset, behind))

    def _fill(self, entry: _Directory) -> None:
        """Write a directory's inode and entries, now that every child has its nid."""
        own = entry.offset // SLOT
        children = entry.node.children
        pairs = [
            (own, 2) if name == b"." else (entry.parent_nid, 2) if name == b".."
            else (self.nid_of[id(children[name])], FILE_TYPES[children[name].mode & 0o170000])
            for name in entry.names
        ]  # fmt: skip
        bounds = [*entry.blocks, len(entry.names)]
        blocks = [
            _dirent_block(entry.names[first:last], pairs[first:last])
            for first, last in pairwise(bounds)
        ]
        inline = blocks.pop() if entry.is_inline else b""
        start = len(self.out) // BLOCK if blocks else 0
        for block in blocks:
            self.out += block + bytes(-len(block) % BLOCK)
        inode = _inode(
            entry.node,
            LAYOUT_INLINE if inline else LAYOUT_PLAIN,
            xattr_bytes=len(entry.xattrs),
            size=entry.size,
            union=start,
            nlink=2 + sum(child.is_dir for child in children.values()),
        )
        record = inode + entry.xattrs + inline
        self.out[entry.offset : entry.offset + len(record)] = record

    def _write_super(self) -> None:
        root_nid = self.directories[0].offset // SLOT
        SUPER.pack_into(
            self.out, SUPER_OFFSET,
            MAGIC, 0, FEATURE_COMPAT_MTIME, BLOCK_BITS, 0, root_nid, len(self.nid_of),
            0, 0, len(self.out) // BLOCK, 0, 0, bytes(16), bytes(16), FEATURE_INCOMPAT_CHUNKED_FILE,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip


def _check_names(node: Node) -> None:
    for name in node.children:
        if not 0 < len(name) <= NAME_MAX or b"/" in name or b"\0" in name or name in (b".", b".."):
            raise InvalidError(f"{name!r} cannot be the name of a file")


def _dirent_block(names: list[bytes], pairs: list[tuple[int, int]]) -> bytes:
    offsets = accumulate(map(len, names), initial=DIRENT.size * len(names))
    entries = [
        DIRENT.pack(nid, offset, kind) for (nid, kind), offset in zip(pairs, offsets, strict=False)
    ]
    return b"".join(entries) + b"".join(names)


def _plain_record(node: Node) -> tuple[bytes, bytes]:
    """The record of anything but a directory or a file with a blob, and what must lie elsewhere."""
    data = _content(node)
    xattrs = _xattrs(node)
    if xattrs:
        xattrs = XATTR_HEADER + xattrs
    fits = INODE_BYTES + len(xattrs) + len(data) <= BLOCK
    inode = _inode(
        node,
        LAYOUT_INLINE if data and fits else LAYOUT_PLAIN,
        xattr_bytes=len(xattrs),
        size=len(data),
        union=node.rdev if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode) else 0,
        nlink=1,
    )
    return (inode + xattrs + data, b"") if fits else (inode + xattrs, data)
