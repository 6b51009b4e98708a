"""A started Runtime, rootfs mounts, and the census around each test."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from hostd.clock import SystemClock
from hostd.config import RuntimeConfig
from hostd.runtime import Container, ContainerExit, ContainerSpec, Runtime, syscalls
from tests import census, small_rootfs


class Lines:
    """An output sink that keeps everything."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, bytes]] = []
        self.bytes = 0

    def line(self, stream: str, text: bytes, at_us: int) -> None:
        assert at_us > 0
        self.bytes += len(text) + 1
        if len(self.lines) < 10_000:
            self.lines.append((stream, text))

    def text(self, stream: str = "stdout") -> list[str]:
        return [text.decode("utf-8", "replace") for name, text in self.lines if name == stream]


@pytest.fixture(scope="session")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_rootfs.build(tmp_path_factory.mktemp("rootfs"))


@pytest.fixture
def run_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hostd-rt-", dir="/tmp"))
    before = census.take(path)
    yield path
    left = census.diff(before, path)
    shutil.rmtree(path, ignore_errors=True)
    assert not left, f"left behind: {left}"


@pytest.fixture
def mount_root(lower: Path) -> Iterator[Callable[[], Path]]:
    """Makes fresh overlays on the small rootfs; unmounted in the end."""
    top = Path(tempfile.mkdtemp(prefix="hostd-roots-", dir="/tmp"))
    syscalls.mount("tmpfs", top, "tmpfs")
    serial = itertools.count()

    def mount() -> Path:
        place = top / str(next(serial))
        for name in ("upper", "work", "root"):
            (place / name).mkdir(parents=True)
        options = f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work"
        syscalls.mount("overlay", place / "root", "overlay", data=options)
        return place / "root"

    yield mount
    for place in top.iterdir():
        syscalls.unmount(place / "root")
    syscalls.unmount(top)
    top.rmdir()


@pytest.fixture
async def runtime(run_dir: Path) -> AsyncIterator[Runtime]:
    # HOSTD_TEST_OCI=crun runs all of these tests on crun.
    config = RuntimeConfig(oci=os.environ.get("HOSTD_TEST_OCI", "runc"))
    made = Runtime(config=config, run_dir=run_dir, clock=SystemClock())
    await made.start()
    yield made
    await made.close()


class Ward:
    """Makes containers with short names and waits for them."""

    def __init__(self, runtime: Runtime, mount_root: Callable[[], Path]) -> None:
        self.runtime = runtime
        self.mount_root = mount_root
        self.serial = itertools.count(1)

    def spec(self, *args: str, **options: object) -> ContainerSpec:
        options.setdefault("rootfs", self.mount_root())
        return ContainerSpec(id=f"t{next(self.serial)}", args=args, **options)  # type: ignore[arg-type]

    async def begin(self, *args: str, **options: object) -> tuple[Container, Lines]:
        sink = Lines()
        container = await self.runtime.create(self.spec(*args, **options), sink)
        await container.start()
        return container, sink

    async def until(self, condition: Callable[[], object]) -> None:
        """Look until it holds; what a container does cannot be awaited otherwise."""
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def run(self, *args: str, **options: object) -> tuple[ContainerExit, Lines]:
        container, sink = await self.begin(*args, **options)
        ended = await container.wait()
        await container.delete()
        return ended, sink

    async def python(self, code: str, **options: object) -> tuple[ContainerExit, Lines]:
        return await self.run("python3", "-I", "-S", "-c", code, **options)


@pytest.fixture
def ward(runtime: Runtime, mount_root: Callable[[], Path]) -> Ward:
    return Ward(runtime, mount_root)
