"""Which paths of a step's layer are only there because something was mounted."""

import pytest

from hostd.build.executor import traces
from hostd.fs import Tree, directory, place, small_file, symlink


@pytest.fixture
def before():
    root = directory()
    place(root, b"/etc/hosts", small_file(b""))
    place(root, b"/etc/resolv.conf", symlink(b"../run/systemd/resolv.conf"))
    place(root, b"/opt", directory())
    place(root, b"/run", directory())
    return Tree(root)


@pytest.fixture
def upper(tmp_path):
    def make(*paths):
        for path in paths:
            target = tmp_path / path.lstrip("/")
            if path.endswith("/"):
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
        return tmp_path

    return make


def test_mount_points_and_new_directories_on_the_way(before, upper):
    layer = upper("/opt/site/index/simple/", "/opt/site/index/files/", "/opt/site/wheels/")
    targets = [b"/opt/site/index/simple", b"/opt/site/index/files", b"/opt/site/wheels"]
    assert traces(before, layer, targets) == {*targets, b"/opt/site/index", b"/opt/site"}


def test_directories_with_other_things_stay(before, upper):
    layer = upper("/opt/site/index/", "/opt/site/of-the-user")
    assert traces(before, layer, [b"/opt/site/index"]) == {b"/opt/site/index"}


def test_existing_directories_stay(before, upper):
    layer = upper("/opt/index/")
    assert traces(before, layer, [b"/opt/index"]) == {b"/opt/index"}


def test_links_of_the_image_are_followed(before, upper):
    layer = upper("/run/systemd/resolv.conf", "/run/hostd/site/")
    assert traces(before, layer, [b"/etc/resolv.conf", b"/run/hostd/", b"/"]) == {
        b"/etc/resolv.conf",
        b"/run/systemd/resolv.conf",
        b"/run/systemd",
        b"/run/hostd",
    }


def test_links_in_the_layer_are_not_followed(before, upper, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "index").mkdir()
    layer = upper("/opt/")
    (layer / "opt" / "site").symlink_to(outside)
    assert traces(before, layer, [b"/opt/site/index"]) == {b"/opt/site/index"}
