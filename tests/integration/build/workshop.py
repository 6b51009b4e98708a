"""A builder with everything real around it, in the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostd.build import Build, Builder
from hostd.clock import SystemClock
from hostd.config import BuildConfig, RuntimeConfig
from hostd.errors import Error, from_problem
from hostd.fs import CAS, Fetcher, FileSystem, ImageStore, IndexReader
from hostd.ids import ImageId
from hostd.model import BuildEvent, BuildRequest, Dockerfile, Recipe, SourceFile, Step
from hostd.runtime import Runtime
from hostd.store import RecordLayer, RecordUploads, Store, Upload
from tests.base_image import copy_base_image

BUILD_TIMEOUT_S = 300.0


@dataclass
class Workshop:
    """The parts, for tests to look into."""

    data_dir: Path
    run_dir: Path
    cas: CAS
    images: ImageStore
    store: Store
    fs: FileSystem
    runtime: Runtime
    builder: Builder
    base: ImageId
    builder_task: asyncio.Task[None]

    def stop_builder(self) -> None:
        """What the daemon does with the builder when it stops."""
        self.builder_task.cancel()

    @property
    def containers(self) -> int:
        """RUN steps that were executed until now."""
        return self.builder.executor.containers

    async def events(
        self,
        *steps: Step,
        name: str | None = None,
        force: bool = False,
    ) -> list[BuildEvent]:
        """Build, and give the whole log."""
        request = BuildRequest(recipe=Recipe(steps=list(steps)), name=name, force=force)
        return await self.follow(self.builder.build(request))

    async def follow(self, build: Build) -> list[BuildEvent]:
        """The whole log of a build."""
        async with asyncio.timeout(BUILD_TIMEOUT_S):
            return [event async for event in build.events()]

    async def build(self, *steps: Step, force: bool = False, name: str | None = None) -> ImageId:
        """Build an image; a failure is raised."""
        last = (await self.events(*steps, force=force, name=name))[-1]
        if last.kind == "failed":
            assert last.problem is not None
            raise from_problem(dict(last.problem))
        assert last.image_id is not None
        return ImageId(last.image_id)

    async def failure(self, *steps: Step) -> Error:
        """The error that a build ends with."""
        last = (await self.events(*steps))[-1]
        assert last.kind == "failed", last
        assert last.problem is not None
        return from_problem(dict(last.problem))

    async def dockerfile(
        self, text: str, context: Sequence[SourceFile] = (), **build_args: str
    ) -> ImageId:
        """Build a Dockerfile."""
        return await self.build(Dockerfile(text=text, context=list(context), build_args=build_args))

    async def upload(self, path: str, data: bytes, *, mode: int = 0o644) -> SourceFile:
        """A file as a client would have sent it."""
        digest = self.cas.put_bytes(data)
        sha256 = f"sha256:{hashlib.sha256(data).hexdigest()}"
        upload = Upload(sha256, digest, len(data))
        await self.store.propose(RecordUploads(uploads=(upload,), at_us=0))
        return SourceFile(path=path, digest=sha256, size_bytes=len(data), mode=mode)

    def read(self, image: ImageId, path: str) -> bytes:
        """The content of a file of an image."""
        index, nid = self._nid(image, path)
        digest = index.digest(nid)
        data = index.inline_data(nid) if digest is None else self.cas.read(digest)
        assert data is not None
        return data

    def stat(self, image: ImageId, path: str) -> tuple[int, int, int]:
        """Mode with type bits, uid and gid."""
        index, nid = self._nid(image, path)
        found = index.stat(nid)
        return found.mode, found.uid, found.gid

    def has(self, image: ImageId, path: str) -> bool:
        """Whether a path is there."""
        return self.images.open_index(image).resolve(path.encode()) is not None

    def _nid(self, image: ImageId, path: str) -> tuple[IndexReader, int]:
        index = self.images.open_index(image)
        nid = index.resolve(path.encode())
        assert nid is not None, f"{path} is not in {image}"
        return index, nid


@contextlib.asynccontextmanager
async def open_workshop(data_dir: Path, config: BuildConfig) -> AsyncIterator[Workshop]:
    """A workshop whose store knows the machine's base image."""
    key, base = await asyncio.to_thread(copy_base_image, data_dir)
    run_dir = Path(tempfile.mkdtemp(prefix="hostd-b-", dir="/run"))
    clock = SystemClock()
    cas = CAS(data_dir / "cas")
    images = ImageStore(cas, data_dir / "images")
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, run_dir, ignore_errors=True)
        store = await Store.open(data_dir / "state.db", clock=clock)
        stack.push_async_callback(store.close)
        await store.propose(RecordLayer(key=key, image_id=base, at_us=clock.wall_us()))
        runtime = Runtime(config=RuntimeConfig(), run_dir=run_dir, clock=clock)
        await runtime.start()
        stack.push_async_callback(runtime.close)
        fs = FileSystem(
            cas=cas,
            images=images,
            data_dir=data_dir,
            run_dir=run_dir,
            mode="auto",
            fetcher=Fetcher(cas, [], 5.0),
        )
        await fs.start()
        stack.push_async_callback(fs.close)
        builder = Builder(
            cas=cas,
            images=images,
            fs=fs,
            runtime=runtime,
            store=store,
            config=config,
            clock=clock,
            data_dir=data_dir,
            run_dir=run_dir,
        )
        group = await stack.enter_async_context(_cancelled_at_the_end())
        group.create_task(fs.run())
        builder_task = group.create_task(builder.run())
        await wait_until(lambda: builder.is_running)
        yield Workshop(
            data_dir, run_dir, cas, images, store, fs, runtime, builder, base, builder_task
        )


@contextlib.asynccontextmanager
async def _cancelled_at_the_end() -> AsyncIterator[asyncio.TaskGroup]:
    tasks: list[asyncio.Task[object]] = []
    async with asyncio.TaskGroup() as group:
        try:
            yield group
        finally:
            tasks += group._tasks
            for task in tasks:
                task.cancel()


async def wait_until(condition, *, within_s: float = 10.0) -> None:
    """Return when the condition holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true in time"
        await asyncio.sleep(0.005)
