"""What all function containers of a daemon share."""

from __future__ import annotations

import asyncio
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
