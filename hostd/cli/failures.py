"""How failures look: ``error:`` and ``hint:`` lines on standard error, and the exit status.

Expected failures carry text, hint and status (``hostd.errors``). An exception of the user's own
code is shown with the user's own traceback. Anything else is a bug of ours.
"""

from __future__ import annotations

import os
import sys

import click

from hostd.cli.interrupt import Terminated
from hostd.cli.settings import Settings
from hostd.cli.user_code import UserCodeError
from hostd.errors import Error

CTRL_C = 130
SIGTERM = 143
BROKEN_PIPE = 141
"""What a shell shows for a program that SIGPIPE ended."""


def report(error: BaseException, settings: Settings) -> int:
    """Say what went wrong; returns the exit status."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return _exit_status(error)
    if isinstance(error, BrokenPipeError):
        # Nobody reads any more: whatever is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    if settings.debug and not isinstance(error, UserCodeError):
        sys.excepthook(type(error), error, error.__traceback__)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return CTRL_C
    if isinstance(error, Terminated):
        return SIGTERM
    if isinstance(error, UserCodeError):
        _say(error.text.rstrip("\n"))
        return error.exit_status
    return _report_message(error, settings)


def _exit_status(error: SystemExit) -> int:
    """What ``sys.exit`` of a user's entrypoint means, as the interpreter does it."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    _say(str(error.code))
    return 1


def _report_message(error: BaseException, settings: Settings) -> int:
    if isinstance(error, click.ClickException):
        return _report_usage(error)
    if isinstance(error, Error):
        _say(f"error: {error.text}")
        if error.hint and not settings.quiet:
            _say(f"hint: {error.hint}")
        return error.exit_status
    _say(f"error: hostctl has a bug: {type(error).__name__}: {error}")
    _say("hint: run it again with --debug and report the traceback")
    return 1


def _report_usage(error: click.ClickException) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and later: its text is the help
        _say(error.format_message())
        return error.exit_code
    message = error.format_message().rstrip(".")
    _say(f"error: {message[:1].lower()}{message[1:]}")
    if isinstance(error, click.UsageError) and error.ctx is not None:
        _say(f"hint: {error.ctx.command_path} --help")
    return error.exit_code


def _say(text: str) -> None:
    print(text, file=sys.stderr)
