"""One build from its recipe to its image: what was made before, what is made now, and its events.

Layers are looked up from the last step backwards: the first that is found is where the build
goes on. Steps that need no container are done on the tree in memory, which is stored as an image
only when a container needs one or the recipe ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence

from hostd.build.eventlog import EventLog
from hostd.build.executor import Executor
from hostd.build.layers import Layers
from hostd.build.recipe import Plan, base_key, image_key, layer_keys, parse_recipe
from hostd.build.resolution import Bases, FoundBase
from hostd.build.steps import PlannedStep, RunWork
from hostd.errors import BlobError, ImageBuildError
from hostd.fs import Tree
from hostd.ids import ImageId
from hostd.log import get_logger
from hostd.model import BuildRequest, ImageConfig

log = get_logger(__name__)


class StepOutput:
    """Puts a step's output into the log."""

    def __init__(self, events: EventLog, step: int) -> None:
        self._events = events
        self._step = step

    def line(self, stream: str, text: bytes, at_us: int) -> None:
        """One line of the step's container."""
        self.text(text.decode("utf-8", "replace"), is_error=stream != "stdout")

    def text(self, text: str, *, is_error: bool = False) -> None:
        """One line."""
        self._events.line(text, step=self._step, stream="stderr" if is_error else "stdout")


