"""What a container is asked to be, and what it was when it ended.

Pure records: everything that the launcher, the builder and the shell say about a container before
it exists (``ContainerSpec``), how its output is handed on (``OutputSink``), what it uses now
(``Usage``) and how it ended (``ContainerExit``).
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Profile = Literal["function", "build", "shell"]
NetworkMode = Literal["bridge", "none"]

PIDS_MAX = 1024
"""Processes and threads of one container unless it asks otherwise: Docker's usual advice; a fork
bomb of this size dies in some ten milliseconds."""

OOM_STATUS = 128 + signal.SIGKILL


@dataclass(frozen=True, slots=True, kw_only=True)
class BindMount:
    """A file or directory of the host that appears in the container."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """Everything that must be known to start a container.

    Args:
        id: unique on this host; becomes part of paths, so ``[a-z0-9-]`` only.
        rootfs: a mounted, writable root; the caller unmounts it after ``Container.delete``.
        args: the program and its arguments; found through PATH in the container.
        env: the whole environment; PATH, HOME and TERM are added when absent.
        cwd: absolute; made when absent.
        user: ``name`` or ``uid``, optionally ``:group``; names are looked up in the rootfs.
        mounts: in the order given; targets are absolute and made when absent.
        cpu_limit: in cores; None: no limit.
        memory_limit_bytes: the kernel kills at this limit; swap is not added to it.
        network: ``bridge``: own address, internet through NAT; ``none``: a loopback device only.
        opened: IPv4 addresses in closed ranges that this container may reach all the same: the
            site's proxy and package mirrors for a build step. Never link-local ones.
        profile: chooses capabilities, the seccomp list and whether setuid works (``build``).
        tty: rows and columns of a terminal; output then comes through ``Container.terminal``.
        init: run catatonit as PID 1, which collects zombies and forwards signals.
        stdin: what the program reads; None: nothing.
    """

    id: str
    rootfs: Path
    args: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    user: str = ""
    hostname: str = ""
    mounts: Sequence[BindMount] = ()
    cpu_limit: float | None = None
    memory_limit_bytes: int | None = None
    pids_max: int = PIDS_MAX
    network: NetworkMode = "bridge"
    opened: Sequence[str] = ()
    profile: Profile = "function"
    tty: tuple[int, int] | None = None
    init: bool = True
    stdin: bytes | None = None


class OutputSink(Protocol):
    """Takes what a container writes, line by line, on the event loop; must not wait."""

    def line(self, stream: str, text: bytes, at_us: int) -> None:
        """One line without its newline.

        Args:
            stream: ``stdout``, ``stderr``, or ``system`` for notes of hostd itself.
            text: at most 64 KiB; longer lines come in pieces.
            at_us: wall clock when it was read.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a container uses now; figures that the kernel does not give are 0."""

    memory_bytes: int = 0
    peak_bytes: int = 0
    cpu_s: float = 0.0
    pids: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerExit:
    """How PID 1 of a container ended.

    With an init, a program that a signal killed shows as ``exit_code`` 128 + n, as in a shell;
    without one as ``signal``. ``oom`` is true when the kernel killed a process of the container at
    its memory limit and the container did not end with status 0.
    """

    exit_code: int | None
    signal: int | None
    oom: bool = False
    peak_bytes: int = 0
    cpu_s: float = 0.0

    @property
    def status(self) -> int:
        """As a shell gives it: the exit code, or 128 + the signal's number."""
        if self.exit_code is not None:
            return self.exit_code
        return 128 + (self.signal or 0)

    def describe(self) -> str:
        """For people: ``exited with status 3``, ``killed by SIGKILL (status 137)``, …"""
        if self.oom:
            return f"killed by the kernel at its memory limit (peak {self.peak_bytes} bytes)"
        number = self.signal
        if number is None and self.status > 128:
            number = self.status - 128
        if number is None:
            return f"exited with status {self.status}"
        try:
            name = signal.Signals(number).name
        except ValueError:
            return f"exited with status {self.status}"
        return f"killed by {name} (status {self.status})"
