"""Finds out by doing how this host can serve images: a tiny image is mounted and read through.

Kernel versions do not tell: distributions leave modules out, containers hide devices, and file
systems differ in what they allow as an upper directory. So the real stack is set up once at the
daemon's start, about 3 ms, with one file whose bytes lie in a blob. Three questions are answered:

    mode        does a redirect from an EROFS image into a data-only layer deliver the blob's bytes?
    metacopy    only with metacopy=on? (before Linux 6.16; uppers may then hold files without data)
    scratch     which directory may hold upper directories: the first one that works
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hostd.errors import ContainerStartError
from hostd.fs import erofs, mounting
from hostd.fs.tree import Tree, blob_file, directory
from hostd.ids import digest

FSMode = Literal["erofs", "fuse"]

_CONTENT = b"hostd can serve images from here\n" * 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """How to serve on this host, and why so."""

    mode: FSMode
    why: str
    metacopy: bool
    scratch: Path


def probe(directory_: Path, scratches: Sequence[Path], *, wanted: str) -> Findings:
    """Try the EROFS way, then settle for FUSE.

    Args:
        directory_: an own, empty place for the experiment; removed afterwards.
        scratches: candidates for upper directories, best first; they exist.
        wanted: ``auto``, or the mode that the configuration demands.

    Raises:
        ContainerStartError: there is no /dev/fuse, no place for uppers, or ``erofs`` is demanded
        and
            does not work.
    """
    if not Path("/dev/fuse").exists():
        raise ContainerStartError("/dev/fuse is missing", hint="load the kernel module fuse")
    bench = _Bench(directory_)
    try:
        scratch = bench.find_scratch(scratches)
        if wanted == "fuse":
            return Findings(mode="fuse", why="fs.mode = fuse", metacopy=False, scratch=scratch)
        return _try_erofs(bench, scratch, wanted)
    finally:
        bench.clear()


def _try_erofs(bench: _Bench, scratch: Path, wanted: str) -> Findings:
    problem = ""
    for metacopy in (False, True):
        problem = bench.problem_with_erofs(scratch, metacopy=metacopy)
        if not problem:
            why = "a redirect from EROFS into a data layer was read"
            why += ", with metacopy=on" if metacopy else ""
            return Findings(mode="erofs", why=why, metacopy=metacopy, scratch=scratch)
    if wanted == "erofs":
        raise ContainerStartError(
            f"fs.mode = erofs does not work here: {problem}", hint="set fs.mode to auto"
        )
    return Findings(mode="fuse", why=problem, metacopy=False, scratch=scratch)


class _Bench:
    """The place of the experiment: an image with one file, a CAS with one blob, a mount point."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._image = top / "image.erofs"
        self._objects = top / "objects"
        self._late = top / "late"
        self._index = top / "index"
        self._root = top / "root"
        self.clear()
        for path in (top, self._objects, self._late, self._index, self._root):
            path.mkdir(parents=True)
        # The name only has to look like a digest: nothing here asks what it hashes to.
        digits = hashlib.sha256(_CONTENT).hexdigest()
        blob = self._objects / digits[:2] / digits[2:]
        blob.parent.mkdir()
        blob.write_bytes(_CONTENT)
        root = directory()
        root.children[b"file"] = blob_file(digest(digits), len(_CONTENT))
        self._image.write_bytes(erofs.write_index(Tree(root)))

    def clear(self) -> None:
        """Unmount and remove everything."""
        mounting.sweep(self._top)
        shutil.rmtree(self._top, ignore_errors=True)

    def find_scratch(self, candidates: Sequence[Path]) -> Path:
        """The first directory that overlayfs takes for uppers."""
        problems = []
        for candidate in candidates:
            try:
                self._overlay([self._index], [], candidate, metacopy=False)
            except OSError as error:
                problems.append(f"{candidate}: {error.strerror}")
            else:
                return candidate
        raise ContainerStartError(
            f"overlayfs takes no upper directory: {'; '.join(problems)}",
            hint="put data_dir on ext4, xfs, btrfs or tmpfs",
        )

    def problem_with_erofs(self, scratch: Path, *, metacopy: bool) -> str:
        """What goes wrong in the EROFS way; empty when nothing does."""
        try:
            mounting.mount_erofs(self._image, self._index)
            data = [self._objects, self._late]
            content = self._overlay([self._index], data, scratch, metacopy=metacopy)
        except OSError as error:
            return error.strerror or str(error)
        finally:
            mounting.sweep(self._top)
        return "" if content == _CONTENT else "the file behind the redirect has other bytes"

    def _overlay(
        self, lower: list[Path], data: list[Path], scratch: Path, *, metacopy: bool
    ) -> bytes:
        """What the file holds when it is read through an overlay that was also written to."""
        own = scratch / ".probe"
        shutil.rmtree(own, ignore_errors=True)
        upper, work = own / "upper", own / "work"
        upper.mkdir(parents=True)
        work.mkdir()
        layers = mounting.OverlayLayers(lower=lower, data=data, upper=upper, work=work)
        try:
            mounting.mount_overlay(self._root, layers, metacopy=metacopy)
            (self._root / "written").write_bytes(b"")
            return (self._root / "file").read_bytes() if data else b""
        finally:
            mounting.sweep(self._root)
            shutil.rmtree(own, ignore_errors=True)
