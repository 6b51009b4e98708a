"""hostctl as a whole: the table of commands, help, global options, failures, exit status."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from hostd.cli import ALIASES, COMMANDS
from hostd.cli.group import Command, CommandGroup, hostctl, run_command_line
from hostd.cli.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
SERVER_ONLY = ("asyncio", "aiohttp", "msgspec", "structlog", "ssl")
HEAVY = ("asyncio", "aiohttp", "http.client", "ssl", "msgspec", "structlog", "cloudpickle", "rich")


def python(code, **environ):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_table_says_what_the_command_says(name):
    module, text, _ = COMMANDS[name]
    command = importlib.import_module(f"hostd.cli.{module}").command
    assert isinstance(command, Command | CommandGroup)
    assert command.get_short_help_str(200).rstrip(".") == text.rstrip(".")


def test_aliases_name_commands_and_hide_none():
    assert set(ALIASES.values()) <= set(COMMANDS)
    assert not set(ALIASES) & set(COMMANDS)


def test_help_imports_no_command_and_nothing_heavy():
    code = (
        "import sys; from hostd.cli.group import run_command_line\n"
        "assert run_command_line(['--help']) == 0\n"
        f"seen = [m for m in sys.modules if m in {HEAVY} or m.startswith('hostd.')]\n"
        "print(seen, file=sys.stderr)"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    parts = (
        "cli",
        "cli.failures",
        "cli.group",
        "cli.interrupt",
        "cli.settings",
        "cli.user_code",
        "errors",
    )
    assert sorted(ast.literal_eval(done.stderr)) == [f"hostd.{part}" for part in parts]


def test_no_command_imports_asyncio_or_server_packages():
    modules = sorted({entry[0] for entry in COMMANDS.values()})
    code = (
        "import importlib, sys\n"
        f"for name in {modules}: importlib.import_module('hostd.cli.' + name)\n"
        f"print([m for m in {SERVER_ONLY} if m in sys.modules])"
    )
    done = python(code)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_overview_lists_every_command_with_its_help(capsys):
    assert run_command_line(["--help"]) == 0
    out = capsys.readouterr().out
    for name, (_, text, section) in COMMANDS.items():
        assert f"{section}:" in out
        assert any(
            line.split()[:1] == [name] and line.strip().endswith(text) for line in out.splitlines()
        )


def every_command():
    context = click.Context(hostctl())
    for name in COMMANDS:
        command = context.command.get_command(context, name)
        yield name, command
        if isinstance(command, CommandGroup):
            for inner in command.list_commands(context):
                yield f"{name} {inner}", command.get_command(context, inner)


@pytest.mark.parametrize(("name", "command"), list(every_command()))
def test_every_command_has_help_and_describes_its_options(name, command):
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, (name, parameter.opts)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json", "version"],
        ["version", "--json"],
        ["-o", "json", "version"],
        ["version", "-o", "json"],
    ],
)
def test_global_options_stand_before_or_after_the_command(arguments, capsys):
    assert run_command_line(arguments) == 0
    assert capsys.readouterr().out.lstrip().startswith("{")


def test_global_options_reach_the_settings():
    seen = []
    root = hostctl()

    @click.command(cls=Command)
    @click.pass_obj
    def show(settings):
        """Show."""
        seen.append(settings)

    root.add_command(show, "show")
    root.get_command = lambda _, name: show if name == "show" else None
    arguments = ["-q", "--url", "http://h:1", "show", "-v", "--timeout", "2.5", "--no-color", "-y"]
    root.main(arguments, standalone_mode=False, obj=Settings())
    assert seen == [
        Settings(url="http://h:1", quiet=True, debug=True, timeout_s=2.5, no_color=True, yes=True)
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "error: 'frobnicate' is not a command\nhint: hostctl --help\n"),
        (
            ["statu"],
            "error: 'statu' is not a command; did you mean status?\nhint: hostctl --help\n",
        ),
        (["image", "lst"], "did you mean list?\nhint: hostctl image --help\n"),
        (["ps", "--frob"], "error: no such option"),
        (["explain"], "error: missing argument 'ID'\nhint: hostctl explain --help\n"),
        (["ps", "-o", "yaml"], "is not one of"),
        (["ps", "--timeout", "0"], "x>0"),
    ],
)
def test_usage_errors_exit_2_and_say_where_help_is(arguments, said, capsys):
    assert run_command_line(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_without_arguments_the_overview_goes_to_stderr(capsys):
    assert run_command_line([]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("Usage: hostctl")
    assert captured.out == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell, capsys):
    assert run_command_line(["completion", shell]) == 0
    assert "_HOSTCTL_COMPLETE" in capsys.readouterr().out


def test_completion_offers_commands_without_importing_them():
    code = "import sys; sys.argv = ['hostctl']; from hostd.cli import main; sys.exit(main())"
    done = python(code, _HOSTCTL_COMPLETE="bash_complete", COMP_WORDS="hostctl st", COMP_CWORD="1")
    assert done.stdout.split() == ["plain,stop", "plain,status"]


def test_broken_pipe_is_no_traceback():
    command = f"{sys.executable} -m hostd.cli --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")  # 0: it was written before the pipe closed
