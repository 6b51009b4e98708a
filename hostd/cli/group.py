"""The command line as a whole: the overview, lazy commands, global options, exit status."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from hostd import __version__
from hostd.cli import ALIASES, COMMANDS
from hostd.cli.failures import report
from hostd.cli.interrupt import end_on_signals
from hostd.cli.settings import Settings, global_options

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
COMPLETE = "_HOSTCTL_COMPLETE"
"""Set by the shell's completion script: click then prints candidates and exits."""
GLOBAL_OPTIONS_NOTE = "Takes the options of hostctl --help as well."
SYNONYMS = {"ls": "list", "rm": "delete", "inspect": "show"}


class Command(click.Command):
    """A command that takes the global options too."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        attributes["context_settings"] = {**CONTEXT, **(attributes.get("context_settings") or {})}
        attributes.setdefault("epilog", GLOBAL_OPTIONS_NOTE)
        super().__init__(*arguments, **attributes)
        self.params += global_options(hidden=True)


class CommandGroup(click.Group):
    """Commands about one kind of object, such as ``hostctl image``."""

    command_class: type[click.Command] | None = Command

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        attributes["context_settings"] = {**CONTEXT, **(attributes.get("context_settings") or {})}
        super().__init__(*arguments, **attributes)
        self.params += global_options(hidden=True)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name or of a synonym (ls, rm, inspect)."""
        return super().get_command(ctx, SYNONYMS.get(cmd_name, cmd_name))

    def resolve_command(
        self,
        ctx: click.Context,
        args: list[str],
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names, or a usage error that names the nearest."""
        _refuse_unknown(self, ctx, args[0])
        return super().resolve_command(ctx, args)


class Hostctl(CommandGroup):
    """The root: imports a command's module when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the overview."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of this name or alias."""
        entry = COMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        if entry is None:
            return None
        command: click.Command = importlib.import_module(f"hostd.cli.{entry[0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, from the table alone."""
        for section in dict.fromkeys(entry[2] for entry in COMMANDS.values()):
            rows = [(name, text) for name, (_, text, part) in COMMANDS.items() if part == section]
            with formatter.section(section):
                formatter.write_dl(rows)


def _refuse_unknown(group: click.Group, context: click.Context, name: str) -> None:
    if name.startswith("-") or group.get_command(context, name) is not None:
        return
    import difflib  # 10 ms that only a wrong name needs

    near = difflib.get_close_matches(name, group.list_commands(context), n=1)
    advice = f"; did you mean {near[0]}?" if near else ""
    raise click.UsageError(f"{name!r} is not a command{advice}", ctx=context)


def _print_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"hostctl {__version__}")
        context.exit()


def hostctl() -> Hostctl:
    """The root command."""
    root = Hostctl(
        name="hostctl",
        help="Run Python functions on your own machines.",
        epilog="hostctl COMMAND --help says more. Documentation: docs/cli.md.",
    )
    for option in root.params:
        if isinstance(option, click.Option):
            option.hidden = False
    root.params.append(
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Print the version.",
        )
    )
    return root


def _print_anything() -> None:
    """Let no character fail on a terminal or in a pipe that cannot encode it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command line; a failure becomes a message on standard error and an exit status."""
    settings = Settings(debug=bool(os.environ.get("HOSTD_DEBUG")))
    _print_anything()
    root, words = hostctl(), list(arguments)
    if COMPLETE in os.environ:
        root.main(words, prog_name=root.name, complete_var=COMPLETE)
    try:
        with end_on_signals(), root.make_context(root.name, words, obj=settings) as context:
            status = root.invoke(context)
            sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - the root of the program decides its status
        return report(error, settings)
    finally:
        settings.close()
    return status if isinstance(status, int) else 0
