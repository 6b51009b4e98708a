"""Faults of hostd-fs, the daemon and blobs: a named error, never wrong bytes or a hang."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from hostd.errors import BlobCorruptError, BlobMissingError, ContainerStartError
from hostd.fs import BlobWriter, DirectorySource
from hostd.ids import Digest
from tests.integration.fs.fs_host import Host, until

pytestmark = pytest.mark.root

READER = """
import errno, os, sys, time
path, seconds = sys.argv[1], float(sys.argv[2])
expected = open(sys.argv[3], "rb").read()
good, errors, longest = 0, set(), 0.0
print("reading", flush=True)
end = time.monotonic() + seconds
while time.monotonic() < end:
    began = time.monotonic()
    try:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            data = b"".join(iter(lambda: file.read(1 << 16), b""))
        good += data == expected
        errors |= set() if data == expected else {"WRONG"}
    except OSError as error:
        errors.add(errno.errorcode[error.errno])
    longest = max(longest, time.monotonic() - began)
print(good, ",".join(sorted(errors)) or "-", f"{longest:.3f}")
"""


@contextlib.asynccontextmanager
async def reader(path: Path, expected: Path, *, seconds: float):
    """A process that reads a file again and again; yields a function that returns its findings."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READER, path, str(seconds), expected, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"reading\n"

    async def findings() -> tuple[int, str, float]:
        async with asyncio.timeout(seconds + 10):
            out, _ = await process.communicate()
        good, errors, longest = out.decode().split()
        return int(good), errors, float(longest)

    try:
        yield findings
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def read_error(path: Path) -> int:
    """The errno that a read ends with; fails when it hangs."""

    def attempt() -> int:
        script = "import sys\ntry: open(sys.argv[1], 'rb').read(); print(0)\n"
        script += "except OSError as error: print(error.errno)"
        command = [sys.executable, "-c", script, str(path)]
        return int(subprocess.run(command, capture_output=True, timeout=20, check=True).stdout)

    return await asyncio.to_thread(attempt)


