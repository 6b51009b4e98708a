"""Recipes become plans: the base they start from, their steps, and the keys of their layers.

A layer's key is ``blake3(parent key ‖ work ‖ content of copied files ‖ what the work sees of user,
workdir and environment)``. The parent of the first one is the base image's id, which is made of
content itself. Modification times, site settings, labels and default commands are in no key of a
layer: a changed ``CMD`` runs nothing again. The last key adds the final configuration and names the
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import msgspec
from blake3 import blake3

from hostd.build import dockerfile, evaluation
from hostd.build.copying import Context, CopyWork, Entry, Source, entry_of
from hostd.build.steps import DirectoryWork, PlannedStep, Planner, RunWork, Work, clean_path
from hostd.errors import InvalidError
from hostd.ids import ImageId
from hostd.model import (
    Cmd,
    Copy,
    Dockerfile,
    Entrypoint,
    Env,
    Expose,
    From,
    ImageConfig,
    Label,
    Recipe,
    Run,
    Shell,
    Step,
    User,
    Workdir,
)

KEY_VERSION = b"hostd layer 1\0"
"""Changed when the meaning of a step changes: every layer is made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRequest:
    """The image that a recipe starts from."""

    image: str
    python_version: str | None = None
    position: tuple[int, int] | None = None
    """In the Dockerfile; None for a recipe of the SDK."""


