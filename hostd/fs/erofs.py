"""Write a tree as an EROFS image: the index of an image, which the kernel mounts as it is.

The index holds every attribute, directory and link target, and files up to 1 KiB. A larger file is
an inode without data (one chunk, a hole) with two attributes that overlayfs understands:
``trusted.overlay.metacopy`` (empty) and ``trusted.overlay.redirect`` = ``/ab/<62 hex>``, the path
of its blob in a data-only lower layer. One such file is 192 bytes.

Format: https://docs.kernel.org/filesystems/erofs.html and ``fs/erofs/erofs_fs.h``; of overlayfs:
https://docs.kernel.org/filesystems/overlayfs.html (data-only lower layers). What we use of it:

- 4 KiB blocks, 64-byte inodes only, at block 0 (``meta_blkaddr`` = 0), so nid = offset / 32.
- Directory by directory, depth first: its inode, then its files by name: first those with content
  beside the inode (a record of up to 4 KiB never crosses a block, which the kernel demands of
  inline data), then those without. The latter may lie anywhere, so they are one run of bytes.
- Directories: full blocks lie behind all inodes, the last piece inline when it fits beside its
  inode.
- The same tree gives the same bytes: names sorted, no times of our own, no random UUID. ``i_ino``
  stays 0, since Linux numbers inodes by nid.

A build step changes a few directories of a large image. What depends on a directory's children only
(their records, the names' table) is therefore kept with the directory's node, which trees
share: writing 25,000 entries again takes a third of the first time.

Bytes, not a stream: an index of 500,000 entries is about 120 MB, and its directories cannot be
written before the place of every child is known.
"""

from __future__ import annotations

import functools
import itertools
import stat
from struct import Struct
from typing import Final

import msgspec

from hostd.errors import InvalidError
from hostd.fs.erofs_format import (
    BLOCK,
    BLOCK_BITS,
    DIRENT,
    FEATURE_COMPAT_MTIME,
    FEATURE_INCOMPAT_CHUNKED_FILE,
    FILE_TYPES,
    FIRST_OFFSET,
    INODE_BYTES,
    LAYOUT_INLINE,
    LAYOUT_PLAIN,
    MAGIC,
    NAME_MAX,
    NLINK,
    NLINK_OFFSET,
    SLOT,
    SUPER,
    SUPER_OFFSET,
    UNION_OFFSET,
    inode_bytes,
    record_of,
    xattr_area,
)
from hostd.fs.tree import Node, Tree

_DIRECTORY_TYPE: Final = FILE_TYPES[stat.S_IFDIR]
_STRUCTS_MAX: Final = 512
"""More entries than this (340) do not fit a block."""


def write_index(tree: Tree) -> bytes:
    """The EROFS image of a tree; equal trees give equal bytes.

    Raises:
        InvalidError: the tree cannot be an image: a name or attribute that does not fit, a file
            without content, a directory in two places, a mark that belongs to layers.
    """
    if not tree.root.is_dir:
        raise InvalidError("the root of an image is not a directory")
    return _Writer().write(tree.root)


