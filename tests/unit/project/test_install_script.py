"""install.sh, as far as it can be shown without installing: usage, dry run, cut off downloads."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "install.sh"
TEXT = SCRIPT.read_text()


def install(*arguments, script=SCRIPT, **kwargs):
    return subprocess.run(
        ["sh", str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        **kwargs,
    )


def test_help_is_the_head_comment():
    done = install("--help")
    assert done.returncode == 0
    for option in (
        "--prefix",
        "--data-dir",
        "--dry-run",
        "--no-start",
        "--uninstall",
        "--keep-data",
    ):
        assert option in done.stdout
    assert "#!/bin/sh" not in done.stdout


def test_dry_run_changes_nothing_and_names_every_step(tmp_path):
    prefix, data = tmp_path / "opt", tmp_path / "data"
    done = install("--dry-run", "--prefix", prefix, "--data-dir", data)
    assert done.returncode == 0, done.stderr
    assert f"would run: mkdir -p {prefix}/versions" in done.stdout
    assert f"would write: {prefix}/uninstall.sh" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_removal_changes_nothing(tmp_path):
    prefix, data = tmp_path / "opt", tmp_path / "data"
    for path in (prefix, data):
        path.mkdir()
    done = install("--uninstall", "--dry-run", "--prefix", prefix, "--data-dir", data)
    assert done.returncode == 0, done.stderr
    assert str(prefix) in done.stdout
    assert prefix.is_dir()
    assert data.is_dir()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--frobnicate"], "--frobnicate is not an option"),
        (["--prefix"], "--prefix needs a value"),
        (["--prefix", "/usr", "--dry-run"], "/usr cannot be a directory of hostd's own"),
        (["--data-dir", "/var/lib/", "--dry-run"], "/var/lib cannot be a directory of hostd's own"),
        (["--data-dir", "/", "--uninstall", "--dry-run"], "/ cannot be"),
        (["--source", "/nonexistent", "--dry-run"], "/nonexistent has no pyproject.toml"),
    ],
)
def test_wrong_usage_exits_2_and_says_why(arguments, said):
    done = install(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_an_unsuitable_interpreter_is_refused(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = install(
        "--dry-run", "--python", old, "--prefix", tmp_path / "p", "--data-dir", tmp_path / "d"
    )
    assert done.returncode == 3
    assert "is not Python 3.11 or newer" in done.stderr


def cuts():
    """Ends of all lines, and every place in the last one."""
    ends = [i for i, character in enumerate(TEXT) if character == "\n"]
    last = TEXT.rstrip("\n").rfind("\n") + 1
    return [*ends[:-1], *range(last, len(TEXT) - 2)]


def test_a_script_that_was_cut_off_does_nothing(tmp_path):
    nothing = tmp_path / "bin"
    nothing.mkdir()
    cut = tmp_path / "install.sh"
    for end in cuts():
        cut.write_text(TEXT[:end])
        # No program can be found: one that is tried leaves "not found".
        done = subprocess.run(
            ["/bin/sh", str(cut)],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            env={"PATH": str(nothing)},
            cwd=tmp_path,
        )
        assert done.stdout == "", (end, TEXT[end - 40 : end])
        assert "not found" not in done.stderr, (end, TEXT[end - 40 : end])


def test_no_registry_is_named():
    assert "://" not in TEXT.replace("file://$source", "")
    assert "index-url" not in TEXT


@pytest.mark.parametrize("script", [SCRIPT, *ROOT.glob("scripts/*.sh")], ids=lambda p: p.name)
def test_shell_scripts_parse_and_are_strict(script):
    text = script.read_text()
    assert text.startswith("#!/bin/sh\n")
    assert "\nset -eu\n" in text
    done = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_makefile_lists_its_targets():
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MAKEFLAGS": ""},
    )
    named = {line.split()[0] for line in done.stdout.splitlines()}
    assert named >= {"setup", "demo", "test", "test-fast", "test-root", "test-cluster", "bench"}
    assert named >= {"fmt", "lint", "type", "house", "check", "clean"}