class Plan:
    """A recipe whose Dockerfile is parsed. The base is known at once, the steps need its config."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._script: dockerfile.Script | None = None
        self._from: evaluation.Base | None = None
        first = recipe.steps[0]
        if isinstance(first, Dockerfile):
            self._script = dockerfile.parse(first.text)
            self._from = evaluation.base_of(self._script, first.build_args)
            position = self._from.instruction.line.position(0)
            self.base = BaseRequest(image=self._from.image, position=position)
        elif isinstance(first, From):
            self.base = BaseRequest(image=first.image, python_version=first.python_version)
        else:
            raise InvalidError("a recipe begins with from or dockerfile")

    def steps(self, config: ImageConfig) -> list[PlannedStep]:
        """All steps after the base, which has this configuration.

        Raises:
            DockerfileError: with line and column.
            InvalidError: a step of the SDK cannot be meant.
        """
        planner = Planner(config)
        if self._from is not None and self._script is not None:
            first = self._recipe.steps[0]
            assert isinstance(first, Dockerfile)
            evaluation.plan_instructions(
                self._from.rest,
                planner,
                context=Context(first.context),
                build_args=first.build_args,
                outer=self._from.arguments,
                escape=self._script.escape,
            )
        for step in self._recipe.steps[1:]:
            _plan_step(step, planner)
        return planner.steps


def parse_recipe(recipe: Recipe) -> Plan:
    """Read a recipe as far as it can be read without its base.

    Raises:
        DockerfileError: with line and column.
        InvalidError: it begins with neither from nor dockerfile.
    """
    return Plan(recipe)


def _plan_step(step: Step, planner: Planner) -> None:
    match step:
        case From():
            raise InvalidError("from stands in the middle of a recipe")
        case Dockerfile():
            _plan_commands(step, planner)
        case Run():
            _plan_run(step, planner)
        case Copy():
            planner.add(_copy_text(step), work=_copy_work(step))
        case _:
            _plan_config(step, planner)


def _plan_config(
    step: Env | Workdir | User | Entrypoint | Cmd | Label | Expose | Shell, planner: Planner
) -> None:
    work: Work | None = None
    match step:
        case Env():
            planner.set_env(step.variables)
            text = "ENV " + " ".join(f"{name}={value}" for name, value in step.variables.items())
        case Workdir():
            work = planner.set_workdir(step.path)
            text = f"WORKDIR {step.path}"
        case User():
            planner.set_user(step.user)
            text = f"USER {step.user}"
        case Entrypoint():
            planner.set_entrypoint(step.args)
            text = f"ENTRYPOINT {_json(step.args)}"
        case Cmd():
            planner.set_cmd(step.args)
            text = f"CMD {_json(step.args)}"
        case Label():
            planner.set_labels(step.labels)
            text = "LABEL " + " ".join(f"{name}={value}" for name, value in step.labels.items())
        case Expose():
            planner.set_exposed(step.ports)
            text = "EXPOSE " + " ".join(step.ports)
        case Shell():
            planner.set_shell(step.args)
            text = f"SHELL {_json(step.args)}"
        case _:
            assert_never(step)
    planner.add(text, work=work)


def _json(args: Sequence[str]) -> str:
    return msgspec.json.encode(list(args)).decode()


def _plan_commands(step: Dockerfile, planner: Planner) -> None:
    """``dockerfile_commands``: instructions without FROM, on what there is."""
    script = dockerfile.parse(step.text)
    for instruction in script.instructions:
        if instruction.keyword == "FROM":
            raise instruction.problem("FROM stands in the middle of an image's steps")
    evaluation.plan_instructions(
        script.instructions,
        planner,
        context=Context(step.context),
        build_args=step.build_args,
        outer=evaluation.platform_arguments(),
        escape=script.escape,
    )


def _plan_run(step: Run, planner: Planner) -> None:
    if (step.command is None) == (step.args is None) or step.args == []:
        raise InvalidError("run needs exactly one of command and args")
    if step.command is not None:
        args, text = planner.shell_args(step.command), f"RUN {step.command}"
    else:
        args = tuple(step.args or ())
        text = f"RUN {_json(args)}"
    if any("\0" in arg for arg in args):
        raise InvalidError("run has a NUL character in its command")
    stdin = None if step.heredoc is None else step.heredoc.encode()
    planner.add(text, work=RunWork(args=args, stdin=stdin), force=step.force)


def _copy_work(step: Copy) -> CopyWork:
    """Files with final paths are the contents of a directory that lies over the root."""
    entries: dict[str, Entry] = {}
    for file in step.files:
        path = clean_path(file.path)
        if not file.path.startswith("/") or path == "/":
            raise InvalidError(f"copy: path is {file.path!r}, expected an absolute path of a file")
        if path in entries:
            raise InvalidError(f"copy: {file.path!r} stands twice")
        entries[path] = entry_of(file, path[1:])
    ordered = tuple(entries[path] for path in sorted(entries))
    source = Source(name="", is_directory=True, entries=ordered)
    return CopyWork(sources=(source,), destination="/", into_directory=True, owner=step.owner)


def _copy_text(step: Copy) -> str:
    if len(step.files) == 1:
        return f"COPY {step.files[0].path}"
    return f"COPY {len(step.files)} files"


# --- keys -----------------------------------------------------------------------------------------


def base_key(image_id: ImageId | None) -> str:
    """The key that the first layer grows from; None: the empty image."""
    return _hash(b"base", image_id or "scratch")


def layer_keys(base: str, steps: Sequence[PlannedStep]) -> list[str]:
    """For each step the key of the files after it; steps without work repeat the one before."""
    keys: list[str] = []
    key = base
    for step in steps:
        if step.work is not None:
            key = _hash(b"layer", [key, _canonical(step.work, step.config)])
        keys.append(key)
    return keys


def image_key(layer: str, config: ImageConfig) -> str:
    """The key of a finished image: its files and its configuration."""
    return _hash(b"image", [layer, config])


def _canonical(work: Work, config: ImageConfig) -> object:
    match work:
        case RunWork():
            return (
                "run",
                work.args,
                work.stdin,
                work.script,
                work.build_args,
                sorted(config.env.items()),
                config.user,
                config.workdir,
            )
        case CopyWork():
            sources = [
                (source.name, source.is_directory, [_canonical_entry(e) for e in source.entries])
                for source in work.sources
            ]
            target = (work.destination, work.into_directory, work.owner, work.mode, work.unpack)
            return ("copy", sources, target)
        case DirectoryWork():
            return ("directory", work.path, work.owner)


def _canonical_entry(entry: Entry) -> tuple[object, ...]:
    content = entry.digest if entry.data is None else blake3(entry.data).hexdigest()
    return (entry.path, entry.kind, entry.mode, content, entry.target)


_encoder = msgspec.msgpack.Encoder(order="deterministic")


def _hash(kind: bytes, value: object) -> str:
    return blake3(KEY_VERSION + kind + b"\0" + _encoder.encode(value)).hexdigest()


def request_key(recipe: Recipe, *, force: bool) -> str:
    """Equal for requests that ask for the same work: they share one build."""
    return _hash(b"request", [recipe, force])


__all__ = [
    "BaseRequest",
    "Plan",
    "base_key",
    "image_key",
    "layer_keys",
    "parse_recipe",
    "request_key",
]
