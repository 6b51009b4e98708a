"""A build step's upper directory, applied to the parent's tree, is what the step saw at its end."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostd.errors import ConflictError, InvalidError
from hostd.fs import CAS, Node, Tree, apply_upper, ingest_directory
from hostd.fs.batch import FILES_MAX
from hostd.fs.erofs import write_index
from hostd.fs.mounting import OverlayLayers, mount_erofs, mount_overlay, unmount
from hostd.fs.tree import differences
from tests.integration.fs.real_trees import CAPABILITY

pytestmark = pytest.mark.root


class Bench:
    """A parent image, and steps on it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.cas = CAS(base / "cas")
        source = base / "source"
        source.mkdir()
        _fill(source)
        self.parent = ingest_directory(source, self.cas)
        self.upper = base / "upper"

    @contextmanager
    def mounted(self, *, metacopy: bool = False) -> Iterator[Path]:
        """The root of a step; afterwards its upper is left."""
        for name in ("meta", "upper", "work", "merged"):
            (self.base / name).mkdir()
        (self.base / "index").write_bytes(write_index(self.parent))
        mount_erofs(self.base / "index", self.base / "meta")
        layers = OverlayLayers(
            lower=[self.base / "meta"],
            data=[self.cas.objects],
            upper=self.upper,
            work=self.base / "work",
        )
        try:
            mount_overlay(self.base / "merged", layers, metacopy=metacopy)
            try:
                yield self.base / "merged"
            finally:
                unmount(self.base / "merged")
        finally:
            unmount(self.base / "meta")

    def step(self, action: Callable[[Path], object]) -> Tree:
        """Do something in the container's root; the result is proved to be the merged view."""
        with self.mounted() as merged:
            action(merged)
            expected = ingest_directory(merged, self.cas)
        result = apply_upper(self.parent, self.upper, self.cas)
        assert differences(unlinked(result), unlinked(expected)) == []
        assert write_index(unlinked(result)) == write_index(unlinked(expected))
        assert self.cas.invalid(node.digest for _, node in result.walk() if node.digest) == []
        return result


def unlinked(tree: Tree) -> Tree:
    """The tree with every hard link as a file of its own.

    The merged view tells too little of them: a file of the image that was copied up keeps the
    inode number of its lower file, while a new link to it shows that of the upper file.
    """

    def copied(node: Node) -> Node:
        children = {name: copied(child) for name, child in node.children.items()}
        return node.replace(children=children)

    return Tree(copied(tree.root))


def _fill(top: Path) -> None:
    for name in ("etc", "usr/lib/deep", "var/empty", "opt/pkg"):
        (top / name).mkdir(parents=True)
    for number in range(10):
        (top / "etc" / f"small{number}").write_bytes(b"s%d" % number)
        (top / "usr/lib" / f"large{number}").write_bytes(b"%d" % number * 3000)
    (top / "opt/pkg/file").write_bytes(b"f" * 4000)
    (top / "opt/pkg/sub").mkdir()
    (top / "opt/pkg/sub/x").write_bytes(b"x")
    os.link(top / "usr/lib/large0", top / "usr/lib/linked0")
    (top / "lib").symlink_to("usr/lib")
    (top / "usr/lib/suid").write_bytes(b"#" * 2000)
    (top / "usr/lib/suid").chmod(0o4755)
    os.mkfifo(top / "var/pipe")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def sh(script: str) -> Callable[[Path], object]:
    """A shell script as an action."""
    return lambda root: subprocess.run(
        ["/bin/sh", "-euc", script], cwd=root, check=True, timeout=60, capture_output=True
    )


def at(tree: Tree, path: bytes) -> Node:
    node = tree.lookup(path)
    assert node is not None
    return node


def test_a_step_that_does_nothing_gives_the_parent(bench: Bench):
    before = write_index(bench.parent)
    bench.parent.root.children[b"var"] = bench.parent.root.children[b"var"]
    result = bench.step(lambda root: None)
    root = result.root.replace(mtime_ns=bench.parent.root.mtime_ns)
    assert write_index(Tree(root)) == before


