"""Directories with everything a file system can hold, and what can be seen of them."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import struct
from pathlib import Path

TIME_NS = 1_700_000_000_123_456_789
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""VFS capability, version 2: cap_net_bind_service, effective and permitted."""
SPARSE_BYTES = 3 << 30
MANY = 10_000


def fill(top: Path) -> None:
    """Make a tree that has one of everything."""
    _fill_files(top / "files")
    _fill_names(top / "names")
    _fill_specials(top / "special")
    many = top / "many"
    many.mkdir()
    for number in range(MANY):
        os.mknod(many / f"entry-{number:05}-{'x' * (number % 40)}")
    deep = top
    for number in range(40):
        deep = deep / f"level{number}"
        deep.mkdir()
    (deep / "bottom").write_bytes(b"bottom")
    _age(top)


def _fill_files(top: Path) -> None:
    top.mkdir()
    sizes = (0, 1, 1023, 1024, 1025, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1, 9 << 20)
    for size in sizes:
        (top / f"size-{size}").write_bytes(os.urandom(size))
    for mode in (0o000, 0o4755, 0o2755, 0o6711, 0o1644, 0o777):
        path = top / f"mode-{mode:04o}"
        path.write_bytes(os.urandom(2000))
        path.chmod(mode)
        (top / f"dir-{mode:04o}").mkdir()
        (top / f"dir-{mode:04o}").chmod(mode)
    for owner in (1, 1000, 65_534, 2**31, 2**32 - 2):
        path = top / f"owner-{owner}"
        path.write_bytes(b"o")
        os.chown(path, owner, owner // 2)
    for name in ("small", "large"):
        (top / name).write_bytes(b"x" * (5000 if name == "large" else 5))
        os.link(top / name, top / f"{name}-linked")
        os.link(top / name, top / "dir-0777" / f"{name}-too")
    with (top / "sparse").open("wb") as file:
        file.truncate(SPARSE_BYTES)
        file.seek(SPARSE_BYTES // 2)
        file.write(b"island")
    capable = top / "capable"
    capable.write_bytes(os.urandom(3000))
    os.setxattr(capable, "security.capability", CAPABILITY)
    os.setxattr(capable, "user.note", b"")
    os.setxattr(capable, "user.long", b"v" * 3000)
    os.setxattr(top / "small", "user.small", b"\0\xff")
    os.setxattr(top / "dir-0777", "user.dir", b"d")
    os.setxattr(top / "dir-0777", "trusted.mine", b"t")


def _fill_names(top: Path) -> None:
    top.mkdir()
    for name in (b"n" * 255, b"\xff\xfe\x80", "ü 漢\n\t".encode(), b"...", b"-", b" ", b"\\"):
        with open(os.path.join(os.fsencode(top), name), "wb") as file:
            file.write(name)


def _fill_specials(top: Path) -> None:
    top.mkdir()
    os.mkfifo(top / "pipe", 0o640)
    os.mknod(top / "tty", stat.S_IFCHR | 0o620, os.makedev(5, 1))
    os.mknod(top / "disk", stat.S_IFBLK | 0o660, os.makedev(4095, 1_048_575))
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(top, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    for name, target in {
        "rel": "../a",
        "abs": "/etc/x",
        "dangling": "y",
        "long": "t/" * 2000,
    }.items():
        (top / name).symlink_to(target)
    os.link(top / "rel", top / "rel-linked", follow_symlinks=False)
    os.link(top / "tty", top / "tty-linked")


def _age(top: Path) -> None:
    """Give everything its own time: past, future, before 1970, with nanoseconds."""
    years = (TIME_NS, 915_148_800_000_000_001, 7_258_118_400_999_999_999, -1, 0)
    for number, (path, _, _, fd) in enumerate(os.fwalk(top, topdown=False)):
        for name in sorted(os.listdir(fd)):
            moment = years[hash_of(name) % len(years)]
            os.utime(name, ns=(moment, moment), dir_fd=fd, follow_symlinks=False)
        moment = years[number % len(years)]
        os.utime(path, ns=(moment, moment))


def hash_of(name: str) -> int:
    """A number that does not change from run to run."""
    return hashlib.sha256(os.fsencode(name)).digest()[0]


def snapshot(top: Path, *, with_content: bool = True) -> dict[bytes, tuple[object, ...]]:
    """All that system calls tell of a tree, by path; hard links by the first of their names."""
    root = os.fsencode(top)
    seen: dict[bytes, tuple[object, ...]] = {}
    groups: dict[tuple[int, int], bytes] = {}
    for directory, subdirectories, files in os.walk(root):
        subdirectories.sort()
        top_too = [b""] if directory == root else []
        for name in [*top_too, *sorted(subdirectories + files)]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            is_dir = stat.S_ISDIR(status.st_mode)
            # overlayfs counts subdirectories as it likes, and numbers directories anew.
            links = 0 if is_dir else status.st_nlink
            key = (status.st_dev, status.st_ino)
            seen[path[len(root) :]] = (
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_rdev,
                0 if is_dir else status.st_size,
                links,
                None if is_dir else groups.setdefault(key, path[len(root) :]),
                _xattrs(path),
                _content(path, status, with_content=with_content),
            )
    return seen


def compared(one: Path, two: Path, *, with_content: bool = True) -> list[object]:
    """Every path that two trees show differently, with what they show."""
    left, right = (snapshot(top, with_content=with_content) for top in (one, two))
    paths = sorted(left.keys() | right.keys())
    return [
        (path, left.get(path), right.get(path))
        for path in paths
        if left.get(path) != right.get(path)
    ]


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = os.listxattr(path, follow_symlinks=False)
    return tuple(
        (name, os.getxattr(path, name, follow_symlinks=False))
        for name in sorted(names)
        if not name.startswith("trusted.overlay.")
    )


def _content(path: bytes, status: os.stat_result, *, with_content: bool) -> object:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if not stat.S_ISREG(status.st_mode) or not with_content:
        return None
    if status.st_size == SPARSE_BYTES:
        return _islands(path)
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _islands(path: bytes) -> bytes:
    """The only bytes of the big file that are not zero, and some around them."""
    with open(path, "rb") as file:
        file.seek(SPARSE_BYTES // 2 - 4096)
        middle = file.read(12_000)
        file.seek(SPARSE_BYTES - 5)
        assert file.read(10) == bytes(5)
        return middle
