"""The pieces of an EROFS image: constants, structures, and the record of one inode.

Names and numbers are those of ``fs/erofs/erofs_fs.h`` in Linux; ``erofs.py`` says how we use it.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from struct import Struct
from typing import Final

from hostd.errors import InvalidError
from hostd.fs.tree import Node

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
BLOB_XATTR_COUNT: Final = (len(BLOB_PREFIX) + REDIRECT_BYTES + len(_BLOB_SUFFIX)) // 4 - 2
"""``i_xattr_icount`` of a file with a blob and no attributes of its own."""
REDIRECT_OFFSET: Final = INODE_BYTES + len(BLOB_PREFIX)


def _xattrs(node: Node) -> bytes:
    """The attributes of a node that are the user's own, without a header."""
    entries = []
    for name in sorted(node.xattrs):
        if name.startswith(OVERLAY):
            raise InvalidError(f"attribute {name!r} belongs to overlayfs, not to an image")
        entries.append(xattr_entry(name, node.xattrs[name]))
    return b"".join(entries)


def xattr_area(node: Node) -> bytes:
    """What follows the inode of a node without a blob; empty when it has no attributes.

    Raises:
        InvalidError: an attribute does not fit, or belongs to overlayfs.
    """
    return XATTR_HEADER + _xattrs(node) if node.xattrs else b""


def _xattr_count(length: int) -> int:
    """``i_xattr_icount`` of an attribute area of so many bytes, header included."""
    return (length - len(XATTR_HEADER)) // 4 + 1 if length else 0


def inode_bytes(
    node: Node, layout: int, *, xattr_bytes: int, size: int, union: int, nlink: int
) -> bytes:
    """The 64 bytes of an inode."""
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
    bits = min(max((size - 1).bit_length(), BLOCK_BITS), CHUNK_BITS_MAX)
    if len(digest) != 71 or not digest.startswith("blake3:"):
        raise InvalidError(f"{digest!r} is not the digest of a blob")
    redirect = f"/{digest[7:9]}/{digest[9:]}".encode()
    own = _xattrs(node) if node.xattrs else b""
    seconds, nanoseconds = divmod(node.mtime_ns, 1_000_000_000)
    # As inode_bytes does it; without the call, since most inodes of an image come this way.
    inode = INODE.pack(
        LAYOUT_CHUNKS << 1 | 1,
        BLOB_XATTR_COUNT + len(own) // 4,
        node.mode,
        0,
        size,
        bits - BLOCK_BITS,
        0,
        node.uid,
        node.gid,
        seconds,
        nanoseconds,
        1,
    )
    return inode + BLOB_PREFIX + redirect + _BLOB_SUFFIX + own + HOLE * ((size - 1 >> bits) + 1)


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


def record_of(node: Node) -> tuple[bytes, bytes, bool]:
    """The record of anything but a directory, data that lies elsewhere, and whether it is free.

    A free record has no data beside its inode or elsewhere, and may cross blocks.

    Raises:
        InvalidError: the node cannot be in an image.
    """
    if node.digest is not None and node.inline is None and node.size:
        return _blob_record(node, node.digest), b"", True
    data = _content(node)
    xattrs = xattr_area(node)
    fits = INODE_BYTES + len(xattrs) + len(data) <= BLOCK
    inode = inode_bytes(
        node,
        LAYOUT_INLINE if data and fits else LAYOUT_PLAIN,
        xattr_bytes=len(xattrs),
        size=len(data),
        union=node.rdev if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode) else 0,
        nlink=1,
    )
    if not data:
        return inode + xattrs, b"", True
    return (inode + xattrs + data, b"", False) if fits else (inode + xattrs, data, False)


def is_file_with_blob(node: Node) -> bool:
    """Whether the index refers to a blob for this node."""
    return node.digest is not None and node.inline is None and node.size > 0
