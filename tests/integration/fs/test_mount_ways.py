"""The ways a host can mount: found by trying, with the next best one when something is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hostd.errors import ContainerStartError
from hostd.fs import Tree, directory, mounting, small_file
from hostd.fs.erofs import write_index
from hostd.fs.probe import probe
from tests.integration.fs.fs_host import Host, until

pytestmark = pytest.mark.root


@pytest.fixture
def image(tmp_path: Path) -> Path:
    root = directory()
    root.children[b"file"] = small_file(b"content")
    path = tmp_path / "image.erofs"
    path.write_bytes(write_index(Tree(root)))
    return path


def refuse_erofs(monkeypatch: pytest.MonkeyPatch, *, only_files: bool = False) -> None:
    """Make this kernel one without EROFS, or one that mounts block devices only."""
    real = mounting.mount

    def mount(source: str, target: Path, fstype: str, *, flags: int, options: str) -> None:
        if fstype == "erofs" and not (only_files and source.startswith("/dev/loop")):
            raise OSError(errno.ENOTBLK if only_files else errno.ENODEV, "refused by the test")
        real(source, target, fstype, flags=flags, options=options)

    monkeypatch.setattr(mounting, "mount", mount)


async def test_loop_device_stands_in_and_goes_with_its_mount(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_erofs(monkeypatch, only_files=True)
    target = tmp_path / "mounted"
    target.mkdir()
    mounting.mount_erofs(image, target)
    (entry,) = mounting.mounts_below(target)
    assert entry.source.startswith("/dev/loop")
    assert (target / "file").read_bytes() == b"content"
    backing = Path("/sys/block") / Path(entry.source).name / "loop" / "backing_file"
    assert backing.read_text().strip() == str(image)
    mounting.unmount(target)
    await until(lambda: not backing.exists())


def test_sweep_takes_off_stacked_and_nested_mounts_and_nothing_beside(
    image: Path, tmp_path: Path
) -> None:
    top, beside = tmp_path / "top", tmp_path / "top-beside"
    for path in (top, beside):
        path.mkdir()
        mounting.mount("none", path, "tmpfs", flags=0, options="size=64k")
    (top / "a b").mkdir()
    for _ in range(3):
        mounting.mount_erofs(image, top / "a b")
    held = os.open(top / "a b" / "file", os.O_RDONLY)
    try:
        assert mounting.sweep(top) == 4
        assert mounting.mounts_below(top) == []
        assert len(mounting.mounts_below(beside)) == 1
    finally:
        os.close(held)
        mounting.unmount(beside)


def test_probe_finds_erofs_here_and_leaves_nothing(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    findings = probe(tmp_path / "probe", [scratch], wanted="auto")
    assert (findings.mode, findings.scratch) == ("erofs", scratch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scratch"]
    assert list(scratch.iterdir()) == []


def test_probe_settles_for_fuse_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_erofs(monkeypatch)
    findings = probe(tmp_path / "probe", [tmp_path], wanted="auto")
    assert (findings.mode, findings.why) == ("fuse", "refused by the test")
    with pytest.raises(ContainerStartError, match="refused by the test"):
        probe(tmp_path / "probe", [tmp_path], wanted="erofs")


def test_probe_takes_the_next_place_for_uppers(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    parts = [tmp_path / name for name in ("lower", "upper", "work")]
    for path in (first, second, *parts):
        path.mkdir()
    # An overlay cannot be the upper file system of another.
    layers = mounting.OverlayLayers(lower=[parts[0]], upper=parts[1], work=parts[2])
    mounting.mount_overlay(first, layers)
    try:
        assert probe(tmp_path / "probe", [first, second], wanted="auto").scratch == second
        with pytest.raises(ContainerStartError, match="takes no upper directory"):
            probe(tmp_path / "probe", [first], wanted="auto")
    finally:
        mounting.unmount(first)


async def test_host_without_erofs_serves_by_fuse(
    host: Host, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_erofs(monkeypatch)
    image = host.save(source)
    async with host.running("auto") as fs:
        assert fs.mode == "fuse"
        root = await fs.mount_rootfs("root", [image])
        assert (root.path / "big").read_bytes() == (source / "big").read_bytes()


async def test_host_with_loop_devices_only_serves_by_erofs(
    host: Host, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_erofs(monkeypatch, only_files=True)
    image = host.save(source)
    async with host.running("auto") as fs:
        assert fs.mode == "erofs"
        root = await fs.mount_rootfs("root", [image])
        assert (root.path / "big").read_bytes() == (source / "big").read_bytes()


async def test_kernel_that_needs_metacopy_still_gives_plain_layers_to_builds(
    host: Host, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mounting.mount_overlay

    def mount_overlay(
        target: Path, layers: mounting.OverlayLayers, *, metacopy: bool = False
    ) -> None:
        if layers.data and not metacopy:
            raise OSError(errno.EPERM, "refused by the test")
        real(target, layers, metacopy=metacopy)

    monkeypatch.setattr(mounting, "mount_overlay", mount_overlay)
    image = host.save(source)
    async with host.running("auto") as fs:
        assert (fs.mode, fs.why) == (
            "erofs",
            "a redirect from EROFS into a data layer was read, with metacopy=on",
        )
        function = await fs.mount_rootfs("function", [image])
        step = await fs.mount_rootfs("step", [image], plain_upper=True)
        for root in (function, step):
            os.chown(root.path / "big", 1, 2)
            assert (root.path / "big").read_bytes() == (source / "big").read_bytes()
        attribute = "trusted.overlay.metacopy"
        assert attribute in os.listxattr(function.upper / "big")
        assert attribute not in os.listxattr(step.upper / "big")
        assert (step.upper / "big").read_bytes() == (source / "big").read_bytes()


async def test_read_ahead_of_the_server_is_raised(host: Host) -> None:
    async with host.running("fuse"):
        (entry,) = mounting.mounts_below(host.run_dir / "fs")
        knob = Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb")
        assert knob.read_text().strip() == "1024"
