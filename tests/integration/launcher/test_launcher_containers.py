"""Functions in real containers: starts, answers, lines, cancels, ends."""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
import time
from typing import Any

import cloudpickle
import pytest

from hostd.model import PHASES


def arguments(*args: Any) -> bytes:
    return pickle.dumps((args, {}))


async def test_function_answers_from_its_container(host: Any) -> None:
    handle, events = await host.start("""
        import os
        print("importing")
        def f(x):
            print("called with", x)
            own = [os.environ["HOSTD_" + name] for name in ("IS_REMOTE", "CONTAINER_ID")]
            return x + 1, os.getcwd(), own
    """)
    handle.send_input(1, arguments(41), call_id="fc-1", input_id="fc-1:0")
    assert await events.value() == (42, "/root", ["1", handle.id])
    assert events.states == ["pulling", "creating", "starting", "warming"]
    assert events.story == [b"importing", b"called with 41", ("output", 1)]
    assert handle.pid is not None
    assert handle.usage().memory_bytes > 0


async def test_phases_of_a_start_add_up_to_its_wall_time(host: Any) -> None:
    function = host.function("import time\ntime.sleep(0.05)\ndef f(): pass\n")
    begun = time.perf_counter()
    _, events = host.launch(function)
    await events.is_ready()
    wall_us = (events.ready_at - begun) * 1e6
    assert set(events.phases_us) <= set(PHASES)
    assert events.phases_us["import"] >= 50_000
    assert abs(sum(events.phases_us.values()) - wall_us) < 2_000 + 0.02 * wall_us


async def test_inputs_sent_at_launch_run_as_soon_as_it_is_ready(host: Any) -> None:
    handle, events = host.launch(host.function("def f(x): return x\n"))
    handle.send_input(1, arguments("early"))
    handle.send_input(2, arguments("never"))
    handle.cancel_input(2)
    assert await events.value() == "early"
    token, status, fields, _ = await events.outputs.get()
    assert (token, status, json.loads(fields[0])["code"]) == (2, "failed", "cancelled")


async def test_stop_ends_an_idle_container_cleanly(host: Any) -> None:
    handle, events = await host.start("""
        import atexit
        atexit.register(print, "goodbye")
        def f(): pass
    """)
    begun = time.perf_counter()
    handle.stop()
    assert await events.error() is None
    assert time.perf_counter() - begun < 5
    assert events.lines == [("stdout", b"goodbye")]
    await host.wait_cleaned()
    assert not (host.run_dir / "ct" / handle.id).exists()


async def test_stop_kills_what_does_not_end(host: Any) -> None:
    handle, events = await host.start("""
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        def f():
            print("begun")
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    pass
    """)
    handle.send_input(1, arguments())
    handle.stop(grace_s=0.2)
    assert await events.error() is None


async def test_kill_shortens_the_grace_of_a_stop(host: Any) -> None:
    handle, events = await host.start("""
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        def f(): time.sleep(60)
    """)
    handle.send_input(1, arguments())
    handle.stop(grace_s=60)
    handle.kill()
    assert await events.error() is None


async def test_stop_before_it_is_ready_leaves_nothing(host: Any) -> None:
    handles = [host.launch(host.function("def f(): pass\n")) for _ in range(4)]
    for number, (handle, events) in enumerate(handles):
        await host.until(lambda: len(events.states) >= number)  # noqa: B023
        handle.stop(grace_s=1)
    for _, events in handles:
        assert await events.error() is None
    await host.wait_cleaned()
    assert host.runtime.statistics().containers == 0


async def test_cancel_interrupts_the_running_input_only(host: Any) -> None:
    handle, events = await host.start("""
        import time
        def f(seconds):
            print("begun")
            time.sleep(seconds)
            return "done"
    """)
    handle.send_input(1, arguments(60))
    await host.until(lambda: events.lines)
    handle.cancel_input(1)
    handle.cancel_input(99)
    token, status, fields, _ = await events.outputs.get()
    assert (token, status, json.loads(fields[0])["code"]) == (1, "failed", "cancelled")
    handle.send_input(2, arguments(0))
    assert await events.value() == "done"


async def test_serialized_closure_runs_with_a_cloudpickle_of_ours(host: Any) -> None:
    offset = 2
    blob = cloudpickle.dumps(lambda x: x + offset)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    function = host.function(
        serialized_digest=host.cas.put_bytes(blob), module="", python_version=version
    )
    handle, events = host.launch(function)
    await asyncio.wait({events.ready, events.exited}, return_when="FIRST_COMPLETED")
    if events.exited.done():
        error, _ = events.exited.result()
        assert error.code == "version_mismatch"  # the image has another Python than the tests
        pytest.skip("not here: the system's python3 has another version than the tests")
    handle.send_input(1, arguments(40))
    assert await events.value() == 42


async def test_the_sdk_of_the_host_is_importable_in_the_container(host: Any) -> None:
    handle, events = await host.start("""
        import hostd
        app = hostd.App("mine")
        @app.function()
        def f():
            return hostd.is_local(), hostd.current_input_id(), hostd.__file__
    """)
    handle.send_input(1, arguments(), call_id="fc-1", input_id="fc-1:0")
    local, input_id, path = await events.value()
    assert (local, input_id) == (False, "fc-1:0")
    assert path == "/run/hostd/lib/hostd/__init__.py"


async def test_standard_library_and_packages_of_the_image_are_importable(host: Any) -> None:
    handle, events = await host.start("""
        import ssl, sqlite3, ctypes, site, sys
        def f():
            return sys.path[0], sys.path[-1], any("dist-packages" in p for p in sys.path), sys.argv
    """)
    handle.send_input(1, arguments())
    assert await events.value() == ("/root", "/run/hostd/lib", True, ["f"])


async def test_multiprocessing_works_in_its_three_ways(host: Any) -> None:
    handle, events = await host.start("""
        import multiprocessing
        def double(x):
            return 2 * x
        def f(method):
            with multiprocessing.get_context(method).Pool(1) as pool:
                return pool.map(double, [1, 2])
    """)
    for token, method in enumerate(("fork", "spawn", "forkserver"), 1):
        handle.send_input(token, arguments(method))
        assert await events.value() == [2, 4]


async def test_container_cannot_write_what_it_was_given(host: Any) -> None:
    handle, events = await host.start("""
        import os
        def f():
            found = []
            for path in ("/run/hostd/io/x", "/run/hostd/io/cancel", "/run/hostd/lib/x"):
                try:
                    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
                    found.append(path)
                except OSError:
                    pass
            return found, os.path.exists("/run/hostd/io/runner.sock")
    """)
    handle.send_input(1, arguments())
    assert (await events.value())[0] == []


async def test_non_root_users_of_an_image_can_run_functions(host: Any) -> None:
    from hostd.model import ImageConfig

    tree = host.images.tree(host.image)
    config = ImageConfig(env={"PATH": "/usr/bin"}, user="1000:1000", workdir="/srv")
    image = host.images.save(tree, config)
    handle, events = await host.start(
        "import os\ndef f(): return os.getuid(), os.getcwd()\n", image=image
    )
    handle.send_input(1, arguments())
    assert await events.value() == (1000, "/srv")


async def test_eight_containers_start_at_once_and_answer(host: Any) -> None:
    function = host.function("def f(x): return x\n")
    pairs = [host.launch(function) for _ in range(8)]
    for number, (handle, events) in enumerate(pairs):
        handle.send_input(1, arguments(number))
        assert await events.value() == number
