"""A runner as a plain process, without any container, driven through the daemon's own link."""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import hostd.runner
from hostd.clock import SystemClock
from hostd.errors import Error
from hostd.model import InputTimings, OutputStatus
from hostd.runtime.runner_link import Hello, Load, Ready, RunnerLink, RunnerSocket

BOOT = Path(hostd.runner.__file__).parent / "boot.py"
WAIT_S = 20.0
"""Far more than anything here takes; a test that waits so long has failed."""

Output = tuple[int, OutputStatus, list[bytes], InputTimings]


class RunnerProcess:
    """LinkEvents that keep what they are told; and the process behind them."""

    def __init__(self, directory: Path, python: str) -> None:
        self.source = directory / "source"
        self.source.mkdir()
        self.socket = RunnerSocket(directory / "io")
        self.link = RunnerLink(self, SystemClock())
        self.process: subprocess.Popen[bytes] | None = None
        self.hello: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self.loaded: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self.closed: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.outputs: asyncio.Queue[Output] = asyncio.Queue(10_000)
        self._directory = directory
        self._python = python
        self._token = 0

    # LinkEvents

    def link_hello(self, hello: Hello) -> None:
        self.hello.set_result(hello)

    def link_ready(self, ready: Ready) -> None:
        self.loaded.set_result(ready)

    def link_load_failed(self, error: Error) -> None:
        self.loaded.set_exception(error)

    def link_output(
        self, token: int, status: OutputStatus, fields: Sequence[bytes], timings: InputTimings
    ) -> None:
        self.outputs.put_nowait((token, status, list(fields), timings))

    def link_closed(self, violation: str | None) -> None:
        self.closed.set_result(violation)

    # what tests use

    async def start(self, env: dict[str, str] | None = None) -> Hello:
        """Start the process and wait for its HELLO."""
        self.process = subprocess.Popen(  # noqa: ASYNC220 - milliseconds, in a test
            [self._python, str(BOOT), str(self._directory / "io")],
            cwd=self.source,
            env={"PATH": os.environ["PATH"], **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(WAIT_S):
            await self.socket.accept(self.link)
            return await self.hello

    def write(self, text: str, module: str = "app") -> None:
        """Write the user's module."""
        (self.source / f"{module}.py").write_text(textwrap.dedent(text))

    async def load(self, text: str = "", qualname: str = "f", **options: Any) -> Ready:
        """Start and load a function of a module with this text."""
        self.write(text)
        await self.start()
        self.send_load(qualname, **options)
        async with asyncio.timeout(WAIT_S):
            return await self.loaded

    def send_load(self, qualname: str = "f", **options: Any) -> None:
        """Answer the HELLO."""
        options = {"module": "app", "is_generator": False, **options}
        load = Load(name=qualname, qualname=qualname, source_dir=str(self.source), **options)
        self.link.send_load(load)

    def send(self, *args: Any, payload: bytes | None = None, **kwargs: Any) -> int:
        """Send an input and return its token."""
        self._token += 1
        data = pickle.dumps((args, kwargs)) if payload is None else payload
        self.link.send_input(self._token, data, call_id="fc-1", input_id=f"fc-1:{self._token - 1}")
        return self._token

    async def output(self) -> Output:
        """The next output."""
        async with asyncio.timeout(WAIT_S):
            return await self.outputs.get()

    async def call(self, *args: Any, **kwargs: Any) -> Any:
        """The value of an input that succeeds."""
        token = self.send(*args, **kwargs)
        answered, status, fields, _ = await self.output()
        assert (answered, status) == (token, "ok"), fields
        return pickle.loads(fields[0])

    def cancel(self, token: int) -> None:
        """Cancel as the launcher does: the cell, then the signal."""
        self.socket.mark_cancelled(token)
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR1)

    async def printed(self, line: bytes) -> None:
        """Wait for a line on standard output."""
        assert self.process is not None
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            got = await asyncio.to_thread(self.process.stdout.readline)
        assert got == line + b"\n"

    async def exit_code(self) -> int:
        """How the process ended."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, WAIT_S)

    async def end(self) -> tuple[bytes, bytes]:
        """Close the connection, wait for the process and return what it wrote."""
        assert self.process is not None
        self.link.end()
        return await asyncio.to_thread(self.process.communicate, None, WAIT_S)

    async def close(self) -> None:
        """Leave nothing behind."""
        self.link.abort()
        self.socket.close()
        if self.process is not None:
            self.process.kill()
            await asyncio.to_thread(self.process.communicate)
        for future in (self.hello, self.loaded, self.closed):
            future.cancel()


@pytest.fixture
def python() -> str:
    """The interpreter that runs the runner."""
    return sys.executable


@pytest.fixture
async def runner(tmp_path: Path, python: str) -> AsyncIterator[RunnerProcess]:
    """A runner that is not started yet."""
    process = RunnerProcess(tmp_path, python)
    yield process
    await process.close()


@pytest.fixture
def find_python() -> Callable[[str], str]:
    """An interpreter by its minor version, or a skip."""

    def find(version: str) -> str:
        path = shutil.which(f"python{version}")
        command = [path or "false", "-c", 'import sys; print("%d.%d" % sys.version_info[:2])']
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.stdout.strip() != version:
            pytest.skip(f"not here: there is no Python {version} on PATH")
        assert path is not None
        return path

    return find
