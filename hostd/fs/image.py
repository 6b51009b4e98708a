"""Images: an index, what containers start with, and a few sums, under an id made from all of it.

    root/<image id>.json       the manifest; its BLAKE3 hash is the id, so damage shows
    (CAS)                      the index is a blob like any other, and the kernel mounts that file

The same tree with the same configuration is the same image on every host. A manifest is written
after everything it refers to, so an image that is there is there with its index.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec
from blake3 import blake3

from hostd.errors import BlobCorruptError, InvalidError, NotFoundError
from hostd.fs.cas import CAS
from hostd.fs.durable import storage_errors, sync_directory
from hostd.fs.erofs import write_index
from hostd.fs.erofs_format import INLINE_MAX, is_file_with_blob
from hostd.fs.index import IndexReader
from hostd.fs.tree import Node, Tree, blob_file, directory, place, small_file, symlink
from hostd.ids import Digest, ImageId, hex_of, image_id
from hostd.model import ImageConfig

BIG_FILE_MIN: Final = 16 << 20
"""From this size on a file is served in chunks while it arrives (4 MiB chunks)."""
MANIFESTS_MAX: Final = 1024
READERS_MAX: Final = 32
"""Open indexes; each is a mapping of some MiB and the directories that were looked into."""
TREE_ENTRIES_MAX: Final = 100_000
"""Of whole trees kept in memory for the next build step, about 1.3 KiB each (measured); the last
one stays even if it is larger."""
SOURCE_MTIME_NS: Final = 1_577_836_800_000_000_000
"""2020-01-01: of what comes from clients, so that the same source is the same image; after 1980, so
that zip files can hold it."""
MTIME_SPREAD_HEX: Final = 5
"""Hexadecimal digits of a file's digest that are added as seconds: up to 12 days."""
_V = TypeVar("_V")
_ID: Final = re.compile(r"im-[0-9a-z]{26}")

SourceEntry = tuple[str, Digest | None, int, Literal["file", "dir", "symlink"], str | None]
"""Absolute path, blob, permissions, kind, target."""


class BigFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is worth fetching in pieces."""

    digest: str
    size_bytes: int


class ImageManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about an image except its index. Fields only grow, with defaults."""

    index: str
    """Digest of the EROFS file."""
    index_bytes: int
    entries: int
    """Names in the tree, the root not counted."""
    size_bytes: int
    """Sum of the sizes of its regular files; hard links count once."""
    blobs: int
    """Different blobs that the index refers to."""
    big_files: tuple[BigFile, ...] = ()
    config: ImageConfig = ImageConfig()
    python: str | None = None
    """``major.minor`` of the interpreter that functions get, if the image has one."""


def source_mtime_ns(digest: Digest) -> int:
    """The modification time of a client's file, from its content.

    Python takes a ``.pyc`` for current when the source's size and time are those it was made from,
    so files that differ must not share a time.
    """
    return SOURCE_MTIME_NS + int(hex_of(digest)[:MTIME_SPREAD_HEX], 16) * 10**9


