"""Images as lower directories of overlays: checked once, mounted once, shared by all roots.

In the EROFS way an image's index is mounted at <run_dir>/images/<id>; in the FUSE way hostd-fs is
told to serve it. Roots of one host may use both. Before that, every blob of the image is looked at:
a blob whose stamp is as it was when it was last hashed is whole (4 µs), any other is hashed, and
what is damaged or missing is fetched, all of it at the same time.

Concurrency: on the daemon's loop. Each image has a lock, held while it is checked, mounted or let
go; ``is_ready`` and ``is_checked`` are read without the lock. Who mounts an overlay pins its images
first: an image without pins may be unmounted, since overlays keep what they were mounted from.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hostd.errors import BlobCorruptError, BlobMissingError
from hostd.fs import mounting
from hostd.fs.fetch import Fetcher
from hostd.fs.image import ImageStore
from hostd.fs.index import Attributes
from hostd.fs.probe import FSMode
from hostd.fs.supervisor import Supervisor
from hostd.fs.watch import BlobWatch
from hostd.ids import Digest, ImageId, hex_of
from hostd.log import get_logger

log = get_logger(__name__)

READY_MAX = 256
"""Images kept mounted. Each is a superblock in the kernel, or a mapping in hostd-fs."""

SERVER_TIMEOUT_S = 10.0
"""How long an image waits for a hostd-fs that restarts (0.3 s)."""

_NO_ATTRIBUTES = Attributes(stat.S_IFDIR | 0o755, 0, 0, 0, 0, 2, 0)


_Key = tuple[ImageId, FSMode]


@dataclass(slots=True)
class Layer:
    """What this daemon knows of an image: nothing, or that it is whole and served."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_checked: bool = False
    is_ready: bool = False
    pins: int = 0
    """Overlays that are being mounted from it just now."""
    path: Path = Path()
    """What overlays name as a lower directory."""
    root: Attributes = _NO_ATTRIBUTES
    """Of its root directory."""