class BuildRun:
    """The work of one build. Step 1 is the base; the recipe's steps follow."""

    def __init__(
        self,
        request: BuildRequest,
        *,
        events: EventLog,
        layers: Layers,
        bases: Bases,
        executor: Executor,
        places: asyncio.Semaphore,
    ) -> None:
        self._request = request
        self._events = events
        self._layers = layers
        self._bases = bases
        self._executor = executor
        self._places = places
        self._has_place = False
        self._steps: Sequence[PlannedStep] = ()
        self._keys: Sequence[str] = ()
        """Of the files before the first step, and after each of them."""
        self._final_key = ""
        self._final_config = ImageConfig()
        self._damaged: ImageId | None = None
        """An image whose content was found damaged when it was used."""

    async def make(self) -> ImageId:
        """Build, or find that everything is there.

        Raises:
            hostd.errors.Error: whatever keeps the image from being made.
        """
        try:
            return await self._make_twice()
        finally:
            if self._has_place:
                self._places.release()

    async def _make_twice(self) -> ImageId:
        plan = await asyncio.to_thread(parse_recipe, self._request.recipe)
        try:
            return await self._make(plan)
        except BlobError as error:
            if self._damaged is None:
                raise
            # A cached layer lost its content: it is made again, once.
            log.warning("cached layer is damaged", image=self._damaged, error=error.text)
            await self._layers.forget(self._damaged)
        return await self._make(plan)

    async def _make(self, plan: Plan) -> ImageId:
        base = await self._bases.find(plan.base)
        # Errors of the recipe come before a base image is made, which takes 20 s.
        self._steps = await asyncio.to_thread(plan.steps, base.config)
        image = await self._base(base, f"FROM {plan.base.image}")
        await asyncio.to_thread(self._make_keys, image, base.config)
        done = await self._find_all()
        if done is None:
            done = await self._build(image)
        history = [*base.history, *(step.text for step in self._steps)]
        await self._layers.record(done, history)
        return done

    def _make_keys(self, base: ImageId | None, config: ImageConfig) -> None:
        first = base_key(base)
        self._keys = [first, *layer_keys(first, self._steps)]
        self._final_config = self._steps[-1].config if self._steps else config
        self._final_key = image_key(self._keys[-1], self._final_config)

    async def _take_place(self) -> None:
        """Wait until this build may work; looking into the cache needs no place."""
        if not self._has_place:
            await self._places.acquire()
            self._has_place = True

    # --- what is there ----------------------------------------------------------------------------

    async def _base(self, base: FoundBase, text: str) -> ImageId | None:
        image = await self._bases.find_debian() if base.is_debian else base.image
        if image is not None or not base.is_debian:
            self._add_cached(0, text)
            return image
        await self._take_place()
        with self._step(0, text) as output:
            return await self._bases.make_debian(output.text)

    async def _find_all(self) -> ImageId | None:
        """The finished image, if the very same was made before."""
        if self._request.force or any(step.force for step in self._steps):
            return None
        image = await self._layers.find(self._final_key)
        if image is not None:
            self._add_all_cached(len(self._steps))
        return image

    async def _find_start(self, base: ImageId | None) -> tuple[int, ImageId | None]:
        """How many steps are done in a cached layer, and its image."""
        usable = len(self._steps)
        if self._request.force:
            usable = 0
        for number, step in enumerate(self._steps[:usable]):
            if step.force:
                usable = number
                break
        for number in range(usable, 0, -1):
            if self._steps[number - 1].work is not None:
                found = await self._layers.find(self._keys[number])
                if found is not None:
                    return number, found
        return 0, base

    def _add_all_cached(self, count: int) -> None:
        for number, step in enumerate(self._steps[:count], 1):
            self._add_cached(number, step.text)

    def _add_cached(self, number: int, text: str) -> None:
        self._events.add("cached", step=number + 1, steps=len(self._steps) + 1, text=text)

    # --- what is made -----------------------------------------------------------------------------

    async def _build(self, base: ImageId | None) -> ImageId:
        await self._take_place()
        start, image = await self._find_start(base)
        self._add_all_cached(start)
        digests = await self._layers.uploaded(self._steps[start:])
        tree: Tree | None = None
        for number, step in enumerate(self._steps[start:], start + 1):
            if isinstance(step.work, RunWork):
                if tree is not None or image is None:
                    image = await self._save(tree or Tree(), number - 1)
                image, tree = await self._run(number, step, step.work, image), None
                continue
            with self._step(number, step.text) as output:
                if step.warning:
                    output.text(f"warning: {step.warning}", is_error=True)
                if step.work is not None:
                    before = tree or await self._tree(image)
                    tree = await self._executor.put(step, before, digests)
        return await self._finish(tree, image)

    async def _run(self, number: int, step: PlannedStep, work: RunWork, parent: ImageId) -> ImageId:
        key = self._keys[number]
        # Another build may be at the same step just now: it runs once.
        async with self._layers.making(key):
            if not self._is_forced(number):
                found = await self._layers.find(key)
                if found is not None:
                    self._add_cached(number, step.text)
                    return found
            with self._step(number, step.text) as output:
                tree = await self._execute(number, step, work, parent, output)
                return await self._save(tree, number)

    def _is_forced(self, number: int) -> bool:
        return self._request.force or any(step.force for step in self._steps[:number])

    async def _execute(
        self, number: int, step: PlannedStep, work: RunWork, parent: ImageId, output: StepOutput
    ) -> Tree:
        site = await self._bases.site()
        phases_us: dict[str, int] = {}
        try:
            with self._using(parent):
                return await self._executor.run(
                    step, work, parent, site=site, output=output, phases_us=phases_us
                )
        except ImageBuildError as error:
            error.fields.update(step=number + 1, image_id=parent)
            raise
        finally:
            durations = {f"{phase}_us": took_us for phase, took_us in phases_us.items()}
            log.info("build step", step=step.text[:80], **durations)

    async def _save(self, tree: Tree, number: int) -> ImageId:
        """Store what the first ``number`` steps made, with the configuration that follows it."""
        last = number
        while last < len(self._steps) and self._steps[last].work is None:
            last += 1
        config = self._steps[last - 1].config if last else self._final_config
        return await self._layers.save(tree, config, [self._keys[number]])

    async def _finish(self, tree: Tree | None, image: ImageId | None) -> ImageId:
        """The image with the final configuration."""
        if tree is None and image is not None:
            config = await self._layers.config(image)
            if config == self._final_config:
                await self._layers.note(image, [self._final_key])
                return image
        files = tree or await self._tree(image)
        keys = [self._final_key] if tree is None else [self._keys[-1], self._final_key]
        return await self._layers.save(files, self._final_config, keys)

    async def _tree(self, image: ImageId | None) -> Tree:
        if image is None:
            return Tree()
        with self._using(image):
            return await self._layers.tree(image)

    @contextlib.contextmanager
    def _using(self, image: ImageId) -> Iterator[None]:
        """Remember which image was in use when content turned out to be damaged."""
        try:
            yield
        except BlobError:
            self._damaged = image
            raise

    @contextlib.contextmanager
    def _step(self, number: int, text: str) -> Iterator[StepOutput]:
        """A step's events; ``step_done`` only when it went well."""
        place = {"step": number + 1, "steps": len(self._steps) + 1}
        self._events.add("step", text=text, **place)
        started_ns = time.perf_counter_ns()
        yield StepOutput(self._events, number + 1)
        duration_us = (time.perf_counter_ns() - started_ns) // 1_000
        self._events.add("step_done", text=text, duration_us=duration_us, **place)
