"""A host's file system service in the test's own process, with a real hostd-fs and real mounts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hostd.fs import CAS, BlobSource, Fetcher, FileSystem, ImageStore, ingest_directory
from hostd.ids import Digest, ImageId
from hostd.model import ImageConfig

WAIT_S = 10.0
T = TypeVar("T")


@dataclass
class Host:
    """The directories of one host, and how to start its service."""

    data_dir: Path
    run_dir: Path
    cas: CAS
    images: ImageStore

    def save(self, source: Path, *, move: bool = False) -> ImageId:
        """An image of a directory."""
        return self.images.save(ingest_directory(source, self.cas, move=move), ImageConfig())

    def blob_of(self, image: ImageId, path: bytes) -> Digest:
        """The blob behind a file."""
        reader = self.images.open_index(image)
        nid = reader.resolve(path)
        assert nid is not None
        found = reader.digest(nid)
        assert found is not None
        return found

    def file_system(
        self, mode: str, *, sources: Sequence[BlobSource] = (), timeout_s: float = 5.0
    ) -> FileSystem:
        return FileSystem(
            cas=self.cas,
            images=self.images,
            data_dir=self.data_dir,
            run_dir=self.run_dir,
            mode=mode,
            fetcher=Fetcher(self.cas, sources, timeout_s),
        )

    @contextlib.asynccontextmanager
    async def running(
        self, mode: str, *, sources: Sequence[BlobSource] = (), timeout_s: float = 5.0
    ) -> AsyncIterator[FileSystem]:
        """The service, supervised, and closed afterwards."""
        fs = self.file_system(mode, sources=sources, timeout_s=timeout_s)
        try:
            await fs.start()
            async with asyncio.TaskGroup() as group:
                run = group.create_task(fs.run())
                try:
                    yield fs
                finally:
                    run.cancel()
        finally:
            await fs.close()

    def mounts(self) -> list[str]:
        """What is mounted below the run directory, relative to it."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [line.split()[4] for line in lines]
        top = f"{self.run_dir}/"
        return sorted(point.removeprefix(top) for point in points if point.startswith(top))

    async def server_pid(self, fs: FileSystem, *, other_than: int | None = None) -> int:
        """The process id of a hostd-fs that is ready; waits for it."""

        def found() -> int | None:
            server = fs.statistics().server
            return server.pid if server.is_ready and server.pid != other_than else None

        return await until(found)


async def until(condition: Callable[[], T | None], *, within_s: float = WAIT_S) -> T:
    """What the condition returns when it is no longer None or False."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "condition did not come true in time"
        await asyncio.sleep(0.01)
    return value
