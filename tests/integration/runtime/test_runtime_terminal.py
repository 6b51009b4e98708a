"""Programs that are executed later, with pipes and with a terminal."""

from __future__ import annotations

import asyncio
import signal

import pytest

from hostd.errors import ConflictError, ContainerStartError

pytestmark = pytest.mark.root


async def read_all(process) -> dict[str, bytes]:
    texts = {"stdout": b"", "stderr": b""}
    while piece := await process.read():
        texts[piece[0]] += piece[1]
    return texts


async def read_until(process, wanted: bytes) -> bytes:
    text = b""
    async with asyncio.timeout(20):
        while wanted not in text:
            piece = await process.read()
            assert piece is not None, text
            text += piece[1]
    return text


@pytest.fixture
async def container(ward):
    made, _ = await ward.begin("sleep", "600", env={"A": "1"}, user="ana", cwd="/home/ana")
    yield made
    await made.delete()


async def test_exec_gives_status_and_both_streams(container):
    process = await container.exec(["sh", "-c", "echo out; echo err >&2; exit 5"])
    texts = await read_all(process)

    assert texts == {"stdout": b"out\n", "stderr": b"err\n"}
    assert await process.wait() == 5
    await process.close()


async def test_exec_runs_as_the_containers_user_in_its_place(container):
    process = await container.exec(["sh", "-c", "id -u; pwd; echo $A $B"], env={"B": "2"})

    assert (await read_all(process))["stdout"] == b"1001\n/home/ana\n1 2\n"
    await process.close()


async def test_exec_reads_its_input_to_the_end(container):
    process = await container.exec(["cat"])
    sent = b"line\n" * 50_000
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read_all(process))
        assert await process.write(sent)
        await process.write_eof()

    assert reading.result()["stdout"] == sent
    assert await process.wait() == 0
    await process.close()


async def test_writing_to_a_process_that_ended_is_told(container):
    process = await container.exec(["true"])
    await process.wait()

    assert not await process.write(b"x")
    await process.close()


async def test_children_that_keep_the_streams_do_not_hold_up_the_end(container):
    process = await container.exec(["sh", "-c", "sleep 500 & echo done"])
    async with asyncio.timeout(10):
        texts = await read_all(process)

    assert texts["stdout"] == b"done\n"
    await process.close()


async def test_missing_program_is_named(container):
    with pytest.raises(ContainerStartError, match="not-there"):
        await container.exec(["not-there"])


async def test_exec_has_the_limits_of_the_container(container):
    process = await container.exec(["cat", "/proc/self/status"])
    status = dict(
        line.split(":\t")
        for line in (await read_all(process))["stdout"].decode().splitlines()
        if ":\t" in line
    )

    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["CapEff"], 16) == 0
    assert process.pid in container._cgroup.processes() or await process.wait() == 0
    await process.close()


async def test_close_ends_a_running_exec(container):
    process = await container.exec(["sleep", "500"])
    process.signal(signal.SIGSTOP)
    await process.close()

    assert await process.wait() == 137


async def test_container_ends_at_once_with_execs_running(container):
    processes = [await container.exec(["sleep", "500"]) for _ in range(3)]
    async with asyncio.timeout(2):
        await container.stop(grace_s=0)

    assert [await p.wait() for p in processes] == [137, 137, 137]
    for process in processes:
        await process.close()


async def test_exec_in_an_ended_container_is_a_conflict(container):
    await container.stop(grace_s=0)

    with pytest.raises(ConflictError):
        await container.exec(["true"])


async def test_terminal_echoes_obeys_resize_and_interrupt(container):
    process = await container.exec(["sh"], tty=(24, 80), env={"PS1": "$ "})
    await read_until(process, b"$ ")
    await process.write(b"stty size\n")
    first = await read_until(process, b"24 80")
    process.resize(40, 132)
    await process.write(b"stty size\n")
    await read_until(process, b"40 132")
    await process.write(b"sleep 500\n")
    await read_until(process, b"sleep 500\r\n")
    await asyncio.sleep(0.05)
    await process.write(b"\x03")
    await read_until(process, b"$ ")
    await process.write(b"exit 9\n")
    await read_all(process)

    assert b"stty size\r\n" in first
    assert await process.wait() == 9
    await process.close()


async def test_end_of_file_ends_a_shell_on_a_terminal(container):
    process = await container.exec(["sh"], tty=(24, 80))
    await process.write_eof()
    await read_all(process)

    assert await process.wait() == 0
    await process.close()


async def test_container_with_a_terminal_is_a_shell(ward):
    container, sink = await ward.begin("sh", tty=(30, 100), env={"PS1": "$ "}, profile="shell")
    await read_until(container.terminal, b"$ ")
    await container.terminal.write(b"stty size; echo $TERM; ls -l /proc/self/fd/0\n")
    text = await read_until(container.terminal, b"/dev/")
    container.terminal.resize(31, 101)
    await container.terminal.write(b"stty size; exit 4\n")
    text += await read_until(container.terminal, b"31 101")
    ended = await container.wait()
    await container.delete()

    assert b"30 100" in text
    assert b"xterm" in text
    assert (ended.status, sink.lines) == (4, [])


async def test_deleting_hangs_up_a_terminal(ward):
    container, _ = await ward.begin("sh", tty=(30, 100))
    await container.delete()

    assert await container.terminal.read() is None