class ImageStore:
    """The images of a host. Synchronous and thread-safe."""

    def __init__(self, cas: CAS, root: Path) -> None:
        self.cas = cas
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._manifests: OrderedDict[ImageId, ImageManifest] = OrderedDict()
        self._readers: OrderedDict[ImageId, IndexReader] = OrderedDict()
        self._trees: OrderedDict[ImageId, Tree] = OrderedDict()

    def save(
        self, tree: Tree, config: ImageConfig, *, python: str | None = None, sync: bool = True
    ) -> ImageId:
        """Store an image whose blobs are stored already. The tree must not be changed any more.

        Args:
            python: version of the interpreter, for the manifest.
            sync: the image is on disk when this returns; False leaves that to a later
                ``CAS.sync``, for steps on the way to an image. A power failure may then cost the
                image (``manifest`` or ``open_index`` say so), but gives no wrong one.

        Raises:
            InvalidError: the tree cannot be an image.
            StorageFullError: no space is left.
        """
        data = write_index(tree)
        index = self.cas.put_bytes(data, sync=sync)
        manifest = _manifest(tree, index, len(data), config, python)
        text = msgspec.json.encode(manifest, order="deterministic")
        name = image_id(blake3(text).digest())
        if _content_of(self._path(name)) != text:
            self._write(name, text, sync=sync)
        with self._lock:
            _remember(self._manifests, name, manifest, MANIFESTS_MAX)
            self._remember_tree(name, tree)
        return name

    def manifest(self, name: ImageId) -> ImageManifest:
        """What an image is.

        Raises:
            NotFoundError: there is no such image.
            BlobCorruptError: its manifest was damaged, and is in quarantine now.
        """
        known = self._manifests.get(name)
        if known is None:
            known = self._read(name)
            with self._lock:
                _remember(self._manifests, name, known, MANIFESTS_MAX)
        return known

    def index_path(self, name: ImageId) -> Path:
        """The EROFS file of an image, for mount(2) or :class:`IndexReader`."""
        return self.cas.path(Digest(self.manifest(name).index))

    def open_index(self, name: ImageId) -> IndexReader:
        """A reader of the image's index, shared with other callers.

        Raises:
            NotFoundError: there is no such image.
            BlobMissingError: its index is gone.
            BlobCorruptError: its index is damaged, and is in quarantine now.
        """
        index = Digest(self.manifest(name).index)
        with self._lock:
            reader = self._readers.get(name)
        # The reader maps the file: what happens to the file happens to the reader.
        if reader is not None and self.cas.is_verified(index):
            return reader
        os.close(self.cas.open(index))
        reader = IndexReader(self.index_path(name))
        with self._lock:
            _remember(self._readers, name, reader, READERS_MAX)
        return reader

    def tree(self, name: ImageId) -> Tree:
        """The whole tree of an image; the caller must not change it."""
        with self._lock:
            tree = self._trees.get(name)
            if tree is not None:
                self._trees.move_to_end(name)
                return tree
        tree = self.open_index(name).to_tree()
        with self._lock:
            self._remember_tree(name, tree)
        return tree

    def blobs(self, name: ImageId) -> Iterator[Digest]:
        """Every blob an image needs, its index first; for ``CAS.invalid``, prefetch, clean-up."""
        yield Digest(self.manifest(name).index)
        yield from self.open_index(name).digests()

    def delete(self, name: ImageId) -> None:
        """Forget an image, if it is there. Its blobs stay until ``unused`` names them."""
        self._path(name).unlink(missing_ok=True)
        with self._lock:
            for cache in (self._manifests, self._readers, self._trees):
                cache.pop(name, None)

    def unused(self, keep: Iterable[Digest] = ()) -> Sequence[Digest]:
        """Blobs that no image needs and that are not in ``keep``.

        Only for a store in which nothing is being built or uploaded: what is stored and not yet
        part of an image looks unused.
        """
        needed = set(keep)
        for name in self.list():
            needed.update(self.blobs(name))
        return [blob for blob in self.cas if blob not in needed]

    def file_node(
        self, name: Digest, mode: int = 0o644, *, mtime_ns: int, uid: int = 0, gid: int = 0
    ) -> Node:
        """The node of a regular file whose content is a stored blob; small ones are read inline.

        Raises:
            BlobMissingError: the blob is not here.
            BlobCorruptError: the blob was damaged.
        """
        size = self.cas.size(name)
        if size <= INLINE_MAX:
            return small_file(self.cas.read(name), mode, mtime_ns=mtime_ns, uid=uid, gid=gid)
        return blob_file(name, size, mode, mtime_ns=mtime_ns, uid=uid, gid=gid)

    def source_index(self, files: Sequence[SourceEntry], *, base: ImageId | None = None) -> ImageId:
        """An image with these files only, for an overlay's upper layers on top of an image.

        Args:
            files: in any order; directories on the way need not be listed.
            base: the image below. Links in its directories are followed, and directories that it
                has keep their attributes; without it they become 0755 and root's, which
                would hide, say, the permissions of ``/tmp``.

        Raises:
            BlobMissingError, BlobCorruptError: a file's blob.
            InvalidError: a path is not absolute, or leads through a file.
        """
        below = Tree() if base is None else self.tree(base)
        root = directory(implicit=True)
        for path, digest, mode, kind, target in files:
            if not path.startswith("/"):
                raise InvalidError(f"path {path!r} of a source file is not absolute")
            above, _, last = os.fsencode(path).rstrip(b"/").rpartition(b"/")
            at = below.resolve(above or b"/").rstrip(b"/") + b"/" + last
            place(root, at, self._source_node(digest, mode, kind, target))
        covered = None if base is None else below.root
        return self.save(Tree(_settled(root, covered)), ImageConfig())

    def _source_node(self, digest: Digest | None, mode: int, kind: str, target: str | None) -> Node:
        if kind == "dir":
            return directory(mode, mtime_ns=SOURCE_MTIME_NS)
        if kind == "symlink":
            return symlink(os.fsencode(target or ""), mtime_ns=SOURCE_MTIME_NS)
        if digest is None:
            raise InvalidError("a source file has no digest")
        return self.file_node(digest, mode, mtime_ns=source_mtime_ns(digest))

    def list(self) -> Sequence[ImageId]:
        """The ids of all images, sorted."""
        return sorted(
            ImageId(path.stem) for path in self.root.glob("im-*.json") if _ID.fullmatch(path.stem)
        )

    def _remember_tree(self, name: ImageId, tree: Tree) -> None:
        trees = self._trees
        _remember(trees, name, tree, len(trees) + 1)
        room = TREE_ENTRIES_MAX
        for other in reversed(list(trees)):
            manifest = self._manifests.get(other)
            room -= manifest.entries if manifest is not None else room
            if room < 0 and other != name:
                del trees[other]

    def _path(self, name: ImageId) -> Path:
        if _ID.fullmatch(name) is None:
            raise NotFoundError(f"image {name!r} is not an id of an image")
        return self.root / f"{name}.json"

    def _write(self, name: ImageId, text: bytes, *, sync: bool) -> None:
        temporary = self.cas.scratch_name()
        with storage_errors():
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, text)
                if sync:
                    os.fdatasync(fd)
                os.rename(temporary, self._path(name))
            except OSError:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise
            finally:
                os.close(fd)
            if sync:
                sync_directory(str(self.root))

    def _read(self, name: ImageId) -> ImageManifest:
        path = self._path(name)
        text = _content_of(path)
        if text is None:
            raise NotFoundError(f"image {name} is not on this host")
        if image_id(blake3(text).digest()) != name:
            path.replace(self.root / f"{name}.damaged")
            raise BlobCorruptError(
                f"the manifest of image {name} is not what its id says; it is set aside",
                hint="build the image again",
            )
        return msgspec.json.decode(text, type=ImageManifest)


