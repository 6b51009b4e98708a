"""hostctl: parse the command line, call the API, print.

This module holds a static table only, so that ``hostctl --help`` imports no command; a test
compares the table with the commands. A command's module has its click command as ``command``.
The client side runs on Python 3.9 and later and imports neither asyncio nor aiohttp.
"""

from __future__ import annotations

import sys

COMMANDS: dict[str, tuple[str, str, str]] = {
    # name: (module below hostd.cli, one line of help, section of the overview)
    "run": ("run", "Run a function or entrypoint now and stream its output.", "Run"),
    "build": ("build", "Build an image from a Python file or a Dockerfile.", "Run"),
    "shell": ("shell", "Open a shell in an image or in a function's environment.", "Run"),
    "exec": ("execute", "Run a command in a running container.", "Run"),
    "stop": ("stop", "Stop apps and containers, cancel calls.", "Run"),
    "status": ("status", "Show whether the host is healthy, in one screen.", "Look"),
    "ps": ("ps", "List the containers that run now.", "Look"),
    "logs": ("logs", "Show or follow logs of an app, call, container or build.", "Look"),
    "explain": ("explain", "Say why something is waiting, slow or failed.", "Look"),
    "app": ("app", "Look at apps and stop them.", "Things"),
    "calls": ("calls", "Look at function calls and cancel them.", "Things"),
    "image": ("image", "Look at images and delete them.", "Things"),
    "doctor": ("doctor", "Check this machine and the host; say how to fix what is wrong.", "Tools"),
    "completion": ("completion", "Print shell completion.", "Tools"),
    "version": ("version", "Print the version of hostctl.", "Tools"),
}

ALIASES = {"why": "explain", "apps": "app", "call": "calls", "images": "image"}


def main() -> int:
    """Entry point of ``hostctl``."""
    from hostd.cli.group import run_command_line

    return run_command_line(sys.argv[1:])


__all__ = ["main"]
