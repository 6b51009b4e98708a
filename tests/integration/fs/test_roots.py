"""Roots of containers: the tree is the image's, writes stay apart, nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import struct
from pathlib import Path

import pytest

from hostd.errors import AlreadyExistsError, InvalidError, NotFoundError
from hostd.ids import ImageId
from tests.integration.fs.fs_host import Host

pytestmark = pytest.mark.root

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
BIG_BYTES = (4 << 30) + 12_345
"""Over 2^32, nearly all of it a hole."""


def facts(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything that stat, readlink and listxattr say of a tree, by path; reads no content."""
    found: dict[bytes, tuple[object, ...]] = {}
    groups: dict[int, bytes] = {}
    base = os.fsencode(top)
    for folder, names, files in os.walk(base, topdown=True):
        names.sort()
        for name in [b".", *sorted(names + files)]:
            path = os.path.normpath(os.path.join(folder, name))
            status = os.lstat(path)
            target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else b""
            attributes = sorted(os.listxattr(path, follow_symlinks=False))
            values = [(key, os.getxattr(path, key, follow_symlinks=False)) for key in attributes]
            is_dir = stat.S_ISDIR(status.st_mode)
            relative = os.path.relpath(path, base)
            found[relative] = (
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                0 if is_dir else status.st_size,
                status.st_mtime_ns,
                1 if is_dir else status.st_nlink,
                status.st_rdev,
                target,
                values,
                b"" if is_dir else groups.setdefault(status.st_ino, relative),
            )
    return found


def make_odd_tree(top: Path) -> None:
    (top / "usr" / "bin").mkdir(parents=True)
    (top / "many").mkdir()
    (top / "tmp").mkdir()
    (top / "tmp").chmod(0o1777)
    for number in range(10_000):
        (top / "many" / f"file{number:05d}").write_bytes(b"%d" % number)
    tool = top / "usr" / "bin" / "tool"
    tool.write_bytes(os.urandom(3_000))
    os.chown(tool, 12, 34)
    tool.chmod(0o6755)
    os.setxattr(tool, "user.note", b"\0odd\xff")
    capable = top / "usr" / "bin" / "ping"
    capable.write_bytes(os.urandom(2_000))
    os.setxattr(capable, "security.capability", CAPABILITY)
    os.link(tool, top / "usr" / "hard-link")
    os.link(tool, top / "usr" / "bin" / "hard-link")
    (top / "absolute").symlink_to("/usr/bin/tool")
    (top / "dangling").symlink_to("x" * 1_000)
    os.lchown(top / "dangling", 5, 6)
    for name in (b"n" * 255, b"\xff\xfe not utf-8", b"new\nline", b" ", "größe".encode(), b"a:b,c"):
        path = os.path.join(os.fsencode(top), name)
        with open(path, "wb") as file:
            file.write(name)
    os.mkfifo(top / "fifo", 0o620)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    (top / "empty").write_bytes(b"")
    with open(top / "sparse", "wb") as file:
        file.truncate(BIG_BYTES)
        os.pwrite(file.fileno(), b"end", BIG_BYTES - 3)
        os.pwrite(file.fileno(), b"middle", 3 << 30)
    for path, second in ((top / "empty", 915_148_800), (tool, 7_258_118_400)):
        os.utime(path, ns=(0, second * 10**9 + 123_456_789))
    os.chown(top, 3, 4)
    top.chmod(0o751)
    os.utime(top, ns=(0, 1_000_000_000_123_456_789))


@pytest.mark.slow
async def test_tree_is_the_images_in_every_attribute(host: Host, tmp_path: Path, mode: str) -> None:
    top = tmp_path / "odd"
    top.mkdir()
    make_odd_tree(top)
    expected = facts(top)
    tool = (top / "usr" / "bin" / "tool").read_bytes()
    image = host.save(top, move=True)
    async with host.running(mode) as fs:
        root = await fs.mount_rootfs("odd", [image])
        found = await asyncio.to_thread(facts, root.path)
        assert found == expected
        assert await asyncio.to_thread((root.path / "usr/hard-link").read_bytes) == tool
        assert await asyncio.to_thread(_pieces, root.path / "sparse") == (
            b"\0middle",
            b"\0end",
            b"",
        )


def _pieces(path: Path) -> tuple[bytes, bytes, bytes]:
    with path.open("rb") as file:
        return tuple(
            os.pread(file.fileno(), 100, at)[:length]
            for at, length in (((3 << 30) - 1, 7), (BIG_BYTES - 4, 4), (BIG_BYTES + 5, 1))
        )