def test_removed_files_are_gone_though_whiteouts_are_linked_to_each_other(bench: Bench):
    result = bench.step(sh("rm etc/small0 etc/small1 usr/lib/large1 var/pipe; rm -r opt/pkg/sub"))
    assert sorted(at(result, b"/etc").children) == [b"small%d" % number for number in range(2, 10)]
    assert result.lookup(b"/opt/pkg/sub") is None


def test_a_directory_made_again_hides_the_old_one(bench: Bench):
    result = bench.step(sh("rm -r opt/pkg; mkdir opt/pkg; echo new > opt/pkg/new"))
    assert sorted(at(result, b"/opt/pkg").children) == [b"new"]
    assert not at(result, b"/opt/pkg").opaque


def test_a_directory_becomes_a_file_and_a_file_a_directory(bench: Bench):
    result = bench.step(sh("rm -r opt; echo x > opt; rm etc/small0; mkdir -p etc/small0/d"))
    assert at(result, b"/opt").inline == b"x\n"
    assert at(result, b"/etc/small0/d").is_dir


def test_a_changed_mode_copies_the_file_and_keeps_its_blob(bench: Bench):
    before = at(bench.parent, b"/usr/lib/large3")
    result = bench.step(
        sh("chmod 600 usr/lib/large3; chown 5:6 usr/lib/large3; touch usr/lib/large4")
    )
    after = at(result, b"/usr/lib/large3")
    assert (after.digest, after.mode & 0o7777, after.uid, after.gid) == (before.digest, 0o600, 5, 6)
    assert not [
        name
        for path in bench.upper.rglob("*")
        for name in os.listxattr(path, follow_symlinks=False)
        if name in ("trusted.overlay.metacopy", "trusted.overlay.redirect")
    ]


def test_a_directory_of_the_image_is_renamed_by_copying(bench: Bench):
    def rename(root: Path) -> None:
        with pytest.raises(OSError, match="cross-device"):
            (root / "opt/pkg").rename(root / "opt/moved")
        shutil.move(root / "opt/pkg", root / "opt/moved")

    result = bench.step(rename)
    assert sorted(at(result, b"/opt").children) == [b"moved"]
    assert sorted(at(result, b"/opt/moved").children) == [b"file", b"sub"]


def test_hard_links_new_old_and_broken(bench: Bench):
    result = bench.step(
        sh(
            "echo n > etc/new; ln etc/new etc/again; ln usr/lib/large5 etc/five;"
            "echo more >> usr/lib/large0; ln -P lib etc/linked-link; head -c 9000 /dev/zero > big;"
            "ln big opt/big2"
        )
    )
    assert at(result, b"/etc/new") is at(result, b"/etc/again")
    assert at(result, b"/etc/five") is at(result, b"/usr/lib/large5")
    assert at(result, b"/usr/lib/large0") is not at(result, b"/usr/lib/linked0")
    assert at(result, b"/big") is at(result, b"/opt/big2")


def test_attributes_of_files_survive_and_those_of_the_overlay_do_not(bench: Bench):
    def mark(root: Path) -> None:
        os.setxattr(root / "etc/small0", "security.capability", CAPABILITY)
        os.setxattr(root / "usr/lib/large0", "user.note", b"n")
        os.setxattr(root / "opt/pkg", "user.dir", b"d")
        os.setxattr(root / "opt/pkg", "trusted.overlay.opaque", b"y")

    with bench.mounted() as merged:
        mark(merged)
    result = apply_upper(bench.parent, bench.upper, bench.cas)
    assert at(result, b"/etc/small0").xattrs == {b"security.capability": CAPABILITY}
    assert at(result, b"/usr/lib/large0").xattrs == {b"user.note": b"n"}
    assert at(result, b"/opt/pkg").xattrs == {b"user.dir": b"d"}
    assert sorted(at(result, b"/opt/pkg").children) == [b"file", b"sub"]


