"""The mount table as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostd.fs import mounting

LINE = (
    rb"36 35 98:0 /mnt1 /run/a\040b\011c\134d rw,noatime master:1 shared:2 "
    rb"- fuse.hostd host\040d rw,errors=continue"
)


def test_escapes_and_optional_fields_are_understood() -> None:
    entry = mounting._parse_entry(LINE)
    assert entry == mounting.MountEntry(Path("/run/a b\tc\\d"), "fuse.hostd", "host d", "98:0")


def test_every_line_of_this_machine_is_understood() -> None:
    entries = list(mounting.mount_entries())
    assert Path("/proc") in [entry.path for entry in entries]
    assert all(":" in entry.device for entry in entries)


def test_neighbours_with_the_same_beginning_are_not_below(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["/run/h", "/run/h/fs", "/run/h/rootfs/x", "/run/hostd", "/run"]
    entries = [mounting.MountEntry(Path(name), "tmpfs", "none", "0:1") for name in names]
    monkeypatch.setattr(mounting, "mount_entries", lambda: iter(entries))
    assert [str(entry.path) for entry in mounting.mounts_below(Path("/run/h"))] == names[:3]


def test_separators_in_paths_are_escaped() -> None:
    assert mounting._escape(Path("/a:b,c\\d")) == "/a\\:b\\,c\\\\d"


def test_options_that_the_kernel_would_cut_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="at most 4095"):
        mounting.mount("none", tmp_path, "tmpfs", flags=0, options="x" * 4_096)


def test_unmount_of_what_is_not_mounted_says_so(tmp_path: Path) -> None:
    assert mounting.unmount(tmp_path / "absent") is False
