"""Work in a container's root, which is hostile: every look-up stays inside it.

A link in an image may point anywhere; paths are opened with openat2(RESOLVE_IN_ROOT), which treats
the rootfs as ``/`` for links as well. Mount points are made here, before the OCI runtime starts:
fourteen of its CVEs are races in exactly that work. These calls may read from the image's file
system and so may wait: run them in a thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hostd.errors import ContainerStartError
from hostd.runtime import syscalls

ACCOUNT_FILE_BYTES_MAX = 1 << 20
"""Of /etc/passwd and /etc/group that is read: some ten thousand accounts."""

LINKS_MAX = 16
"""Links that are followed to a mount point; the kernel's own limit is 40."""

PSEUDO_DIRECTORIES = ("/proc", "/sys", "/dev")
FORBIDDEN_CWD = ("/proc", "/sys", "/dev")


@dataclass(frozen=True, slots=True)
class User:
    """A resolved user: numbers, home and supplementary groups."""

    uid: int = 0
    gid: int = 0
    home: str = "/"
    groups: tuple[int, ...] = ()


@contextmanager
def opened(root: Path) -> Iterator[int]:
    """A descriptor of the root directory, for the other functions."""
    try:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ContainerStartError(f"rootfs {root} cannot be opened: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def read_text(root_fd: int, path: str) -> str:
    """The start of a text file in the root; empty when it is absent, unreadable or no file."""
    try:
        fd = syscalls.open_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return os.read(fd, ACCOUNT_FILE_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def check_pseudo_directories(root_fd: int) -> None:
    """Make /proc, /sys and /dev if absent; refuse a root where one is anything but a directory.

    Raises:
        ContainerStartError: an image that would send the runtime's mounts elsewhere.
    """
    for path in PSEUDO_DIRECTORIES:
        try:
            mode = os.stat(path[1:], dir_fd=root_fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            os.mkdir(path[1:], 0o755, dir_fd=root_fd)
            continue
        if not stat.S_ISDIR(mode):
            raise ContainerStartError(
                f"{path} of the image is not a directory, expected one to mount over",
                hint="remove the link or file from the image",
            )


def make_directory(root_fd: int, path: str, mode: int = 0o755) -> None:
    """Make a directory and its parents; links on the way stay inside the root."""
    os.close(_open_directory(root_fd, path, mode))


def make_file(root_fd: int, path: str) -> None:
    """Make an empty file (a mount point) and its parents unless something is there."""
    final = _follow(root_fd, path)
    parent = _open_directory(root_fd, str(PurePosixPath(final).parent))
    flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        os.close(os.open(PurePosixPath(final).name, flags, 0o644, dir_fd=parent))
    except OSError as error:
        raise ContainerStartError(
            f"mount point {path} cannot be made in the image: {error.strerror}"
        ) from error
    finally:
        os.close(parent)


def _follow(root_fd: int, path: str) -> str:
    """Where a chain of dangling links ends, seen from inside the root.

    Images of systemd distributions have /etc/resolv.conf as a link to a file that is not there.
    """
    for _ in range(LINKS_MAX):
        try:
            fd = syscalls.open_in_root(root_fd, path, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return path
        try:
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                return path
            path = os.path.join(os.path.dirname(path), os.readlink("", dir_fd=fd))
        finally:
            os.close(fd)
    raise ContainerStartError(f"mount point {path} of the image is a loop of links")


def ensure_mount_point(root_fd: int, path: str, *, directory: bool) -> None:
    """Make what a bind mount needs at ``path``; what is there already stays as it is."""
    try:
        os.close(syscalls.open_in_root(root_fd, path, os.O_PATH))
    except OSError:
        (make_directory if directory else make_file)(root_fd, path)


def check_cwd(cwd: str) -> None:
    """Refuse a working directory that leads into the kernel's file systems (CVE-2024-21626)."""
    parts = PurePosixPath(cwd)
    if not parts.is_absolute() or ".." in parts.parts:
        raise ContainerStartError(f"working directory {cwd!r} is not absolute and plain")
    if any(parts == PurePosixPath(p) or PurePosixPath(p) in parts.parents for p in FORBIDDEN_CWD):
        raise ContainerStartError(f"working directory {cwd!r} is below /proc, /sys or /dev")


def _open_directory(root_fd: int, path: str, mode: int = 0o755) -> int:
    """Open a directory in the root, making the parts that are absent."""
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        return syscalls.open_in_root(root_fd, path, flags)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ContainerStartError(
            f"{path} of the image is no directory: {error.strerror}"
        ) from error
    pure = PurePosixPath(_follow(root_fd, path))
    parent = _open_directory(root_fd, str(pure.parent))
    try:
        os.mkdir(pure.name, dir_fd=parent)
        made = os.open(pure.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        os.chmod(f"/proc/self/fd/{made}", mode)  # Whatever the daemon's umask is.
        return made
    except OSError as error:
        raise ContainerStartError(
            f"directory {path} cannot be made in the image: {error.strerror}"
        ) from error
    finally:
        os.close(parent)


def resolve_user(root_fd: int, text: str) -> User:
    """Look up ``user[:group]`` as ``USER`` of a Dockerfile means it.

    Raises:
        ContainerStartError: a name that /etc/passwd or /etc/group of the image does not have.
    """
    name, _, group = (text or "0").partition(":")
    accounts = list(_records(read_text(root_fd, "/etc/passwd"), 7))
    account = next((a for a in accounts if a[0] == name), None)
    if account is None and name.isdigit():
        account = next((a for a in accounts if a[2] == name), [name, "", name, "0", "", "/", ""])
    if account is None:
        raise ContainerStartError(
            f"user {name!r} is not in /etc/passwd of the image", hint="use a numeric uid"
        )
    groups = list(_records(read_text(root_fd, "/etc/group"), 4))
    uid, home = int(account[2]), account[5] or "/"
    if group:
        return User(uid, _group_id(groups, group), home)
    gid = int(account[3])
    return User(uid, gid, home, tuple(_memberships(groups, account[0], gid)))


def _records(text: str, fields: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        parts = line.split(":")
        if len(parts) >= fields and parts[2].isdigit() and (fields < 7 or parts[3].isdigit()):
            yield parts


def _group_id(groups: Iterable[list[str]], text: str) -> int:
    for record in groups:
        if record[0] == text:
            return int(record[2])
    if text.isdigit():
        return int(text)
    raise ContainerStartError(
        f"group {text!r} is not in /etc/group of the image", hint="use a numeric gid"
    )


def _memberships(groups: Iterable[list[str]], name: str, primary: int) -> Iterator[int]:
    for record in groups:
        if name in record[3].split(",") and int(record[2]) != primary:
            yield int(record[2])
