"""Unfinished files die with their process, and with no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from hostd.fs.scratch import Scratch

HOLD = """
import sys
from pathlib import Path
from hostd.fs.scratch import Scratch
scratch = Scratch(Path(sys.argv[1]))
Path(scratch.name()).write_text("unfinished")
print(scratch.path, flush=True)
sys.stdin.read()
"""


def test_names_differ_and_close_removes_all(tmp_path: Path):
    scratch = Scratch(tmp_path / "tmp")
    one, two = scratch.name(), scratch.name()
    Path(one).write_text("x")
    assert one != two
    scratch.close()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_living_process_keeps_its_files_and_a_killed_one_loses_them(tmp_path: Path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        mine = Scratch(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([theirs, Path(mine.path)])
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    last = Scratch(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([Path(mine.path), Path(last.path)])


def test_stray_files_and_links_are_removed_and_not_followed(tmp_path: Path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    parent = tmp_path / "tmp"
    parent.mkdir()
    (parent / "stray").write_text("x")
    (parent / "link").symlink_to(kept)
    scratch = Scratch(parent)
    assert [str(path) for path in parent.iterdir()] == [scratch.path]
    assert (kept / "file").exists()


def test_a_forked_child_that_ends_leaves_the_directory_alone(tmp_path: Path):
    scratch = Scratch(tmp_path)
    pid = os.fork()
    if not pid:
        scratch.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert Path(scratch.path).is_dir()
