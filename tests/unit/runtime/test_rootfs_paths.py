"""Work in a hostile root stays in it. openat2 needs no root."""

from __future__ import annotations

import os

import pytest

from hostd.errors import ContainerStartError
from hostd.runtime import rootfs
from hostd.runtime.rootfs import User

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\nana:x:1001:1002:,,,:/home/ana:/bin/sh\nbroken\nx:x:a:b:::\n"
)
GROUP = "root:x:0:\nwheel:x:10:ana,bob\nana:x:1002:ana\n"


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "root"
    (path / "etc").mkdir(parents=True)
    (path / "etc/passwd").write_text(PASSWD)
    (path / "etc/group").write_text(GROUP)
    return path


def resolve(root, text):
    with rootfs.opened(root) as fd:
        return rootfs.resolve_user(fd, text)


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, "/root")),
        ("ana", User(1001, 1002, "/home/ana", (10,))),
        ("1001", User(1001, 1002, "/home/ana", (10,))),
        ("ana:wheel", User(1001, 10, "/home/ana")),
        ("77", User(77, 0, "/")),
        ("77:88", User(77, 88, "/")),
    ],
)
def test_users_are_resolved_as_in_a_dockerfile(root, text, user):
    assert resolve(root, text) == user


@pytest.mark.parametrize("text", ["bob", "x", "ana:nogroup", "-1"])
def test_unknown_names_are_errors_that_name_them(root, text):
    with pytest.raises(ContainerStartError, match=text.partition(":")[2] or text):
        resolve(root, text)


def test_account_files_are_not_read_through_links_that_lead_out(root, tmp_path):
    (tmp_path / "passwd").write_text("ana:x:666:666::/:\n")
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("../../passwd")

    with pytest.raises(ContainerStartError, match="ana"):
        resolve(root, "ana")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_account_files_that_are_no_files_are_empty(root, make):
    (root / "etc/passwd").unlink()
    make(root / "etc/passwd")

    assert resolve(root, "") == User(0, 0, "/")


def test_a_root_without_accounts_has_numbers_only(tmp_path):
    assert resolve(tmp_path, "0:5") == User(0, 5, "/")


def test_absolute_links_lead_to_the_roots_own_files(root):
    (root / "usr").mkdir()
    (root / "lib").symlink_to("/usr")
    with rootfs.opened(root) as fd:
        rootfs.make_directory(fd, "/lib/a/b")

    assert (root / "usr/a/b").is_dir()


def test_modes_do_not_depend_on_the_umask(root):
    before = os.umask(0o077)
    try:
        with rootfs.opened(root) as fd:
            rootfs.make_directory(fd, "/var/tmp", 0o1777)
    finally:
        os.umask(before)

    assert (root / "var/tmp").stat().st_mode & 0o7777 == 0o1777
    assert (root / "var").stat().st_mode & 0o7777 == 0o755


def test_parent_steps_end_at_the_root(root, tmp_path):
    (root / "up").symlink_to("../../../..")
    with rootfs.opened(root) as fd:
        rootfs.ensure_mount_point(fd, "/up/made", directory=False)

    assert (root / "made").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]


def test_dangling_links_are_followed_inside(root, tmp_path):
    (root / "etc/resolv.conf").symlink_to("/run/systemd/resolve/stub-resolv.conf")
    with rootfs.opened(root) as fd:
        rootfs.ensure_mount_point(fd, "/etc/resolv.conf", directory=False)

    assert (root / "run/systemd/resolve/stub-resolv.conf").is_file()


def test_loops_of_links_are_errors(root):
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with rootfs.opened(root) as fd, pytest.raises(ContainerStartError, match="/a"):
        rootfs.ensure_mount_point(fd, "/a", directory=True)


def test_what_is_there_stays_as_it_is(root):
    with rootfs.opened(root) as fd:
        rootfs.ensure_mount_point(fd, "/etc/passwd", directory=False)
        rootfs.make_directory(fd, "/etc")

    assert (root / "etc/passwd").read_text() == PASSWD


def test_a_file_in_the_way_is_named(root):
    with rootfs.opened(root) as fd, pytest.raises(ContainerStartError, match="/etc/passwd"):
        rootfs.make_directory(fd, "/etc/passwd/below")


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_pseudo_directories_must_be_directories(root, name, kind):
    if kind == "link":
        (root / name).symlink_to("/etc")
    else:
        (root / name).write_text("")
    with (
        rootfs.opened(root) as fd,
        pytest.raises(ContainerStartError, match=f"/{name} of the image"),
    ):
        rootfs.check_pseudo_directories(fd)


@pytest.mark.parametrize("cwd", ["/", "/srv", "/process", "/sys2"])
def test_ordinary_working_directories_pass(cwd):
    rootfs.check_cwd(cwd)


@pytest.mark.parametrize("cwd", ["", "x", "/proc", "/proc/self/fd", "/dev", "/sys/a", "/a/../proc"])
def test_working_directories_into_the_kernel_are_refused(cwd):
    with pytest.raises(ContainerStartError):
        rootfs.check_cwd(cwd)
