"""What a host can and lacks: the checks of ``hostd doctor``.

Each check looks at one thing and says what it found, why that matters and how to fix it; the last
one runs a container for real, in a temporary run directory beside that of a running daemon. Checks
change nothing that stays. They wait, so a daemon calls ``check_host`` in a thread.

    ok      as it should be
    info    good to know
    warn    works, but less well or less safely
    fail    hostd or its containers will not work
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import re
import resource
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from hostd.config import Config
from hostd.errors import Error
from hostd.log import get_logger
from hostd.model import DoctorCheck
from hostd.runtime import syscalls
from hostd.runtime.cgroup import CgroupTree
from hostd.runtime.firewall import FirewallError, Nft
from hostd.runtime.oci import find_program, is_fixed_runc, version_numbers
from hostd.runtime.resolver import read_resolver
from hostd.runtime.selftest import run_container, try_links

log = get_logger(__name__)

PYTHON_MIN = (3, 11)
KERNEL_MIN = (5, 11)
"""Overlays with ``volatile`` and descriptors of processes; openat2 came with 5.6."""
KERNEL_GOOD = (6, 12)
"""EROFS from plain files."""

CONTROLLERS = frozenset({"cpu", "memory", "pids"})
DISK_FAIL, DISK_WARN = 0.05, 0.15
MEMORY_WARN_BYTES = 1 << 30
FILES_PER_CONTAINER = 16
"""Descriptors the daemon holds for one container: pipes, pidfd, sockets, its share of the rest."""

Status = Literal["ok", "warn", "fail", "info"]


def check_host(config: Config) -> list[DoctorCheck]:
    """All checks, in the order a person reads them; takes some 0.2 s."""
    return [_guarded(name, check, config) for name, check in CHECKS]


def _guarded(name: str, check: Callable[[Config], DoctorCheck], config: Config) -> DoctorCheck:
    try:
        return check(config)
    except (Error, OSError, ValueError) as error:
        log.debug("check ended with an error", check=name, exc_info=True)
        return _say(name, "fail", str(error), why="the check itself could not be made")


def _say(name: str, status: Status, found: str, *, why: str = "", fix: str = "") -> DoctorCheck:
    return DoctorCheck(id=name, status=status, found=found, why=why, fix=fix)


def check_root(_: Config) -> DoctorCheck:
    """Only root can mount and make namespaces."""
    user = os.geteuid()
    if user == 0:
        return _say("root", "ok", "runs as root")
    why = "mounts, control groups and network namespaces need root"
    return _say("root", "fail", f"runs as uid {user}", why=why, fix="start hostd as root")


def check_python(_: Config) -> DoctorCheck:
    """The daemon's interpreter."""
    found = platform.python_version()
    if version_numbers(found) >= PYTHON_MIN:
        return _say("python", "ok", found)
    return _say(
        "python",
        "fail",
        found,
        why="the daemon needs Python 3.11 or newer",
        fix="install python3.11 and run install.sh again",
    )


def check_kernel(_: Config) -> DoctorCheck:
    """The kernel's version."""
    found = platform.release()
    version = version_numbers(found)[:2]
    if version < KERNEL_MIN:
        why = f"needs Linux {_dotted(KERNEL_MIN)}: volatile overlays, pidfds"
        return _say("kernel", "fail", found, why=why, fix="use a newer kernel")
    if version < KERNEL_GOOD:
        why = f"images are served through FUSE before Linux {_dotted(KERNEL_GOOD)}: slower reads"
        return _say("kernel", "info", found, why=why)
    return _say("kernel", "ok", found)


def check_cgroups(_: Config) -> DoctorCheck:
    """Version and controllers of control groups."""
    tree = CgroupTree.read()
    found = f"{tree.version} ({', '.join(sorted(tree.controllers())) or 'no controllers'})"
    missing = CONTROLLERS - tree.controllers()
    if tree.version == "none":
        return _say(
            "cgroups",
            "fail",
            "not mounted",
            why="containers cannot be limited",
            fix="mount -t cgroup2 none /sys/fs/cgroup",
        )
    if missing:
        names = ", ".join(sorted(missing))
        return _say(
            "cgroups",
            "fail",
            f"{found}; missing: {names}",
            why="containers cannot be limited",
            fix="boot with cgroup_enable=memory swapaccount=1",
        )
    if tree.version != "v2":
        return _say(
            "cgroups",
            "warn",
            found,
            why="version 1 kills one process at the memory limit, not the container",
            fix="boot with systemd.unified_cgroup_hierarchy=1",
        )
    return _say("cgroups", "ok", found)


