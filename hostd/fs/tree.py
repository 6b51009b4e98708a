"""File trees in memory: what an image holds, what a build step changed, and how the two become one.

A :class:`Node` is immutable except for a directory's ``children``, and those are written only while
the tree that owns them is being made. Trees share nodes: merging a layer copies the directories on
the way to a change and nothing else, so a step on a large image costs what it changed.

Hard links are one Node under several names. A directory's Node may stand in one place only (the
index writer refuses the rest, cycles included).

A *layer* is a Tree too. It may hold three marks that a finished tree has not: whiteouts (character
devices 0:0, as overlayfs writes them), ``opaque`` directories that hide what the parent has in
their place, and ``implicit`` directories that are only on the way: one that exists keeps its
attributes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Any

import msgspec

from hostd.errors import InvalidError
from hostd.ids import Digest

SYMLINKS_MAX = 40
"""Links followed while one path is resolved, as in Linux (path_resolution(7))."""


class Node(msgspec.Struct, frozen=True, eq=False, gc=False, kw_only=True):
    """One inode. Equal by identity: two names are hard links if they hold the same object.

    ``gc=False``: nodes never form cycles, and the collector need not visit 25,000 of them.
    """

    mode: int
    """With the type bits, as in ``st_mode``."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    xattrs: dict[bytes, bytes] = {}
    """What a process may see; never ``trusted.overlay.*``."""
    rdev: int = 0
    """Of devices, as ``st_rdev`` has it."""
    target: bytes = b""
    """Of symbolic links."""
    digest: Digest | None = None
    """Regular files: the blob with the content, or None if it is ``inline``."""
    inline: bytes | None = None
    """Regular files up to 1 KiB: the content itself."""
    size: int = 0
    """Of regular files, in bytes."""
    children: dict[bytes, Node] = {}
    """Of directories, by name."""
    opaque: bool = False
    """Layers only: hides the parent's directory."""
    implicit: bool = False
    """Layers only: an existing directory keeps its own attributes."""
    packed: object = None
    """Directories: what ``erofs.py`` keeps to write the same children again; not for others."""

    def __repr__(self) -> str:
        """Short: a node may stand for a whole tree."""
        content = self.digest or self.target or f"{len(self.children)} children"
        return f"<Node {self.mode:o} {self.uid}:{self.gid} {self.size} bytes, {content!r}>"

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_whiteout(self) -> bool:
        """Whether overlayfs would hide the name: a character device 0:0."""
        return self.rdev == 0 and stat.S_ISCHR(self.mode)

    def replace(self, **changes: Any) -> Node:
        """The same inode with other attributes; a directory gets its own dict of children."""
        if self.children and "children" not in changes:
            changes["children"] = dict(self.children)
        return msgspec.structs.replace(self, **changes)


def directory(mode: int = 0o755, *, implicit: bool = False, **attributes: Any) -> Node:
    """An empty directory with these permissions."""
    return Node(mode=stat.S_IFDIR | mode, implicit=implicit, **attributes)


def symlink(target: bytes, **attributes: Any) -> Node:
    """A symbolic link."""
    return Node(mode=stat.S_IFLNK | 0o777, target=target, size=len(target), **attributes)


def small_file(data: bytes, mode: int = 0o644, **attributes: Any) -> Node:
    """A regular file whose content lies in the index; for up to 1 KiB."""
    return Node(mode=stat.S_IFREG | mode, inline=data, size=len(data), **attributes)


def blob_file(digest: Digest, size: int, mode: int = 0o644, **attributes: Any) -> Node:
    """A regular file whose content is a blob."""
    return Node(mode=stat.S_IFREG | mode, digest=digest, size=size, **attributes)


def whiteout() -> Node:
    """The mark in a layer that a name is gone."""
    return Node(mode=stat.S_IFCHR, rdev=0)


def split(path: bytes) -> list[bytes]:
    """The names of an absolute path; ``.`` is dropped, ``..`` goes up, never above the root."""
    names: list[bytes] = []
    for name in path.split(b"/"):
        if name == b"..":
            del names[-1:]
        elif name not in (b"", b"."):
            names.append(name)
    return names


