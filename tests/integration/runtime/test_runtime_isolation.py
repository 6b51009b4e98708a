"""What a container must not be able to do, tried from inside."""

from __future__ import annotations

import errno

import pytest

pytestmark = pytest.mark.root

PROBE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in args))
    return ctypes.get_errno() if result == -1 else 0
for name, number, args in CALLS:
    print(name, call(number, *args))
"""

X86_64 = {
    "mount": (165, (0, 0, 0, 0, 0)),
    "umount2": (166, (0, 0)),
    "pivot_root": (155, (0, 0)),
    "unshare": (272, (0x10000000,)),
    "setns": (308, (0, 0)),
    "clone_newuser": (56, (0x10000000 | 17, 0, 0, 0, 0)),
    "clone_newnet": (56, (0x40000000 | 17, 0, 0, 0, 0)),
    "fsopen": (430, (0, 0)),
    "move_mount": (429, (0, 0, 0, 0, 0)),
    "open_tree": (428, (0, 0, 0)),
    "mount_setattr": (442, (0, 0, 0, 0, 0)),
    "io_uring_setup": (425, (8, 0)),
    "bpf": (321, (0, 0, 0)),
    "userfaultfd": (323, (0,)),
    "perf_event_open": (298, (0, 0, -1, -1, 0)),
    "add_key": (248, (0, 0, 0, 0, 0)),
    "request_key": (249, (0, 0, 0, 0)),
    "keyctl": (250, (0, 0, 0, 0, 0)),
    "open_by_handle_at": (304, (0, 0, 0)),
    "kexec_load": (246, (0, 0, 0, 0)),
    "init_module": (175, (0, 0, 0)),
    "finit_module": (313, (0, 0, 0)),
    "delete_module": (176, (0, 0)),
    "reboot": (169, (0, 0, 0, 0)),
    "swapon": (167, (0, 0)),
    "acct": (163, (0,)),
    "quotactl": (179, (0, 0, 0, 0)),
    "clock_settime": (227, (0, 0)),
    "settimeofday": (164, (0, 0)),
    "socket_packet": (41, (17, 3, 0)),
    "socket_vsock": (41, (40, 1, 0)),
    "socket_alg": (41, (38, 5, 0)),
    "socket_odd_upper_half": (41, ((1 << 32) | 17, 3, 0)),
    "iopl": (172, (3,)),
    "ioperm": (173, (0, 1, 1)),
    "syslog": (103, (3, 0, 0)),
    "vhangup": (153, ()),
    "fanotify_init": (300, (0, 0)),
    "personality_execdomain": (135, (0x0040000 | 8,)),
    "chroot": (161, (0,)),
    "sethostname": (170, (0, 0)),
}


async def test_dangerous_system_calls_are_refused(ward):
    calls = [(name, number, args) for name, (number, args) in X86_64.items()]
    ended, sink = await ward.run("python3", "-c", f"CALLS = {calls!r}\n{PROBE}")
    answers = dict(line.split() for line in sink.text())

    assert ended.status == 0
    assert answers == dict.fromkeys(X86_64, str(errno.EPERM))


async def test_clone3_is_unknown_so_that_libc_falls_back(ward):
    _, sink = await ward.run("python3", "-c", f"CALLS = [('clone3', 435, (0, 0))]\n{PROBE}")

    assert sink.text() == [f"clone3 {errno.ENOSYS}"]


async def test_calls_of_the_32_bit_abi_are_closed(ward):
    # int 0x80 with eax = 20 (getpid of i386): mov eax, 20; int 0x80; ret
    code = (
        "import ctypes, mmap\n"
        "m = mmap.mmap(-1, 4096, prot=7); m.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\n"
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\n"
        "print('answer', f())"
    )
    ended, sink = await ward.run("python3", "-c", code)

    assert ended.status in (128 + 31, 0)  # SIGSYS, or an error instead of a pid
    assert not sink.text() or int(sink.text()[0].split()[1]) < 0


async def test_ordinary_programs_find_what_they_need(ward):
    code = (
        "import threading, subprocess, socket, asyncio, tempfile, os\n"
        "import multiprocessing\n"
        "mp = multiprocessing.get_context('fork')\n"
        "t = threading.Thread(target=lambda: None); t.start(); t.join()\n"
        "assert subprocess.run(['true']).returncode == 0\n"
        "a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'\n"
        "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()\n"
        "asyncio.run(asyncio.sleep(0))\n"
        "tempfile.TemporaryFile().write(b'x')\n"
        "q = mp.SimpleQueue(); p = mp.Process(target=q.put, args=(5,)); p.start()\n"
        "assert q.get() == 5; p.join()\n"
        "lock = mp.Lock(); os.sched_getaffinity(0); os.getrandom(4); os.memfd_create('x')\n"
        "print('fine')"
    )
    ended, sink = await ward.run("python3", "-c", code)

    assert (ended.status, sink.text(), sink.text("stderr")) == (0, ["fine"], [])


FUNCTION = 0x4FB | (1 << 31)
BUILD = FUNCTION | (1 << 18)


async def _status(ward, **options) -> dict[str, str]:
    code = (
        "for line in open('/proc/self/status'):\n"
        "  name, _, value = line.partition(':')\n"
        "  if name[:3] in ('Cap', 'NoN') or name == 'Seccomp': print(name, value.strip())"
    )
    _, sink = await ward.run("python3", "-c", code, **options)
    return dict(line.split() for line in sink.text())


async def test_functions_have_nine_capabilities_and_no_way_to_more(ward):
    status = await _status(ward)

    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == FUNCTION
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapAmb"], 16)) == ("1", "2", 0)


async def test_builds_have_ten_and_setuid_works(ward):
    status = await _status(ward, profile="build")

    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == BUILD
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("0", "2")


async def test_other_users_have_no_capabilities(ward):
    status = await _status(ward, user="ana")

    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0


async def test_kernel_files_are_masked_or_read_only(ward):
    code = (
        "import os\n"
        "def write(p):\n"
        "  try: open(p, 'w').close(); return 'written'\n"
        "  except OSError as e: return e.errno\n"
        "masked = ('/proc/kcore', '/proc/keys', '/proc/timer_list')\n"
        "print([open(p).read(1) for p in masked if os.path.exists(p)])\n"
        "closed = '/proc/sys/kernel/core_pattern', '/proc/sys/vm/swappiness', '/sys/power/state'\n"
        "print(*map(write, closed))\n"
        "print('written' in {write(d + '/x') for d, _, _ in os.walk('/sys/fs/cgroup')}, sorted(set(os.listdir('/dev')) - {'core'}))"
    )
    _, sink = await ward.run("python3", "-c", code)
    read_only = str(errno.EROFS)

    assert sink.text("stderr") == []
    assert set(eval(sink.text()[0])) == {""}
    assert sink.text()[1].split() == [read_only] * 3
    devices = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert sink.text()[2] == f"False {sorted(devices.split())}"


async def test_device_nodes_cannot_be_made_nor_opened(ward):
    code = (
        "import os, stat\n"
        "try: os.mknod('/tmp/kmsg', stat.S_IFCHR | 0o666, os.makedev(1, 11)); print('made')\n"
        "except OSError as e: print(e.errno)\n"
        "os.mkfifo('/tmp/fifo'); print('fifo')"
    )
    _, sink = await ward.run("python3", "-c", code)

    assert sink.text() == [str(errno.EPERM), "fifo"]


async def test_only_the_containers_own_processes_and_descriptors_are_visible(ward):
    code = (
        "import os\n"
        "print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()))\n"
        "print(sorted(os.listdir('/proc/self/fd')))"
    )
    _, sink = await ward.run("python3", "-c", code)

    # Descriptor 3 of this process is the directory it lists; catatonit's own are 3-5.
    assert len(eval(sink.text()[0])) == 2
    assert sink.text()[1].endswith("['0', '1', '2', '3']")


async def test_bundle_with_the_environment_is_private_and_gone_after_start(ward):
    container, _ = await ward.begin("sleep", "60", env={"SECRET": "hunter2hunter2"})
    bundle = ward.runtime._host.places.bundles / container.id
    holders = [p for p in bundle.rglob("*") if p.is_file() and b"hunter2hunter2" in p.read_bytes()]

    assert holders == []
    assert bundle.stat().st_mode & 0o777 == 0o700
    await container.delete()
