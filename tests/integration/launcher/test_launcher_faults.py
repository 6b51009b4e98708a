"""What callers are told when a container cannot start, dies or misbehaves."""

from __future__ import annotations

import asyncio
import pickle
import stat
from typing import Any

import pytest

from hostd.errors import (
    BlobCorruptError,
    BlobMissingError,
    ContainerExitedError,
    ContainerStartError,
    FunctionImportError,
    NotFoundError,
    OutOfMemoryError,
    TimeoutError,
)
from hostd.fs import Tree, directory
from hostd.ids import ImageId
from hostd.model import ImageConfig


def arguments(*args: Any) -> bytes:
    return pickle.dumps((args, {}))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("sys.exit(3)", {"exit_code": 3}),
        ("os._exit(4)", {"exit_code": 4}),
        ("os.kill(os.getpid(), 9)", {"signal": 9}),
        ("os.abort()", {"signal": 6}),
    ],
)
async def test_exit_in_an_input_is_reported_with_its_code(
    host: Any, body: str, field: dict[str, int]
) -> None:
    handle, events = await host.start(f"import os, sys\ndef f():\n    {body}\n")
    handle.send_input(1, arguments())
    error = await events.error()
    assert isinstance(error, ContainerExitedError)
    assert error.fields == field
    assert events.outputs.empty()


async def test_out_of_memory_names_limit_and_peak(host: Any) -> None:
    handle, events = await host.start(
        "def f():\n    return len(b'x' * (1 << 30))\n", memory_limit_mib=64
    )
    handle.send_input(1, arguments())
    error = await events.error()
    assert isinstance(error, OutOfMemoryError)
    assert error.fields["limit_bytes"] == 64 * 2**20
    assert error.fields["peak_bytes"] > 8 * 2**20
    assert "64 MiB" in str(error)


async def test_import_error_carries_the_users_traceback(host: Any) -> None:
    _, events = host.launch(host.function("import nothing_like_this\n"))
    error = await events.error()
    assert isinstance(error, FunctionImportError)
    assert "needs module nothing_like_this" in str(error)
    assert 'File "/root/app.py", line 1, in <module>' in str(error)
    assert not events.ready.done()


async def test_exit_while_importing_ends_with_the_last_lines(host: Any) -> None:
    text = "import os\nfor i in range(30): print('line', i)\nos._exit(7)\n"
    _, events = host.launch(host.function(text))
    error = await events.error()
    assert isinstance(error, ContainerExitedError)
    assert error.fields["exit_code"] == 7
    assert "while it was loading the function" in str(error)
    assert "  line 10\n" in str(error)
    assert str(error).endswith("  line 29")
    assert "line 9\n" not in str(error)


async def test_start_that_takes_too_long_is_a_timeout(host: Any) -> None:
    text = "import time\nprint('sleeping', flush=True)\ntime.sleep(60)\n"
    _, events = host.launch(host.function(text, startup_timeout_s=2.0))
    error = await events.error()
    assert isinstance(error, TimeoutError)
    assert "not ready within 2 s, it was loading the function" in str(error)
    assert str(error).endswith("  sleeping")


async def test_image_without_python_is_a_start_error(host: Any) -> None:
    root = directory(0o755, mtime_ns=0)
    image = host.images.save(Tree(root), ImageConfig())
    _, events = host.launch(host.function("def f(): pass\n", image=image))
    error = await events.error()
    assert isinstance(error, ContainerStartError)
    assert "has no python3 on its PATH" in str(error)
    assert "Python 3.8" in str(error.hint)


async def test_image_whose_python_does_not_run_says_what_it_printed(host: Any) -> None:
    script = "#!/bin/sh\necho this is no python\nexit 9\n"
    digest = host.cas.put_bytes(script.encode())
    tree = host.images.tree(host.image)
    layer = host.images.source_index(
        [("/opt/python3", digest, 0o755, "file", None)], base=host.image
    )
    config = ImageConfig(env={"PATH": "/opt:/usr/bin:/bin"})
    image = host.images.save(tree, config)
    function = host.function("def f(): pass\n", image=image)
    from dataclasses import replace

    function = replace(function, layers=(function.layers[0], layer, image))
    _, events = host.launch(function)
    error = await events.error()
    assert isinstance(error, ContainerStartError)
    assert "exited with status 9" in str(error)
    assert str(error).endswith("  this is no python")


async def test_unknown_image_is_reported(host: Any) -> None:
    from dataclasses import replace

    function = host.function("def f(): pass\n")
    function = replace(function, layers=(ImageId("im-" + "0" * 26),))
    _, events = host.launch(function)
    assert isinstance(await events.error(), NotFoundError)


async def test_corrupt_blob_of_the_source_is_reported(host: Any) -> None:
    text = "# " + "x" * 5000 + "\ndef f(): pass\n"
    function = host.function(text)
    blob = next(d for d in host.images.blobs(function.layers[0]) if host.cas.size(d) > 5000
                and host.cas.read(d).startswith(b"# x"))  # fmt: skip
    path = host.cas.path(blob)
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    path.write_bytes(b"# y" + path.read_bytes()[3:])
    _, events = host.launch(function)
    assert isinstance(await events.error(), BlobCorruptError | BlobMissingError)


async def test_runner_that_breaks_the_protocol_is_killed(host: Any) -> None:
    handle, events = await host.start("""
        import os
        def f():
            for fd in range(3, 20):
                try:
                    os.write(fd, b"G" * 64)
                except OSError:
                    pass
            import time
            time.sleep(60)
    """)
    handle.send_input(1, arguments())
    error = await events.error()
    assert isinstance(error, ContainerExitedError)
    assert "broke the protocol" in str(error)


async def test_runner_that_closes_the_connection_and_lives_on_is_killed(host: Any) -> None:
    handle, events = await host.start("""
        import os, time
        def f():
            os.closerange(3, 100)
            time.sleep(60)
    """)
    handle.send_input(1, arguments())
    error = await events.error()
    assert isinstance(error, ContainerExitedError)
    assert "closed the connection" in str(error)


async def test_kill_from_outside_is_an_exit_by_itself(host: Any) -> None:
    import os

    handle, events = await host.start("def f(): pass\n")
    os.kill(handle.pid, 9)
    error = await events.error()
    assert isinstance(error, ContainerExitedError)
    assert error.fields == {"signal": 9}


async def test_calls_on_an_ended_container_do_nothing(host: Any) -> None:
    handle, events = await host.start("def f(): pass\n")
    handle.stop(grace_s=1)
    await events.error()
    handle.send_input(1, arguments())
    handle.cancel_input(1)
    handle.stop()
    handle.kill()
    await host.wait_cleaned()
    assert handle.usage() is not None
    await asyncio.sleep(0)
    assert events.outputs.empty()
