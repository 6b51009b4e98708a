"""COPY, ADD and WORKDIR on trees: destinations, links of the image, owners, archives."""

import bz2
import gzip
import io
import lzma
import stat
import tarfile

import pytest

from hostd.build.copying import CopyWork, Entry, Source
from hostd.build.placing import is_archive, owner_ids, place_copies, place_directory
from hostd.build.steps import DirectoryWork
from hostd.errors import InvalidError
from hostd.fs import CAS, ImageStore, Tree, directory, place, small_file, symlink

PASSWD = b"root:x:0:0::/root:/bin/sh\nme:x:1000:50::/:/bin/sh\nbroken\nodd:x:y:z::/:\n"
GROUP = b"root:x:0:\nstaff:x:77:me\n"


@pytest.fixture
def images(tmp_path):
    cas = CAS(tmp_path / "cas")
    yield ImageStore(cas, tmp_path / "images")
    cas.close()


@pytest.fixture
def parent():
    root = directory()
    for path, node in {
        b"/usr/bin/sh": small_file(b"sh", 0o755),
        b"/bin": symlink(b"usr/bin"),
        b"/etc/passwd": small_file(PASSWD),
        b"/etc/group": small_file(GROUP),
        b"/srv": directory(0o700, uid=5),
        b"/out": symlink(b"../../../srv"),
    }.items():
        place(root, path, node)
    return Tree(root)


def text(name, data=b"data", **more):
    return Source(name=name, is_directory=False, entries=(Entry(path="", data=data, **more),))


def folder(name, **files):
    entries = [Entry(path=path.replace("__", "/"), data=data) for path, data in files.items()]
    return Source(name=name, is_directory=True, entries=tuple(entries))


def copy(*sources, to, into=False, **more):
    return CopyWork(sources=sources, destination=to, into_directory=into, **more)


def paths(tree, before):
    old = {path for path, _ in before.walk()}
    return {path for path, _ in tree.walk()} - old


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (copy(text("a"), to="/new"), {b"/new"}),
        (copy(text("a"), to="/new/name"), {b"/new", b"/new/name"}),
        (copy(text("a"), to="/new", into=True), {b"/new", b"/new/a"}),
        (copy(text("a"), to="/srv"), {b"/srv/a"}),
        (copy(text("a"), text("b"), to="/srv"), {b"/srv/a", b"/srv/b"}),
        (copy(text("a"), to="/bin/tool"), {b"/usr/bin/tool"}),
        (copy(text("a"), to="/bin", into=True), {b"/usr/bin/a"}),
        (copy(text("a"), to="/out/x"), {b"/srv/x"}),
        (copy(folder("d", x=b"1", s__y=b"2"), to="/n"), {b"/n", b"/n/x", b"/n/s", b"/n/s/y"}),
        (copy(folder("d", bin__z=b"1"), to="/"), {b"/usr/bin/z"}),
        (copy(folder("d"), to="/empty"), {b"/empty"}),
        (copy(to="/nothing"), set()),
    ],
)
def test_destinations(parent, images, work, expected):
    assert paths(place_copies(parent, work, images, {}), parent) == expected


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (copy(text("a"), text("b"), to="/new"), "is not a directory"),
        (copy(text("srv"), to="/", into=True), "cannot copy a file over a directory"),
        (copy(folder("d", x=b"1"), to="/etc/passwd"), "not a directory"),
        (copy(text("a"), to="/etc/passwd/x"), "not a directory"),
        (copy(folder("d", passwd__x=b"1"), to="/etc"), "not a directory"),
        (copy(text("a"), to="/x", owner="nobody-here"), "user 'nobody-here' is not in"),
        (copy(text("a"), to="/x", owner="me:nogroup"), "group 'nogroup' is not in"),
    ],
)
def test_what_does_not_fit_is_refused(parent, images, work, message):
    with pytest.raises(InvalidError, match=message):
        place_copies(parent, work, images, {})


