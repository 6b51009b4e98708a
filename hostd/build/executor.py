"""Does the work of one step: a container for RUN, the tree in memory for everything else.

A RUN mounts its parent image with a fresh writable layer, runs one container of profile ``build``
on it, and takes what the layer holds afterwards. Mount points that the container's start made there
are no part of the result, nor are directories on the way to them that nothing else uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from hostd.build import base
from hostd.build import site as site_settings
from hostd.build.copying import CopyWork
from hostd.build.lines import problem
from hostd.build.placing import place_copies, place_directory
from hostd.build.site import Site
from hostd.build.steps import SCRIPT_PATH, DirectoryWork, PlannedStep, RunWork
from hostd.errors import ContainerStartError, Error, ImageBuildError, InvalidError
from hostd.fs import (
    CAS,
    FileSystem,
    ImageStore,
    IndexReader,
    RootFS,
    Tree,
    apply_upper,
)
from hostd.ids import Digest, ImageId, new_id
from hostd.log import get_logger
from hostd.runtime import BindMount, Container, ContainerExit, ContainerSpec, Runtime

log = get_logger(__name__)

STEP_TIMEOUT_S = 3_600.0
"""Of one RUN: Modal's default for build functions. Compiling a large package takes minutes."""
PIDS_MAX = 8_192
"""A parallel compiler run needs more than a function."""
STOP_TIMEOUT_S = 30.0
"""For removing a container that does not want to go; the daemon's next start sweeps the rest."""
CACHE_DIR = "/run/hostd/cache"
"""A directory of the step alone: what package managers keep there is no part of the layer. pip's
holds the addresses of the site's index."""
_STEP_ENV = {
    "PIP_CACHE_DIR": f"{CACHE_DIR}/pip",
    "UV_CACHE_DIR": f"{CACHE_DIR}/uv",
    # The cache is on another file system than the layer, so hard links cannot work.
    "UV_LINK_MODE": "copy",
    # Being root is no mistake in a container: pip need not warn of it.
    "PIP_ROOT_USER_ACTION": "ignore",
}
_O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OUTPUT_TAIL = 20
"""Lines of a failed step that its error repeats."""


class StepOutput(Protocol):
    """Takes the output of a step; called on the event loop, must not wait."""

    def line(self, stream: str, text: bytes, at_us: int) -> None:
        """One line, as ``OutputSink`` of the runtime has it."""
        ...


class _Tail:
    """Hands lines on and remembers the last ones."""

    def __init__(self, output: StepOutput) -> None:
        self._output = output
        self.lines: list[str] = []

    def line(self, stream: str, text: bytes, at_us: int) -> None:
        self.lines.append(text.decode("utf-8", "replace"))
        del self.lines[:-OUTPUT_TAIL]
        self._output.line(stream, text, at_us)


