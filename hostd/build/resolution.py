"""The image that a recipe starts from: Debian made here, the empty image, or one that was built.

Site settings are read here too, since the base image is made with them; they are read again when
they are older than SITE_AGE_S, so that a changed proxy needs no restart.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hostd.build import base
from hostd.build.layers import Layers
from hostd.build.lines import problem
from hostd.build.recipe import BaseRequest
from hostd.build.site import Site, gather
from hostd.clock import Clock
from hostd.config import BuildConfig
from hostd.errors import Error, InvalidError, NotFoundError
from hostd.fs import CAS
from hostd.ids import ImageId, new_id
from hostd.model import ImageConfig
from hostd.store import Store

SITE_AGE_S = 60.0
SCRATCH = "scratch"
EMPTY = ImageConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBase:
    """What the first step stands on."""

    config: ImageConfig
    history: tuple[str, ...]
    image: ImageId | None = None
    """None: empty, or a Debian that may have to be made."""
    is_debian: bool = False


class Bases:
    """Finds and makes base images."""

    def __init__(
        self,
        *,
        cas: CAS,
        store: Store,
        layers: Layers,
        config: BuildConfig,
        clock: Clock,
        scratch: Path,
    ) -> None:
        self._cas = cas
        self._store = store
        self._layers = layers
        self._config = config
        self._clock = clock
        self._scratch = scratch
        self._site: Site | None = None
        self._site_read_at_us = 0
        self._reading = asyncio.Lock()

    async def site(self) -> Site:
        """The settings of this host, at most a minute old."""
        async with self._reading:
            now_us = self._clock.monotonic_us()
            if self._site is None or now_us - self._site_read_at_us > SITE_AGE_S * 1e6:
                self._site = await asyncio.to_thread(self._read_site)
                self._site_read_at_us = now_us
            return self._site

    def _read_site(self) -> Site:
        return gather(self._config, suite=base.SUITE, environ=os.environ, home=Path.home())

    async def find(self, request: BaseRequest) -> FoundBase:
        """What a recipe starts from, as far as it is known without making anything.

        Raises:
            DockerfileError, InvalidError, NotFoundError: no such image, or no such Python.
        """
        try:
            return await self._find(request)
        except (InvalidError, NotFoundError) as error:
            raise _placed(error, request) from error

    async def _find(self, request: BaseRequest) -> FoundBase:
        history = (f"FROM {request.image}",)
        if request.image in base.NAMES:
            base.check_python(request.python_version)
            return FoundBase(config=base.CONFIG, history=history, is_debian=True)
        if request.python_version is not None:
            raise InvalidError("python_version is for debian_slim only")
        if request.image == SCRATCH:
            return FoundBase(config=EMPTY, history=history)
        row = await self._store.image(request.image)
        if row is None:
            known = ", ".join([*sorted(base.NAMES), SCRATCH])
            raise NotFoundError(
                f"image {request.image} is not here, and this version pulls from no registry",
                hint=f"known: {known}, and images built here by name or id",
            )
        return FoundBase(config=row.config, history=row.history or history, image=row.id)

    async def find_debian(self) -> ImageId | None:
        """The base image of Debian, if it was made from the packages of today's settings."""
        return await self._layers.find(base.recipe_key(await self.site()))

    async def make_debian(self, line: Callable[[str], None]) -> ImageId:
        """Make the base image, or wait for another build that makes it.

        Raises:
            ImageBuildError: it could not be made.
        """
        site = await self.site()
        key = base.recipe_key(site)
        async with self._layers.making(key):
            found = await self._layers.find(key)
            if found is not None:
                return found
            scratch = self._scratch / new_id("base")
            tree = await base.make_tree(site, scratch=scratch, cas=self._cas, line=line)
            return await self._layers.save(tree, base.CONFIG, [key])


def _placed(error: Error, request: BaseRequest) -> Error:
    """The error with the line of the FROM that it is about."""
    if request.position is None:
        return error
    line, column = request.position
    return problem(error.text, line=line, column=column, hint=error.hint)
