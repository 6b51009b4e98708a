"""Finding an OCI runtime, reading what it says, and ending what it leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from hostd.errors import ConfigError
from hostd.runtime.checks import is_static
from hostd.runtime.oci import find_program, is_fixed_runc, parse_version, read_log
from hostd.runtime.spawn import Stdio, end_group, spawn
from hostd.runtime.spec import ContainerExit
from hostd.runtime.sweep import mount_points


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [
        ("runc version 1.1.5+ds1\ncommit: x\nspec: 1.0.2-dev\n", "runc", "1.1.5+ds1"),
        ("crun version 1.8.1\ncommit: y\n", "crun", "1.8.1"),
        ("runsc version release-20240101.0\nspec: 1.1.0\n", "runsc", "release-20240101.0"),
        ("", "thing", "unknown"),
    ],
)
def test_version_is_read_from_the_programs_own_words(text, name, version):
    program = parse_version("/opt/thing", text)

    assert (program.path, program.name, program.version) == ("/opt/thing", name, version)


def test_missing_runtime_is_a_configuration_error():
    with pytest.raises(ConfigError, match=r"runtime\.oci is 'no-such-runtime'"):
        find_program("no-such-runtime")


@pytest.mark.parametrize(
    "version", ["1.3.6", "1.3.7", "1.4.3", "1.5.0", "1.6.1", "2.0.0", "1.5.0+ds1"]
)
def test_fixed_releases_of_runc(version):
    assert is_fixed_runc(version)


@pytest.mark.parametrize(
    "version",
    ["1.1.5+ds1-1+deb12u1", "1.3.5", "1.4.2", "1.2.99", "1.5.0-rc.1", "1.4.3~rc1", "unknown"],
)
def test_releases_of_runc_with_known_holes(version):
    assert not is_fixed_runc(version)


def test_only_errors_of_a_log_are_told(tmp_path):
    records = [
        {"level": "info", "msg": "fine"},
        {"level": "error", "msg": "first"},
        ["odd"],
        {"level": "fatal", "msg": "last"},
    ]
    log = tmp_path / "log.json"
    log.write_text("".join(json.dumps(r) + "\n" for r in records) + "not json\n")

    assert read_log(log) == "first; last"
    assert read_log(tmp_path / "none") == ""


def test_mount_points_below_a_directory_come_in_their_order():
    table = (
        "1 0 0:1 / /run/hostd/a rw - tmpfs t rw\n"
        "2 0 0:1 / /run/hostd2 rw - tmpfs t rw\n"
        "3 0 0:1 / /run/hostd/with\\040space rw - tmpfs t rw\n"
        "4 0 0:1 / /run/hostd/a rw - tmpfs t rw\n"
        "5 0 0:1 / /run/hostd rw - tmpfs t rw\n"
    )

    assert mount_points(Path("/run/hostd"), table) == [
        "/run/hostd/a", "/run/hostd/with space", "/run/hostd/a", "/run/hostd",
    ]  # fmt: skip


def test_static_programs_are_told_from_others():
    assert not is_static(Path("/bin/sh"))
    assert not is_static(Path("/etc/passwd"))


@pytest.mark.parametrize(
    ("ended", "status", "text"),
    [
        (ContainerExit(exit_code=3, signal=None), 3, "exited with status 3"),
        (ContainerExit(exit_code=None, signal=9), 137, "killed by SIGKILL (status 137)"),
        (ContainerExit(exit_code=143, signal=None), 143, "killed by SIGTERM (status 143)"),
        (ContainerExit(exit_code=255, signal=None), 255, "exited with status 255"),
        (
            ContainerExit(exit_code=137, signal=None, oom=True, peak_bytes=5),
            137,
            "killed by the kernel at its memory limit (peak 5 bytes)",
        ),
    ],
)
def test_ends_are_described_for_people(ended, status, text):
    assert (ended.status, ended.describe()) == (status, text)


PATH = {"PATH": "/bin:/usr/bin"}


async def test_spawned_programs_have_default_signals():
    process = spawn(["/bin/sh", "-c", "kill -PIPE $$"], env=PATH, stdio=Stdio())
    status = await process.wait(10)

    assert (os.WIFSIGNALED(status), os.WTERMSIG(status)) == (True, signal.SIGPIPE)


async def test_a_group_is_ended_with_everything_in_it():
    process = spawn(["/bin/sh", "-c", "sleep 300 & sleep 300"], env=PATH, stdio=Stdio())
    await asyncio.wait_for(end_group(process, 10), 10)

    assert not process.is_running
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


async def test_waiting_is_bounded_and_signals_after_the_end_are_harmless():
    process = spawn(["/bin/sleep", "300"], env={}, stdio=Stdio())
    with pytest.raises(TimeoutError):
        await process.wait(0.05)
    process.signal(signal.SIGKILL)
    await process.wait(10)
    process.signal(signal.SIGKILL)

    assert not process.is_running
