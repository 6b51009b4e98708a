"""From a ContainerSpec to the ``config.json`` of an OCI bundle. Pure: no file is touched.

What does not depend on the container (devices, masks, mounts, the seccomp list) is made once per
profile; a container adds its own fields. Masked and read-only paths are Docker's
(moby ``daemon/pkg/oci/defaults.go``), with ``/proc/interrupts`` and the thermal files of
GHSA-6fw5-f8r9-fgfm. No OCI hooks, ever: they run on the host with an environment an image chose.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostd.runtime.rootfs import User
from hostd.runtime.seccomp import oci_profile
from hostd.runtime.spec import BindMount, ContainerSpec, Profile

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT_TARGET = "/run/hostd/init"

FUNCTION_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_KILL",
)
"""Docker's default set without NET_RAW, MKNOD, AUDIT_WRITE, SYS_CHROOT and SETPCAP."""

BUILD_CAPABILITIES = (*FUNCTION_CAPABILITIES, "CAP_SYS_CHROOT")
"""The ten that package managers need."""

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/sys/fs/cgroup",
)
"""The last one because runc leaves the tmpfs above version 1 groups writable."""

NOFILE_SOFT = 65_536
"""Open files a container may have at first: above what servers need, small enough that programs
which close every possible descriptor stay fast."""
NOFILE_HARD = 1_048_576
"""Open files a container may ask for; less when the daemon itself may not have so many."""

OOM_SCORE = 100
"""The kernel prefers containers to the host's own programs (and does not take over ours)."""

CPU_PERIOD_US = 100_000
SHM_BYTES_MIN = 1 << 20
CGROUP_DEVICES_DENIED = {"allow": False, "access": "rwm"}


def _mount(target: str, kind: str, *options: str, source: str | None = None) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source or kind, "options": list(options)}


_PTS = ("ptmxmode=0666", "mode=0620", "gid=5")