class Tree:
    """A root directory and everything below it."""

    __slots__ = ("root",)

    def __init__(self, root: Node | None = None) -> None:
        self.root = directory() if root is None else root

    def lookup(self, path: bytes) -> Node | None:
        """The node at a path, links not followed; None if there is none."""
        node: Node | None = self.root
        for name in split(path):
            if node is None:
                return None
            node = node.children.get(name)
        return node

    def resolve(self, path: bytes) -> bytes:
        """The path with every symbolic link in it followed, inside the root; it need not exist.

        Raises:
            InvalidError: more than 40 links.
        """
        done: list[bytes] = []
        left = path.split(b"/")[::-1]
        followed = 0
        while left:
            name = left.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                del done[-1:]
                continue
            node = self.lookup(b"/".join((*done, name)))
            if node is None or not stat.S_ISLNK(node.mode):
                done.append(name)
                continue
            followed += 1
            if followed > SYMLINKS_MAX:
                raise InvalidError(f"{path!r} goes through more than {SYMLINKS_MAX} symbolic links")
            if node.target.startswith(b"/"):
                done.clear()
            left.extend(node.target.split(b"/")[::-1])
        return b"/" + b"/".join(done)

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every name with its node, the root (``/``) first, directories before what they hold."""
        stack = [(b"", self.root)]
        while stack:
            path, node = stack.pop()
            yield path or b"/", node
            stack.extend(
                (path + b"/" + name, node.children[name])
                for name in sorted(node.children, reverse=True)
            )


def place(root: Node, path: bytes, node: Node) -> None:
    """Put a node into a layer that is being made; missing directories become implicit ones.

    Raises:
        InvalidError: the path is the root, or leads through something that is not a directory.
    """
    names = split(path)
    if not names:
        raise InvalidError("the root of a layer cannot be replaced")
    parent = root
    for name in names[:-1]:
        child = parent.children.get(name)
        if child is None:
            child = parent.children[name] = directory(implicit=True)
        if not child.is_dir:
            raise InvalidError(f"{path!r} leads through {name!r}, which is not a directory")
        parent = child
    before = parent.children.get(names[-1])
    if before is not None and before.is_dir and node.is_dir and not node.children:
        node = node.replace(children=before.children)
    parent.children[names[-1]] = node


def merge_layer(parent: Tree, layer: Tree) -> Tree:
    """What a reader sees when the layer lies over the parent; neither is changed."""
    return Tree(_merged(parent.root, layer.root))


def _merged(below: Node | None, above: Node) -> Node:
    lower = below if below is not None and below.is_dir else None
    children = dict(lower.children) if lower is not None and not above.opaque else {}
    for name, node in above.children.items():
        if node.is_whiteout:
            children.pop(name, None)
        elif node.is_dir:
            children[name] = _merged(children.get(name), node)
        else:
            children[name] = node
    attributes = lower if above.implicit and lower is not None else above
    return attributes.replace(children=children, opaque=False, implicit=False)


def differences(left: Tree, right: Tree) -> list[str]:
    """A sentence for every name that is not the same in both; hard links count as groups."""
    mine, theirs = _facts(left), _facts(right)
    found = []
    for path in sorted(mine.keys() | theirs.keys()):
        a, b = mine.get(path), theirs.get(path)
        if a != b:
            found.append(f"{path!r}: {a} is not {b}")
    return found


def _facts(tree: Tree) -> dict[bytes, tuple[object, ...]]:
    first: dict[int, bytes] = {}
    facts: dict[bytes, tuple[object, ...]] = {}
    for path, node in tree.walk():
        same_as = first.setdefault(id(node), path)
        xattrs = tuple(sorted(node.xattrs.items()))
        content = (node.target, node.digest, node.inline, node.size if node.digest else 0)
        attributes = (oct(node.mode), node.uid, node.gid, node.mtime_ns, node.rdev)
        facts[path] = (*attributes, xattrs, *content, same_as, node.opaque, node.implicit)
    return facts
