"""Where control groups are, for the layouts of version 1, version 2 and both."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostd.runtime.cgroup import Cgroup, CgroupTree, Hierarchy
from hostd.runtime.spec import Usage

V2 = "30 23 0:26 / {top} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / {top}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / {top}/memory rw - cgroup cgroup rw,memory
40 31 0:37 / {top}/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / {top}/unified rw - cgroup2 cgroup2 rw
"""


def test_versions_are_told_apart():
    v1 = HYBRID.rpartition("41 31")[0]

    assert CgroupTree.read(V2).version == "v2"
    assert CgroupTree.read(HYBRID).version == "hybrid"
    assert CgroupTree.read(v1).version == "v1"
    assert CgroupTree.read("22 27 0:21 / /proc rw - proc proc rw\n").version == "none"


def test_controllers_of_version_1_come_from_the_mount_options():
    tree = CgroupTree.read(HYBRID)

    assert {frozenset(h.controllers) for h in tree.hierarchies} == {
        frozenset({"cpu", "cpuacct"}),
        frozenset({"memory"}),
        frozenset({"name=systemd"}),
        frozenset(),
    }


def test_a_mount_that_shows_part_of_a_tree_is_relative_to_it():
    hierarchy = Hierarchy(Path("/sys/fs/cgroup/memory"), "/docker/abc", frozenset({"memory"}))

    assert hierarchy.directory("/docker/abc/hostd-x/c1") == Path("/sys/fs/cgroup/memory/hostd-x/c1")
    assert hierarchy.directory("/docker/abc") == Path("/sys/fs/cgroup/memory")


def test_groups_of_others_are_refused():
    with pytest.raises(AssertionError, match="not below hostd-x"):
        Cgroup({"memory": Path("/sys/fs/cgroup/memory/system.slice")}, "hostd-x")


def test_figures_of_version_2(tmp_path):
    group = tmp_path / "hostd-x" / "c1"
    group.mkdir(parents=True)
    files = {
        "memory.current": "1000\n",
        "memory.peak": "5000\n",
        "pids.current": "3\n",
        "cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
        "memory.events": "low 0\noom 1\noom_kill 2\n",
    }
    for name, text in files.items():
        (group / name).write_text(text)
    cgroup = Cgroup({"": group}, "hostd-x")

    assert cgroup.usage() == Usage(memory_bytes=1000, peak_bytes=5000, cpu_s=1.5, pids=3)
    assert cgroup.oom_kills() == 2


def test_figures_of_version_1(tmp_path):
    paths = {name: tmp_path / name / "hostd-x" / "c1" for name in ("memory", "cpuacct", "pids")}
    for path in paths.values():
        path.mkdir(parents=True)
    (paths["memory"] / "memory.usage_in_bytes").write_text("1000\n")
    (paths["memory"] / "memory.max_usage_in_bytes").write_text("5000\n")
    (paths["memory"] / "memory.oom_control").write_text("under_oom 0\noom_kill 4\n")
    (paths["cpuacct"] / "cpuacct.usage").write_text("2500000000\n")
    (paths["pids"] / "pids.current").write_text("7\n")
    cgroup = Cgroup(paths, "hostd-x")

    assert cgroup.usage() == Usage(memory_bytes=1000, peak_bytes=5000, cpu_s=2.5, pids=7)
    assert cgroup.oom_kills() == 4


def test_figures_of_a_group_that_is_gone_are_zero(tmp_path):
    cgroup = Cgroup({"": tmp_path / "hostd-x" / "gone"}, "hostd-x")

    assert (cgroup.usage(), cgroup.oom_kills(), cgroup.processes()) == (Usage(), 0, set())
    assert cgroup.remove()


def test_groups_are_found_by_name_wherever_they_are(tmp_path):
    for path in ("memory/own/deep/hostd-x/c1/sub", "systemd/hostd-x/c1", "unified/hostd-y/c1"):
        (tmp_path / path).mkdir(parents=True)
    tree = CgroupTree.read(HYBRID.format(top=tmp_path))
    found = tree.named("hostd-x", "c1")

    assert found.paths == {tmp_path / "memory/own/deep/hostd-x/c1", tmp_path / "systemd/hostd-x/c1"}
    assert found.remove()
    assert not (tmp_path / "systemd/hostd-x/c1").exists()
    assert (tmp_path / "unified/hostd-y/c1").exists()
