"""Puts copied files and working directories into a tree, as COPY, ADD and WORKDIR mean it.

Everything is decided on the tree in memory: links in the image are followed inside it, users are
looked up in its own /etc/passwd, and no path of the host takes part. Result is a new tree.

Modification times come from the content, not from the client: the same files make the same image.
They differ between contents, because a ``.pyc`` of an older file with the same size and time would
be taken for the newer one's.
"""

from __future__ import annotations

import bz2
import lzma
import os
import zlib
from collections.abc import Iterator, Mapping

from hostd.build.copying import CopyWork, Entry, Source
from hostd.build.steps import DirectoryWork
from hostd.errors import InvalidError
from hostd.fs import ImageStore, Node, Tree, directory, merge_layer, place, symlink
from hostd.fs.image import SOURCE_MTIME_NS, source_mtime_ns
from hostd.ids import Digest

ACCOUNTS_BYTES_MAX = 1 << 20
"""Of /etc/passwd: some ten thousand users."""
_HEAD_BYTES = 64 * 1024


def place_directory(parent: Tree, work: DirectoryWork, images: ImageStore) -> Tree:
    """The tree with a directory that must be there; an existing one stays as it is.

    Raises:
        InvalidError: something else is there, or the user is not known.
    """
    layer = _Layer(parent, (0, 0))
    path = parent.resolve(os.fsencode(work.path))
    existing = parent.lookup(path)
    if existing is not None:
        if not existing.is_dir:
            raise InvalidError(f"{work.path} is there and is not a directory")
        return parent
    layer = _Layer(parent, owner_ids(parent, work.owner, images))
    layer.make_directories(path)
    return layer.merged()


def place_copies(
    parent: Tree, work: CopyWork, images: ImageStore, digests: Mapping[str, Digest]
) -> Tree:
    """The tree with copied files in it.

    Args:
        digests: for every digest of the client the blob's name in the store.

    Raises:
        InvalidError: a destination is of the wrong kind, or the owner is not known.
        BlobMissingError, BlobCorruptError: of a file's content.
    """
    layer = _Layer(parent, owner_ids(parent, work.owner or "", images))
    destination = parent.resolve(os.fsencode(work.destination))
    into = work.into_directory or _is_directory(parent, destination)
    if len(work.sources) > 1 and not into:
        raise InvalidError(
            f"several files match, and {work.destination} is not a directory",
            hint=f"write {work.destination}/",
        )
    for source in work.sources:
        at = destination
        if into and not source.is_directory:
            at = _join(destination, os.fsencode(source.name))
        if source.is_directory:
            layer.make_directories(at)
        for entry in source.entries:
            node = _node(entry, work, layer.owner, images, digests)
            layer.put(_join(at, os.fsencode(entry.path)), node)
        if work.unpack:
            _refuse_archive(source, images, digests)
    return layer.merged()


def _node(
    entry: Entry,
    work: CopyWork,
    owner: tuple[int, int],
    images: ImageStore,
    digests: Mapping[str, Digest],
) -> Node:
    uid, gid = owner
    if entry.kind == "symlink":
        return symlink(os.fsencode(entry.target), uid=uid, gid=gid, mtime_ns=SOURCE_MTIME_NS)
    mode = entry.mode if work.mode is None else work.mode
    if entry.kind == "dir":
        return directory(mode, implicit=True, uid=uid, gid=gid, mtime_ns=SOURCE_MTIME_NS)
    digest = _content(entry, images, digests)
    mtime_ns = source_mtime_ns(digest)
    return images.file_node(digest, mode, uid=uid, gid=gid, mtime_ns=mtime_ns)


def _content(entry: Entry, images: ImageStore, digests: Mapping[str, Digest]) -> Digest:
    if entry.data is not None:
        return images.cas.put_bytes(entry.data)
    assert entry.digest is not None, "files without content are refused when a step is planned"
    return digests[entry.digest]