class Executor:
    """Runs steps. One instance serves all builds; steps of different builds may run at once."""

    def __init__(
        self,
        *,
        cas: CAS,
        images: ImageStore,
        fs: FileSystem,
        runtime: Runtime,
        run_dir: Path,
        scratch: Path,
    ) -> None:
        self._cas = cas
        self._images = images
        self._fs = fs
        self._runtime = runtime
        self._site_dir = run_dir / "build" / "site"
        self._scratch = scratch / "steps"
        self.containers = 0
        """RUN steps that were executed: a rebuild with nothing changed must not raise it."""

    async def put(self, step: PlannedStep, parent: Tree, digests: Mapping[str, Digest]) -> Tree:
        """Do a COPY, ADD or WORKDIR.

        Raises:
            DockerfileError, InvalidError: it does not fit the image.
            BlobMissingError, BlobCorruptError: of a copied file.
        """
        try:
            return await asyncio.to_thread(self._put, step, parent, digests)
        except InvalidError as error:
            if step.position is None:
                raise
            line, column = step.position
            raise problem(error.text, line=line, column=column, hint=error.hint) from error

    def _put(self, step: PlannedStep, parent: Tree, digests: Mapping[str, Digest]) -> Tree:
        if isinstance(step.work, CopyWork):
            return place_copies(parent, step.work, self._images, digests)
        assert isinstance(step.work, DirectoryWork)
        return place_directory(parent, step.work, self._images)

    async def run(
        self,
        step: PlannedStep,
        work: RunWork,
        parent: ImageId,
        *,
        site: Site,
        output: StepOutput,
        phases_us: dict[str, int],
    ) -> Tree:
        """Do a RUN on an image; gives the tree after it.

        Args:
            phases_us: where the durations of the parts are noted.

        Raises:
            ImageBuildError: the command could not be started, failed or took too long; with its
                last lines.
            ContainerStartError: the parent cannot be mounted.
            BlobCorruptError, BlobMissingError: content of the parent.
            StorageFullError: no space for what the command writes, or for keeping it.
        """
        name = new_id("bs")
        self.containers += 1
        timer = _Timer(phases_us)
        async with contextlib.AsyncExitStack() as stack:
            mounts = await asyncio.to_thread(self._mounts, site, work, name, stack)
            root = await self._fs.mount_rootfs(name, [parent], plain_upper=True)
            stack.push_async_callback(self._fs.unmount_rootfs, root)
            timer.note("mount")
            spec = self._spec(step, work, name, root.path, mounts, self._env(work, site, parent))
            await self._execute(step, spec, parent, _Tail(output), timer)
            await self._fs.unmount_rootfs(root, keep_upper=True)
            timer.note("unmount")
            tree = await asyncio.to_thread(self._collect, parent, root, spec)
            timer.note("apply_upper")
        return tree

    def _mounts(
        self, site: Site, work: RunWork, name: str, stack: contextlib.AsyncExitStack
    ) -> list[BindMount]:
        """What is bound into the step's container; gone with the stack."""
        own = self._scratch / name
        stack.callback(shutil.rmtree, own, ignore_errors=True)
        cache = own / "cache"
        cache.mkdir(parents=True)
        cache.chmod(0o1777)
        mounts = [BindMount(source=cache, target=CACHE_DIR, read_only=False)]
        mounts += site_settings.mounts(site, site_settings.stage(site, self._site_dir))
        if work.script is not None:
            script = own / "script"
            script.write_bytes(work.script)
            script.chmod(0o755)
            mounts.append(BindMount(source=script, target=SCRIPT_PATH))
        return mounts

    def _env(self, work: RunWork, site: Site, parent: ImageId) -> dict[str, str]:
        """What a step sees besides the image's own environment."""
        has_default = _has_default_sources(self._images.open_index(parent))
        env = site.step_env(has_default_sources=has_default)
        return {**_STEP_ENV, **env, **dict(work.unkeyed), **dict(work.build_args)}

    def _spec(
        self,
        step: PlannedStep,
        work: RunWork,
        name: str,
        root: Path,
        mounts: Sequence[BindMount],
        env: Mapping[str, str],
    ) -> ContainerSpec:
        return ContainerSpec(
            id=name,
            rootfs=root,
            args=work.args if work.script is None else (SCRIPT_PATH,),
            # The image wins: who sets ENV PIP_INDEX_URL means it.
            env={**env, **step.config.env},
            cwd=step.config.workdir,
            user=step.config.user,
            hostname="build",
            mounts=mounts,
            pids_max=PIDS_MAX,
            profile="build",
            stdin=work.stdin,
        )

    async def _execute(
        self,
        step: PlannedStep,
        spec: ContainerSpec,
        parent: ImageId,
        output: _Tail,
        timer: _Timer,
    ) -> None:
        try:
            container = await self._runtime.create(spec, output)
            try:
                timer.note("create")
                await container.start()
                timer.note("start")
                self._warm(parent)
                ended = await _wait(container, step, output)
                timer.note("command")
            finally:
                await _delete(container)
                timer.note("delete")
        except ContainerStartError as error:
            # Mostly what the recipe asks for: a user or a program that the image does not have.
            text = f"{step.text} cannot be started: {error.text}"
            raise ImageBuildError(
                text, hint=error.hint, exit_code=None, output=output.lines
            ) from error
        if ended.status != 0 or ended.oom:
            raise failure(step, ended, output.lines)

    def _warm(self, parent: ImageId) -> None:
        """Read the parent's tree while the command runs; ``_collect`` then finds it in memory.

        Nobody waits for this: the result is in the image store's cache, and what goes wrong goes
        wrong again where it is needed.
        """

        def read() -> None:
            with contextlib.suppress(Error):
                self._images.tree(parent)

        asyncio.get_running_loop().run_in_executor(None, read)

    def _collect(self, parent: ImageId, root: RootFS, spec: ContainerSpec) -> Tree:
        before = self._images.tree(parent)
        targets = [os.fsencode(path) for path in self._runtime.mount_targets(spec)]
        drop = traces(before, root.upper, targets)
        return apply_upper(before, root.upper, self._cas, drop=drop, move=True)