def check_fuse(_: Config) -> DoctorCheck:
    """The device that the file system server opens."""
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        return _say("fuse", "ok", "/dev/fuse can be opened")
    return _say(
        "fuse",
        "fail",
        "/dev/fuse is missing or closed",
        why="images and blobs are served through it",
        fix="modprobe fuse",
    )


def check_overlay(_: Config) -> DoctorCheck:
    """Mount an overlay as containers have it."""
    with tempfile.TemporaryDirectory(prefix="hostd-doctor-") as directory:
        top = Path(directory)
        syscalls.mount("tmpfs", top, "tmpfs", data="size=1m")
        try:
            for name in ("lower", "upper", "work", "root"):
                (top / name).mkdir()
            data = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work,volatile"
            syscalls.mount("overlay", top / "root", "overlay", data=data)
            syscalls.unmount(top / "root")
        except OSError as error:
            return _say(
                "overlayfs",
                "fail",
                f"not mounted: {error.strerror}",
                why="every container's root is an overlay",
                fix="modprobe overlay; a container or an old kernel cannot host hostd",
            )
        finally:
            syscalls.unmount(top)
    return _say("overlayfs", "ok", "mounted")


def check_erofs(_: Config) -> DoctorCheck:
    """Whether the kernel serves image indexes itself."""
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    if "erofs" in known:
        return _say("erofs", "ok", "known to the kernel")
    module = Path(f"/lib/modules/{platform.release()}/kernel/fs/erofs")
    if module.is_dir():
        return _say("erofs", "ok", "a module of the kernel")
    return _say(
        "erofs",
        "info",
        "not known to the kernel",
        why="images are served through FUSE: slower reads",
        fix="modprobe erofs, or use a kernel that has it",
    )


def check_oci(config: Config) -> DoctorCheck:
    """The OCI runtime and its known holes."""
    program = find_program(config.runtime.oci)
    found = f"{program.name} {program.version} at {program.path}"
    if program.name == "runc" and not is_fixed_runc(program.version):
        return _say(
            "oci_runtime",
            "warn",
            found,
            why="lacks the fixes of November 2025 (CVE-2025-31133, -52565, -52881) and of"
            " CVE-2026-41579; hostd's profile blunts them, a hostile image may still escape",
            fix="install runc 1.3.6, 1.4.3, 1.5.0 or newer",
        )
    return _say("oci_runtime", "ok", found)


def check_init(_: Config) -> DoctorCheck:
    """PID 1 of containers: it must not need libraries of the image."""
    path = shutil.which("catatonit")
    if path is None:
        return _say(
            "catatonit",
            "fail",
            "not installed",
            why="it is PID 1 of every container",
            fix="install the package catatonit",
        )
    if not is_static(Path(path)):
        return _say(
            "catatonit",
            "fail",
            f"{path} needs shared libraries",
            why="images may lack them",
            fix="install the distribution's catatonit, which is static",
        )
    return _say("catatonit", "ok", path)


def is_static(path: Path) -> bool:
    """Whether a 64-bit ELF program names no interpreter (elf(5): PT_INTERP is 3)."""
    with path.open("rb") as file:
        head = file.read(64)
        if head[:4] != b"\x7fELF" or head[4] != 2:
            return False
        offset = int.from_bytes(head[32:40], "little")
        size, count = (int.from_bytes(head[n : n + 2], "little") for n in (54, 56))
        file.seek(offset)
        table = file.read(size * count)
    kinds = [int.from_bytes(table[n : n + 4], "little") for n in range(0, len(table), size or 1)]
    return 3 not in kinds


def check_seccomp(_: Config) -> DoctorCheck:
    """The library with which OCI runtimes compile the list of system calls."""
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return _say(
            "libseccomp",
            "warn",
            "libseccomp.so.2 is not there",
            why="most builds of runc and crun need it",
            fix="install libseccomp2",
        )
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    if not actions.exists() or "errno" not in actions.read_text().split():
        return _say(
            "libseccomp",
            "fail",
            "the kernel has no seccomp filters",
            why="containers could make every system call",
            fix="use another kernel",
        )
    return _say("libseccomp", "ok", "present")


def check_nft(_: Config) -> DoctorCheck:
    """Load a table into the kernel and remove it."""
    nft = Nft()
    table = f"hostd_doctor_{os.getpid()}"
    try:
        nft.run(
            f"add table inet {table}\n"
            f"add chain inet {table} c {{ type nat hook postrouting priority 100; }}\n"
            f"add rule inet {table} c ip saddr 192.0.2.0/32 masquerade\n"
        )
        nft.run(f"delete table inet {table}\n")
    except FirewallError as error:
        return _say(
            "nftables",
            "fail",
            str(error),
            why="containers' network rules are nft rules",
            fix="install nftables; modprobe nf_tables nft_masq",
        )
    finally:
        nft.close()
    return _say("nftables", "ok", "a table was loaded and removed")


