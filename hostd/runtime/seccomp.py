"""The system calls a container may make, as OCI ``linux.seccomp`` and as compiled BPF.

An allow-list: what is not named gives EPERM (``clone3``: ENOSYS, so that the C library falls back
to ``clone``, whose flags a filter can read). One native architecture only: the 32-bit ABIs of the
machine are closed, and compiling the list takes 2 ms instead of 12 (three architectures, measured),
which is the largest single part of a container's start under runc.

Left out on purpose (safety: every one has been part of an escape, or widens the kernel's surface):
mounts of either kind, ``unshare``/``setns`` and namespaces through ``clone``, ``pivot_root``, BPF,
perf events, userfaultfd, io_uring, key rings, ``open_by_handle_at``, modules, kexec, reboot, swap,
accounting, quotas, setting clocks, raw ports, ``fanotify_init``, ``lookup_dcookie``, AF_PACKET,
AF_VSOCK, AF_ALG and all other address families that are not named below.
"""

from __future__ import annotations

import errno
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from hostd.runtime.spec import Profile

ARCHITECTURES: Mapping[str, str] = {
    "x86_64": "SCMP_ARCH_X86_64",
    "aarch64": "SCMP_ARCH_AARCH64",
    "riscv64": "SCMP_ARCH_RISCV64",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "s390x": "SCMP_ARCH_S390X",
}

FILES = """
    access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat
    faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync
    fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd
    getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch ioctl lchown lgetxattr link linkat listxattr listxattrat llistxattr
    lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open
    openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink
    readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir sendfile setxattr
    setxattrat splice stat statfs statmount listmount statx symlink symlinkat sync sync_file_range
    syncfs tee truncate umask unlink unlinkat utime utimensat utimes vmsplice write writev cachestat
"""

MEMORY = """
    brk madvise map_shadow_stack mbind membarrier memfd_create memfd_secret mincore mlock mlock2
    mlockall mmap mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free
    pkey_mprotect process_madvise process_mrelease remap_file_pages get_mempolicy set_mempolicy
    set_mempolicy_home_node
"""

PROCESSES = """
    arch_prctl capget capset execve execveat exit exit_group fork get_robust_list get_thread_area
    getcpu getegid geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority getrandom
    getresgid getresuid getrlimit getrusage getsid gettid getuid ioprio_get ioprio_set kcmp kill
    landlock_add_rule landlock_create_ruleset landlock_restrict_self pidfd_getfd pidfd_open
    pidfd_send_signal prctl prlimit64 process_vm_readv process_vm_writev ptrace restart_syscall
    rseq sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
    sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp set_robust_list set_thread_area
    set_tid_address setfsgid setfsuid setgid setgroups setpgid setpriority setregid setresgid
    setresuid setreuid setrlimit setsid setuid sysinfo tgkill time times tkill uname vfork wait4
    waitid modify_ldt uretprobe
"""

SIGNALS_AND_TIME = """
    alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep pause
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_tgsigqueueinfo setitimer sigaltstack signalfd signalfd4 timer_create
    timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime
    timerfd_settime adjtimex clock_adjtime
"""

WAITING = """
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
    epoll_wait_old eventfd eventfd2 futex futex_requeue futex_wait futex_waitv futex_wake
    io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit pipe pipe2 poll ppoll
    pselect6 select
"""

MESSAGES = """
    accept accept4 bind connect getpeername getsockname getsockopt listen mq_getsetattr mq_notify
    mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd recvfrom recvmmsg
    recvmsg semctl semget semop semtimedop sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt
    shmget shutdown
"""

BUILD_ONLY = "chroot"
"""Package managers run maintainer scripts in a changed root."""

ADDRESS_FAMILIES: Mapping[str, int] = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
"""What ``socket`` may open. Compared with all 64 bits of the argument, so an odd upper half is
refused, not passed."""

NAMESPACE_FLAGS = 0x7E02_0000
"""NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET of clone(2)."""

PERSONALITIES = (0x0, 0x0004_0000, 0x0002_0000, 0xFFFF_FFFF)
"""The plain one, without address randomisation (debuggers), an old version number, and a query."""

_ALLOW = "SCMP_ACT_ALLOW"
_ERRNO = "SCMP_ACT_ERRNO"


def allowed_names(profile: Profile) -> list[str]:
    """The calls that pass whatever their arguments are, sorted."""
    text = " ".join((FILES, MEMORY, PROCESSES, SIGNALS_AND_TIME, WAITING, MESSAGES))
    if profile == "build":
        text += " " + BUILD_ONLY
    return sorted(set(text.split()))


@cache
def oci_profile(profile: Profile, machine: str | None = None) -> Mapping[str, Any]:
    """The list in the form of the OCI runtime specification; the same object each time.

    Args:
        profile: builds may also ``chroot``.
        machine: as ``platform.machine()`` says it; None: this one.
    """
    architecture = ARCHITECTURES.get(machine or platform.machine())
    return {
        "defaultAction": _ERRNO,
        "defaultErrnoRet": errno.EPERM,
        "architectures": [architecture] if architecture else [],
        "syscalls": [
            _rule(allowed_names(profile)),
            _rule(["clone3"], action=_ERRNO, errno_ret=errno.ENOSYS),
            _rule(["clone"], args=[_masked(0, NAMESPACE_FLAGS, 0)]),
            *(_rule(["socket"], args=[_equals(0, n)]) for n in ADDRESS_FAMILIES.values()),
            _rule(["socketpair"], args=[_equals(0, ADDRESS_FAMILIES["AF_UNIX"])]),
            *(_rule(["personality"], args=[_equals(0, n)]) for n in PERSONALITIES),
        ],
    }


def _rule(
    names: Iterable[str],
    *,
    action: str = _ALLOW,
    errno_ret: int | None = None,
    args: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": list(names), "action": action}
    if errno_ret is not None:
        rule["errnoRet"] = errno_ret
    if args:
        rule["args"] = list(args)
    return rule


def _equals(index: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": 0, "op": "SCMP_CMP_EQ"}


def _masked(index: int, mask: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
