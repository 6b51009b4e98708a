"""The base image: Debian's minimal system with Python, made from packages without a registry.

mmdebstrap installs into a directory of the data disk, from the archives that this host's apt uses.
The directory is ingested and then cleaned as a tree: whatever the site or the moment left in it is
taken out (source list, resolver, host name, options for apt, logs, times), so that the same
packages give the same image everywhere. It takes 20 s, once per set of packages and sources.
"""

from __future__ import annotations

import asyncio
import platform
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from hostd.build import site as site_settings
from hostd.build.aptsources import PUBLIC_ARCHIVE, PUBLIC_SECURITY
from hostd.build.site import Site
from hostd.build.steps import DEFAULT_PATH
from hostd.errors import ImageBuildError, InvalidError
from hostd.fs import (
    CAS,
    Node,
    Tree,
    directory,
    ingest_directory,
    merge_layer,
    place,
    small_file,
    symlink,
    whiteout,
)
from hostd.model import ImageConfig

SUITE = "bookworm"
PYTHON = "3.11"
"""The release's own interpreter."""
NAMES = frozenset({"debian_slim", "debian:bookworm-slim", "debian:bookworm", "debian:12-slim"})
"""What a recipe may call this image."""
PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv", "python-is-python3")
VERSION = 1
"""Of what is done with the packages; a change makes every base image again."""
CONFIG = ImageConfig(
    env={
        "PATH": DEFAULT_PATH,
        "LANG": "C.UTF-8",
        # Debian forbids pip outside a virtual environment (PEP 668); a container is one.
        "PIP_BREAK_SYSTEM_PACKAGES": "1",
    },
    cmd=("/bin/bash",),
)
TIMEOUT_S = 1_800.0
"""Seen: 14 to 30 s. A slow mirror may take minutes."""
EPOCH_S = 1_686_355_200
"""2023-06-10, the day of the release: time of every file that no package brought."""
OUTPUT_TAIL = 20
_READ_BYTES = 64 * 1024

