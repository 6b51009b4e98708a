"""A container from its creation to its end, with real runc."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

import pytest

from hostd.errors import AlreadyExistsError, ContainerStartError, InvalidError
from hostd.runtime import BindMount

pytestmark = pytest.mark.root


@pytest.mark.parametrize("status", [0, 3, 255])
async def test_exit_status_is_the_programs_own(ward, status):
    ended, _ = await ward.run("sh", "-c", f"exit {status}")

    assert (ended.exit_code, ended.signal, ended.status) == (status, None, status)


async def test_program_killed_by_signal_shows_as_a_shell_shows_it(ward):
    with_init, _ = await ward.run("sh", "-c", "kill -SEGV $$")
    without, _ = await ward.begin("sleep", "60", init=False)
    without.signal(signal.SIGKILL)
    ended = await without.wait()

    assert (with_init.exit_code, with_init.status) == (139, 139)
    assert (ended.exit_code, ended.signal, ended.status) == (None, 9, 137)
    assert with_init.describe() == "killed by SIGSEGV (status 139)"


async def test_output_comes_as_lines_of_each_stream(ward):
    _, sink = await ward.run("sh", "-c", "echo one; echo two >&2; echo three; printf rest")

    assert sink.text("stdout") == ["one", "three", "rest"]
    assert sink.text("stderr") == ["two"]


async def test_drain_hands_on_what_is_in_the_pipe_now(ward):
    container, sink = await ward.begin("sh", "-c", "echo one; printf partial; sleep 60")
    await ward.until(lambda: sink.lines)
    container.drain_output(flush=False)
    first = sink.text()
    container.drain_output()

    assert (first, sink.text()) == (["one"], ["one", "partial"])
    await container.delete()


async def test_stdin_is_read_to_its_end(ward):
    data = b"x" * 300_000
    ended, sink = await ward.run(
        "python3", "-c", "import sys; print(len(sys.stdin.read()))", stdin=data
    )

    assert (ended.status, sink.text()) == (0, ["300000"])


async def test_100_mb_of_output_pass_through_bounded(ward):
    code = "import os\nfor _ in range(1600): os.write(1, b'y' * 65535 + b'\\n')"
    ended, sink = await ward.python(code)

    # The runtime's default keeps 100 MiB: 104,857,600 bytes of the 104,857,600 written.
    assert ended.status == 0
    assert sink.bytes == 1600 * 65536


async def test_output_over_the_limit_is_counted_and_dropped(ward, monkeypatch):
    object.__setattr__(ward.runtime._config, "log_bytes_max", 1000)
    ended, sink = await ward.run("sh", "-c", "for i in 1 2 3 4; do printf '%0499d\\n' 1; done")

    assert ended.status == 0
    assert len(sink.text("stdout")) == 2
    assert sink.text("system") == ["1000 bytes of output were dropped after 1000"]


async def test_lines_over_64_kib_come_in_pieces(ward):
    _, sink = await ward.python("print('z' * 200_000)")

    assert [len(line) for line in sink.text()] == [65536, 65536, 65536, 3392]


async def test_missing_program_is_a_start_error_that_leaves_nothing(ward):
    with pytest.raises(ContainerStartError, match="no-such-program"):
        await ward.begin("no-such-program", init=False)

    assert ward.runtime.statistics().containers == 0


async def test_missing_program_under_init_is_told_on_stderr(ward):
    ended, sink = await ward.run("no-such-program")

    assert ended.status != 0
    assert "No such file" in " ".join(sink.text("stderr"))


async def test_user_is_looked_up_in_the_image(ward):
    _, named = await ward.run("id", user="ana")
    _, numbers = await ward.run("id", user="5:7")

    assert named.text() == ["uid=1001(ana) gid=1002(ana) groups=1002(ana),10(wheel)"]
    assert numbers.text() == ["uid=5 gid=7 groups=7"]


async def test_unknown_user_is_a_start_error(ward):
    with pytest.raises(ContainerStartError, match="nobody-here"):
        await ward.begin("true", user="nobody-here")


async def test_environment_cwd_and_hostname_are_as_asked(ward):
    _, sink = await ward.run(
        "sh", "-c", "echo $HOME $PATH $A; pwd; cat /proc/sys/kernel/hostname",
        env={"A": "b c", "PATH": "/bin"}, cwd="/made/here", hostname="blue", user="ana",
    )  # fmt: skip

    assert sink.text() == ["/home/ana /bin b c", "/made/here", "blue"]


@pytest.mark.parametrize("cwd", ["/proc/self/fd", "/sys", "/dev/../proc", "relative"])
async def test_cwd_in_kernel_file_systems_is_refused(ward, cwd):
    with pytest.raises(ContainerStartError, match="working directory"):
        await ward.begin("true", cwd=cwd)


async def test_bind_mounts_are_read_only_unless_asked(ward, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "file").write_text("content\n")
    mounts = [
        BindMount(source=tmp_path / "file", target="/deep/er/file"),
        BindMount(source=tmp_path / "shared", target="/shared", read_only=False),
    ]
    _, sink = await ward.run(
        "sh", "-c", "cat /deep/er/file; touch /shared/new; touch /deep/er/file", mounts=mounts
    )

    assert sink.text() == ["content"]
    assert (tmp_path / "shared/new").exists()
    assert "Read-only file system" in " ".join(sink.text("stderr"))


async def test_links_in_the_image_do_not_lead_mount_points_out(ward, tmp_path):
    root = ward.mount_root()
    (root / "trap").symlink_to(tmp_path)
    (root / "etc/resolv.conf").symlink_to("../run/resolve/stub.conf")
    mount = BindMount(source=tmp_path, target="/trap/inside/target")
    ended, sink = await ward.run("cat", "/etc/resolv.conf", rootfs=root, mounts=[mount])

    assert (ended.status, list(tmp_path.iterdir())) == (0, [])
    assert "nameserver" in sink.text()[0]
    assert (root / "run/resolve/stub.conf").exists()


async def test_image_whose_proc_is_a_link_is_refused(ward, tmp_path):
    root = ward.mount_root()
    (root / "proc").rmdir()
    (root / "proc").symlink_to(tmp_path)

    with pytest.raises(ContainerStartError, match="/proc of the image is not a directory"):
        await ward.begin("true", rootfs=root)


async def test_ids_are_unique_and_plain(ward):
    container, _ = await ward.begin("sleep", "60")
    twin = ward.spec("true")

    with pytest.raises(AlreadyExistsError):
        await ward.runtime.create(
            type(twin)(id=container.id, rootfs=twin.rootfs, args=["true"]), None
        )
    with pytest.raises(InvalidError, match=r"\.\./x"):
        await ward.runtime.create(type(twin)(id="../x", rootfs=twin.rootfs, args=["true"]), None)
    await container.delete()


async def test_several_wait_and_delete_may_be_repeated(ward):
    container, _ = await ward.begin("sleep", "60")
    waiting = [asyncio.ensure_future(container.wait()) for _ in range(3)]
    await asyncio.gather(container.delete(), container.delete())
    await container.delete()

    assert {(await ended).status for ended in waiting} == {137}


async def test_stop_lets_a_program_end_in_peace(ward):
    code = (
        "import signal, sys\n"
        "signal.signal(15, lambda *_: (print('bye'), sys.exit(7)))\n"
        "print('up', flush=True)\n"
        "signal.pause()"
    )
    container, sink = await ward.begin("python3", "-I", "-S", "-c", code)
    await ward.until(lambda: sink.lines)
    ended = await container.stop(grace_s=10)

    assert (ended.status, sink.text()) == (7, ["up", "bye"])
    await container.delete()


async def test_sigterm_ignored_ends_everything_after_the_grace(ward):
    code = "trap '' TERM; sleep 1000 & sleep 1000 & echo up; while :; do sleep 1000; done"
    container, sink = await ward.begin("sh", "-c", code)
    await ward.until(lambda: sink.lines)
    inside = ward.runtime._containers[container.id]._cgroup.processes()
    begun = time.monotonic()
    ended = await container.stop(grace_s=0.3)

    assert len(inside) >= 4
    assert ended.status == 137
    assert 0.3 <= time.monotonic() - begun < 2
    assert not [pid for pid in inside if os.path.exists(f"/proc/{pid}")]
    await container.delete()


async def test_container_that_was_never_started_is_deleted(ward):
    container = await ward.runtime.create(ward.spec("sleep", "60"), None)
    ended = await container.stop(grace_s=5)
    await container.delete()

    assert ended.signal == signal.SIGKILL


async def test_cancelled_creation_leaves_nothing(ward):
    for delay in (0.002, 0.01, 0.02, 0.03):
        creating = ward.runtime.create(ward.spec("sleep", "60"), None)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(creating, delay)

    for container in list(ward.runtime._containers.values()):
        await container.delete()  # One may have been made in time.


async def test_close_ends_all_containers(ward):
    containers = [(await ward.begin("sleep", "60"))[0] for _ in range(3)]
    await ward.runtime.close()

    assert not [c for c in containers if c.is_running]


async def test_many_containers_at_once(ward):
    async with asyncio.TaskGroup() as group:
        ended = [group.create_task(ward.run("sh", "-c", f"exit {n}")) for n in range(24)]

    assert [(await task)[0].status for task in ended] == list(range(24))
