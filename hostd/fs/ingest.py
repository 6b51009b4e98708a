"""Turn directories into trees: every file becomes a blob or lies inline, attributes are kept.

``ingest_directory`` reads any directory; ``apply_upper`` reads the upper directory of a build step
and gives the parent's tree with the step's changes, so that a step costs what it changed.

The walk goes from directory to directory by descriptor and never follows a link, since the
files come from containers. It holds one descriptor for each level, hence the limit on depth.

What an upper directory means (kernel 6.18, verified; docs.kernel.org/filesystems/overlayfs.html),
when the overlay was mounted with the options that DESIGN.md gives: a character device 0:0 is a
whiteout (the kernel hard-links whiteouts to each other: these are no hard links of ours);
``trusted.overlay.opaque=y`` on a directory hides the parent's; every other ``trusted.overlay.*``
is the kernel's own note and is dropped. A file or directory that is there at all is there with all
of its content and attributes: its copy-up was complete.

Dropped as well: ``user.overlay.*``, attributes that an index cannot hold, and in directories the
character devices 0:0, which no container could see anyway.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Final

from hostd.errors import InvalidError
from hostd.fs.batch import Batch
from hostd.fs.cas import CAS
from hostd.fs.erofs_format import INLINE_MAX
from hostd.fs.tree import Node, Tree, merge_layer
from hostd.ids import Digest

DEPTH_MAX: Final = 256
"""Levels of directories: one descriptor and one stack frame each. Real trees have under 40."""
_O_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_O_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT: Final = ("user.", "trusted.", "security.", "system.posix_acl_")
_OVERLAY: Final = ("trusted.overlay.", "user.overlay.")
_REFUSED: Final = ("trusted.overlay.metacopy", "trusted.overlay.redirect")
_OPAQUE: Final = "trusted.overlay.opaque"


def ingest_directory(path: Path, cas: CAS, *, move: bool = False, sync: bool = True) -> Tree:
    """The tree below a directory; its blobs are stored when this returns.

    Args:
        move: the files become blobs themselves; the directory is of no use afterwards.
        sync: and they are on disk; False leaves that to a later ``CAS.sync``.

    Raises:
        StorageFullError: no space is left.
        ConflictError: a file changed meanwhile.
        InvalidError: directories nest deeper than 256.
    """
    with Batch(cas, move=move, sync=sync) as batch:
        return Tree(_walk(path, batch, is_upper=False, drop=frozenset()).root)


def apply_upper(
    parent: Tree,
    upper: Path,
    cas: CAS,
    *,
    drop: Collection[bytes] = (),
    move: bool = True,
    sync: bool = True,
) -> Tree:
    """What a reader of the overlay saw at its end: the parent with the upper directory's changes.

    Args:
        drop: absolute paths that the step's own mounts made (``/etc/resolv.conf``, …); what the
            upper has there is ignored, and so is the trace in the mtime of the directory above.
        move: the upper's files become blobs themselves; it is of no use afterwards.
        sync: new blobs are on disk when this returns; False leaves that to a later ``CAS.sync``.

    Raises:
        StorageFullError: no space is left.
        ConflictError: a file changed meanwhile: something still runs in the container.
        InvalidError: the overlay was mounted with redirects or metacopy, or nests too deep.
    """
    with Batch(cas, move=move, sync=sync) as batch:
        walk = _walk(upper, batch, is_upper=True, drop=frozenset(drop))
    layer = Tree(walk.root)
    for path in sorted(walk.disturbed):
        _calm(layer, path, parent)
    return merge_layer(parent, layer)


class _Walk:
    """One pass over a directory."""

    def __init__(self, batch: Batch, *, is_upper: bool, drop: frozenset[bytes]) -> None:
        self.batch = batch
        self.is_upper = is_upper
        self.drop = drop
        self.disturbed: set[bytes] = set()
        self.root = Node(mode=stat.S_IFDIR)
        self._linked: dict[tuple[int, int], Node] = {}
        self._device = 0

    def start(self, path: bytes) -> None:
        fd = os.open(path, _O_DIR)
        try:
            status = os.fstat(fd)
            self._device = status.st_dev
            self.root = self._directory(fd, status, path, b"", 0)
        finally:
            os.close(fd)

    def _directory(
        self, fd: int, status: os.stat_result, real: bytes, path: bytes, depth: int
    ) -> Node:
        if depth > DEPTH_MAX:
            raise InvalidError(f"directories nest deeper than {DEPTH_MAX}: {path[:100]!r}…")
        xattrs, opaque = _directory_xattrs(fd, is_upper=self.is_upper)
        children: dict[bytes, Node] = {}
        if status.st_dev == self._device:
            with os.scandir(b"/proc/self/fd/%d" % fd) as entries:
                found = [(entry.name, _kind(entry)) for entry in entries]
            for name, kind in found:
                below = path + b"/" + name
                if below in self.drop:
                    self.disturbed.add(path or b"/")
                elif (node := self._entry(fd, name, kind, real, below, depth)) is not None:
                    children[name] = node
        return Node(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            xattrs=xattrs,
            children=children,
            opaque=opaque,
        )

    def _entry(
        self, parent: int, name: bytes, kind: int, real: bytes, path: bytes, depth: int
    ) -> Node | None:
        if kind == stat.S_IFREG:
            fd = os.open(name, _O_FILE, dir_fd=parent)
        elif kind == stat.S_IFDIR:
            fd = os.open(name, _O_DIR, dir_fd=parent)
        else:
            return self._special(parent, name)
        try:
            status = os.fstat(fd)
            if kind == stat.S_IFDIR:
                return self._directory(fd, status, real + b"/" + name, path, depth + 1)
            return self._regular(fd, status, real + b"/" + name)
        finally:
            os.close(fd)

    def _regular(self, fd: int, status: os.stat_result, real: bytes) -> Node:
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in self._linked:
            return self._linked[key]
        names = os.listxattr(fd)
        xattrs = _xattrs(fd, names, is_upper=self.is_upper) if names else {}
        digest: Digest | None = None
        inline: bytes | None = None
        if status.st_size > INLINE_MAX:
            digest = self.batch.add(fd, status, real, has_xattrs=bool(names))
        else:
            inline = os.read(fd, INLINE_MAX + 1)
        node = Node(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            xattrs=xattrs,
            digest=digest,
            inline=inline,
            size=status.st_size,
        )
        if status.st_nlink > 1:
            self._linked[key] = node
        return node

    def _special(self, parent: int, name: bytes) -> Node | None:
        """A link, device, pipe or socket."""
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        is_whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
        if is_whiteout:
            return Node(mode=stat.S_IFCHR) if self.is_upper else None
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in self._linked:
            return self._linked[key]
        is_link = stat.S_ISLNK(status.st_mode)
        target = os.readlink(name, dir_fd=parent) if is_link else b""
        at = b"/proc/self/fd/%d/%b" % (parent, name)
        names = os.listxattr(at, follow_symlinks=False)
        node = Node(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            xattrs=_xattrs(at, names, is_upper=self.is_upper),
            rdev=status.st_rdev,
            target=target,
            size=len(target),
        )
        if status.st_nlink > 1:
            self._linked[key] = node
        return node


def _walk(path: Path, batch: Batch, *, is_upper: bool, drop: frozenset[bytes]) -> _Walk:
    walk = _Walk(batch, is_upper=is_upper, drop=drop)
    walk.start(os.fsencode(path))
    batch.commit()
    return walk


def _kind(entry: os.DirEntry[bytes]) -> int:
    """S_IFREG, S_IFDIR, or 0 for all else; from the directory itself, without a stat."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else 0


