"""config.json: pure, so every field can be looked at."""

from __future__ import annotations

import json
from pathlib import Path

from hostd.runtime.bundle import (
    BUILD_CAPABILITIES,
    FUNCTION_CAPABILITIES,
    HostLimits,
    Placement,
    environment,
    make_config,
    mount_targets,
)
from hostd.runtime.rootfs import User
from hostd.runtime.spec import BindMount, ContainerSpec

LIMITS = HostLimits(nofile_hard=20_000, swap_accounting=False)
PLACEMENT = Placement(cgroup="/hostd-x/c1", user=User(), netns=Path("/run/x/netns/n1"))


def config(placement=PLACEMENT, limits=LIMITS, **options):
    options.setdefault("args", ["prog", "arg"])
    return make_config(
        ContainerSpec(id="ct-0123456789abcdef", rootfs=Path("/r"), **options), placement, limits
    )


def test_init_comes_before_the_program():
    assert config()["process"]["args"] == ["/run/hostd/init", "--", "prog", "arg"]
    assert config(init=False)["process"]["args"] == ["prog", "arg"]


def test_every_namespace_is_new_but_the_network_is_prepared():
    namespaces = {n["type"]: n.get("path") for n in config()["linux"]["namespaces"]}

    assert namespaces == {
        "network": "/run/x/netns/n1",
        "pid": None,
        "mount": None,
        "ipc": None,
        "uts": None,
        "cgroup": None,
    }


def test_functions_and_builds_differ_in_capabilities_and_new_privileges():
    function, build = config()["process"], config(profile="build")["process"]

    assert function["capabilities"]["bounding"] == list(FUNCTION_CAPABILITIES)
    assert build["capabilities"]["effective"] == list(BUILD_CAPABILITIES)
    assert (len(FUNCTION_CAPABILITIES), len(BUILD_CAPABILITIES)) == (9, 10)
    assert (function["noNewPrivileges"], build["noNewPrivileges"]) == (True, False)


def test_other_users_get_no_effective_capabilities():
    placement = Placement(cgroup="/x", user=User(1001, 1002, "/h", (10,)), netns=None)
    process = config(placement)["process"]

    assert process["capabilities"]["effective"] == process["capabilities"]["permitted"] == []
    assert process["user"] == {"uid": 1001, "gid": 1002, "umask": 0o22, "additionalGids": [10]}


def test_there_is_never_a_hook():
    assert "hooks" not in config()
    assert "hooks" not in json.dumps(config())


def test_limits_become_resources():
    resources = config(memory_limit_bytes=1 << 26, cpu_limit=0.25, pids_max=77)["linux"][
        "resources"
    ]

    assert resources["memory"] == {"limit": 1 << 26}
    assert resources["cpu"] == {"period": 100_000, "quota": 25_000}
    assert resources["pids"] == {"limit": 77}
    assert resources["devices"][0] == {"allow": False, "access": "rwm"}


def test_swap_is_limited_where_it_can_be():
    limits = HostLimits(nofile_hard=20_000, swap_accounting=True)

    assert config(limits=limits, memory_limit_bytes=5)["linux"]["resources"]["memory"]["swap"] == 5


def test_version_2_ends_the_whole_container_at_its_limit():
    limits = HostLimits(nofile_hard=20_000, swap_accounting=True, pure_v2=True)
    resources = config(limits=limits, memory_limit_bytes=5)["linux"]["resources"]

    assert resources["unified"] == {"memory.oom.group": "1"}


def test_no_limits_mean_no_entries():
    assert set(config()["linux"]["resources"]) == {"devices", "pids"}


def test_open_files_are_clamped_to_what_the_daemon_may_give():
    files = config()["process"]["rlimits"][0]

    assert files == {"type": "RLIMIT_NOFILE", "soft": 20_000, "hard": 20_000}
    generous = HostLimits(nofile_hard=1 << 30, swap_accounting=False)
    assert config(limits=generous)["process"]["rlimits"][0]["hard"] == 1_048_576


def test_shared_memory_is_half_of_the_limit():
    def size(**options):
        (mount,) = [m for m in config(**options)["mounts"] if m["destination"] == "/dev/shm"]
        return mount["options"][-1]

    assert size(memory_limit_bytes=1 << 26) == f"size={1 << 25}"
    assert size() == "size=50%"


def test_mounts_of_the_spec_come_last_and_read_only_unless_asked():
    mounts = [
        BindMount(source=Path("/a"), target="/x"),
        BindMount(source=Path("/b"), target="/y", read_only=False),
    ]
    made = config(mounts=mounts)["mounts"][-2:]
    seen = [(m["source"], m["destination"], m["options"][2]) for m in made]

    assert seen == [("/a", "/x", "ro"), ("/b", "/y", "rw")]
    assert all({"nosuid", "nodev", "rprivate"} <= set(m["options"]) for m in made)


def test_environment_is_completed_not_overruled():
    user = User(home="/home/ana")

    assert environment({}, user, tty=False)[1:] == ["HOME=/home/ana"]
    given = {"HOME": "/x", "PATH": "/p", "A": "="}
    assert environment(given, user, tty=True) == ["PATH=/p", "HOME=/x", "TERM=xterm", "A=="]


def test_terminal_has_its_size():
    process = config(tty=(30, 100))["process"]

    assert (process["terminal"], process["consoleSize"]) == (True, {"height": 30, "width": 100})


def test_mount_targets_name_what_a_start_makes():
    mount = BindMount(source=Path("/a"), target="/mine")
    made = set(mount_targets(ContainerSpec(id="x", rootfs=Path("/r"), args=["a"], mounts=[mount])))

    assert {"/etc/resolv.conf", "/etc/hosts", "/run/hostd/init", "/proc", "/mine"} <= made
