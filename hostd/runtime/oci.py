"""The OCI runtime program: runc by default, crun or any other that keeps to runc's command line.

The interface is small on purpose: create, start, exec, delete. Waiting, signals, resource figures
and clean-up are done by hostd itself through pidfds and control groups, which costs nothing and
works the same for every runtime. Measured on 2 cores: ``runc create`` 20-26 ms, ``runc start`` 6
ms, ``runc delete`` 6 ms; so start is done here where the runtime's way is known (a fifo in its
state directory), and delete is own clean-up (``sweep.remove_container``).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hostd.errors import ConfigError, ContainerStartError
from hostd.log import get_logger
from hostd.runtime import syscalls
from hostd.runtime.cgroup import CgroupTree
from hostd.runtime.spawn import Process, Stdio, end_group, spawn
from hostd.runtime.streams import wait_readable

log = get_logger(__name__)

COMMAND_TIMEOUT_S = 30.0
"""For one command of the runtime: a thousand times the median; a loaded disk may take seconds."""

RUNC_FIXED = ((1, 3, 6), (1, 4, 3), (1, 5, 0))
"""The first releases of each line with the fixes of November 2025 and of CVE-2026-41579."""

VERSION_TIMEOUT_S = 10.0
FIFO_TIMEOUT_S = 10.0
ERROR_TEXT_MAX = 4096

# What a runtime gets of the daemon's environment: nothing that an image or a user chose.
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_GO_ENVIRONMENT = {"GOMAXPROCS": "2"}
"""runc is one sequence of steps with a helper or two: with one thread it takes 2-3 ms longer, and
the threads of a machine with many cores would find nothing to do."""


@dataclass(frozen=True, slots=True)
class RuntimeProgram:
    """An OCI runtime that was found on this machine."""

    path: str
    name: str
    """``runc``, ``crun`` or what the program calls itself."""
    version: str


def find_program(setting: str) -> RuntimeProgram:
    """Find the runtime that the configuration names and ask its version.

    Raises:
        ConfigError: it is not there, or does not answer.
    """
    path = shutil.which(setting, path=os.environ.get("PATH", "") + ":" + _ENVIRONMENT["PATH"])
    if path is None:
        raise ConfigError(
            f"runtime.oci is {setting!r}, which is not installed",
            hint="install runc, or set runtime.oci to crun or a path",
        )
    try:
        done = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            timeout=VERSION_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"runtime.oci is {path}, which does not tell its version: {error}"
        ) from error
    return parse_version(path, done.stdout)


def parse_version(path: str, text: str) -> RuntimeProgram:
    """Read the output of ``--version``: ``runc version 1.1.5+ds1``."""
    found = re.search(r"^(\w+) version\s+(\S+)", text, re.MULTILINE)
    name, version = found.groups() if found else (Path(path).name, "unknown")
    return RuntimeProgram(path, name, version)


def version_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``1.1.5+ds1`` gives (1, 1, 5)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(n) for n in found.group().split(".")) if found else ()


def is_fixed_runc(version: str) -> bool:
    """Whether a release of runc has the fixes known today; a release candidate counts as older."""
    numbers = version_numbers(version)[:3]
    if re.search(r"[-~]rc", version):
        numbers = (*numbers[:2], numbers[2] - 1) if len(numbers) == 3 else numbers
    if numbers >= RUNC_FIXED[-1]:
        return True
    return any(numbers[:2] == line[:2] and numbers >= line for line in RUNC_FIXED)


class OCIRuntime:
    """Runs the program's commands; all of them bounded in time."""

    def __init__(self, program: RuntimeProgram, *, root: Path, tree: CgroupTree) -> None:
        self.program = program
        self.root = root
        self._environment = dict(_ENVIRONMENT)
        if program.name == "runc":
            self._environment |= _GO_ENVIRONMENT
        # crun refuses a version 2 tree beside version 1 controllers; it runs where there is none.
        self._hidden: str | None = None
        self._thread: ThreadPoolExecutor | None = None
        if program.name == "crun" and tree.version == "hybrid" and tree.unified is not None:
            self._hidden = str(tree.unified.mount_point)
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="hostd-crun")

    def close(self) -> None:
        """End the helper thread."""
        if self._thread is not None:
            self._thread.shutdown()

    async def create(
        self, container_id: str, bundle: Path, *, stdio: Stdio, console: Path | None
    ) -> int:
        """Create a container that waits for ``start``.

        Returns:
            The host pid of its PID 1, which is a child of this process now.

        Raises:
            ContainerStartError: with the runtime's own words; what it left is the caller's to
            sweep.
        """
        args = ["create", "--bundle", str(bundle), "--pid-file", str(bundle / "pid")]
        if self.program.name in ("runc", "crun"):
            # Keys count against root's quota; containers may not use them anyway (seccomp).
            args.append("--no-new-keyring")
        if console is not None:
            args += ["--console-socket", str(console)]
        await self._run([*args, container_id], log_path=bundle / "log.json", stdio=stdio)
        return int((bundle / "pid").read_text())

    async def start(self, container_id: str, bundle: Path, *, exited: asyncio.Future[int]) -> None:
        """Let the program of a created container run; ``exited`` tells when its PID 1 is gone.

        Raises:
            ContainerStartError: the container is gone, or its program cannot be executed.
        """
        fifo = self.root / container_id / "exec.fifo"
        if self.program.name == "runc" and fifo.exists():
            await _open_runc_gate(fifo, exited)
        elif self.program.name == "crun" and fifo.exists():
            _open_crun_gate(fifo)
        else:
            await self._start_by_command(container_id, bundle)

    async def _start_by_command(self, container_id: str, bundle: Path) -> None:
        await self._run(["start", container_id], log_path=bundle / "log.json", stdio=Stdio())

    async def execute(
        self, container_id: str, process: Path, *, stdio: Stdio, console: Path | None
    ) -> int:
        """Run one more program in a container; returns its host pid, a child of this process.

        Args:
            process: file with the OCI ``process`` object; ``.pid`` and ``.log`` appear beside it.

        Raises:
            ContainerStartError: the container is gone, or the program cannot be executed.
        """
        pid_file, log_path = process.with_suffix(".pid"), process.with_suffix(".log")
        args = ["exec", "--detach", "--process", str(process), "--pid-file", str(pid_file)]
        if console is not None:
            args += ["--console-socket", str(console)]
        await self._run([*args, container_id], log_path=log_path, stdio=stdio)
        return int(pid_file.read_text())

    async def _run(self, args: Sequence[str], *, log_path: Path, stdio: Stdio) -> None:
        command = [
            self.program.path,
            "--root",
            str(self.root),
            "--log",
            str(log_path),
            "--log-format",
            "json",
            *args,
        ]
        process = await self._spawn(command, stdio)
        name = f"{self.program.name} {args[0]}"
        try:
            status = await process.wait(COMMAND_TIMEOUT_S)
            if status != 0:
                text = read_log(log_path) or f"status {os.waitstatus_to_exitcode(status)}"
                raise ContainerStartError(f"{name}: {text}")
        except TimeoutError as error:
            await self._end(process)
            raise ContainerStartError(f"{name} did not end in {COMMAND_TIMEOUT_S:.0f} s") from error
        except BaseException:
            await self._end(process)
            raise

    async def _end(self, process: Process) -> None:
        """Nothing of a failed command may run on: the caller sweeps what it made."""
        with contextlib.suppress(TimeoutError):
            await asyncio.shield(end_group(process, COMMAND_TIMEOUT_S))

    async def _spawn(self, command: Sequence[str], stdio: Stdio) -> Process:
        start = functools.partial(spawn, command, env=self._environment, stdio=stdio)
        try:
            if self._thread is None or self._hidden is None:
                return start()
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, _spawn_without, self._hidden, start)
        except OSError as error:
            raise ContainerStartError(f"{command[0]} cannot be run: {error.strerror}") from error


