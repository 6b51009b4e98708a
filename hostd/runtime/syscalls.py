"""The few kernel calls that Python does not offer: mounts, namespaces, prctl, openat2.

Thin and checked: each raises OSError with the kernel's errno and the path it was about. ctypes
releases the interpreter lock during a call, so waiting ones belong in a thread.
"""

from __future__ import annotations

import ctypes
import os
import struct

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

CLONE_NEWNS = 0x0002_0000
CLONE_NEWNET = 0x4000_0000
CLONE_FS = 0x0000_0200

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_OPENAT2 = 437  # The same number on every architecture (asm-generic/unistd.h).
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def become_subreaper() -> None:
    """Make this process the parent of its orphaned descendants (prctl(2))."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")


def mount(
    source: str, target: str | os.PathLike[str], kind: str = "", flags: int = 0, data: str = ""
) -> None:
    """mount(2)."""
    where = os.fsencode(target)
    result = _libc.mount(
        os.fsencode(source),
        where,
        kind.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(result, os.fsdecode(where))


def unmount(target: str | os.PathLike[str], flags: int = MNT_DETACH | UMOUNT_NOFOLLOW) -> None:
    """umount2(2); lazily unless told otherwise."""
    where = os.fsencode(target)
    _check(_libc.umount2(where, flags), os.fsdecode(where))


def unshare(flags: int) -> None:
    """unshare(2), for the calling thread."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2), for the calling thread."""
    _check(_libc.setns(fd, kind), "setns")


def open_in_root(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Open a path as if ``root_fd`` were the root: no link leads out (openat2(2), Linux 5.6)."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    buffer = ctypes.create_string_buffer(how, len(how))
    where = os.fsencode(path)
    result = _libc.syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_long(root_fd),
        ctypes.c_char_p(where),
        buffer,
        ctypes.c_size_t(len(how)),
    )
    return _check(result, path)