async def test_programs_run_and_setuid_holds(host: Host, tmp_path: Path, mode: str) -> None:
    top = tmp_path / "programs"
    top.mkdir()
    (top / "id").write_bytes(Path("/usr/bin/id").read_bytes())
    os.chown(top / "id", 12, 34)
    (top / "id").chmod(0o6755)
    image = host.save(top)
    async with host.running(mode) as fs:
        root = await fs.mount_rootfs("programs", [image])
        process = await asyncio.create_subprocess_exec(
            root.path / "id", "-u", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert out == b"12\n"


async def test_writes_stay_in_their_root(host: Host, source: Path, mode: str) -> None:
    image = host.save(source)
    async with host.running(mode) as fs:
        one = await fs.mount_rootfs("one", [image])
        two = await fs.mount_rootfs("two", [image])
        await asyncio.to_thread((one.path / "big").write_bytes, b"changed")
        await asyncio.to_thread((one.path / "dir" / "other").unlink)
        assert (two.path / "big").read_bytes() == (source / "big").read_bytes()
        assert (two.path / "dir" / "other").exists()
        assert (one.upper / "big").read_bytes() == b"changed"


async def test_top_image_lies_over_the_one_below(
    host: Host, source: Path, tmp_path: Path, mode: str
) -> None:
    base = host.save(source)
    new = host.cas.put_bytes(b"n" * 2_000)
    files = [("/dir/added", new, 0o640, "file", None), ("/link", new, 0o600, "file", None)]
    above = host.images.source_index(files, base=base)
    async with host.running(mode) as fs:
        root = await fs.mount_rootfs("stack", [above, base])
        assert (root.path / "dir" / "added").read_bytes() == b"n" * 2_000
        assert (root.path / "link").read_bytes() == b"n" * 2_000
        assert (root.path / "dir" / "other").read_bytes() == (source / "dir/other").read_bytes()


async def test_roots_share_one_mount_and_leave_nothing(host: Host, source: Path) -> None:
    image = host.save(source)
    async with host.running("erofs") as fs:
        one = await fs.mount_rootfs("one", [image])
        two = await fs.mount_rootfs("two", [image])
        assert host.mounts() == ["fs", f"images/{image}", "rootfs/one", "rootfs/two"]
        await fs.unmount_rootfs(one)
        await fs.unmount_rootfs(two)
        assert host.mounts() == ["fs", f"images/{image}"]
        assert list((host.run_dir / "rootfs").iterdir()) == []
        assert list((host.data_dir / "rootfs").iterdir()) == []
    assert host.mounts() == []
    assert list((host.data_dir / "rootfs-trash").iterdir()) == []


async def test_kept_layer_survives_until_the_second_unmount(host: Host, source: Path) -> None:
    image = host.save(source)
    async with host.running("erofs") as fs:
        root = await fs.mount_rootfs("step", [image])
        (root.path / "made").write_bytes(b"by a step")
        await fs.unmount_rootfs(root, keep_upper=True)
        assert "rootfs/step" not in host.mounts()
        assert (root.upper / "made").read_bytes() == b"by a step"
        await fs.unmount_rootfs(root)
        assert not root.upper.exists()


async def test_forty_roots_at_once(host: Host, source: Path, mode: str) -> None:
    image = host.save(source)
    async with host.running(mode) as fs:
        names = [f"root{number}" for number in range(40)]
        roots = await asyncio.gather(*(fs.mount_rootfs(name, [image]) for name in names))
        assert fs.statistics().rootfs == 40
        contents = {(root.path / "dir/small").read_bytes() for root in roots}
        assert contents == {b"inline"}
        await asyncio.gather(*(fs.unmount_rootfs(root) for root in roots))
        assert fs.statistics().rootfs == 0


async def test_cancelled_mount_leaves_nothing(host: Host, source: Path) -> None:
    image = host.save(source)
    async with host.running("erofs") as fs:
        await fs.unmount_rootfs(await fs.mount_rootfs("warm", [image]))
        for number in range(30):
            mount = asyncio.ensure_future(fs.mount_rootfs(f"root{number}", [image]))
            for _ in range(number % 6):
                await asyncio.sleep(0)
            mount.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await fs.unmount_rootfs(await mount)
        fs._threads.submit(int).result()
        assert fs.statistics().rootfs == 0
    assert host.mounts() == []
    assert list((host.data_dir / "rootfs").iterdir()) == []


async def test_images_over_the_limit_are_unmounted_and_come_back(
    host: Host, source: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostd.fs.layers.READY_MAX", 2)
    images = []
    for number in range(4):
        (source / "number").write_bytes(b"%d" % number)
        images.append(host.save(source))
    async with host.running(mode) as fs:
        roots = [await fs.mount_rootfs(f"r{n}", [image]) for n, image in enumerate(images)]
        assert fs.statistics().images_mounted == 2
        again = await fs.mount_rootfs("again", [images[0]])
        seen = [(root.path / "number").read_bytes() for root in [*roots, again]]
        assert seen == [b"0", b"1", b"2", b"3", b"0"]


async def test_forgotten_image_goes_and_its_roots_go_on(
    host: Host, source: Path, mode: str
) -> None:
    image = host.save(source)
    async with host.running(mode) as fs:
        root = await fs.mount_rootfs("root", [image])
        await fs.forget_image(image)
        assert fs.statistics().images_mounted == 0
        assert (root.path / "big").read_bytes() == (source / "big").read_bytes()


async def test_impossible_requests_are_refused(host: Host, source: Path) -> None:
    image = host.save(source)
    async with host.running("erofs") as fs:
        await fs.mount_rootfs("taken", [image])
        with pytest.raises(AlreadyExistsError):
            await fs.mount_rootfs("taken", [image])
        for name in ("", "../up", "a/b", ".hidden", "x" * 200):
            with pytest.raises(InvalidError):
                await fs.mount_rootfs(name, [image])
        with pytest.raises(InvalidError):
            await fs.mount_rootfs("none", [])
        with pytest.raises(NotFoundError):
            await fs.mount_rootfs("absent", [ImageId("im-" + "0" * 26)])
        assert fs.statistics().rootfs == 1