def _xattrs(at: int | bytes, names: list[str], *, is_upper: bool) -> dict[bytes, bytes]:
    """The attributes that belong to the file and fit an index."""
    found = {}
    for name in names:
        if is_upper and name in _REFUSED:
            raise InvalidError(
                f"upper directory holds {name}: its overlay was mounted with metacopy or redirects",
                hint="mount build steps with metacopy=off,redirect_dir=off,index=off",
            )
        if name.startswith(_KEPT) and not name.startswith(_OVERLAY):
            follow = isinstance(at, int)
            found[os.fsencode(name)] = os.getxattr(at, name, follow_symlinks=follow)
    return found


def _directory_xattrs(fd: int, *, is_upper: bool) -> tuple[dict[bytes, bytes], bool]:
    names = os.listxattr(fd)
    if not names:
        return {}, False
    opaque = is_upper and _OPAQUE in names and os.getxattr(fd, _OPAQUE) == b"y"
    return _xattrs(fd, names, is_upper=is_upper), opaque


def _calm(layer: Tree, path: bytes, parent: Tree) -> None:
    """Give a directory, in which a mount point was made, the mtime it had before."""
    node, before = layer.lookup(path), parent.lookup(path)
    if node is None or before is None or not before.is_dir:
        return
    calm = node.replace(mtime_ns=before.mtime_ns, children=node.children)
    if path == b"/":
        layer.root = calm
        return
    above, _, name = path.rpartition(b"/")
    holder = layer.lookup(above or b"/")
    assert holder is not None
    holder.children[name] = calm