def test_modes_owners_pipes_and_sparse_files(bench: Bench):
    result = bench.step(
        sh(
            "cp -p usr/lib/suid etc/suid; chmod 6711 etc/suid; mkdir -m 1777 drop; mkfifo -m 620 p;"
            "mknod n c 1 3; truncate -s 1G sparse; chown 3:4 drop; chmod 700 .; touch -d @5 p"
        )
    )
    sparse = at(result, b"/sparse")
    assert sparse.digest is not None
    assert bench.cas.path(sparse.digest).stat().st_blocks < 10_000
    assert at(result, b"/etc/suid").mode & 0o7777 == 0o6711
    assert result.root.mode & 0o7777 == 0o700


def test_blobs_of_a_step_carry_no_owner_mode_or_attributes(bench: Bench):
    def make(root: Path) -> None:
        (root / "x").write_bytes(os.urandom(5000))
        os.chown(root / "x", 1000, 1000)
        (root / "x").chmod(0o6777)
        os.setxattr(root / "x", "security.capability", CAPABILITY)

    with bench.mounted() as merged:
        make(merged)
    digest = at(apply_upper(bench.parent, bench.upper, bench.cas), b"/x").digest
    assert digest is not None
    status = bench.cas.path(digest).stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, 0o444)
    assert os.listxattr(bench.cas.path(digest)) == []


def test_what_the_steps_mounts_made_leaves_no_trace(bench: Bench):
    with bench.mounted() as merged:
        (merged / "etc/resolv.conf").touch()
        (merged / "etc/small0").write_bytes(b"")
        (merged / "run/hostd").mkdir(parents=True)
        (merged / "proc").mkdir()
        (merged / "kept").write_bytes(b"k")
    drop = [b"/etc/resolv.conf", b"/etc/small0", b"/run/hostd", b"/proc"]
    result = apply_upper(bench.parent, bench.upper, bench.cas, drop=drop)
    assert differences(Tree(at(result, b"/etc")), Tree(at(bench.parent, b"/etc"))) == []
    assert sorted(result.root.children.keys() - bench.parent.root.children.keys()) == [
        b"kept",
        b"run",
    ]
    assert at(result, b"/run").children == {}


def test_an_upper_with_files_that_have_no_data_is_refused(bench: Bench):
    with bench.mounted(metacopy=True) as merged:
        (merged / "usr/lib/large3").chmod(0o600)
    with pytest.raises(InvalidError, match="metacopy"):
        apply_upper(bench.parent, bench.upper, bench.cas)


def test_an_upper_with_a_renamed_directory_is_refused(bench: Bench):
    with bench.mounted(metacopy=True) as merged:
        (merged / "opt/pkg").rename(merged / "opt/moved")
    with pytest.raises(InvalidError, match="redirect"):
        apply_upper(bench.parent, bench.upper, bench.cas)


def test_a_file_that_something_still_writes_to_is_refused(bench: Bench):
    with bench.mounted() as merged:
        for number in range(FILES_MAX + 1):
            (merged / f"x{number}").write_bytes(b"%d" % number * 5000)
    writer = (bench.upper / "x3").open("r+b")
    sync = bench.cas.sync

    def write_then_sync() -> None:
        writer.write(b"y")
        writer.flush()
        sync()

    bench.cas.sync = write_then_sync  # type: ignore[method-assign]
    with writer, pytest.raises(ConflictError):
        apply_upper(bench.parent, bench.upper, bench.cas)
    assert bench.cas.invalid(list(bench.cas)) == []


