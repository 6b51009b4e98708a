"""What is built once is not built again, and what is built at once is built once."""

import asyncio
import time

import pytest

from hostd.errors import CancelledError, from_problem
from hostd.fs import Node
from hostd.model import BuildRequest, Cmd, Copy, From, Label, Recipe, Run, Workdir
from tests.integration.build.workshop import wait_until

pytestmark = pytest.mark.anyio
DEBIAN = From(image="debian_slim")


def request(*steps, **more):
    return BuildRequest(recipe=Recipe(steps=[DEBIAN, *steps]), **more)


async def test_rebuild_with_nothing_changed_does_no_work(workshop):
    steps = [DEBIAN, Workdir(path="/w"), Run(command="echo 1 > a"), Run(command="echo 2 > b")]
    image = await workshop.build(*steps)
    before = workshop.containers
    started = time.perf_counter()
    events = await workshop.events(*steps)
    took_s = time.perf_counter() - started
    assert [event.kind for event in events] == ["cached"] * 4 + ["done"]
    assert events[-1].image_id == image
    assert workshop.containers == before
    assert took_s < 1


async def test_only_steps_after_a_change_run_again(workshop):
    first = [DEBIAN, Run(command="echo one > /one")]
    await workshop.build(*first, Run(command="echo a > /two"))
    before = workshop.containers
    events = await workshop.events(*first, Run(command="echo b > /two"))
    kinds = [event.kind for event in events if event.kind != "line"]
    assert kinds == ["cached", "cached", "step", "step_done", "done"]
    assert workshop.containers == before + 1
    assert workshop.read(events[-1].image_id, "/one") == b"one\n"


async def test_changed_configuration_runs_nothing(workshop):
    run = Run(command="echo c > /configured")
    first = await workshop.build(DEBIAN, run, Cmd(args=["one"]))
    before = workshop.containers
    second = await workshop.build(DEBIAN, Label(labels={"a": "b"}), run, Cmd(args=["two"]))
    assert workshop.containers == before
    assert first != second
    assert workshop.images.manifest(second).config.cmd == ("two",)
    assert workshop.images.manifest(second).index == workshop.images.manifest(first).index


async def test_changed_file_runs_what_follows(workshop):
    async def build(content):
        file = await workshop.upload("/srv/input", content)
        return await workshop.build(DEBIAN, Copy(files=[file]), Run(command="cp /srv/input /out"))

    first, second = await build(b"first"), await build(b"second")
    assert workshop.read(first, "/out") == b"first"
    assert workshop.read(second, "/out") == b"second"
    before = workshop.containers
    assert await build(b"first") == first
    assert workshop.containers == before


async def test_force_runs_everything_after_the_base(workshop):
    steps = [DEBIAN, Run(command="cat /proc/sys/kernel/random/uuid > /id")]
    first = await workshop.build(*steps)
    second = await workshop.build(*steps, force=True)
    assert workshop.read(first, "/id") != workshop.read(second, "/id")
    assert await workshop.build(*steps) == second


async def test_forced_step_runs_with_those_after_it(workshop):
    before = Run(command="cat /proc/sys/kernel/random/uuid > /before")
    after = Run(command="cat /proc/sys/kernel/random/uuid > /after")
    forced = Run(command="true", force=True)
    first = await workshop.build(DEBIAN, before, forced, after)
    second = await workshop.build(DEBIAN, before, forced, after)
    assert workshop.read(first, "/before") == workshop.read(second, "/before")
    assert workshop.read(first, "/after") != workshop.read(second, "/after")


async def test_two_identical_builds_at_once_run_once(workshop):
    before = workshop.containers
    wanted = request(Run(command="echo together; sleep 0.3"), name="together")
    first = workshop.builder.build(wanted)
    second = workshop.builder.build(request(Run(command="echo together; sleep 0.3"), name="other"))
    assert first is second
    logs = await asyncio.gather(workshop.follow(first), workshop.follow(second))
    assert logs[0] == logs[1]
    assert workshop.containers == before + 1
    for name in ("together", "other"):
        assert (await workshop.store.image(name)).id == first.image_id


