"""The list of system calls: nothing of the forbidden, nothing misspelt."""

from __future__ import annotations

import ctypes

import pytest

from hostd.runtime import seccomp

FORBIDDEN = [
    "mount",
    "umount",
    "umount2",
    "pivot_root",
    "fsopen",
    "fsmount",
    "fsconfig",
    "fspick",
    "move_mount",
    "open_tree",
    "mount_setattr",
    "unshare",
    "setns",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "bpf",
    "userfaultfd",
    "perf_event_open",
    "add_key",
    "request_key",
    "keyctl",
    "open_by_handle_at",
    "kexec_load",
    "kexec_file_load",
    "init_module",
    "finit_module",
    "delete_module",
    "create_module",
    "reboot",
    "swapon",
    "swapoff",
    "acct",
    "clock_settime",
    "clock_settime64",
    "settimeofday",
    "stime",
    "iopl",
    "ioperm",
    "quotactl",
    "quotactl_fd",
    "nfsservctl",
    "lookup_dcookie",
    "fanotify_init",
    "sethostname",
    "setdomainname",
    "syslog",
    "vhangup",
    "vm86",
    "vm86old",
    "ustat",
    "sysfs",
    "uselib",
    "_sysctl",
    "get_kernel_syms",
    "query_module",
    "clone3",
    "clone",
    "socket",
    "socketpair",
    "personality",
]


@pytest.mark.parametrize("profile", ["function", "build", "shell"])
def test_forbidden_calls_are_not_allowed_unconditionally(profile):
    assert not set(FORBIDDEN) & set(seccomp.allowed_names(profile))


def test_only_builds_change_their_root():
    difference = set(seccomp.allowed_names("build")) ^ set(seccomp.allowed_names("function"))

    assert difference == {"chroot"}
    assert seccomp.allowed_names("shell") == seccomp.allowed_names("function")


def test_default_is_a_refusal_on_one_architecture():
    profile = seccomp.oci_profile("function", "x86_64")

    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    assert profile["architectures"] == ["SCMP_ARCH_X86_64"]
    assert seccomp.oci_profile("function", "aarch64")["architectures"] == ["SCMP_ARCH_AARCH64"]


def test_clone3_is_unknown_and_clone_makes_no_namespaces():
    rules = {rule["names"][0]: rule for rule in seccomp.oci_profile("function")["syscalls"]}

    assert (rules["clone3"]["action"], rules["clone3"]["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    (flags,) = rules["clone"]["args"]
    assert (flags["value"], flags["valueTwo"], flags["op"]) == (0x7E020000, 0, "SCMP_CMP_MASKED_EQ")


def test_sockets_are_of_four_families():
    every = seccomp.oci_profile("function")["syscalls"]
    rules = [rule for rule in every if rule["names"] == ["socket"]]

    assert sorted(rule["args"][0]["value"] for rule in rules) == [1, 2, 10, 16]
    assert {rule["args"][0]["op"] for rule in rules} == {"SCMP_CMP_EQ"}


def test_names_are_known_to_libseccomp():
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("not here: libseccomp is not installed")
    resolve = library.seccomp_syscall_resolve_name
    unknown = [n for n in seccomp.allowed_names("build") if resolve(n.encode()) == -1]

    # Too new for the library of Debian 12; both runtimes leave out what they do not know.
    assert set(unknown) <= NEWER


NEWER = {
    "cachestat",
    "fchmodat2",
    "futex_requeue",
    "futex_wait",
    "futex_wake",
    "getxattrat",
    "listxattrat",
    "removexattrat",
    "setxattrat",
    "listmount",
    "map_shadow_stack",
    "mseal",
    "statmount",
    "uretprobe",
}
