"""Control groups of containers, on version 2, version 1 and the hybrid of both.

Where a container's groups are is read from ``/proc/<pid>/cgroup`` and never computed: runc places
some version 1 groups relative to its caller, crun does not. In a hybrid layout the controllers live
on version 1 and the version 2 tree has none. A group may only be killed or removed when its path
has our parent directory in it; a group of anybody else raises.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hostd.runtime.spec import Usage

MOUNTINFO = "/proc/self/mountinfo"
UNIFIED = ""
"""The name under which the version 2 group of a container is kept."""

REMOVE_TIMEOUT_S = 2.0
"""For the last zombie to leave a group; seen: some milliseconds."""

Version = Literal["v2", "v1", "hybrid", "none"]


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup tree."""

    mount_point: Path
    root: str
    """Which group the mount shows at its top; ``/`` except in containers."""
    controllers: frozenset[str]
    """Empty for version 2."""

    def directory(self, group: str) -> Path:
        """The directory of a group as ``/proc/<pid>/cgroup`` names it."""
        if self.root != "/" and (group + "/").startswith(self.root + "/"):
            group = group[len(self.root) :]
        return self.mount_point / group.lstrip("/")


class CgroupTree:
    """All cgroup mounts of this machine."""

    def __init__(self, hierarchies: tuple[Hierarchy, ...]) -> None:
        self.hierarchies = hierarchies

    @classmethod
    def read(cls, mountinfo: str | None = None) -> CgroupTree:
        """Look at the mount table; of a tree that is mounted several times the first counts."""
        text = mountinfo if mountinfo is not None else Path(MOUNTINFO).read_text()
        found: dict[frozenset[str], Hierarchy] = {}
        for line in text.splitlines():
            hierarchy = _parse_mount(line)
            if hierarchy is not None:
                found.setdefault(hierarchy.controllers, hierarchy)
        return cls(tuple(found.values()))

    @property
    def version(self) -> Version:
        """``hybrid`` when version 1 controllers and a version 2 tree are both mounted."""
        has_v2 = self.unified is not None
        has_v1 = any(h.controllers for h in self.hierarchies)
        if has_v1:
            return "hybrid" if has_v2 else "v1"
        return "v2" if has_v2 else "none"

    @property
    def unified(self) -> Hierarchy | None:
        """The version 2 tree."""
        return next((h for h in self.hierarchies if not h.controllers), None)

    def controllers(self) -> frozenset[str]:
        """Every controller that containers can be limited with."""
        names: set[str] = set()
        for hierarchy in self.hierarchies:
            names |= hierarchy.controllers
        if self.unified is not None:
            with contextlib.suppress(OSError):
                names |= set((self.unified.mount_point / "cgroup.controllers").read_text().split())
        return frozenset(names)

    def of_process(self, pid: int, parent: str) -> Cgroup:
        """The groups a process is in, as far as they are below a directory named ``parent``."""
        by_controller = {c: h for h in self.hierarchies for c in (h.controllers or {UNIFIED})}
        paths: dict[str, Path] = {}
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            for controller in controllers.split(","):
                hierarchy = by_controller.get(controller)
                if hierarchy is not None and parent in Path(group).parts:
                    paths[controller] = hierarchy.directory(group)
        return Cgroup(paths, parent)

    def named(self, parent: str, name: str) -> Cgroup:
        """The groups ``parent/name`` wherever they are, for a container without a process."""
        paths = {
            key: directory / name
            for key, directory in self._parents(parent)
            if (directory / name).is_dir()
        }
        return Cgroup(paths, parent)

    def everything(self, parent: str) -> Cgroup:
        """The directories named ``parent`` themselves, with all containers below them."""
        return Cgroup(dict(self._parents(parent)), parent)

    def _parents(self, parent: str) -> Iterator[tuple[str, Path]]:
        for hierarchy in self.hierarchies:
            for directory, names, _ in os.walk(hierarchy.mount_point):
                if parent in names:
                    yield min(hierarchy.controllers, default=UNIFIED), Path(directory, parent)
                    names.remove(parent)

    def warm_up(self) -> None:
        """Make the kernel ready to move processes between groups. Waits 10-30 ms: in a thread.

        The first move after a pause waits for an RCU grace period (seen: 10-20 ms), which the OCI
        runtime would pay in the middle of ``create``; later moves take 0.2 ms. Writing this
        process into the group it is in moves nothing, but pays that price ahead, while the
        runtime's program still starts (26 to 17 ms for crun, 34 to 29 for runc).
        """
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            wanted = frozenset(controllers.split(",")) - {""}
            for hierarchy in self.hierarchies:
                if hierarchy.controllers == wanted:
                    with contextlib.suppress(OSError):
                        procs = hierarchy.directory(group) / "cgroup.procs"
                        procs.write_text(str(os.getpid()))
                        return

    def has_swap_accounting(self) -> bool:
        """Whether a limit of memory and swap together can be set."""
        for hierarchy in self.hierarchies:
            if "memory" in hierarchy.controllers:
                return (hierarchy.mount_point / "memory.memsw.limit_in_bytes").exists()
        return self.unified is not None


