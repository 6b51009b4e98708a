"""The base image: what is cleaned out of an installed system, and which Python it has."""

import pytest

from hostd.build import base
from hostd.build.layers import python_of
from hostd.errors import InvalidError
from hostd.fs import Tree, directory, place, small_file, symlink
from hostd.model import ImageConfig

OLD_NS = 1_600_000_000 * 10**9
NOW_NS = 1_790_000_000 * 10**9


def installed():
    root = directory(mtime_ns=NOW_NS)
    shared = small_file(b"shared", mtime_ns=OLD_NS)
    for path, node in {
        b"/var/lib/dpkg/status": small_file(b"status", mtime_ns=NOW_NS),
        b"/var/lib/dpkg/status-old": small_file(b"status"),
        b"/var/log/dpkg.log": small_file(b"log"),
        b"/dev/null": small_file(b""),
        b"/etc/apt/sources.list": small_file(b"deb http://mirror.lab/debian"),
        b"/etc/apt/sources.list.d/000.list": small_file(b"deb http://mirror.lab/debian"),
        b"/etc/apt/apt.conf.d/99mmdebstrap": small_file(b"Proxy"),
        b"/etc/resolv.conf": small_file(b"nameserver 10.0.0.1", 0o755),
        b"/etc/generated": small_file(b"x", mtime_ns=NOW_NS),
        b"/usr/one": shared,
        b"/usr/two": shared,
    }.items():
        place(root, path, node)
    return Tree(root)


def test_traces_are_gone_and_directories_stay():
    tree = base.cleaned(installed())
    names = {path for path, _ in tree.walk()}
    gone = {
        b"/var/lib/dpkg/status-old",
        b"/var/log/dpkg.log",
        b"/dev/null",
        b"/etc/apt/sources.list.d/000.list",
        b"/etc/apt/apt.conf.d/99mmdebstrap",
    }
    assert not gone & names
    assert {b"/var/log", b"/dev", b"/etc/apt/sources.list.d", b"/var/lib/dpkg/status"} <= names
    assert tree.lookup(b"/etc/apt/sources.list").inline == base.DEFAULT_SOURCES
    assert tree.lookup(b"/etc/resolv.conf").inline == b""
    assert not any(node.opaque or node.implicit or node.is_whiteout for _, node in tree.walk())


def test_times_are_those_of_packages_or_of_the_release():
    tree = base.cleaned(installed())
    times = {node.mtime_ns for _, node in tree.walk()}
    assert times == {OLD_NS, base.EPOCH_S * 10**9}


def test_hard_links_stay_links():
    tree = base.cleaned(installed())
    assert tree.lookup(b"/usr/one") is tree.lookup(b"/usr/two")


def test_only_the_python_of_the_release_is_there():
    for version in (None, "3", "3.11"):
        base.check_python(version)
    with pytest.raises(InvalidError, match=r"python_version is '3\.12'") as caught:
        base.check_python("3.12")
    assert "3.11" in caught.value.hint


def test_python_is_the_first_on_the_path():
    root = directory()
    place(root, b"/usr/bin/python3", symlink(b"python3.11"))
    place(root, b"/usr/bin/python3.11", small_file(b"", 0o755))
    tree = Tree(root)
    config = ImageConfig(env={"PATH": "relative:/usr/local/bin:/usr/bin"})
    assert python_of(tree, config) == "3.11"
    place(root, b"/usr/local/bin/python3", symlink(b"/opt/python3.13"))
    assert python_of(tree, config) == "3.11"
    place(root, b"/opt/python3.13", small_file(b"", 0o755))
    assert python_of(tree, config) == "3.13"
    assert python_of(Tree(), config) is None
    assert python_of(tree, ImageConfig()) is None