def _content_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _remember(cache: OrderedDict[ImageId, _V], name: ImageId, value: _V, limit: int) -> None:
    cache[name] = value
    cache.move_to_end(name)
    while len(cache) > limit:
        cache.popitem(last=False)


def _manifest(
    tree: Tree, index: Digest, index_bytes: int, config: ImageConfig, python: str | None
) -> ImageManifest:
    entries, files = _files(tree.root)
    sizes = {node.digest: node.size for node in files if is_file_with_blob(node)}
    big = sorted((d, size) for d, size in sizes.items() if d is not None and size >= BIG_FILE_MIN)
    return ImageManifest(
        index=index,
        index_bytes=index_bytes,
        entries=entries,
        size_bytes=sum(node.size for node in files),
        blobs=len(sizes),
        big_files=tuple(BigFile(digest=digest, size_bytes=size) for digest, size in big),
        config=config,
        python=python,
    )


def _files(root: Node) -> tuple[int, Collection[Node]]:
    """How many names there are below, and every regular file once."""
    files: dict[int, Node] = {}
    entries = 0
    stack = [root]
    while stack:
        children = stack.pop().children
        entries += len(children)
        for node in children.values():
            kind = node.mode & 0o170000
            if kind == stat.S_IFREG:
                files[id(node)] = node
            elif kind == stat.S_IFDIR:
                stack.append(node)
    return entries, files.values()


def _settled(node: Node, below: Node | None) -> Node:
    """A layer's directory as an image has it: implicit ones look like what they cover."""
    children = {
        name: _settled(child, below.children.get(name) if below is not None else None)
        if child.is_dir
        else child
        for name, child in node.children.items()
    }
    if not node.implicit:
        return node.replace(children=children)
    if below is not None and below.is_dir:
        return below.replace(children=children)
    return node.replace(children=children, implicit=False, mtime_ns=SOURCE_MTIME_NS)