class ImageLayers:
    """The images of this host that are ready to be mounted from."""

    def __init__(
        self,
        images: ImageStore,
        fetcher: Fetcher,
        supervisor: Supervisor,
        *,
        directory: Path,
        in_thread: Callable[[Callable[[], None]], Awaitable[None]],
    ) -> None:
        self._images = images
        self._cas = images.cas
        self._fetcher = fetcher
        self._supervisor = supervisor
        self._directory = directory
        self._in_thread = in_thread
        self._layers: OrderedDict[_Key, Layer] = OrderedDict()
        self._mount_lock = threading.Lock()
        self._watch = BlobWatch(images.cas.objects)

    def ready_count(self) -> int:
        """How many images are mounted or served."""
        return sum(layer.is_ready for layer in self._layers.values())

    @contextlib.contextmanager
    def pinned(self, images: Sequence[ImageId], mode: FSMode) -> Iterator[Sequence[Layer]]:
        """Keep images mounted until an overlay holds them itself."""
        layers = [self._layers.setdefault((image, mode), Layer()) for image in images]
        for layer in layers:
            layer.pins += 1
        try:
            yield layers
        finally:
            for layer in layers:
                layer.pins -= 1

    async def ensure(self, image: ImageId, mode: FSMode) -> int:
        """Make an image ready to be a layer; returns the nanoseconds that its mount took.

        Raises:
            NotFoundError: there is no such image.
            BlobCorruptError, BlobMissingError: its content is damaged or absent, and no source has
                it.
            ContainerStartError, OSError: it cannot be mounted.
        """
        key = (image, mode)
        layer = self._layers.setdefault(key, Layer())
        self._layers.move_to_end(key)
        self._look_for_touched_blobs()
        if layer.is_ready and layer.is_checked:
            return 0
        async with layer.lock:
            mount_ns = await self._prepare(key, layer)
        await self._evict()
        return mount_ns

    async def _prepare(self, key: _Key, layer: Layer) -> int:
        """Under the lock: check and mount, unless another caller just did."""
        while not layer.is_checked:
            # Set before the check: a change that is noticed meanwhile takes it back.
            layer.is_checked = True
            try:
                await self._check(key[0])
            except BaseException:
                layer.is_checked = False
                raise
        if layer.is_ready:
            return 0
        started = time.perf_counter_ns()
        await self._offer(key, layer)
        layer.is_ready = True
        return time.perf_counter_ns() - started

    def close(self) -> None:
        """Stop watching the blobs. May be repeated."""
        self._watch.close()

    def _look_for_touched_blobs(self) -> None:
        """If somebody touched blobs, check every image once more before its next root."""
        if self._watch.touched():
            log.warning("blobs were touched, images are checked again")
            for layer in self._layers.values():
                layer.is_checked = False

    async def forget(self, image: ImageId) -> None:
        """Let go of an image that is about to be deleted; it is checked again if it comes back."""
        for key, layer in list(self._layers.items()):
            if key[0] == image:
                async with layer.lock:
                    layer.is_checked = False
                    await self._withdraw(key, layer)

    async def _evict(self) -> None:
        """Let go of the images that were not used for longest."""
        ready = [key for key, layer in self._layers.items() if layer.is_ready]
        for key in ready[: max(0, len(ready) - READY_MAX)]:
            layer = self._layers[key]
            async with layer.lock:
                if layer.pins == 0:
                    await self._withdraw(key, layer)

    async def _withdraw(self, key: _Key, layer: Layer) -> None:
        """Under the lock: no overlay can be made from the image until it is ready again."""
        layer.is_ready = False
        image, mode = key
        if mode == "fuse":
            self._supervisor.drop_image(image)
        else:
            await self._in_thread(functools.partial(self._unmount, image))

    # --- content ---------------------------------------------------------------------------------

    async def _check(self, image: ImageId) -> None:
        """Find the index and every blob of the image whole, or get them again."""
        index = await asyncio.to_thread(lambda: Digest(self._images.manifest(image).index))
        await self._heal(image, await asyncio.to_thread(self._cas.invalid, [index]))
        digests = await asyncio.to_thread(lambda: list(self._images.blobs(image)))
        await self._heal(image, await asyncio.to_thread(self._cas.invalid, digests))

    async def _heal(self, image: ImageId, invalid: Sequence[Digest]) -> None:
        if not invalid:
            return
        log.warning("image lacks blobs", image=image, blobs=len(invalid), first=invalid[0])
        try:
            async with asyncio.TaskGroup() as fetches:
                for d in invalid:
                    fetches.create_task(self._fetcher.fetch(d))
        except BaseExceptionGroup as group:
            error = group.exceptions[0]
            if not isinstance(error, BlobMissingError):
                raise error from None
            raise self._explained(image, invalid) from None

    def _explained(
        self, image: ImageId, invalid: Sequence[Digest]
    ) -> BlobCorruptError | BlobMissingError:
        """That no source has these blobs, in terms of the image."""
        damaged = [d for d in invalid if (self._cas.root / "quarantine" / hex_of(d)).exists()]
        blobs = damaged or invalid
        kind = BlobCorruptError if damaged else BlobMissingError
        what = "damaged" if damaged else "missing"
        return kind(
            f"image {image} has {len(blobs)} {what} blobs ({blobs[0]}), and no source has them",
            hint="build the image again",
            image=image,
            blob=blobs[0],
        )

    # --- mounts ----------------------------------------------------------------------------------

    async def _offer(self, key: _Key, layer: Layer) -> None:
        """Mount the image's index, or have hostd-fs serve it."""
        image, mode = key
        reader = await asyncio.to_thread(self._images.open_index, image)
        layer.root = reader.stat(reader.root_nid)
        index = self._images.index_path(image)
        if mode == "fuse":
            await self._supervisor.wait_ready(SERVER_TIMEOUT_S)
            await self._supervisor.serve_image(image, index)
            layer.path = self._supervisor.mountpoint / "img" / image
        else:
            layer.path = self._directory / image
            await self._in_thread(functools.partial(self._mount, index, layer.path))

    def _mount(self, index: Path, target: Path) -> None:
        """In a thread, maybe in two: when a caller was cancelled and came again."""
        with self._mount_lock:
            if mounting.mounts_below(target):
                return
            target.mkdir(0o700, exist_ok=True)
            mounting.mount_erofs(index, target)

    def _unmount(self, image: ImageId) -> None:
        with self._mount_lock:
            target = self._directory / image
            mounting.unmount_or_detach(target)
            # Without its directory an overlay that wants it fails; on an empty one it would not.
            with contextlib.suppress(FileNotFoundError):
                target.rmdir()
