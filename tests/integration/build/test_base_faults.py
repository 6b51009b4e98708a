"""mmdebstrap that is absent, fails, or hangs."""

import asyncio

import pytest

from hostd.build import base
from hostd.build.site import gather
from hostd.config import BuildConfig
from hostd.errors import ImageBuildError
from hostd.fs import CAS
from tests.integration.build.workshop import wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture
def cas(tmp_path):
    opened = CAS(tmp_path / "cas")
    yield opened
    opened.close()


@pytest.fixture
def mmdebstrap(tmp_path, monkeypatch):
    """Puts a shell script in the place of the program."""

    def install(script):
        folder = tmp_path / "bin"
        folder.mkdir()
        if script is not None:
            program = folder / "mmdebstrap"
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return install


async def make(tmp_path, cas, lines):
    root = tmp_path / "host"
    site = gather(BuildConfig(), suite="bookworm", environ={}, home=root, root=root, apt_dump="")
    return await base.make_tree(site, scratch=tmp_path / "scratch", cas=cas, line=lines.append)


async def test_absent_program_is_named(tmp_path, cas, mmdebstrap):
    mmdebstrap(None)
    with pytest.raises(ImageBuildError, match="mmdebstrap is not installed") as caught:
        await make(tmp_path, cas, [])
    assert "apt-get install mmdebstrap" in caught.value.hint
    assert not (tmp_path / "scratch").exists()


async def test_failure_shows_the_last_lines(tmp_path, cas, mmdebstrap):
    mmdebstrap("seq 1 50; echo 'E: no mirror' >&2; exit 25")
    lines = []
    with pytest.raises(ImageBuildError, match="status 25") as caught:
        await make(tmp_path, cas, lines)
    assert lines[-1] == "E: no mirror"
    assert len(lines) == 51
    assert caught.value.fields["output"][-1] == "E: no mirror"
    assert len(caught.value.fields["output"]) == base.OUTPUT_TAIL
    assert not (tmp_path / "scratch").exists()


async def test_arguments_environment_and_result(tmp_path, cas, mmdebstrap):
    mmdebstrap(
        'for last; do :; done; echo "$@"; cat "$last"; env\n'
        'eval "target=\\${$(($# - 1))}"; mkdir -p "$target/etc" && echo 1 > "$target/etc/made"'
    )
    lines = []
    tree = await make(tmp_path, cas, lines)
    assert tree.lookup(b"/etc/made").inline == b"1\n"
    assert "--variant=minbase" in lines[0]
    assert "deb http://deb.debian.org/debian bookworm main" in lines
    assert f"SOURCE_DATE_EPOCH={base.EPOCH_S}" in lines


async def test_cancelled_run_leaves_no_process_and_no_files(tmp_path, cas, mmdebstrap):
    mmdebstrap("echo begun; sleep 1000")
    lines = []
    task = asyncio.create_task(make(tmp_path, cas, lines))
    await wait_until(lambda: lines == ["begun"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not (tmp_path / "scratch").exists()


async def test_run_that_takes_too_long_is_ended(tmp_path, cas, mmdebstrap, monkeypatch):
    monkeypatch.setattr(base, "TIMEOUT_S", 0.3)
    mmdebstrap("sleep 1000")
    with pytest.raises(ImageBuildError, match="did not end within"):
        await make(tmp_path, cas, [])