def flip_bit(path: Path) -> None:
    with path.open("r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))


def copy_of_objects(host: Host, to: Path) -> Path:
    subprocess.run(["cp", "-a", host.cas.objects, to], check=True)
    return to


# --- blobs ----------------------------------------------------------------------------------------


async def test_damaged_blob_is_refused_at_the_mount(host: Host, source: Path, mode: str) -> None:
    image = host.save(source)
    flip_bit(host.cas.path(host.blob_of(image, b"/big")))
    async with host.running(mode) as fs:
        with pytest.raises(BlobCorruptError, match="damaged blobs"):
            await fs.mount_rootfs("root", [image])
        with pytest.raises(BlobCorruptError):
            await fs.mount_rootfs("root", [image])
        assert fs.statistics().rootfs == 0


async def test_missing_blob_is_refused_at_the_mount(host: Host, source: Path, mode: str) -> None:
    image = host.save(source)
    host.cas.delete(host.blob_of(image, b"/dir/other"))
    async with host.running(mode) as fs:
        with pytest.raises(BlobMissingError, match="missing blobs"):
            await fs.mount_rootfs("root", [image])


async def test_damaged_index_is_refused_at_the_mount(host: Host, source: Path, mode: str) -> None:
    image = host.save(source)
    flip_bit(host.images.index_path(image))
    async with host.running(mode) as fs:
        with pytest.raises(BlobCorruptError):
            await fs.mount_rootfs("root", [image])


async def test_damaged_and_missing_blobs_are_fetched_at_the_mount(
    host: Host, source: Path, tmp_path: Path, mode: str
) -> None:
    image = host.save(source)
    other = DirectorySource(copy_of_objects(host, tmp_path / "other"))
    flip_bit(host.cas.path(host.blob_of(image, b"/big")))
    host.cas.delete(host.blob_of(image, b"/dir/other"))
    flip_bit(host.images.index_path(image))
    async with host.running(mode, sources=[other]) as fs:
        root = await fs.mount_rootfs("root", [image])
        assert (root.path / "big").read_bytes() == (source / "big").read_bytes()
        assert (root.path / "link").read_bytes() == (source / "dir/other").read_bytes()
        assert fs.statistics().fetch.fetched == 3


async def test_source_with_damaged_copies_does_not_help(
    host: Host, source: Path, tmp_path: Path
) -> None:
    image = host.save(source)
    blob = host.blob_of(image, b"/big")
    other = copy_of_objects(host, tmp_path / "other")
    flip_bit(other / host.cas.path(blob).relative_to(host.cas.objects))
    host.cas.delete(blob)
    async with host.running("erofs", sources=[DirectorySource(other)]) as fs:
        with pytest.raises(BlobCorruptError):
            await fs.mount_rootfs("root", [image])
    assert not host.cas.has(blob)


async def test_blob_that_vanishes_later_is_an_io_error(host: Host, source: Path, mode: str) -> None:
    image = host.save(source)
    async with host.running(mode) as fs:
        root = await fs.mount_rootfs("root", [image])
        host.cas.delete(host.blob_of(image, b"/dir/other"))
        assert await read_error(root.path / "dir" / "other") == errno.EIO
        assert await read_error(root.path / "big") == 0
        assert await read_error(root.path / "absent") == errno.ENOENT


async def test_blob_that_vanishes_later_is_fetched_once_for_all_readers(
    host: Host, source: Path, tmp_path: Path, mode: str
) -> None:
    image = host.save(source)
    other = DirectorySource(copy_of_objects(host, tmp_path / "other"))
    async with host.running(mode, sources=[other]) as fs:
        roots = [await fs.mount_rootfs(f"root{number}", [image]) for number in range(8)]
        host.cas.delete(host.blob_of(image, b"/big"))
        reads = (asyncio.to_thread((root.path / "big").read_bytes) for root in roots)
        assert set(await asyncio.gather(*reads)) == {(source / "big").read_bytes()}
        assert fs.statistics().fetch.fetched == 1


async def test_blob_changed_under_a_warm_image_is_never_served_by_hostd_fs(
    host: Host, source: Path
) -> None:
    image = host.save(source)
    async with host.running("fuse") as fs:
        root = await fs.mount_rootfs("root", [image])
        flip_bit(host.cas.path(host.blob_of(image, b"/big")))
        assert await read_error(root.path / "big") == errno.EIO


@pytest.mark.parametrize("damage", ["in place", "replaced", "deleted"])
async def test_blob_touched_under_a_warm_image_is_found_before_the_next_root(
    host: Host, source: Path, tmp_path: Path, damage: str
) -> None:
    image = host.save(source)
    other = copy_of_objects(host, tmp_path / "other")
    path = host.cas.path(host.blob_of(image, b"/big"))
    async with host.running("erofs") as fs:
        await fs.unmount_rootfs(await fs.mount_rootfs("before", [image]))
        if damage == "in place":
            flip_bit(path)
        else:
            content = path.read_bytes()
            path.unlink()
            if damage == "replaced":
                path.write_bytes(b"\0" + content[1:])
        with pytest.raises((BlobCorruptError, BlobMissingError)):
            await fs.mount_rootfs("after", [image])
        fs._fetcher._sources = (DirectorySource(other),)
        root = await fs.mount_rootfs("healed", [image])
        assert (root.path / "big").read_bytes() == (source / "big").read_bytes()


async def test_blobs_that_come_in_do_not_cause_a_check(host: Host, source: Path) -> None:
    image = host.save(source)
    async with host.running("erofs") as fs:
        await fs.mount_rootfs("one", [image])
        (source / "more").write_bytes(os.urandom(3_000))
        other = host.save(source)
        host.cas.link_late(host.blob_of(other, b"/more"))
        assert fs._ready_layers._watch.touched() is False


class _Slow:
    """A source that never answers."""

    name = "slow"

    def __init__(self) -> None:
        self.asked = 0

    async def fetch(self, d: Digest, writer: BlobWriter) -> None:
        self.asked += 1
        await asyncio.get_running_loop().create_future()


async def test_source_that_hangs_is_an_io_error_in_time(
    host: Host, source: Path, mode: str
) -> None:
    image = host.save(source)
    slow = _Slow()
    async with host.running(mode, sources=[slow], timeout_s=0.5) as fs:
        root = await fs.mount_rootfs("root", [image])
        host.cas.delete(host.blob_of(image, b"/big"))
        began = time.monotonic()
        assert await read_error(root.path / "big") == errno.EIO
        assert time.monotonic() - began < 3
        assert slow.asked == 1
        assert (root.path / "dir" / "small").read_bytes() == b"inline"


# --- hostd-fs -------------------------------------------------------------------------------------


async def test_killed_server_does_not_stop_local_reads_in_the_erofs_way(
    host: Host, source: Path, tmp_path: Path
) -> None:
    image = host.save(source)
    other = copy_of_objects(host, tmp_path / "other")
    async with host.running("erofs", sources=[DirectorySource(other)]) as fs:
        root = await fs.mount_rootfs("root", [image])
        async with reader(root.path / "big", source / "big", seconds=1.0) as findings:
            first = await host.server_pid(fs)
            os.kill(first, signal.SIGKILL)
            await host.server_pid(fs, other_than=first)
            good, errors, longest = await findings()
        assert good > 0
        assert errors == "-"
        assert longest < 0.5
        host.cas.delete(host.blob_of(image, b"/dir/other"))
        assert await read_error(root.path / "dir" / "other") == errno.ENOTCONN
        fresh = await fs.mount_rootfs("fresh", [image])
        content = await asyncio.to_thread((fresh.path / "link").read_bytes)
        assert content == (source / "dir/other").read_bytes()


async def test_killed_server_is_back_in_a_second_and_its_mount_is_gone(
    host: Host, source: Path, mode: str
) -> None:
    image = host.save(source)
    async with host.running(mode) as fs:
        root = await fs.mount_rootfs("root", [image])
        async with reader(root.path / "big", source / "big", seconds=1.0) as findings:
            first = await host.server_pid(fs)
            began = time.monotonic()
            os.kill(first, signal.SIGKILL)
            # The death may not be known yet: the mount waits for the next hostd-fs, or repeats.
            fresh = await fs.mount_rootfs("fresh", [image])
            assert (fresh.path / "big").read_bytes() == (source / "big").read_bytes()
            assert time.monotonic() - began < 2
            _, errors, _ = await findings()
        dead = {"ENOTCONN", "ECONNABORTED"}
        assert set(errors.split(",")) <= ({"-"} if mode == "erofs" else dead)
        assert host.mounts().count("fs") == 1
        assert fs.statistics().server.restarts == 1
        await fs.unmount_rootfs(root)
    assert host.mounts() == []


async def test_server_killed_many_times_keeps_coming_back(host: Host, source: Path) -> None:
    image = host.save(source)
    async with host.running("erofs") as fs:
        pid = None
        for number in range(4):
            pid = await host.server_pid(fs, other_than=pid)
            os.kill(pid, signal.SIGKILL)
            root = await fs.mount_rootfs(f"root{number}", [image])
            assert (root.path / "big").read_bytes() == (source / "big").read_bytes()
        assert host.mounts().count("fs") == 1


async def test_hung_server_is_killed_and_its_readers_get_an_error(
    host: Host, source: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostd.fs.supervisor.PING_INTERVAL_S", 0.2)
    monkeypatch.setattr("hostd.fs.supervisor.PONG_TIMEOUT_S", 0.5)
    image = host.save(source)
    async with host.running(mode) as fs:
        root = await fs.mount_rootfs("root", [image])
        host.cas.delete(host.blob_of(image, b"/dir/other"))
        first = await host.server_pid(fs)
        os.kill(first, signal.SIGSTOP)
        began = time.monotonic()
        assert await read_error(root.path / "dir" / "other") in (errno.ENOTCONN, errno.ECONNABORTED)
        assert time.monotonic() - began < 5
        await host.server_pid(fs, other_than=first)


async def test_mount_over_a_hung_server_does_not_block_the_loop(
    host: Host, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostd.fs.rootfs.MOUNT_TIMEOUT_S", 0.3)
    image = host.save(source)
    async with host.running("fuse") as fs:
        await fs.mount_rootfs("warm", [image])
        os.kill(await host.server_pid(fs), signal.SIGSTOP)
        mount = asyncio.ensure_future(fs.mount_rootfs("root", [image]))
        for _ in range(20):
            began = time.monotonic()
            await asyncio.sleep(0.01)
            assert time.monotonic() - began < 0.2
        with pytest.raises(ContainerStartError, match="was not mounted within"):
            await mount
    assert host.mounts() == []


async def test_daemon_holds_nothing_open_below_its_own_mount(
    host: Host, source: Path, mode: str
) -> None:
    image = host.save(source)
    async with host.running(mode) as fs:
        await fs.mount_rootfs("root", [image])
        held = {os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()}
        assert [path for path in held if path.startswith(f"{host.run_dir}/fs/")] == []


def _descriptors() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]


async def test_server_that_cannot_start_is_a_clear_error(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    fs = host.file_system("erofs")
    with pytest.raises(ContainerStartError, match="while it started"):
        await fs.start()
    assert host.mounts() == []


# --- the daemon -----------------------------------------------------------------------------------

DAEMON = """
import asyncio, os, signal, sys
from pathlib import Path
from hostd.fs import CAS, Fetcher, FileSystem, ImageStore
top, mode, image = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

async def main():
    cas = CAS(top / "data" / "cas")
    fs = FileSystem(cas=cas, images=ImageStore(cas, top / "data" / "images"), data_dir=top / "data",
                    run_dir=top / "run", mode=mode, fetcher=Fetcher(cas, [], 5.0))
    await fs.start()
    for number in range(3):
        root = await fs.mount_rootfs(f"root{number}", [image])
        (root.path / "written").write_bytes(b"x" * 1000)
    if sys.argv[4] == "stop-server":
        os.kill(fs.statistics().server.pid, signal.SIGSTOP)
    print(fs.statistics().server.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def daemon_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}


@pytest.mark.parametrize("server", ["alive", "stop-server"])
async def test_killed_daemon_leaves_nothing_that_the_next_one_cannot_clear(
    host: Host, source: Path, tmp_path: Path, mode: str, server: str
) -> None:
    image = host.save(source)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(DAEMON), tmp_path, mode, image, server,
        stdout=asyncio.subprocess.PIPE, env=daemon_environment(),
    )  # fmt: skip
    out, _ = await process.communicate()
    orphan = int(out.split()[-1])
    assert len([point for point in host.mounts() if point.startswith("rootfs/")]) == 3
    began = time.monotonic()
    async with host.running(mode) as fs:
        assert time.monotonic() - began < 2
        root = await fs.mount_rootfs("root0", [image])
        assert (root.path / "big").read_bytes() == (source / "big").read_bytes()
        assert not (root.path / "written").exists()
        expected = {"fs", "rootfs/root0"} | ({f"images/{image}"} if mode == "erofs" else set())
        assert set(host.mounts()) == expected
        await until(lambda: not Path(f"/proc/{orphan}").exists() or _is_zombie(orphan))
    assert host.mounts() == []


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


async def test_server_ends_with_its_daemon(host: Host, source: Path, tmp_path: Path) -> None:
    image = host.save(source)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(DAEMON), tmp_path, "erofs", image, "alive",
        stdout=asyncio.subprocess.PIPE, env=daemon_environment(),
    )  # fmt: skip
    out, _ = await process.communicate()
    orphan = int(out.split()[-1])
    await until(lambda: not Path(f"/proc/{orphan}").exists() or _is_zombie(orphan))
    async with host.running("erofs"):
        pass
    assert host.mounts() == []