def _parse_mount(line: str) -> Hierarchy | None:
    left, _, right = line.partition(" - ")
    fields, tail = left.split(), right.split()
    if len(fields) < 5 or len(tail) < 3 or tail[0] not in ("cgroup", "cgroup2"):
        return None
    controllers: frozenset[str] = frozenset()
    if tail[0] == "cgroup":
        options = tail[2].split(",")
        controllers = frozenset(o for o in options if o not in ("rw", "ro", "xattr", "none"))
        controllers = frozenset(c for c in controllers if "=" not in c or c.startswith("name="))
        if not controllers:
            return None
    return Hierarchy(Path(fields[4].replace("\\040", " ")), fields[3], controllers)


class Cgroup:
    """The groups of one container, by controller; ``UNIFIED`` names the version 2 one."""

    def __init__(self, paths: Mapping[str, Path], parent: str) -> None:
        strangers = [str(p) for p in paths.values() if parent not in p.parts]
        assert not strangers, f"groups that are not below {parent}: {strangers}"
        self._paths = dict(paths)

    def __bool__(self) -> bool:
        return bool(self._paths)

    @property
    def paths(self) -> frozenset[Path]:
        """Every directory, once."""
        return frozenset(self._paths.values())

    def usage(self) -> Usage:
        """What the container uses now."""
        memory_v1 = self._paths.get("memory")
        unified = self._paths.get(UNIFIED)
        if memory_v1 is not None:
            memory = _read_int(memory_v1 / "memory.usage_in_bytes")
            peak = _read_int(memory_v1 / "memory.max_usage_in_bytes")
        else:
            memory = _read_int(unified / "memory.current") if unified else 0
            peak = _read_int(unified / "memory.peak") if unified else 0
        return Usage(
            memory_bytes=memory,
            peak_bytes=max(peak, memory),
            cpu_s=self._cpu_s(),
            pids=self._pids(),
        )

    def oom_kills(self) -> int:
        """How many processes the kernel killed at the container's memory limit."""
        memory_v1 = self._paths.get("memory")
        if memory_v1 is not None:
            return _read_field(memory_v1 / "memory.oom_control", "oom_kill")
        unified = self._paths.get(UNIFIED)
        return _read_field(unified / "memory.events", "oom_kill") if unified else 0

    def _cpu_s(self) -> float:
        accounting = self._paths.get("cpuacct")
        if accounting is not None:
            return _read_int(accounting / "cpuacct.usage") / 1e9
        unified = self._paths.get(UNIFIED)
        return _read_field(unified / "cpu.stat", "usage_usec") / 1e6 if unified else 0.0

    def _pids(self) -> int:
        path = self._paths.get("pids") or self._paths.get(UNIFIED)
        return _read_int(path / "pids.current") if path else 0

    def processes(self) -> set[int]:
        """Host pids of everything in the groups and in groups below them."""
        pids: set[int] = set()
        for top in self.paths:
            for directory, _, _ in os.walk(top):
                with contextlib.suppress(OSError, ValueError):
                    pids |= {int(p) for p in Path(directory, "cgroup.procs").read_text().split()}
        return pids - {0}

    def kill(self) -> int:
        """Send SIGKILL to everything in the groups; returns how many processes there were."""
        unified = self._paths.get(UNIFIED)
        if unified is not None:
            with contextlib.suppress(OSError):
                (unified / "cgroup.kill").write_text("1")
        self._thaw()
        pids = self.processes()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    def _thaw(self) -> None:
        freezer = self._paths.get("freezer")
        if freezer is not None:
            with contextlib.suppress(OSError):
                (freezer / "freezer.state").write_text("THAWED")

    def remove(self, timeout_s: float = REMOVE_TIMEOUT_S) -> bool:
        """Remove the directories; waits for processes that are on their way out.

        Returns:
            Whether all of them are gone.
        """
        deadline = time.monotonic() + timeout_s
        left = set(self.paths)
        while left:
            left = {path for path in left if not _remove_tree(path)}
            if left and time.monotonic() > deadline:
                return False
            if left:
                time.sleep(0.005)
        return True


def _remove_tree(top: Path) -> bool:
    """Remove a group and those below it; True when it is gone."""
    try:
        top.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        for directory, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        return not top.exists()
    return True


def _read_int(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _read_field(path: Path, name: str) -> int:
    try:
        text = path.read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def leave_visible_root(tree: CgroupTree, parent: str) -> None:
    """Make room for containers when this process runs in somebody else's version 2 container.

    The true root may hold processes and children; the root that a container sees may not ("no
    internal processes", kernel cgroup-v2.rst), so everything in it moves to a leaf.
    """
    unified = tree.unified
    if tree.version != "v2" or unified is None:
        return
    if not (unified.mount_point / "cgroup.type").exists():
        return
    leaf = unified.mount_point / f"{parent}.self"
    leaf.mkdir(exist_ok=True)
    for pid in (unified.mount_point / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):
            (leaf / "cgroup.procs").write_text(pid)