class _Layer:
    """The files that lie over the parent, while they are put there."""

    def __init__(self, parent: Tree, owner: tuple[int, int]) -> None:
        self._parent = parent
        self._root = directory(implicit=True)
        self._resolved: dict[bytes, bytes] = {}
        self._made: set[bytes] = {b"/"}
        self.owner = owner

    def put(self, path: bytes, node: Node) -> None:
        """Put a node at a path; links on the way are followed, at the end they are replaced."""
        above, _, name = path.rpartition(b"/")
        target = _join(self._resolve(above), name)
        existing = self._parent.lookup(target)
        if node.is_dir and existing is not None and not existing.is_dir:
            target = self._resolve(path)
            existing = self._parent.lookup(target)
        if existing is not None and existing.is_dir != node.is_dir:
            kinds = ("a directory", "a file") if node.is_dir else ("a file", "a directory")
            raise InvalidError(f"cannot copy {kinds[0]} over {kinds[1]}: {os.fsdecode(path)}")
        self.make_directories(target.rpartition(b"/")[0])
        place(self._root, target, node)

    def make_directories(self, path: bytes) -> None:
        """Make a path of directories, links resolved already; those that are there stay."""
        if not path or path in self._made:
            return
        self.make_directories(path.rpartition(b"/")[0])
        existing = self._parent.lookup(path)
        if existing is not None and not existing.is_dir:
            raise InvalidError(f"{os.fsdecode(path)} is there and is not a directory")
        if existing is None:
            uid, gid = self.owner
            mtime_ns = SOURCE_MTIME_NS
            place(
                self._root,
                path,
                directory(0o755, implicit=True, uid=uid, gid=gid, mtime_ns=mtime_ns),
            )
        self._made.add(path)

    def merged(self) -> Tree:
        """The parent with this layer over it."""
        return merge_layer(self._parent, Tree(self._root))

    def _resolve(self, path: bytes) -> bytes:
        known = self._resolved.get(path)
        if known is None:
            known = self._resolved[path] = self._parent.resolve(path or b"/")
        return known


def _join(above: bytes, below: bytes) -> bytes:
    if not below:
        return above
    return above.rstrip(b"/") + b"/" + below


def _is_directory(tree: Tree, path: bytes) -> bool:
    node = tree.lookup(path)
    return node is not None and node.is_dir


# --- owners ---------------------------------------------------------------------------------------


def owner_ids(tree: Tree, text: str, images: ImageStore) -> tuple[int, int]:
    """The numbers of ``user[:group]``; empty is root. A number stands for user and group.

    Raises:
        InvalidError: a name that the image does not know.
    """
    user, _, group = text.partition(":")
    uid, gid = _user_ids(tree, user, images) if user else (0, 0)
    if group:
        gid = _group_id(tree, group, images)
    return uid, gid


def _user_ids(tree: Tree, name: str, images: ImageStore) -> tuple[int, int]:
    for record in _accounts(tree, b"/etc/passwd", images):
        if name in (record[0], record[2]) and len(record) > 3 and record[3].isdigit():
            return int(record[2]), int(record[3])
    if _is_id(name):
        return int(name), int(name)
    raise InvalidError(
        f"user {name!r} is not in /etc/passwd of the image", hint="create it, or use a number"
    )


def _group_id(tree: Tree, name: str, images: ImageStore) -> int:
    for record in _accounts(tree, b"/etc/group", images):
        if name == record[0]:
            return int(record[2])
    if _is_id(name):
        return int(name)
    raise InvalidError(
        f"group {name!r} is not in /etc/group of the image", hint="create it, or use a number"
    )


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 2**32 - 1


def _accounts(tree: Tree, path: bytes, images: ImageStore) -> Iterator[list[str]]:
    node = tree.lookup(tree.resolve(path))
    if node is None or node.size > ACCOUNTS_BYTES_MAX:
        return
    data = images.cas.read(node.digest) if node.digest is not None else node.inline or b""
    for line in data.decode("utf-8", "replace").splitlines():
        record = line.split(":")
        if len(record) > 2 and _is_id(record[2]):
            yield record


# --- archives -------------------------------------------------------------------------------------


def _refuse_archive(source: Source, images: ImageStore, digests: Mapping[str, Digest]) -> None:
    """ADD unpacks a named tar archive; copying it as it is would be something else."""
    if source.is_directory or source.entries[0].kind != "file":
        return
    fd = images.cas.open(_content(source.entries[0], images, digests))
    try:
        head = os.read(fd, _HEAD_BYTES)
    finally:
        os.close(fd)
    if is_archive(head):
        raise InvalidError(
            f"ADD would unpack {source.name!r}: archives are not supported by this version",
            hint="COPY it and unpack it in a RUN",
        )


def is_archive(head: bytes) -> bool:
    """Whether a file that begins like this is a tar archive, perhaps compressed."""
    return b"ustar" in (head[257:262], _unpacked(head)[257:262])


def _unpacked(head: bytes) -> bytes:
    """The first bytes of what gzip, bzip2 or xz packed; nothing when it was none of them."""
    try:
        if head.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(31).decompress(head, 512)
        if head.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(head, 512)
        if head.startswith(b"\xfd7zXZ\0"):
            return lzma.LZMADecompressor().decompress(head, 512)
    except (zlib.error, OSError, lzma.LZMAError):
        return b""
    return b""