def check_links(_: Config) -> DoctorCheck:
    """Make a bridge and a veth pair in a namespace of their own."""
    with ThreadPoolExecutor(1) as thread:
        error = thread.submit(try_links).result()
    if error is not None:
        return _say(
            "links",
            "fail",
            f"{error.filename}: {error.strerror}",
            why="each container has a namespace and a veth pair in a bridge",
            fix="modprobe bridge veth",
        )
    return _say("links", "ok", "namespace, bridge and veth pair were made")


def check_forwarding(_: Config) -> DoctorCheck:
    """Whether packets of containers leave this host."""
    forwards = Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"
    nft = Nft()
    try:
        has_docker = nft.docker_chain() is not None
        policy = _forward_policy(nft)
    finally:
        nft.close()
    if policy == "drop" and not has_docker:
        return _say(
            "forwarding",
            "warn",
            "a firewall of this host drops forwarded packets",
            why="containers will have no internet",
            fix="allow forwarding from and to the bridge hd-…",
        )
    if forwards:
        return _say("forwarding", "ok", "net.ipv4.ip_forward = 1")
    return _say(
        "forwarding",
        "info",
        "net.ipv4.ip_forward = 0",
        why="the daemon sets it to 1 when it starts",
    )


def _forward_policy(nft: Nft) -> str:
    try:
        listing = nft.run("list chain ip filter FORWARD")
    except FirewallError:
        return ""
    found = re.search(r"policy (\w+)", listing)
    return found.group(1) if found else ""


def check_dns(_: Config) -> DoctorCheck:
    """Whether there is a name server that containers can ask."""
    found = read_resolver()
    if found.servers:
        return _say("dns", "ok", ", ".join(str(server) for server in found.servers))
    if found.loopback is not None:
        return _say("dns", "ok", f"{found.loopback}, asked through the bridge")
    return _say(
        "dns",
        "warn",
        "/etc/resolv.conf names no IPv4 server",
        why="containers cannot look up names",
        fix="add a nameserver with an IPv4 address",
    )


def check_disk(config: Config) -> DoctorCheck:
    """Free space where blobs and containers' files go."""
    place = config.data_dir
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    share = usage.free / usage.total if usage.total else 0.0
    found = f"{usage.free / 2**30:.1f} GiB free ({share:.0%}) below {config.data_dir}"
    fix = "free space, or set data_dir to a larger disk"
    if share < DISK_FAIL:
        return _say("disk", "fail", found, why="images and containers cannot be written", fix=fix)
    if share < DISK_WARN:
        return _say("disk", "warn", found, why="builds will fail soon", fix=fix)
    return _say("disk", "ok", found)


def check_memory(_: Config) -> DoctorCheck:
    """The machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{total / 2**30:.1f} GiB"
    if total < MEMORY_WARN_BYTES:
        return _say(
            "memory",
            "warn",
            found,
            why="hostd itself needs some 200 MiB",
            fix="use a machine with 2 GiB or more",
        )
    return _say("memory", "ok", found)


def check_files(config: Config) -> DoctorCheck:
    """How many files the daemon may open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = FILES_PER_CONTAINER * config.limits.containers_max
    found = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    if hard != resource.RLIM_INFINITY and hard < needed:
        return _say(
            "open_files",
            "warn",
            found,
            why=f"{config.limits.containers_max} containers need some {needed}",
            fix="LimitNOFILE=1048576 in the service, or lower limits.containers_max",
        )
    return _say("open_files", "ok", found)


def check_container(config: Config) -> DoctorCheck:
    """Run a container that has nothing in it but the init."""
    init = shutil.which("catatonit")
    if init is None or os.geteuid() != 0:
        return _say("container", "fail", "not tried", why="root or catatonit is missing")
    took_ms = asyncio.run(run_container(config.runtime, Path(init)))
    return _say("container", "ok", f"one was made, ran and ended in {took_ms:.0f} ms")


def _dotted(version: Sequence[int]) -> str:
    return ".".join(str(n) for n in version)


CHECKS: tuple[tuple[str, Callable[[Config], DoctorCheck]], ...] = (
    ("root", check_root),
    ("python", check_python),
    ("kernel", check_kernel),
    ("cgroups", check_cgroups),
    ("fuse", check_fuse),
    ("overlayfs", check_overlay),
    ("erofs", check_erofs),
    ("oci_runtime", check_oci),
    ("catatonit", check_init),
    ("libseccomp", check_seccomp),
    ("nftables", check_nft),
    ("links", check_links),
    ("forwarding", check_forwarding),
    ("dns", check_dns),
    ("disk", check_disk),
    ("memory", check_memory),
    ("open_files", check_files),
    ("container", check_container),
)
