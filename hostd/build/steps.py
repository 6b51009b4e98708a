"""The steps of a build in the form that is executed and hashed, and the planner that makes them.

A planned step has the *work* that changes files (or none) and the image configuration that holds
after it. Work is complete: shells are applied, variables expanded, sources matched. What it needs
from the image itself (users, links, whether a destination is a directory) is left to the executor.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from hostd.build.copying import CopyWork
from hostd.errors import InvalidError
from hostd.model import ImageConfig

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Of images that set none, as Docker has it."""
PATH_CHARACTERS_MAX = 4096
DEPTH_MAX = 255
"""Directories in each other: what an index is walked with."""
TEXT_CHARACTERS_MAX = 1_000
"""Of a step in logs and in an image's history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWork:
    """A command in a container on what was built so far."""

    args: tuple[str, ...]
    stdin: bytes | None = None
    script: bytes | None = None
    """A heredoc with ``#!``: put where SCRIPT_PATH says, and run instead of ``args``."""
    build_args: tuple[tuple[str, str], ...] = ()
    """ARG values in scope: environment of the command, part of the key, not of the image."""
    unkeyed: tuple[tuple[str, str], ...] = ()
    """Docker's predefined proxy arguments: environment that is not even part of the key."""


SCRIPT_PATH = "/run/hostd/heredoc"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryWork:
    """A directory that must be there (WORKDIR)."""

    path: str
    owner: str = ""


Work = RunWork | CopyWork | DirectoryWork


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One step, with the image configuration that holds after it."""

    text: str
    """As people read it: one line."""
    config: ImageConfig
    work: Work | None = None
    force: bool = False
    """Do not use the cache for this step and those after it."""
    warning: str = ""
    position: tuple[int, int] | None = None
    """Line and column in the Dockerfile that it came from."""


class Planner:
    """Collects steps and follows what they do to the configuration."""

    def __init__(self, config: ImageConfig) -> None:
        self.config = config
        self.steps: list[PlannedStep] = []
        self._has_own_cmd = False

    def add(
        self,
        text: str,
        *,
        work: Work | None = None,
        force: bool = False,
        warning: str = "",
        position: tuple[int, int] | None = None,
    ) -> None:
        """Append a step; the configuration is the one that holds now."""
        self.steps.append(
            PlannedStep(
                text=shorten(text),
                config=self.config,
                work=work,
                force=force,
                warning=warning,
                position=position,
            )
        )

    def shell_args(self, command: str) -> tuple[str, ...]:
        """A command in shell form, as arguments for the shell in force."""
        return (*self.config.shell, command)

    def absolute(self, path: str) -> str:
        """A path as seen from the working directory, without ``.`` and ``..``."""
        return clean_path(posixpath.join(self.config.workdir, path))

    def set_env(self, variables: Mapping[str, str]) -> None:
        """Set environment variables.

        Raises:
            InvalidError: a name with ``=`` in it, or a NUL character.
        """
        for name, value in variables.items():
            if not name or "=" in name or "\0" in name + value:
                raise InvalidError(f"variable {name!r} cannot be in an environment")
        self._change(env={**self.config.env, **variables})

    def set_workdir(self, path: str) -> DirectoryWork | None:
        """Change the working directory; the work that makes it, or None for the root."""
        self._change(workdir=self.absolute(path))
        if self.config.workdir == "/":
            return None
        return DirectoryWork(path=self.config.workdir, owner=self.config.user)

    def set_user(self, user: str) -> None:
        """Change the user.

        Raises:
            InvalidError: it is empty or has more than one colon.
        """
        if not user or user.count(":") > 1 or any(character.isspace() for character in user):
            raise InvalidError(f"user is {user!r}, expected name[:group] or numbers")
        self._change(user=user)

    def set_entrypoint(self, args: Sequence[str]) -> None:
        """Change the entrypoint; a command that the base brought goes with it, as Docker has it."""
        cmd = self.config.cmd if self._has_own_cmd else ()
        self._change(entrypoint=tuple(args), cmd=cmd)

    def set_cmd(self, args: Sequence[str]) -> None:
        """Change the default command."""
        self._has_own_cmd = True
        self._change(cmd=tuple(args))

    def set_labels(self, labels: Mapping[str, str]) -> None:
        """Set labels."""
        self._change(labels={**self.config.labels, **labels})

    def set_exposed(self, ports: Sequence[str]) -> None:
        """Note ports."""
        self._change(exposed=tuple(dict.fromkeys((*self.config.exposed, *ports))))

    def set_shell(self, args: Sequence[str]) -> None:
        """Change the shell of later commands.

        Raises:
            InvalidError: it is empty.
        """
        if not args:
            raise InvalidError("shell is empty, expected a program and its arguments")
        self._change(shell=tuple(args))

    def _change(self, **changes: object) -> None:
        self.config = msgspec.structs.replace(self.config, **changes)


def clean_path(path: str) -> str:
    """An absolute path without ``.``, ``..`` and repeated slashes.

    Raises:
        InvalidError: it holds a NUL character or a name of more than 255 bytes, or is too long.
    """
    cleaned = "/" + posixpath.normpath("/" + path).lstrip("/")
    names = cleaned.split("/")
    is_too_long = len(path) > PATH_CHARACTERS_MAX or len(names) > DEPTH_MAX
    if is_too_long or "\0" in cleaned or any(len(name.encode()) > 255 for name in names):
        raise InvalidError(f"path {path[:80]!r} cannot be a path of an image")
    return cleaned


def shorten(text: str) -> str:
    """The text on one line, cut to what a log line can show."""
    line = " ".join(text.split("\n")).strip()
    return line if len(line) <= TEXT_CHARACTERS_MAX else line[: TEXT_CHARACTERS_MAX - 1] + "…"