def test_modes_owners_and_times(parent, images):
    source = Source(
        name="d",
        is_directory=True,
        entries=(
            Entry(path="run", data=b"x" * 2000, mode=0o755),
            Entry(path="sub", kind="dir", mode=0o711),
            Entry(path="link", kind="symlink", target="run"),
        ),
    )
    tree = place_copies(parent, copy(source, to="/n", owner="me:staff"), images, {})
    facts = {}
    for name in (b"", b"/run", b"/sub", b"/link"):
        node = tree.lookup(b"/n" + name)
        facts[name] = (oct(node.mode), node.uid, node.gid)
    assert facts == {
        b"": (oct(stat.S_IFDIR | 0o755), 1000, 77),
        b"/run": (oct(stat.S_IFREG | 0o755), 1000, 77),
        b"/sub": (oct(stat.S_IFDIR | 0o711), 1000, 77),
        b"/link": (oct(stat.S_IFLNK | 0o777), 1000, 77),
    }
    forced = place_copies(parent, copy(source, to="/n", mode=0o600), images, {})
    assert forced.lookup(b"/n/run").mode == stat.S_IFREG | 0o600


def test_existing_directories_keep_their_attributes(parent, images):
    tree = place_copies(parent, copy(text("a"), to="/srv/", into=True), images, {})
    assert (stat.S_IMODE(tree.lookup(b"/srv").mode), tree.lookup(b"/srv").uid) == (0o700, 5)


def test_same_content_has_the_same_time_and_other_content_another(parent, images):
    def mtime(data):
        return (
            place_copies(parent, copy(text("a", data), to="/a"), images, {}).lookup(b"/a").mtime_ns
        )

    assert mtime(b"one") == mtime(b"one")
    assert mtime(b"one") // 10**9 != mtime(b"two") // 10**9


def test_named_link_is_replaced_inside_a_directory(parent, images):
    tree = place_copies(parent, copy(folder("d", out=b"file"), to="/"), images, {})
    assert tree.lookup(b"/out").inline == b"file"


def test_parent_is_not_changed(parent, images):
    before = {path for path, _ in parent.walk()}
    place_copies(parent, copy(folder("d", etc__new=b"1"), to="/"), images, {})
    assert {path for path, _ in parent.walk()} == before


@pytest.mark.parametrize(
    ("owner", "ids"),
    [
        ("", (0, 0)),
        ("me", (1000, 50)),
        ("me:staff", (1000, 77)),
        ("1000", (1000, 50)),
        ("4711", (4711, 4711)),
        ("4711:8", (4711, 8)),
        (":staff", (0, 77)),
    ],
)
def test_owners_are_looked_up_in_the_image(parent, images, owner, ids):
    assert owner_ids(parent, owner, images) == ids


def test_working_directory_is_made_for_its_owner(parent, images):
    tree = place_directory(parent, DirectoryWork(path="/a/b", owner="me"), images)
    node = tree.lookup(b"/a/b")
    assert (node.mode, node.uid, node.gid) == (stat.S_IFDIR | 0o755, 1000, 50)
    assert place_directory(parent, DirectoryWork(path="/out", owner="ghost"), images) is parent
    with pytest.raises(InvalidError, match="is there and is not a directory"):
        place_directory(parent, DirectoryWork(path="/etc/passwd"), images)


def tar_bytes():
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
    return data.getvalue()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_add_refuses_archives_that_it_would_have_to_unpack(parent, images, pack):
    archive = pack(tar_bytes())
    assert is_archive(archive)
    with pytest.raises(InvalidError, match="archives are not supported"):
        place_copies(parent, copy(text("x.tar", archive), to="/x", unpack=True), images, {})
    copied = place_copies(parent, copy(text("x.tar", archive), to="/x"), images, {})
    assert copied.lookup(b"/x").size == len(archive)


@pytest.mark.parametrize(
    "data", [b"", b"text", gzip.compress(b"text"), b"\x1f\x8b\x08broken", b"BZh9"]
)
def test_other_files_are_no_archives(data):
    assert not is_archive(data)