BASE_MOUNTS = (
    _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
    _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
    _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", *_PTS),
    _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    _mount("/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
    _mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLimits:
    """What this machine and this process may give to a container."""

    nofile_hard: int
    swap_accounting: bool
    thermal_paths: tuple[str, ...] = ()
    pure_v2: bool = False
    """Whether control groups are version 2 only."""

    @classmethod
    def read(cls, *, swap_accounting: bool, pure_v2: bool) -> HostLimits:
        """Look at the limits of this process."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if hard == resource.RLIM_INFINITY:
            hard = NOFILE_HARD
        thermal = [
            path
            for n in range(os.cpu_count() or 1)
            if os.path.isdir(path := f"/sys/devices/system/cpu/cpu{n}/thermal_throttle")
        ]
        return cls(
            nofile_hard=hard,
            swap_accounting=swap_accounting,
            thermal_paths=tuple(thermal),
            pure_v2=pure_v2,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What the runtime decided about one container."""

    cgroup: str
    """The ``cgroupsPath`` of the OCI specification."""
    user: User
    netns: Path | None
    """Of a prepared network namespace; None: the runtime makes an empty one."""
    files: tuple[BindMount, ...] = ()
    """resolv.conf, hosts and the init, bound before the mounts of the spec."""


def make_config(spec: ContainerSpec, placement: Placement, limits: HostLimits) -> dict[str, Any]:
    """The whole ``config.json`` of one container."""
    return {
        "ociVersion": "1.0.2",
        "process": make_process(spec, placement.user, limits),
        "root": {"path": str(spec.rootfs), "readonly": False},
        "hostname": spec.hostname or spec.id[-12:],
        "mounts": [
            *BASE_MOUNTS,
            _shm(spec.memory_limit_bytes),
            *(_bind(mount) for mount in (*placement.files, *spec.mounts)),
        ],
        "linux": {
            "cgroupsPath": placement.cgroup,
            "resources": _resources(spec, limits),
            "namespaces": _namespaces(placement.netns),
            "seccomp": oci_profile(spec.profile),
            "maskedPaths": [*MASKED_PATHS, *limits.thermal_paths],
            "readonlyPaths": list(READONLY_PATHS),
        },
    }


def make_process(spec: ContainerSpec, user: User, limits: HostLimits) -> dict[str, Any]:
    """The ``process`` object of a container."""
    args = list(spec.args)
    if spec.init:
        args = [INIT_TARGET, "--", *args]
    return process_object(
        args,
        env=spec.env,
        cwd=spec.cwd,
        user=user,
        profile=spec.profile,
        tty=spec.tty,
        limits=limits,
    )


def process_object(
    args: list[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    user: User,
    profile: Profile,
    tty: tuple[int, int] | None,
    limits: HostLimits,
) -> dict[str, Any]:
    """A ``process`` object: of a container's first program, or of one that is executed later."""
    capabilities = list(BUILD_CAPABILITIES if profile == "build" else FUNCTION_CAPABILITIES)
    process: dict[str, Any] = {
        "terminal": tty is not None,
        "user": {"uid": user.uid, "gid": user.gid, "umask": 0o22},
        "args": args,
        "env": environment(env, user, tty=tty is not None),
        "cwd": cwd,
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities if user.uid == 0 else [],
            "permitted": capabilities if user.uid == 0 else [],
        },
        "rlimits": _rlimits(limits),
        "noNewPrivileges": profile != "build",
        "oomScoreAdj": OOM_SCORE,
    }
    if user.groups:
        process["user"]["additionalGids"] = list(user.groups)
    if tty is not None:
        process["consoleSize"] = {"height": tty[0], "width": tty[1]}
    return process


def environment(env: Mapping[str, str], user: User, *, tty: bool) -> list[str]:
    """``NAME=value`` of the whole environment, with PATH, HOME and TERM when they are absent."""
    full = {"PATH": DEFAULT_PATH, "HOME": user.home, **({"TERM": "xterm"} if tty else {}), **env}
    return [f"{name}={value}" for name, value in full.items()]


def mount_targets(spec: ContainerSpec) -> tuple[str, ...]:
    """Every path of the rootfs that starting this container may make: no part of a layer."""
    own = ("/etc/resolv.conf", "/etc/hosts", INIT_TARGET, "/run/hostd", "/dev/shm")
    return (*(m["destination"] for m in BASE_MOUNTS), *own, *(m.target for m in spec.mounts))


def _shm(memory_limit_bytes: int | None) -> dict[str, Any]:
    size = "50%" if not memory_limit_bytes else str(max(SHM_BYTES_MIN, memory_limit_bytes // 2))
    return _mount(
        "/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", f"size={size}", source="shm"
    )


def _bind(mount: BindMount) -> dict[str, Any]:
    access = ["ro", "nosuid", "nodev"] if mount.read_only else ["rw", "nosuid", "nodev"]
    return _mount(mount.target, "bind", "rbind", "rprivate", *access, source=str(mount.source))


def _namespaces(netns: Path | None) -> list[dict[str, str]]:
    network = {"type": "network"}
    if netns is not None:
        network["path"] = str(netns)
    return [network, *({"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup"))]


def _resources(spec: ContainerSpec, limits: HostLimits) -> dict[str, Any]:
    resources: dict[str, Any] = {
        "devices": [CGROUP_DEVICES_DENIED],
        "pids": {"limit": spec.pids_max},
    }
    if spec.memory_limit_bytes:
        resources["memory"] = {"limit": spec.memory_limit_bytes}
        if limits.pure_v2:  # The whole container ends at its limit, not one process of it.
            resources["unified"] = {"memory.oom.group": "1"}
        if limits.swap_accounting:
            resources["memory"]["swap"] = spec.memory_limit_bytes
    if spec.cpu_limit:
        quota = max(1_000, round(spec.cpu_limit * CPU_PERIOD_US))
        resources["cpu"] = {"period": CPU_PERIOD_US, "quota": quota}
    return resources


def _rlimits(limits: HostLimits) -> list[dict[str, Any]]:
    hard = min(limits.nofile_hard, NOFILE_HARD)
    return [
        {"type": "RLIMIT_NOFILE", "soft": min(hard, NOFILE_SOFT), "hard": hard},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