DEFAULT_SOURCES = (
    f"deb {PUBLIC_ARCHIVE} {SUITE} main\n"
    f"deb {PUBLIC_ARCHIVE} {SUITE}-updates main\n"
    f"deb {PUBLIC_SECURITY} {SUITE}-security main\n"
).encode()
"""/etc/apt/sources.list of the image: what any Debian has."""
_DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/locale/*",
)
_APT_SLIM = b"""\
// Packages are installed once and not kept: caches would only make layers larger.
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };
Acquire::Languages "none";
Apt::AutoRemove::SuggestsImportant "false";
"""
_FILES: dict[bytes, Node] = {
    b"/etc/apt/sources.list": small_file(DEFAULT_SOURCES),
    b"/etc/apt/apt.conf.d/90slim": small_file(_APT_SLIM),
    b"/etc/dpkg/dpkg.cfg.d/90slim": small_file("".join(f"{o}\n" for o in _DPKG_OPTIONS).encode()),
    # Services must not start when a package is installed (Debian policy 9.3.3.1).
    b"/usr/sbin/policy-rc.d": small_file(b"#!/bin/sh\nexit 101\n", 0o755),
    b"/etc/hostname": small_file(b"localhost\n"),
    b"/etc/hosts": small_file(b"127.0.0.1 localhost\n::1 localhost\n"),
    b"/etc/resolv.conf": small_file(b""),
    b"/etc/mtab": symlink(b"/proc/self/mounts"),
}
"""What lies over the installed system; the times are set with all others."""
_REMOVED = (
    b"/etc/apt/apt.conf.d/99mmdebstrap",
    b"/etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    b"/etc/machine-id",
    b"/etc/.pwd.lock",
    b"/etc/passwd-",
    b"/etc/group-",
    b"/etc/shadow-",
    b"/etc/gshadow-",
    b"/var/lib/dpkg/status-old",
    b"/var/lib/dpkg/diversions-old",
    b"/var/lib/dpkg/statoverride-old",
    b"/var/lib/dpkg/lock",
    b"/var/lib/dpkg/lock-frontend",
    b"/var/lib/dbus/machine-id",
    b"/var/cache/ldconfig/aux-cache",
)
_EMPTIED = (
    b"/dev",
    b"/etc/apt/sources.list.d",
    b"/var/cache/apt",
    b"/var/cache/debconf",
    b"/var/lib/apt/lists",
    b"/var/log",
)
"""Directories that stay, with nothing in them."""


def check_python(version: str | None) -> None:
    """Refuse a Python that this Debian does not have.

    Raises:
        InvalidError: with the way out.
    """
    if version not in (None, "3", PYTHON):
        raise InvalidError(
            f"python_version is {version!r}, debian_slim has {PYTHON}",
            hint=f"leave python_version out, or run this client with Python {PYTHON}",
        )


def recipe_key(site: Site) -> str:
    """The key of the base image: its packages and where they come from, nothing else."""
    sources = [[source.uri, source.suite, *source.components] for source in site.sources]
    what = [str(VERSION), SUITE, platform.machine(), *PACKAGES, *map(str, sources)]
    return blake3("\0".join(["hostd base", *what]).encode()).hexdigest()


async def make_tree(site: Site, *, scratch: Path, cas: CAS, line: Callable[[str], None]) -> Tree:
    """Install the packages and give the cleaned tree; its blobs are stored.

    Args:
        scratch: a directory on the disk of the store, for this call alone; it is removed.
        line: takes what mmdebstrap says.

    Raises:
        ImageBuildError: mmdebstrap is missing, ended with an error, or took too long.
        StorageFullError: no space is left.
    """
    try:
        target = await asyncio.to_thread(_prepare, site, scratch)
        await _install(site, scratch, target, line)
        return await asyncio.to_thread(_ingest, target, cas)
    finally:
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


def _prepare(site: Site, scratch: Path) -> Path:
    scratch.mkdir(mode=0o711, parents=True)
    target = scratch / "root"
    target.mkdir(mode=0o755)
    staged = site_settings.stage(site, scratch)
    (scratch / "sources.list").write_text(site_settings.source_list(site, str(staged)))
    (scratch / "tmp").mkdir()
    return target


async def _install(site: Site, scratch: Path, target: Path, line: Callable[[str], None]) -> None:
    tail: list[str] = []

    def keep(text: str) -> None:
        tail.append(text)
        del tail[:-OUTPUT_TAIL]
        line(text)

    process = await _start(site, scratch, target)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await _read_lines(process, keep)
            status = await process.wait()
    except TimeoutError:
        raise ImageBuildError(
            f"mmdebstrap did not end within {TIMEOUT_S:.0f} s", output=tail
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status != 0:
        raise ImageBuildError(
            f"the base image cannot be made: mmdebstrap ended with status {status}",
            hint="are the package sources of this host reachable? (build.mirror sets others)",
            exit_code=status,
            output=tail,
        )


async def _start(site: Site, scratch: Path, target: Path) -> Process:
    program = shutil.which("mmdebstrap")
    if program is None:
        raise ImageBuildError(
            "mmdebstrap is not installed", hint="apt-get install mmdebstrap makes base images"
        )
    # A PID namespace, so that killing this process ends whatever it started; a mount namespace, so
    # that no mount of a half-made system is left.
    isolation = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    # By a shell, because uvloop starts no process with a umask of its own.
    isolation += ["sh", "-c", 'umask 022; exec "$@"', "sh"]
    arguments = _arguments(site, scratch / site.digest())
    return await asyncio.create_subprocess_exec(
        *(*isolation, program, *arguments, SUITE, str(target), str(scratch / "sources.list")),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        env=_environment(site, scratch),
        start_new_session=True,
    )


def _arguments(site: Site, staged: Path) -> list[str]:
    arguments = ["--mode=root", "--variant=minbase", "--format=directory"]
    arguments.append(f"--include={','.join(PACKAGES)}")
    arguments += [f"--dpkgopt={option}" for option in _DPKG_OPTIONS]
    options = [(k, v.replace(site_settings.SITE_DIR, str(staged))) for k, v in site.apt_options]
    # The store's directory is closed to apt's own user.
    options += [("Acquire::Languages", "none"), ("APT::Sandbox::User", "root")]
    if site_settings.PASSWORDS_FILE in site.files:
        options.append(("Dir::Etc::netrc", str(staged / site_settings.PASSWORDS_FILE)))
    return [*arguments, *(f'--aptopt={name} "{value}";' for name, value in options)]


def _environment(site: Site, scratch: Path) -> dict[str, str]:
    proxies = {name: value for name, value in site.env.items() if re.match(r"(?i)\w+_proxy$", name)}
    return {
        **proxies,
        "PATH": DEFAULT_PATH,
        "LC_ALL": "C.UTF-8",
        "HOME": "/root",
        "TMPDIR": str(scratch / "tmp"),
        "DEBIAN_FRONTEND": "noninteractive",
        "SOURCE_DATE_EPOCH": str(EPOCH_S),
    }


async def _read_lines(process: Process, line: Callable[[str], None]) -> None:
    assert process.stdout is not None
    rest = b""
    while chunk := await process.stdout.read(_READ_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        for each in lines:
            line(each.decode("utf-8", "replace").rstrip("\r"))
        rest = rest[-_READ_BYTES:]
    if rest:
        line(rest.decode("utf-8", "replace"))


def _ingest(target: Path, cas: CAS) -> Tree:
    return cleaned(ingest_directory(target, cas, move=True))


def cleaned(tree: Tree) -> Tree:
    """The installed system without traces of where and when it was installed."""
    layer = directory(implicit=True)
    for path in _REMOVED:
        place(layer, path, whiteout())
    for path in _EMPTIED:
        existing = tree.lookup(path)
        if existing is not None and existing.is_dir:
            place(layer, path, existing.replace(children={}, opaque=True))
    for path, node in _FILES.items():
        place(layer, path, node)
    newest_ns = _newest_package_time(tree)
    return Tree(_settled(merge_layer(tree, Tree(layer)).root, newest_ns, {}))


def _newest_package_time(tree: Tree) -> int:
    """Files of packages have the times of their packages; what is newer was made just now."""
    made = tree.lookup(b"/var/lib/dpkg/status")
    return made.mtime_ns - 86_400 * 10**9 if made is not None else EPOCH_S * 10**9


def _settled(node: Node, newest_ns: int, done: dict[int, Node]) -> Node:
    """The same tree with one time for everything that no package brought; links stay links."""
    known = done.get(id(node))
    if known is not None:
        return known
    children = {name: _settled(child, newest_ns, done) for name, child in node.children.items()}
    mtime_ns = node.mtime_ns if 0 < node.mtime_ns < newest_ns else EPOCH_S * 10**9
    settled = done[id(node)] = node.replace(mtime_ns=mtime_ns, children=children)
    return settled
