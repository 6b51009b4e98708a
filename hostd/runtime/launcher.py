"""Starts functions' containers: the door to ``function_container``.

One task per container, all of them in the task group of ``Launcher.run``; when that ends, no
container is left. How many start and are cleaned up at a time is bounded here.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hostd.clock import Clock
from hostd.config import Config
from hostd.errors import AlreadyExistsError
from hostd.ids import ContainerId
from hostd.log import get_logger
from hostd.model import FunctionDefinition
from hostd.runtime.function_container import ContainerEvents, FunctionContainer
from hostd.runtime.staging import stage
from hostd.runtime.workshop import StartsUnderWay, Workshop

if TYPE_CHECKING:
    from hostd.fs import CAS, FileSystem, ImageStore
    from hostd.runtime.runtime import Runtime

__all__ = ["ContainerEvents", "FunctionContainer", "Launcher", "LauncherStatistics"]

log = get_logger(__name__)

STARTS_MAX = 8
"""Containers that are mounted, created and started at the same time: more only wait for each other
(2-4 per core are best, measured)."""
CLEAN_UPS_MAX = 4
"""Ends are less urgent than starts."""
CLOSE_TIMEOUT_S = 20.0
"""For all containers to be gone when the launcher ends; what is left the runtime sweeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherStatistics:
    """Counts since the start."""

    containers: int
    """Not cleaned up yet."""
    launched: int


class Launcher:
    """Makes function containers. All methods are called on the event loop."""

    def __init__(
        self,
        *,
        fs: FileSystem,
        images: ImageStore,
        cas: CAS,
        runtime: Runtime,
        run_dir: Path,
        clock: Clock,
        config: Config,
    ) -> None:
        self._shop = Workshop(
            fs=fs,
            images=images,
            cas=cas,
            runtime=runtime,
            clock=clock,
            config=config,
            run_dir=run_dir,
            staged=asyncio.Event(),
            starts=asyncio.Semaphore(STARTS_MAX),
            under_way=StartsUnderWay(),
            clean_ups=asyncio.Semaphore(CLEAN_UPS_MAX),
            pythons={},
        )
        self._containers: dict[ContainerId, FunctionContainer] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._launched = 0
        self._none_left = asyncio.Event()
        self._none_left.set()

    async def run(self) -> None:
        """Keep containers running until cancelled; then end them all."""
        async with asyncio.TaskGroup() as self._tasks:
            for container in self._containers.values():
                self._tasks.create_task(self._live(container))
            try:
                await asyncio.to_thread(self._prepare)
                self._shop.staged.set()
                await asyncio.Event().wait()
            finally:
                await self._end_all()

    def launch(
        self, container_id: ContainerId, function: FunctionDefinition, events: ContainerEvents
    ) -> FunctionContainer:
        """Begin to start a container; what fails is told by ``container_exited``.

        Raises:
            AlreadyExistsError: the id is taken.
        """
        if container_id in self._containers:
            raise AlreadyExistsError(f"container {container_id} exists")
        container = FunctionContainer(container_id, function, events, self._shop)
        self._containers[container_id] = container
        self._launched += 1
        self._none_left.clear()
        if self._tasks is not None:
            self._tasks.create_task(self._live(container))
        return container

    def statistics(self) -> LauncherStatistics:
        """Counts for status pages."""
        return LauncherStatistics(containers=len(self._containers), launched=self._launched)

    def _prepare(self) -> None:
        directory = self._shop.run_dir / "ct"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True)
        stage(self._shop.lib)

    async def _live(self, container: FunctionContainer) -> None:
        try:
            await container.live()
        finally:
            self._containers.pop(container.id, None)
            if not self._containers:
                self._none_left.set()

    async def _end_all(self) -> None:
        for container in list(self._containers.values()):
            container.kill()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._none_left.wait()
        except TimeoutError:
            log.exception("containers are left", containers=sorted(self._containers))
