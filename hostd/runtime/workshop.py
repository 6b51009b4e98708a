"""What all function containers of a daemon share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hostd.clock import Clock
from hostd.config import Config
from hostd.ids import ImageId
from hostd.runtime.interpreter import find_python

if TYPE_CHECKING:
    from hostd.fs import CAS, FileSystem, ImageStore
    from hostd.runtime.runtime import Runtime

PYTHONS_MAX = 1_000
"""Images whose interpreter is remembered; finding it takes a millisecond."""


CALM_TIMEOUT_S = 3.0
"""A clean-up that waited this long for a moment without starts goes on with them."""


class StartsUnderWay:
    """Which containers are being started: clean-ups let them go first.

    A burst of short containers otherwise pays for the ends of the first while the last still wait
    for a processor. The ids are a set, so that an end may be told twice.
    """

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._none = asyncio.Event()
        self._none.set()

    def begin(self, container_id: str) -> None:
        """A container was asked for."""
        self._ids.add(container_id)
        self._none.clear()

    def end(self, container_id: str) -> None:
        """It is ready, or will never be."""
        self._ids.discard(container_id)
        if not self._ids:
            self._none.set()

    async def wait_none(self) -> None:
        """Wait until none is under way, or for CALM_TIMEOUT_S."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALM_TIMEOUT_S):
                await self._none.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Parts of the daemon, and the bounds on starts and clean-ups."""

    fs: FileSystem
    images: ImageStore
    cas: CAS
    runtime: Runtime
    clock: Clock
    config: Config
    run_dir: Path
    staged: asyncio.Event
    """Set when ``lib`` is there."""
    starts: asyncio.Semaphore
    under_way: StartsUnderWay
    clean_ups: asyncio.Semaphore
    pythons: dict[ImageId, str]
    """Interpreter of each image, as far as it is known."""

    @property
    def lib(self) -> Path:
        """What containers see as ``/run/hostd/lib``."""
        return self.run_dir / "lib"

    def python(self, image: ImageId, root: Path, env: Mapping[str, str]) -> str:
        """The interpreter of an image, of which this is a mounted root; blocking."""
        known = self.pythons.get(image)
        if known is None:
            if len(self.pythons) >= PYTHONS_MAX:
                self.pythons.clear()
            known = self.pythons[image] = find_python(root, env)
        return known