async def test_different_builds_share_a_step_that_runs(workshop):
    before = workshop.containers
    shared = Run(command="sleep 0.3; echo shared > /shared")
    builds = [
        workshop.builder.build(request(shared, Run(command=f"echo {n} > /own"))) for n in range(2)
    ]
    await asyncio.gather(*map(workshop.follow, builds))
    assert workshop.containers == before + 3
    assert workshop.read(builds[1].image_id, "/own") == b"1\n"


async def test_late_reader_sees_the_log_from_the_start(workshop):
    build = workshop.builder.build(request(Run(command="echo early; sleep 0.2; echo late")))
    whole = await workshop.follow(build)
    assert await workshop.follow(workshop.builder.find(build.id)) == whole
    assert [e.seq for e in whole] == list(range(len(whole)))
    rest = [event async for event in build.events(after=2)]
    assert rest == whole[2:]


async def test_build_without_readers_is_cancelled_and_leaves_nothing(workshop, monkeypatch):
    monkeypatch.setattr("hostd.build.service.ABANDONED_S", 0.2)
    build = workshop.builder.build(request(Run(command="echo started; sleep 1000")))
    reader = build.events()
    async for event in reader:
        if event.text == "started":
            break
    assert workshop.runtime.statistics().containers == 1
    await reader.aclose()
    await wait_until(lambda: build.log.is_closed)
    events = await workshop.follow(build)
    assert isinstance(from_problem(events[-1].problem), CancelledError)
    assert workshop.runtime.statistics().containers == 0
    assert workshop.fs.statistics().rootfs == 0


async def test_build_that_is_read_again_goes_on(workshop, monkeypatch):
    monkeypatch.setattr("hostd.build.service.ABANDONED_S", 0.3)
    build = workshop.builder.build(request(Run(command="echo on; sleep 0.6")))
    reader = build.events()
    async for event in reader:
        if event.text == "on":
            break
    await reader.aclose()
    assert (await workshop.follow(build))[-1].kind == "done"


async def test_identical_request_after_a_cancelled_build_begins_anew(workshop, monkeypatch):
    monkeypatch.setattr("hostd.build.service.ABANDONED_S", 0.0)
    wanted = request(Run(command="sleep 0.05; echo anew"))
    first = workshop.builder.build(wanted)
    await wait_until(lambda: first.log.is_closed)
    monkeypatch.undo()
    second = workshop.builder.build(wanted)
    assert (await workshop.follow(second))[-1].kind == "done"


async def test_damaged_layer_is_built_again(workshop):
    make = Run(command="head -c 50000 /dev/zero | tr '\\0' a > /blob")
    image = await workshop.build(DEBIAN, make)
    index = workshop.images.open_index(image)
    digest = index.digest(index.resolve(b"/blob"))
    path = workshop.cas.path(digest)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(b"b" + data[1:])
    # The image is mounted already; a new daemon would look at it as this one does now.
    await workshop.fs.forget_image(image)
    again = await workshop.build(DEBIAN, make, Run(command="head -c 3 /blob > /head"))
    assert workshop.read(again, "/head") == b"aaa"


async def test_layer_whose_image_was_deleted_runs_again(workshop):
    step = Run(command="echo gone > /gone")
    image = await workshop.build(DEBIAN, step)
    workshop.images.delete(image)
    before = workshop.containers
    again = await workshop.build(DEBIAN, step)
    assert workshop.containers == before + 1
    assert workshop.read(again, "/gone") == b"gone\n"


async def test_long_output_keeps_its_end(workshop):
    events = await workshop.events(DEBIAN, Run(command="seq 1 60000"))
    assert events[-1].kind == "done"
    lines = [event.text for event in events if event.kind == "line"]
    assert lines[-1] == "60000"
    late = await workshop.follow(workshop.builder.build(request(Run(command="seq 1 60000"))))
    assert late[-1].kind == "done"


async def test_tree_is_the_same_as_its_index(workshop):
    image = await workshop.build(DEBIAN, Run(command="mkdir /same && echo 1 > /same/file"))
    node = workshop.images.tree(image).lookup(b"/same/file")
    assert isinstance(node, Node)
    assert node.inline == b"1\n"
