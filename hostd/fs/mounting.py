"""Mounts of this host: made and undone by system calls, looked up in mountinfo and nowhere else.

mount(2) is called directly, for two reasons. It costs 0.02 to 0.3 ms where ``mount`` the program
costs a process, and ``mount -t erofs`` puts a loop device in front of every image file without
saying so; since Linux 6.12 the file itself can be mounted.

No function here looks at a path below a mount point: a stat of a dead FUSE mount fails, one of a
hung FUSE mount never returns. What is mounted where comes from /proc/self/mountinfo
(proc_pid_mountinfo(5)).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

OPTIONS_BYTES_MAX = 4095
"""mount(2) copies one page of options and drops the rest without an error."""

SWEEP_PASSES_MAX = 20
"""Mounts can be stacked on one point; each pass takes the topmost ones off."""

# linux/loop.h
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
_LOOP_CONFIG = struct.Struct("<II 52x I 176x 64x")
_LOOP_TRIES = 16

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of mountinfo."""

    path: Path
    fstype: str
    source: str
    device: str
    """``major:minor`` of the superblock, as the kernel prints it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayLayers:
    """What an overlay is made of, all paths absolute, top first.

    ``data`` are data-only lower layers (Linux >= 6.5): their names do not show in the tree, only
    files that a lower layer redirects to are read from them, in this order.
    """

    lower: Sequence[Path]
    data: Sequence[Path] = ()
    upper: Path | None = None
    work: Path | None = None


def mount(source: str, target: Path, fstype: str, *, flags: int, options: str) -> None:
    """Mount a file system.

    Raises:
        OSError: the kernel refused; the text names source, target and options.
    """
    data = os.fsencode(options)
    if len(data) > OPTIONS_BYTES_MAX:
        raise OSError(
            errno.E2BIG, f"mount options are {len(data)} bytes, at most 4095 fit", options
        )
    arguments = (os.fsencode(source), os.fsencode(target), fstype.encode(), flags, data)
    if _libc.mount(arguments[0], arguments[1], arguments[2], ctypes.c_ulong(flags), data) != 0:
        code = ctypes.get_errno()
        text = f"mount of {fstype} {source} ({options}): {os.strerror(code)}"
        raise OSError(code, text, str(target))


def unmount(target: Path, *, lazy: bool = False) -> bool:
    """Undo the topmost mount on a path; False when nothing is mounted there.

    ``lazy`` takes it out of the tree at once and lets it go when its last user has gone.
    """
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOENT):
        return False
    raise OSError(code, f"umount: {os.strerror(code)}", str(target))


def unmount_or_detach(target: Path) -> bool:
    """Unmount now when nobody uses it, else as soon as nobody does."""
    try:
        return unmount(target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return unmount(target, lazy=True)


def mount_entries() -> Iterator[MountEntry]:
    """Every mount of this mount namespace, oldest first."""
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file.read().splitlines():
            yield _parse_entry(line)


def _parse_entry(line: bytes) -> MountEntry:
    fields = line.split(b" ")
    after = fields.index(b"-", 6)
    return MountEntry(
        path=Path(os.fsdecode(_unescape(fields[4]))),
        fstype=fields[after + 1].decode(),
        source=os.fsdecode(_unescape(fields[after + 2])),
        device=fields[2].decode(),
    )


def _unescape(field: bytes) -> bytes:
    r"""Undo mountinfo's escapes: space, tab, newline and backslash are ``\ooo``."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field)


def mounts_below(directory: Path) -> list[MountEntry]:
    """Mounts on the directory or below it, oldest first; found by text, nothing is looked up."""
    return [
        entry
        for entry in mount_entries()
        if entry.path == directory or directory in entry.path.parents
    ]


def sweep(directory: Path) -> int:
    """Take everything off that is mounted on the directory or below it; returns how many.

    FUSE connections are aborted first, so that processes which wait in them get an error.
    """
    for entry in mounts_below(directory):
        if entry.fstype == "fuse" or entry.fstype.startswith("fuse."):
            abort_fuse(entry.device)
    removed = 0
    for _ in range(SWEEP_PASSES_MAX):
        entries = mounts_below(directory)
        if not entries:
            break
        removed += sum(unmount(entry.path, lazy=True) for entry in reversed(entries))
    return removed


def abort_fuse(device: str) -> bool:
    """Fail every request of a FUSE connection, now and later; False when fusectl is not mounted."""
    minor = device.partition(":")[2]
    try:
        Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1")
    except OSError:
        return False
    return True


def set_read_ahead(device: str, kib: int) -> bool:
    """Set how far the kernel reads ahead on a file system; False when it cannot be set.

    FUSE mounts get 128 KiB whatever the server asks for; 1,024 make sequential reads 1.4 times as
    fast (measured).
    """
    try:
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(kib))
    except OSError:
        return False
    return True


def mount_erofs(image: Path, target: Path) -> None:
    """Mount an EROFS image file: directly, or through a loop device where the kernel wants a disk.

    The target keeps nodev and nosuid: only an overlay on top of it is given to programs.
    """
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV
    try:
        mount(str(image), target, "erofs", flags=flags, options="")
    except OSError as error:
        if error.errno != errno.ENOTBLK:
            raise
        with _loop_device(image) as device:
            mount(device, target, "erofs", flags=flags, options="")


@contextlib.contextmanager
def _loop_device(image: Path) -> Iterator[str]:
    """A read-only loop device on a file; it goes away by itself with its last user."""
    backing = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        descriptor, path = _attach_loop(backing)
    finally:
        os.close(backing)
    try:
        yield path
    finally:
        os.close(descriptor)


def _attach_loop(backing: int) -> tuple[int, str]:
    """Bind a file to a free loop device, which others may take between our two calls."""
    config = _LOOP_CONFIG.pack(backing, 512, _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_LOOP_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(descriptor, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(descriptor)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return descriptor, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, f"no free loop device in {_LOOP_TRIES} tries")


def mount_overlay(target: Path, layers: OverlayLayers, *, metacopy: bool = False) -> None:
    """Mount an overlay; with an upper directory it is writable, and `volatile`.

    Volatile: nothing is synced for the overlay's sake. Every upper directory of hostd is either
    thrown away or read completely and stored by a CAS that syncs by itself.

    Without ``metacopy`` what programs do leaves plain files in the upper, and a rename of an
    image's directory gets EXDEV. With it the kernel follows redirects into data layers from each
    lower layer, not only from the lowest (and before Linux 6.16 from none without it), but chown
    and rename may leave files without data in the upper.
    """
    lower = ":".join(_escape(path) for path in layers.lower)
    lower += "".join(f"::{_escape(path)}" for path in layers.data)
    options = ["index=off,xino=off", f"lowerdir={lower}"]
    options.append("metacopy=on,redirect_dir=on" if metacopy else "metacopy=off,redirect_dir=off")
    flags = MS_RDONLY
    if layers.upper is not None and layers.work is not None:
        flags = 0
        options.append(f"upperdir={_escape(layers.upper)},workdir={_escape(layers.work)},volatile")
    mount("overlay", target, "overlay", flags=flags, options=",".join(options))


def _escape(path: Path) -> str:
    """A path inside overlayfs options, where colons and commas separate."""
    return re.sub(r"([\\:,])", r"\\\1", str(path))