class _Timer:
    """Notes how long each part took."""

    def __init__(self, phases_us: dict[str, int]) -> None:
        self._phases_us = phases_us
        self._last_ns = time.perf_counter_ns()

    def note(self, name: str) -> None:
        now_ns = time.perf_counter_ns()
        self._phases_us[name] = (now_ns - self._last_ns) // 1_000
        self._last_ns = now_ns


async def _wait(container: Container, step: PlannedStep, output: _Tail) -> ContainerExit:
    try:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            return await container.wait()
    except TimeoutError:
        raise ImageBuildError(
            f"{step.text} ran longer than {STEP_TIMEOUT_S:.0f} s",
            exit_code=None,
            output=output.lines,
        ) from None


async def _delete(container: Container) -> None:
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await container.delete()
    except TimeoutError:
        log.warning("build container does not end", container=container.id)


def failure(step: PlannedStep, ended: ContainerExit, lines: Sequence[str]) -> ImageBuildError:
    """The error of a command that did not end well."""
    last = next((line for line in reversed(lines) if line.strip()), "")
    text = f"{step.text} {ended.describe()}"
    return ImageBuildError(
        f"{text}: {last}" if last else text, exit_code=ended.status, output=list(lines)
    )


def _has_default_sources(index: IndexReader) -> bool:
    nid = index.resolve(b"/etc/apt/sources.list")
    return nid is not None and index.inline_data(nid) == base.DEFAULT_SOURCES


def traces(before: Tree, upper: Path, targets: Iterable[bytes]) -> set[bytes]:
    """The paths of a writable layer that are there only because something was mounted.

    These are the mount points, by their own name and by where links lead, and directories on the
    way to them that are new and hold nothing else.
    """
    named = [target.rstrip(b"/") for target in targets]
    found = {path for target in named for path in (target, before.resolve(target))} - {b"", b"/"}
    for target in sorted(found):
        path = target.rpartition(b"/")[0]
        while path and before.lookup(path) is None and _holds_only(upper, path, found):
            found.add(path)
            path = path.rpartition(b"/")[0]
    return found


def _holds_only(upper: Path, path: bytes, expected: Collection[bytes]) -> bool:
    """Whether a directory of the layer has no other entries; links are not followed."""
    with contextlib.ExitStack() as stack:
        try:
            fd = os.open(upper, _O_DIRECTORY)
            stack.callback(os.close, fd)
            for name in path.strip(b"/").split(b"/"):
                fd = os.open(name, _O_DIRECTORY, dir_fd=fd)
                stack.callback(os.close, fd)
            names = os.listdir(fd)
        except OSError:
            return False
    return all(path + b"/" + os.fsencode(name) in expected for name in names)
