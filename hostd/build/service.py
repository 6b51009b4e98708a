"""Builds: which run, who reads their logs, what of them is done already.

A request goes through: joining an identical build that runs; reading the recipe; finding the last
step that was made before; making the rest. Its log is a stream of events that any number of readers
follow from the start; a build that nobody reads for ABANDONED_S is cancelled.

Concurrency: everything runs on the daemon's loop. Each build is a task of the builder's group.
``BuildConfig.parallel`` builds run steps at the same time; looking into the cache needs no place
among them. Two builds that come to the same step run it once (``Layers.making``).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import OrderedDict
from collections.abc import AsyncGenerator
from pathlib import Path

from hostd.build.eventlog import EventLog
from hostd.build.executor import Executor
from hostd.build.layers import Layers
from hostd.build.progress import BuildRun
from hostd.build.recipe import request_key
from hostd.build.resolution import Bases
from hostd.clock import Clock
from hostd.config import BuildConfig
from hostd.errors import (
    CancelledError,
    ConflictError,
    DaemonStoppedError,
    Error,
    InternalError,
    NotFoundError,
    to_problem,
)
from hostd.fs import CAS, FileSystem, ImageStore
from hostd.ids import BuildId, ImageId, new_id
from hostd.log import get_logger
from hostd.model import BuildEvent, BuildRequest
from hostd.runtime import Runtime
from hostd.store import NameImage, Store

log = get_logger(__name__)

ABANDONED_S = 10.0
"""Without a reader for this long a build is cancelled: long enough for a reconnect."""
FINISHED_MAX = 50
"""Builds whose logs are kept after their end."""


class Build:
    """One running or finished build."""

    def __init__(self, request: BuildRequest, key: str, clock: Clock) -> None:
        self.id = BuildId(new_id("bd"))
        self.request = request
        self.key = key
        self.image_id: ImageId | None = None
        self.log = EventLog(clock)
        self.names: set[str] = set()
        """Names that the image gets in the end."""
        self._readers = 0
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.is_abandoned = False

    async def events(self, after: int = 0) -> AsyncGenerator[BuildEvent, None]:
        """Events from number ``after`` on; ends after ``done`` or ``failed``.

        Close the iterator (``contextlib.aclosing``) when you stop early: the build counts it as a
        reader until then.
        """
        self._readers += 1
        self._set_timer()
        try:
            async for event in self.log.read(after):
                yield event
        finally:
            self._readers -= 1
            self._set_timer()

    def begin(self, task: asyncio.Task[None]) -> None:
        """Tie the build to its task; from now on it wants a reader."""
        self._task = task
        self._set_timer()

    def end(self) -> None:
        """The build is over; nobody needs to read it."""
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._readers == 0 and not self.log.is_closed and self._task is not None:
            self._timer = asyncio.get_running_loop().call_later(ABANDONED_S, self._abandon)

    def _abandon(self) -> None:
        log.info("build cancelled, nobody reads it", build=self.id)
        self.is_abandoned = True
        assert self._task is not None, "the timer starts with the task"
        self._task.cancel()


class Builder:
    """Builds images."""

    def __init__(  # noqa: PLR0913 - it wires all these parts
        self,
        *,
        cas: CAS,
        images: ImageStore,
        fs: FileSystem,
        runtime: Runtime,
        store: Store,
        config: BuildConfig,
        clock: Clock,
        data_dir: Path,
        run_dir: Path,
    ) -> None:
        self._store = store
        self._clock = clock
        self._scratch = data_dir / "build"
        self._run_dir = run_dir / "build"
        self._layers = Layers(cas=cas, images=images, store=store, clock=clock)
        self._bases = Bases(
            cas=cas,
            store=store,
            layers=self._layers,
            config=config,
            clock=clock,
            scratch=self._scratch,
        )
        self.executor = Executor(
            cas=cas, images=images, fs=fs, runtime=runtime, run_dir=run_dir, scratch=self._scratch
        )
        self._places = asyncio.Semaphore(config.parallel)
        self._group: asyncio.TaskGroup | None = None
        self._running: dict[str, Build] = {}
        self._finished: OrderedDict[BuildId, Build] = OrderedDict()

    @property
    def is_running(self) -> bool:
        """Whether builds can begin."""
        return self._group is not None

    async def run(self) -> None:
        """Carry builds for ever; when this is cancelled, they are too."""
        await asyncio.to_thread(self._sweep)
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.Event().wait()
            finally:
                self._group = None

    def _sweep(self) -> None:
        for path in (self._scratch, self._run_dir):
            shutil.rmtree(path, ignore_errors=True)

    def build(self, request: BuildRequest) -> Build:
        """Begin a build, or join the identical one that runs; failures are events of its log.

        Raises:
            ConflictError: the builder does not run (any more).
        """
        key = request_key(request.recipe, force=request.force)
        build = self._running.get(key)
        if build is None:
            if self._group is None:
                raise ConflictError("the builder does not run")
            build = self._running[key] = Build(request, key, self._clock)
            build.begin(self._group.create_task(self._run(build), name=f"build {build.id}"))
        if request.name is not None:
            build.names.add(request.name)
        return build

    def find(self, build_id: BuildId) -> Build:
        """A build that runs or ended not long ago.

        Raises:
            NotFoundError: there is none of this id.
        """
        running = (build for build in self._running.values() if build.id == build_id)
        found = next(running, None) or self._finished.get(build_id)
        if found is None:
            raise NotFoundError(f"build {build_id} is not known (any more)")
        return found

    async def _run(self, build: Build) -> None:
        problem: Error | None = None
        try:
            build.image_id = await self._make(build)
        except asyncio.CancelledError:
            problem = _why_cancelled(build)
            raise
        except Error as error:
            problem = error
        except Exception as error:  # a build's root: one bug must not end the others
            log.exception("build failed by a bug", build=build.id)
            problem = InternalError(f"build failed: {type(error).__name__}: {error}")
        finally:
            self._close(build, problem)

    def _close(self, build: Build, problem: Error | None) -> None:
        # No await in here: a request that comes now begins a new build.
        del self._running[build.key]
        if problem is None:
            build.log.add("done", image_id=build.image_id)
        else:
            build.log.add("failed", text=problem.text, problem=to_problem(problem))
        build.end()
        self._finished[build.id] = build
        while len(self._finished) > FINISHED_MAX:
            self._finished.popitem(last=False)

    async def _make(self, build: Build) -> ImageId:
        run = BuildRun(
            build.request,
            events=build.log,
            layers=self._layers,
            bases=self._bases,
            executor=self.executor,
            places=self._places,
        )
        image = await run.make()
        # Names that came with requests which joined meanwhile are given as well.
        while build.names:
            name = build.names.pop()
            at_us = self._clock.wall_us()
            with contextlib.suppress(NotFoundError):  # deleted since: the name has nothing to name
                await self._store.propose(NameImage(name=name, image_id=image, at_us=at_us))
        return image


def _why_cancelled(build: Build) -> Error:
    if build.is_abandoned:
        return CancelledError(f"build cancelled: nobody read its log for {ABANDONED_S:.0f} s")
    return DaemonStoppedError("the daemon stopped while it built", hint="build again")