def test_a_step_on_a_step_on_a_step(bench: Bench):
    """Results are parents: marks of the last upper must not leak into the next tree."""
    for number in range(3):
        script = f"rm -rf etc; mkdir etc; echo {number} > etc/now; rm -f usr/lib/large{number}"
        bench.parent = bench.step(sh(script))
        for name in ("upper", "work", "meta", "merged"):
            shutil.rmtree(bench.base / name)
    assert sorted(at(bench.parent, b"/etc").children) == [b"now"]
    assert at(bench.parent, b"/etc/now").inline == b"2\n"
    assert bench.parent.lookup(b"/usr/lib/large2") is None


def test_deep_and_strange_names(bench: Bench):
    def make(root: Path) -> None:
        here = os.open(root, os.O_RDONLY)
        for _ in range(60):
            os.mkdir("d" * 60, dir_fd=here)
            below = os.open("d" * 60, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(os.open(b"\xff" * 255, os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.close(here)

    bench.step(make)


@pytest.mark.parametrize("seed", range(12))
def test_any_sequence_of_operations(bench: Bench, seed: int):
    bench.step(lambda root: Chaos(root, random.Random(seed)).run(150))


class Chaos:
    """Does to a root what programs may do, in any order; what the kernel refuses is left out."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root = root
        self.rng = rng

    def run(self, count: int) -> None:
        actions = [
            self.create, self.append, self.truncate, self.chmod, self.chown, self.remove,
            self.remove_tree, self.mkdir, self.link, self.symlink, self.rename, self.age, self.note,
            self.pipe, self.copy_tree,
        ]  # fmt: skip
        for _ in range(count):
            try:
                self.rng.choice(actions)()
            except OSError:
                continue

    def paths(self) -> list[Path]:
        found = [self.root]
        for directory, subdirectories, files in os.walk(self.root):
            found += [Path(directory, name) for name in sorted(subdirectories + files)]
        return sorted(found)

    def old(self) -> Path:
        return self.rng.choice(self.paths())

    def new(self) -> Path:
        parents = [path for path in self.paths() if path.is_dir() and not path.is_symlink()]
        return self.rng.choice(parents) / self.rng.choice("abcdefgh")

    def create(self) -> None:
        # Without waiting: the name may be a pipe's, which then gives ENXIO.
        fd = os.open(self.new(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK)
        try:
            os.write(fd, self.rng.randbytes(self.rng.choice([0, 10, 1024, 1025, 5000])))
        finally:
            os.close(fd)

    def append(self) -> None:
        path = self.old()
        if path.is_file():
            with path.open("ab") as file:
                file.write(b"more" * self.rng.randrange(1000))

    def truncate(self) -> None:
        os.truncate(self.old(), self.rng.choice([0, 100, 2000, 100_000]))

    def chmod(self) -> None:
        self.old().chmod(self.rng.choice([0o600, 0o755, 0o4755, 0o1777, 0o000]))

    def chown(self) -> None:
        os.lchown(self.old(), self.rng.randrange(3), self.rng.randrange(3))

    def remove(self) -> None:
        self.old().unlink()

    def remove_tree(self) -> None:
        path = self.old()
        if self.rng.random() < 0.3 and path.is_dir():  # rmtree would wait in a pipe
            shutil.rmtree(path)

    def mkdir(self) -> None:
        self.new().mkdir()

    def link(self) -> None:
        os.link(self.old(), self.new(), follow_symlinks=False)

    def symlink(self) -> None:
        self.new().symlink_to(self.rng.choice(["a", "../b", "/etc"]))

    def rename(self) -> None:
        self.old().rename(self.new())

    def age(self) -> None:
        moment = self.rng.randrange(2**60)
        os.utime(self.old(), ns=(moment, moment), follow_symlinks=False)

    def note(self) -> None:
        os.setxattr(self.old(), "user.note", self.rng.randbytes(5), follow_symlinks=False)

    def pipe(self) -> None:
        os.mkfifo(self.new())

    def copy_tree(self) -> None:
        source, target = self.old(), self.new()
        if source != self.root and source not in target.parents:
            shutil.move(source, target)
