"""Root file systems of containers: shared images below, a writable layer of its own on top.

    <run_dir>/fs             hostd-fs (FUSE): /fault and /data below EROFS roots, or /img/<image>
    <run_dir>/images/<id>    an image's index, mounted by the kernel (EROFS way); see ``layers.py``
    <run_dir>/rootfs/<name>  a root: overlay of a fresh upper directory, indexes, data layers
    <scratch>/<name>         that root's upper and work: in data_dir/rootfs, where that works

Guarantee: before a root is handed out, every blob of its images was found whole by this daemon, or
was fetched again, or the caller gets BlobCorruptError or BlobMissingError. A blob that goes missing
later is fetched when it is read, or the read fails with EIO; it is never "no such file", and never
waits for longer than the fetch timeout.

Concurrency: all public methods run on the daemon's loop. System calls that may touch the FUSE mount
(an overlay looks its layers up) run in threads of this object, with a time limit, because hostd-fs
may hang. A mount whose caller was cancelled is taken away again when its thread is done with it.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from hostd.errors import (
    AlreadyExistsError,
    ContainerStartError,
    InvalidError,
    StorageFullError,
)
from hostd.fs import mounting
from hostd.fs.cas import CAS
from hostd.fs.fetch import Fetcher, FetchStatistics
from hostd.fs.image import ImageStore
from hostd.fs.index import Attributes
from hostd.fs.layers import SERVER_TIMEOUT_S, ImageLayers, Layer
from hostd.fs.probe import Findings, FSMode, probe
from hostd.fs.supervisor import ServerOptions, Supervisor, SupervisorStatistics
from hostd.ids import ImageId, new_id
from hostd.log import get_logger

log = get_logger(__name__)

MOUNT_TIMEOUT_S = 10.0
"""Of one overlay mount (0.3 ms); only a hanging hostd-fs gets near it."""

MOUNT_THREADS = 8

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

_GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.ESTALE, errno.EIO)
"""What a mount over a hostd-fs that just died says, or over its mount point while it restarts."""

TRASH = "rootfs-trash"
"""Beside the scratch directory; emptied in the background."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RootFS:
    """A mounted root file system."""

    name: str
    path: Path
    upper: Path
    work: Path
    phases_us: Mapping[str, int]
    """image_index: blobs checked; mount: indexes mounted; overlay: this root made and mounted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystemStatistics:
    """Immutable counters."""

    mode: str
    why: str
    images_mounted: int
    rootfs: int
    fetch: FetchStatistics
    server: SupervisorStatistics


class _Way(NamedTuple):
    """How a root is mounted."""

    mode: FSMode
    data: Sequence[Path]
    metacopy: bool


class _ServerGoneError(ContainerStartError):
    """A mount failed as it does when hostd-fs is dead."""


class FileSystem:
    """Makes and removes roots; keeps hostd-fs running."""

    def __init__(
        self,
        *,
        cas: CAS,
        images: ImageStore,
        data_dir: Path,
        run_dir: Path,
        mode: str,
        fetcher: Fetcher,
    ) -> None:
        self.mode = mode
        self.why = "not started"
        self._cas = cas
        self._images = images
        self._fetcher = fetcher
        self._run_dir = run_dir.resolve()
        self._scratch_candidates = (data_dir.resolve() / "rootfs", self._run_dir / "scratch")
        options = ServerOptions(
            run_dir=self._run_dir, cas=cas.objects.parent, fetch_timeout_s=fetcher.timeout_s
        )
        self._supervisor = Supervisor(options, fetcher.fetch_late)
        self._findings: Findings | None = None
        self._layers: ImageLayers | None = None
        self._roots: dict[str, RootFS] = {}
        self._threads = ThreadPoolExecutor(MOUNT_THREADS, "hostd-mount")
        self._janitor = ThreadPoolExecutor(1, "hostd-janitor")

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Remove what an earlier daemon left, find out how to serve, start hostd-fs.

        Raises:
            ContainerStartError: this host cannot serve images; the hint says what is missing.
        """
        try:
            await self._supervisor.start()
            self._findings = await self._in_thread(self._prepare)
        except BaseException:
            await self.close()
            raise
        self.mode, self.why = self._findings.mode, self._findings.why
        self._layers = ImageLayers(
            self._images,
            self._fetcher,
            self._supervisor,
            directory=self._run_dir / "images",
            in_thread=self._in_thread,
        )
        log.info("images are served", mode=self.mode, why=self.why)

    async def run(self) -> None:
        """Supervise hostd-fs for ever."""
        await self._supervisor.run()

    async def close(self) -> None:
        """Unmount everything and end hostd-fs; containers must be gone. May be repeated."""
        if self._layers is not None:
            self._layers.close()
        async with contextlib.AsyncExitStack() as last_to_first:
            last_to_first.push_async_callback(asyncio.to_thread, self._janitor.shutdown)
            last_to_first.push_async_callback(asyncio.to_thread, self._sweep)
            # With hostd-fs gone nothing can hang in a mount any more, so the threads end.
            last_to_first.push_async_callback(asyncio.to_thread, self._threads.shutdown)
            last_to_first.push_async_callback(self._supervisor.close)
            last_to_first.push_async_callback(asyncio.to_thread, self._sweep)

    def _prepare(self) -> Findings:
        self._sweep()
        for name, mode in (("images", 0o700), ("rootfs", 0o711)):
            (self._run_dir / name).mkdir(mode, parents=True, exist_ok=True)
        for scratch in self._scratch_candidates:
            trash = scratch.with_name(TRASH)
            trash.mkdir(0o700, parents=True, exist_ok=True)
            self._discard_all(scratch, trash)
        return probe(self._run_dir / "probe", self._scratch_candidates, wanted=self.mode)

    def _discard_all(self, scratch: Path, trash: Path) -> None:
        """Begin with an empty scratch directory; what lay there is deleted in the background."""
        with contextlib.suppress(FileNotFoundError):
            scratch.rename(trash / new_id("tr"))
        scratch.mkdir(0o700)
        for path in trash.iterdir():
            self._janitor.submit(shutil.rmtree, path, ignore_errors=True)

    def _sweep(self) -> None:
        """Take away all mounts of roots and images, and their mount points."""
        for name in ("rootfs", "images", "probe"):
            mounting.sweep(self._run_dir / name)
            # Only empty directories go: were a mount left, nothing below it may be deleted.
            for path in list((self._run_dir / name).glob("*")):
                with contextlib.suppress(OSError):
                    path.rmdir()

    # --- roots -----------------------------------------------------------------------------------

    async def prepare_image(self, image: ImageId) -> None:
        """Find an image's content whole, or fetch what is not, and mount it before it is needed.

        Raises:
            NotFoundError, BlobCorruptError, BlobMissingError, ContainerStartError: as
                ``mount_rootfs``.
        """
        try:
            await self._ready_layers.ensure(image, self._way(1, plain_upper=False).mode)
        except OSError as error:
            text = f"image {image} cannot be mounted: {error.strerror}"
            raise ContainerStartError(text) from error

    async def mount_rootfs(
        self, name: str, layers: Sequence[ImageId], *, plain_upper: bool = False
    ) -> RootFS:
        """Make a root from images, top first, with a fresh writable layer of its own.

        Args:
            name: unique; a part of paths.
            layers: the images.
            plain_upper: every file in the writable layer must have all of its content, because
                somebody will read that layer by itself. For a build step.

        Raises:
            NotFoundError: there is no such image. BlobCorruptError, BlobMissingError: an image's
            content is damaged or absent, and no source
                has it.
            StorageFullError: no space for the writable layer, or for a fetched blob.
            ContainerStartError: the mount failed or took too long.
            AlreadyExistsError, InvalidError: the name is taken, or is none.
        """
        root = self._claim(name, layers)
        way = self._way(len(layers), plain_upper=plain_upper)
        try:
            started = time.perf_counter_ns()
            with self._ready_layers.pinned(layers, way.mode) as pinned:
                mount_ns = sum([await self._ready_layers.ensure(i, way.mode) for i in layers])
                ensured = time.perf_counter_ns()
                await self._mount(root, pinned, way)
        except BaseException:
            del self._roots[name]
            raise
        phases = {
            "image_index": (ensured - started - mount_ns) // 1000,
            "mount": mount_ns // 1000,
            "overlay": (time.perf_counter_ns() - ensured) // 1000,
        }
        root = self._roots[name] = replace(root, phases_us=phases)
        return root

    async def unmount_rootfs(self, rootfs: RootFS, *, keep_upper: bool = False) -> None:
        """Take a root away; its writable layer is deleted in the background, unless it is kept.

        May be repeated; a layer that was kept goes with a second call.
        """
        await self._in_thread(lambda: self._remove(rootfs, keep_upper=keep_upper))
        self._roots.pop(rootfs.name, None)

    async def forget_image(self, image: ImageId) -> None:
        """Let go of an image that is about to be deleted; roots made from it go on."""
        await self._ready_layers.forget(image)

    def statistics(self) -> FileSystemStatistics:
        """Counters since the start."""
        return FileSystemStatistics(
            mode=self.mode,
            why=self.why,
            images_mounted=self._layers.ready_count() if self._layers else 0,
            rootfs=len(self._roots),
            fetch=self._fetcher.statistics(),
            server=self._supervisor.statistics(),
        )

    def _claim(self, name: str, layers: Sequence[ImageId]) -> RootFS:
        if _NAME.fullmatch(name) is None:
            raise InvalidError(f"{name!r} is no name for a root file system")
        if not layers:
            raise InvalidError("a root file system needs at least one image")
        if name in self._roots:
            raise AlreadyExistsError(f"root file system {name} exists already")
        own = self._found.scratch / name
        path = self._run_dir / "rootfs" / name
        root = self._roots[name] = RootFS(name, path, own / "upper", own / "work", {})
        return root

    @property
    def _found(self) -> Findings:
        if self._findings is None:
            raise ContainerStartError("the file system service is not started")
        return self._findings

    @property
    def _ready_layers(self) -> ImageLayers:
        if self._layers is None:
            raise ContainerStartError("the file system service is not started")
        return self._layers

    # --- within ----------------------------------------------------------------------------------

    def _way(self, depth: int, *, plain_upper: bool) -> _Way:
        """How to mount a root of so many images."""
        found = self._found
        if found.mode == "fuse" or (plain_upper and (found.metacopy or depth > 1)):
            return _Way("fuse", data=(), metacopy=False)
        served = self._supervisor.mountpoint
        data = (self._cas.objects, served / "fault", self._cas.late, served / "data")
        return _Way("erofs", data=data, metacopy=found.metacopy or depth > 1)

    async def _mount(self, root: RootFS, layers: Sequence[Layer], way: _Way) -> None:
        """Make the directories and the overlay; once more when hostd-fs died under it."""
        await self._supervisor.wait_ready(SERVER_TIMEOUT_S)
        try:
            await self._attempt(root, layers, way)
        except _ServerGoneError:
            await self._supervisor.wait_replaced(SERVER_TIMEOUT_S)
            await self._attempt(root, layers, way)

    async def _attempt(self, root: RootFS, layers: Sequence[Layer], way: _Way) -> None:
        try:
            await self._mount_in_thread(root, layers, way)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFullError("no space for a container's files") from error
            kind = _ServerGoneError if error.errno in _GONE else ContainerStartError
            text = f"root file system {root.name} cannot be mounted: {error.strerror}"
            raise kind(text) from error

    async def _mount_in_thread(self, root: RootFS, layers: Sequence[Layer], way: _Way) -> None:
        lower = [layer.path for layer in layers]
        work = self._threads.submit(self._make_root, root, lower, way, layers[-1].root)
        try:
            async with asyncio.timeout(MOUNT_TIMEOUT_S):
                await asyncio.shield(asyncio.wrap_future(work))
        except builtins.TimeoutError:
            self._undo_later(work, root)
            text = f"root file system {root.name} was not mounted within {MOUNT_TIMEOUT_S} s"
            raise ContainerStartError(text, hint="hostd-fs hangs; it is restarted") from None
        except asyncio.CancelledError:
            self._undo_later(work, root)
            raise

    def _undo_later(self, work: Future[None], root: RootFS) -> None:
        """Take a root away as soon as the thread that makes it is done with it."""
        work.add_done_callback(lambda _: self._threads.submit(self._remove, root, keep_upper=False))

    def _make_root(self, root: RootFS, lower: Sequence[Path], way: _Way, top: Attributes) -> None:
        """In a thread: directories and overlay; nothing is left when it fails."""
        layers = mounting.OverlayLayers(
            lower=lower, data=way.data, upper=root.upper, work=root.work
        )
        try:
            root.upper.parent.mkdir(0o700)
            root.upper.mkdir()
            root.work.mkdir()
            root.path.mkdir()
            # The root directory of an overlay has the attributes of its upper directory.
            os.chown(root.upper, top.uid, top.gid)
            os.chmod(root.upper, stat.S_IMODE(top.mode))
            os.utime(root.upper, ns=(top.mtime_ns, top.mtime_ns))
            mounting.mount_overlay(root.path, layers, metacopy=way.metacopy)
        except BaseException:
            self._remove(root, keep_upper=False)
            raise

    def _remove(self, root: RootFS, *, keep_upper: bool) -> None:
        """In a thread: the mount goes now, the writable layer when the janitor comes to it."""
        mounting.unmount_or_detach(root.path)
        with contextlib.suppress(FileNotFoundError):
            root.path.rmdir()
        if not keep_upper:
            self._discard(root.upper.parent)

    def _discard(self, path: Path) -> None:
        """Move a directory aside and delete it in the background."""
        trash = path.parent.with_name(TRASH) / new_id("tr")
        with contextlib.suppress(FileNotFoundError):
            path.rename(trash)
            self._janitor.submit(shutil.rmtree, trash, ignore_errors=True)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