def read_log(path: Path) -> str:
    """The error messages of a runtime's JSON log, newest last, bounded."""
    try:
        with path.open("rb") as file:
            lines = file.read(1 << 16).splitlines()
    except OSError:
        return ""
    messages = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("level") in ("error", "fatal", "err"):
            messages.append(str(record.get("msg", "")))
    return "; ".join(messages)[-ERROR_TEXT_MAX:]


async def _open_runc_gate(fifo: Path, exited: asyncio.Future[int]) -> None:
    """Do what ``runc start`` does: read a byte from the fifo on which PID 1 waits, remove it."""
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        await wait_readable([fd], exited, timeout_s=FIFO_TIMEOUT_S)
        passed = os.read(fd, 1)
    except BlockingIOError:
        passed = b""
    except TimeoutError as error:
        raise ContainerStartError(f"container did not start in {FIFO_TIMEOUT_S:.0f} s") from error
    finally:
        os.close(fd)
    if not passed:
        raise ContainerStartError("container ended before it was started")
    fifo.unlink(missing_ok=True)


def _open_crun_gate(fifo: Path) -> None:
    """Do what ``crun start`` does: its PID 1 waits on the other side of the fifo for a byte."""
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ContainerStartError("container ended before it was started") from error
    try:
        fifo.unlink(missing_ok=True)
        os.write(fd, b"\0")
    except OSError as error:
        raise ContainerStartError("container ended before it was started") from error
    finally:
        os.close(fd)


def _spawn_without(hidden: str, start: functools.partial[Process]) -> Process:
    """Start a process in a mount namespace that lacks one mount (in a thread of its own)."""
    home = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_FS)
        try:
            syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_SLAVE)
            syscalls.unmount(hidden)
            return start()
        finally:
            syscalls.setns(home, syscalls.CLONE_NEWNS)
    finally:
        os.close(home)
