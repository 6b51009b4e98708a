"""The layer cache and the records of images: what was built before, and what is remembered of it.

A layer is an image: the files after a step. Its key (``recipe.py``) leads to it through the store;
images themselves are in the image store. A key whose image is gone or damaged counts as absent, and
is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence

from hostd.build.copying import CopyWork
from hostd.build.steps import PlannedStep
from hostd.clock import Clock
from hostd.errors import BlobError, NotFoundError
from hostd.fs import CAS, ImageManifest, ImageStore, Tree
from hostd.ids import Digest, ImageId
from hostd.log import get_logger
from hostd.model import ImageConfig
from hostd.store import DropLayers, RecordImage, RecordLayer, Store

log = get_logger(__name__)

_PYTHON = re.compile(rb"python(3\.\d+)")


class Layers:
    """Looks up, saves and forgets layers."""

    def __init__(self, *, cas: CAS, images: ImageStore, store: Store, clock: Clock) -> None:
        self._cas = cas
        self._images = images
        self._store = store
        self._clock = clock
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, int] = defaultdict(int)

    @contextlib.asynccontextmanager
    async def making(self, key: str) -> AsyncIterator[None]:
        """Hold a layer while it is made: another build that wants the same one waits for it."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._waiting[key] += 1
        try:
            async with lock:
                yield
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key], self._locks[key]

    async def find(self, key: str) -> ImageId | None:
        """The image with the files after this step, if it was made and is there."""
        image = await self._store.layer(key)
        if image is None:
            return None
        if await asyncio.to_thread(self._is_there, image):
            return image
        log.warning("cached layer is gone, its step runs again", image=image)
        await self.forget(image)
        return None

    def _is_there(self, image: ImageId) -> bool:
        try:
            return self._cas.has(Digest(self._images.manifest(image).index))
        except (NotFoundError, BlobError):
            return False

    async def forget(self, image: ImageId) -> None:
        """No step leads to this image any more: its content is damaged or gone."""
        await self._store.propose(DropLayers(image_id=image, at_us=self._clock.wall_us()))

    async def save(self, tree: Tree, config: ImageConfig, keys: Iterable[str]) -> ImageId:
        """Store a tree as an image and note the steps that lead to it.

        Raises:
            InvalidError: the tree cannot be an image.
            StorageFullError: no space is left.
        """
        image = await asyncio.to_thread(self._save, tree, config)
        await self.note(image, keys)
        return image

    async def note(self, image: ImageId, keys: Iterable[str]) -> None:
        """Steps with these keys lead to this image."""
        for key in keys:
            at_us = self._clock.wall_us()
            await self._store.propose(RecordLayer(key=key, image_id=image, at_us=at_us))

    def _save(self, tree: Tree, config: ImageConfig) -> ImageId:
        return self._images.save(tree, config, python=python_of(tree, config))

    async def config(self, image: ImageId) -> ImageConfig:
        """The configuration of an image."""
        return (await asyncio.to_thread(self._images.manifest, image)).config

    async def tree(self, image: ImageId) -> Tree:
        """The tree of an image."""
        return await asyncio.to_thread(self._images.tree, image)

    async def record(self, image: ImageId, history: Sequence[str]) -> None:
        """Make an image known to the cluster."""
        manifest = await asyncio.to_thread(self._images.manifest, image)
        await self._store.propose(_record(image, manifest, history, self._clock.wall_us()))

    async def uploaded(self, steps: Sequence[PlannedStep]) -> dict[str, Digest]:
        """For every file that these steps copy, the blob that a client sent.

        Raises:
            NotFoundError: a file was not sent; it names its path.
        """
        wanted: dict[str, str] = {}
        for step in steps:
            if isinstance(step.work, CopyWork):
                for source in step.work.sources:
                    for entry in source.entries:
                        if entry.digest is not None:
                            wanted[entry.digest] = posixpath.join(source.name, entry.path)
        found = await self._store.uploads(d for d in wanted if d.startswith("sha256:"))
        found |= {d: Digest(d) for d in wanted if d.startswith("blake3:")}
        for digest, path in wanted.items():
            if digest not in found or not self._cas.has(found[digest]):
                raise NotFoundError(
                    f"file {path.rstrip('/')} ({digest[:19]}…) was not uploaded", path=path
                )
        return found


def _record(
    image: ImageId, manifest: ImageManifest, history: Sequence[str], at_us: int
) -> RecordImage:
    return RecordImage(
        id=image,
        index=Digest(manifest.index),
        index_bytes=manifest.index_bytes,
        entries=manifest.entries,
        size_bytes=manifest.size_bytes,
        blobs=manifest.blobs,
        config=manifest.config,
        history=tuple(history),
        python=manifest.python,
        at_us=at_us,
    )


def python_of(tree: Tree, config: ImageConfig) -> str | None:
    """``major.minor`` of the ``python3`` that the image's PATH finds first."""
    for place in config.env.get("PATH", "").split(":"):
        if not place.startswith("/"):
            continue
        path = tree.resolve(posixpath.join(place, "python3").encode())
        found = _PYTHON.fullmatch(path.rpartition(b"/")[2])
        if found is not None and tree.lookup(path) is not None:
            return found[1].decode()
    return None