class _Listing:
    """What of an image depends on a directory's children alone: names, their files' records."""

    __slots__ = (
        "below", "blocks", "dots", "file_at", "file_ids", "free", "free_slots", "has_twins",
        "names", "nodes", "tight",
    )  # fmt: skip

    def __init__(self, children: dict[bytes, Node]) -> None:
        _check_names(children)
        self.names = sorted(children)
        self.nodes = [children[name] for name in self.names]
        self.below: list[int] = []
        """Which children are directories."""
        self.tight: list[tuple[bytes, bytes]] = []
        """Records with data beside the inode, and data that lies elsewhere."""
        free: list[bytes] = []
        tight_at, free_at = [], []
        kinds = []
        for at, node in enumerate(self.nodes):
            kind = FILE_TYPES.get(node.mode & 0o170000, 0)
            kinds.append(kind)
            if kind == _DIRECTORY_TYPE:
                self.below.append(at)
                continue
            record, behind, is_free = record_of(node)
            if is_free:
                free.append(record + bytes(-len(record) % SLOT))
                free_at.append(at)
            else:
                self.tight.append((record, behind))
                tight_at.append(at)
        self.free = b"".join(free)
        self.free_slots = list(itertools.accumulate((len(r) // SLOT for r in free), initial=0))
        self.file_at = tight_at + free_at
        self.file_ids = [id(self.nodes[at]) for at in self.file_at]
        self.has_twins = len(set(self.file_ids)) < len(self.file_ids)
        self._make_table(kinds)

    def _make_table(self, kinds: list[int]) -> None:
        """Everything of the directory's content except nids."""
        one = sum(name < b"." for name in self.names)
        two = sum(name < b".." for name in self.names)
        self.dots = (one, two)
        names = [*self.names[:one], b".", *self.names[one:two], b"..", *self.names[two:]]
        types = [*kinds[:one], 2, *kinds[one:two], 2, *kinds[two:]]
        starts = _block_starts(names)
        self.blocks: list[tuple[int, int, list[int], list[int], bytes]] = []
        for first, last in itertools.pairwise([*starts, len(names)]):
            lengths = map(len, names[first:last])
            offsets = list(itertools.accumulate(lengths, initial=DIRENT.size * (last - first)))
            text = b"".join(names[first:last])
            self.blocks.append((first, last, offsets[:-1], types[first:last], text))

    def is_of(self, children: dict[bytes, Node]) -> bool:
        """Whether it (still) describes these children; nodes do not change, dictionaries may."""
        return len(children) == len(self.nodes) and [*map(children.get, self.names)] == self.nodes

    def content(self, own: int, parent: int, nids: list[int]) -> list[bytes]:
        """The directory's blocks, given its nid, its parent's, and those of its children."""
        one, two = self.dots
        all_nids = [*nids[:one], own, *nids[one:two], parent, *nids[two:]]
        blocks = []
        for first, last, offsets, types, text in self.blocks:
            rows = zip(all_nids[first:last], offsets, types, strict=True)
            table = _table(last - first).pack(*itertools.chain.from_iterable(rows))
            blocks.append(table + text)
        return blocks


class _Directory:
    """A directory whose inode has a place and whose content is written at the end."""

    __slots__ = ("listing", "nids", "node", "offset", "parent_nid", "tail", "xattrs")

    def __init__(self, node: Node, listing: _Listing) -> None:
        self.node = node
        self.listing = listing
        self.xattrs = xattr_area(node) if node.xattrs else b""
        first, last, _, _, text = listing.blocks[-1]
        self.tail = DIRENT.size * (last - first) + len(text)
        self.nids = [0] * len(listing.nodes)
        self.offset = 0
        self.parent_nid = 0

    @property
    def is_inline(self) -> bool:
        return INODE_BYTES + len(self.xattrs) + self.tail <= BLOCK

    @property
    def length(self) -> int:
        return INODE_BYTES + len(self.xattrs) + (self.tail if self.is_inline else 0)


class _Writer:
    """One image in the making: first every record gets its place, then directories are filled."""

    def __init__(self) -> None:
        self.out = bytearray(FIRST_OFFSET)
        self.nid_of: dict[int, int] = {}
        self.directories: dict[int, _Directory] = {}
        self.nlink_of: dict[int, int] = {}
        self.behind: list[tuple[int, bytes]] = []

    def write(self, root: Node) -> bytes:
        self._place_all(root)
        out = self.out
        for nid, count in self.nlink_of.items():
            NLINK.pack_into(out, nid * SLOT + NLINK_OFFSET, count)
        self._pad_to_block()
        for offset, data in self.behind:
            NLINK.pack_into(out, offset + UNION_OFFSET, len(out) // BLOCK)
            out += data
            self._pad_to_block()
        for entry in self.directories.values():
            self._fill(entry)
        self._write_super(root)
        return bytes(out)

    def _pad_to_block(self) -> None:
        self.out += bytes(-len(self.out) % BLOCK)

    def _append(self, record: bytes) -> int:
        """Put a record where it does not cross a block; returns its nid."""
        out = self.out
        end = len(out)
        start = (end + SLOT - 1) & -SLOT
        length = len(record)
        if BLOCK - (start & (BLOCK - 1)) < length <= BLOCK:
            start = (start + BLOCK - 1) & -BLOCK
        out += bytes(start - end) + record
        return start // SLOT

    def _append_free(self, records: bytes) -> int:
        """Put records that may lie anywhere; returns the nid of the first."""
        self.out += bytes(-len(self.out) % SLOT)
        nid = len(self.out) // SLOT
        self.out += records
        return nid

    def _place_all(self, root: Node) -> None:
        stack: list[tuple[Node, _Directory | None, int]] = [(root, None, 0)]
        while stack:
            node, parent, at = stack.pop()
            entry = self._place_directory(node, parent, at)
            listing = entry.listing
            if listing.has_twins or not self.nid_of.keys().isdisjoint(listing.file_ids):
                self._place_linked(entry)
            else:
                self._place_files(entry)
            nodes = listing.nodes
            stack.extend((nodes[at], entry, at) for at in reversed(listing.below))

    def _place_directory(self, node: Node, parent: _Directory | None, at: int) -> _Directory:
        if id(node) in self.directories:
            raise InvalidError("a directory stands in two places of a tree")
        if node.opaque or node.implicit:
            raise InvalidError("a directory has a mark that belongs to layers")
        entry = _Directory(node, _listing(node))
        nid = self._append(bytes(entry.length))
        entry.offset = nid * SLOT
        if parent is None:
            entry.parent_nid = nid
        else:
            entry.parent_nid = parent.offset // SLOT
            parent.nids[at] = nid
        self.directories[id(node)] = entry
        return entry

    def _place_files(self, entry: _Directory) -> None:
        """The usual case: no file of the directory has another name."""
        listing = entry.listing
        placed = []
        for record, behind in listing.tight:
            nid = self._append(record)
            placed.append(nid)
            if behind:
                self.behind.append((nid * SLOT, behind))
        if listing.free:
            base = self._append_free(listing.free)
            placed += [base + slot for slot in listing.free_slots[:-1]]
        self.nid_of.update(zip(listing.file_ids, placed, strict=True))
        nids = entry.nids
        for at, nid in zip(listing.file_at, placed, strict=True):
            nids[at] = nid

    def _place_linked(self, entry: _Directory) -> None:
        """Some file has its inode already: it gets one more link."""
        listing = entry.listing
        slots = listing.free_slots
        free = [listing.free[a * SLOT : b * SLOT] for a, b in itertools.pairwise(slots)]
        records = [*listing.tight, *((record, b"") for record in free)]
        for number, (record, behind) in enumerate(records):
            key, at = listing.file_ids[number], listing.file_at[number]
            nid = self.nid_of.get(key)
            if nid is None:
                is_tight = number < len(listing.tight)
                nid = self._append(record) if is_tight else self._append_free(record)
                self.nid_of[key] = nid
                if behind:
                    self.behind.append((nid * SLOT, behind))
            else:
                self.nlink_of[nid] = self.nlink_of.get(nid, 1) + 1
            entry.nids[at] = nid

    def _fill(self, entry: _Directory) -> None:
        """Write a directory's inode and entries, now that every child has its nid."""
        listing = entry.listing
        blocks = listing.content(entry.offset // SLOT, entry.parent_nid, entry.nids)
        size = (len(blocks) - 1) * BLOCK + entry.tail
        inline = blocks.pop() if entry.is_inline else b""
        start = len(self.out) // BLOCK if blocks else 0
        for block in blocks:
            self.out += block + bytes(-len(block) % BLOCK)
        inode = inode_bytes(
            entry.node,
            LAYOUT_INLINE if inline else LAYOUT_PLAIN,
            xattr_bytes=len(entry.xattrs),
            size=size,
            union=start,
            nlink=2 + len(listing.below),
        )
        record = inode + entry.xattrs + inline
        self.out[entry.offset : entry.offset + len(record)] = record

    def _write_super(self, root: Node) -> None:
        root_nid = self.directories[id(root)].offset // SLOT
        inodes = len(self.directories) + len(self.nid_of)
        SUPER.pack_into(
            self.out, SUPER_OFFSET,
            MAGIC, 0, FEATURE_COMPAT_MTIME, BLOCK_BITS, 0, root_nid, inodes,
            0, 0, len(self.out) // BLOCK, 0, 0, bytes(16), bytes(16), FEATURE_INCOMPAT_CHUNKED_FILE,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip


def _listing(node: Node) -> _Listing:
    """The listing of a directory, from its node if it was made before."""
    known = node.packed
    if isinstance(known, _Listing) and known.is_of(node.children):
        return known
    made = _Listing(node.children)
    # The only field of a node that may change: a cache of what the others determine.
    msgspec.structs.force_setattr(node, "packed", made)
    return made


def _check_names(names: dict[bytes, Node]) -> None:
    for name in names:
        if not 0 < len(name) <= NAME_MAX or b"/" in name or b"\0" in name or name in (b".", b".."):
            raise InvalidError(f"{name!r} cannot be the name of a file")


def _block_starts(names: list[bytes]) -> list[int]:
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


@functools.lru_cache(_STRUCTS_MAX)
def _table(count: int) -> Struct:
    return Struct("<" + "QHBx" * count)
