"""A real launcher on a real file system service and container runtime, with Debian's base image."""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hostd.clock import SystemClock
from hostd.config import Config, FSConfig, RuntimeConfig
from hostd.errors import Error
from hostd.fs import CAS, Fetcher, FileSystem, ImageStore
from hostd.ids import AppId, ContainerId, FunctionId, ImageId, new_id
from hostd.model import FunctionDefinition, FunctionSpec, InputTimings, OutputStatus
from hostd.runtime.function_container import FunctionContainer
from hostd.runtime.launcher import Launcher
from hostd.runtime.runtime import Runtime
from tests.base_image import copy_base_image
from tests.daemon_process import CACHE

WAIT_S = 40.0
"""Far more than anything here takes on an idle machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in Path(item.fspath).parents:
            item.add_marker(pytest.mark.root)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that the daemon runs on."""
    return "asyncio", {"use_uvloop": True}


@dataclass(frozen=True)
class StoredImage:
    """A data directory with Debian's base image, for every test of the session."""

    directory: Path
    image: ImageId


@pytest.fixture(scope="session")
def stored() -> Iterator[StoredImage]:
    """The base image, as builds make it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    # Beside the kept image: it is given away as hard links.
    directory = Path(tempfile.mkdtemp(prefix="launcher-", dir=CACHE))
    _, image = copy_base_image(directory)
    yield StoredImage(directory, image)
    shutil.rmtree(directory, ignore_errors=True)


# --- the host ------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """ContainerEvents that keep everything, for one container."""

    states: list[str] = field(default_factory=list)
    phases_us: dict[str, int] = field(default_factory=dict)
    lines: list[tuple[str, bytes]] = field(default_factory=list)
    story: list[object] = field(default_factory=list)
    """Lines and outputs in their order."""

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.exited: asyncio.Future[tuple[Error | None, str]] = loop.create_future()
        self.outputs: asyncio.Queue[tuple[int, OutputStatus, Sequence[bytes], InputTimings]]
        self.outputs = asyncio.Queue(10_000)
        self.ready_at = 0.0

    def container_state(self, container_id: ContainerId, state: str) -> None:
        assert not self.exited.done()
        self.states.append(state)

    def container_ready(self, container_id: ContainerId, phases_us: Mapping[str, int]) -> None:
        self.ready_at = time.perf_counter()
        self.phases_us = dict(phases_us)
        self.ready.set_result(None)

    def input_output(
        self,
        container_id: ContainerId,
        token: int,
        status: OutputStatus,
        fields: Sequence[bytes],
        timings: InputTimings,
    ) -> None:
        assert not self.exited.done()
        self.story.append(("output", token))
        self.outputs.put_nowait((token, status, fields, timings))

    def container_line(
        self, container_id: ContainerId, stream: str, text: bytes, at_us: int
    ) -> None:
        assert not self.exited.done()
        self.lines.append((stream, text))
        self.story.append(text)

    def container_exited(
        self, container_id: ContainerId, error: Error | None, summary: str
    ) -> None:
        self.exited.set_result((error, summary))

    async def value(self) -> Any:
        """The value of the next output, which must be one."""
        async with asyncio.timeout(WAIT_S):
            _, status, fields, _ = await self.outputs.get()
        assert status == "ok", fields
        return pickle.loads(fields[0])

    async def error(self) -> Error | None:
        """Why it ended."""
        async with asyncio.timeout(WAIT_S):
            return (await asyncio.shield(self.exited))[0]

    async def is_ready(self) -> None:
        """Wait until it takes inputs; fail when it ends before."""
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait({self.ready, self.exited}, return_when="FIRST_COMPLETED")
        assert self.ready.done(), self.exited.result()


class LauncherHost:
    """All the parts, and short ways to use them."""

    @staticmethod
    async def until(holds: Callable[[], object]) -> None:
        """Wait for a condition."""
        await until(holds)

    def __init__(self, run_dir: Path, stored: StoredImage) -> None:
        clock = SystemClock()
        data_dir = stored.directory
        self.run_dir = run_dir
        self.image = stored.image
        self.cas = CAS(data_dir / "cas")
        self.images = ImageStore(self.cas, data_dir / "images")
        self.config = Config(
            data_dir=data_dir,
            run_dir=run_dir,
            runtime=RuntimeConfig(subnet=f"10.{100 + os.getpid() % 100}.0.0/16"),
            fs=FSConfig(),
        )
        fetcher = Fetcher(self.cas, [], 5.0)
        self.fs = FileSystem(
            cas=self.cas,
            images=self.images,
            data_dir=data_dir,
            run_dir=run_dir,
            mode="auto",
            fetcher=fetcher,
        )
        self.runtime = Runtime(config=self.config.runtime, run_dir=run_dir, clock=clock)
        self.launcher = Launcher(
            fs=self.fs,
            images=self.images,
            cas=self.cas,
            runtime=self.runtime,
            run_dir=run_dir,
            clock=clock,
            config=self.config,
        )

    def function(
        self,
        text: str = "",
        *,
        image: ImageId | None = None,
        files: Mapping[str, str] | None = None,
        **options: Any,
    ) -> FunctionDefinition:
        """A function ``f`` of a module ``app`` with this text."""
        base = image or self.image
        sources = {"/root/app.py": textwrap.dedent(text), **(files or {})}
        entries = [
            (path, self.cas.put_bytes(content.encode()), 0o644, "file", None)
            for path, content in sources.items()
        ]
        layer = self.images.source_index(entries, base=base)
        options = {"module": "app", "qualname": "f", "startup_timeout_s": 30.0, **options}
        serialized = options.pop("serialized_digest", None)
        return FunctionDefinition(
            id=FunctionId(new_id("fu")),
            app_id=AppId(new_id("ap")),
            spec=FunctionSpec(name="f", image_id=base, **options),
            layers=(layer, base),
            serialized=serialized,
        )

    def launch(self, function: FunctionDefinition) -> tuple[FunctionContainer, Recorder]:
        """Begin to start a container."""
        recorder = Recorder()
        return self.launcher.launch(ContainerId(new_id("ct")), function, recorder), recorder

    async def start(self, text: str, **options: Any) -> tuple[FunctionContainer, Recorder]:
        """Start a container and wait until it takes inputs."""
        handle, recorder = self.launch(self.function(text, **options))
        await recorder.is_ready()
        return handle, recorder

    async def wait_cleaned(self) -> None:
        """Wait until nothing of any container is left."""
        await until(lambda: not self.launcher.statistics().containers)


@asynccontextmanager
async def running_host(stored: StoredImage) -> AsyncIterator[LauncherHost]:
    """A host that is up; nothing of it may be left afterwards."""
    async with AsyncExitStack() as stack:
        run_dir = Path(tempfile.mkdtemp(prefix="hostd-launcher-"))
        stack.callback(shutil.rmtree, run_dir, ignore_errors=True)
        host = LauncherHost(run_dir, stored)
        stack.push_async_callback(host.runtime.close)
        await host.runtime.start()
        stack.push_async_callback(host.fs.close)
        await host.fs.start()
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(host.fs.run())
            launching = tasks.create_task(host.launcher.run())
            yield host
            launching.cancel()
            await asyncio.wait({launching})
            serving.cancel()
        assert host.launcher.statistics().containers == 0
        assert host.fs.statistics().rootfs == 0
    assert str(run_dir) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
async def host(stored: StoredImage) -> AsyncIterator[LauncherHost]:
    """A host that is up."""
    async with running_host(stored) as host:
        yield host


async def until(holds: Callable[[], object]) -> None:
    """Wait for a condition that nothing announces."""
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
