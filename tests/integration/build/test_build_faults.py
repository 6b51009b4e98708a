"""Builds that are stopped, take too long, or meet a bug of ours."""

import asyncio
from itertools import pairwise

import pytest

from hostd.config import BuildConfig
from hostd.errors import (
    ConflictError,
    DaemonStoppedError,
    ImageBuildError,
    InternalError,
    NotFoundError,
    from_problem,
)
from hostd.ids import BuildId
from hostd.model import BuildRequest, From, Recipe, Run
from tests.integration.build.workshop import open_workshop, wait_until

pytestmark = pytest.mark.anyio
DEBIAN = From(image="debian_slim")


def request(command):
    return BuildRequest(recipe=Recipe(steps=[DEBIAN, Run(command=command)]))


async def test_step_that_takes_too_long_is_ended(workshop, monkeypatch):
    monkeypatch.setattr("hostd.build.executor.STEP_TIMEOUT_S", 0.5)
    error = await workshop.failure(DEBIAN, Run(command="echo slow; sleep 1000 & wait"))
    assert isinstance(error, ImageBuildError)
    assert "ran longer than" in error.text
    assert error.fields["output"] == ["slow"]
    assert workshop.runtime.statistics().containers == 0


async def test_background_process_does_not_outlive_its_step(workshop):
    image = await workshop.build(DEBIAN, Run(command="sleep 1000 > /dev/null 2>&1 & echo 1 > /bg"))
    assert workshop.read(image, "/bg") == b"1\n"
    assert workshop.runtime.statistics().containers == 0


async def test_bug_fails_the_build_and_not_the_builder(workshop, monkeypatch):
    def broken(*_args, **_more):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(workshop.builder.executor, "run", broken)
    error = await workshop.failure(DEBIAN, Run(command="echo bug"))
    assert isinstance(error, InternalError)
    monkeypatch.undo()
    assert await workshop.build(DEBIAN, Run(command="echo bug"))


async def test_unknown_build_is_not_found(workshop):
    with pytest.raises(NotFoundError):
        workshop.builder.find(BuildId("bd-none"))


async def test_builds_wait_for_a_place(tmp_path):
    async with open_workshop(tmp_path / "data", BuildConfig(parallel=1)) as workshop:
        command = "cat /proc/uptime > /span; sleep 0.3; cat /proc/uptime >> /span; echo "
        builds = [workshop.builder.build(request(f"{command}{number}")) for number in range(3)]
        await asyncio.gather(*map(workshop.follow, builds))
        spans = sorted(
            [float(line.split()[0]) for line in workshop.read(build.image_id, "/span").splitlines()]
            for build in builds
        )
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


async def test_stopping_the_daemon_ends_builds_and_says_so(tmp_path):
    async with open_workshop(tmp_path / "data", BuildConfig()) as workshop:
        build = workshop.builder.build(request("echo begun; sleep 1000"))
        follow = asyncio.create_task(workshop.follow(build))
        await wait_until(lambda: workshop.runtime.statistics().containers == 1)
        runtime, fs = workshop.runtime, workshop.fs
        workshop.stop_builder()
        events = await follow
        assert isinstance(from_problem(events[-1].problem), DaemonStoppedError)
        await wait_until(lambda: fs.statistics().rootfs == 0)
        assert runtime.statistics().containers == 0
        with pytest.raises(ConflictError):
            workshop.builder.build(request("true"))
