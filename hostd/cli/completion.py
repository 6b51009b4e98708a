"""hostctl completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from hostd.cli.group import Command
from hostd.cli.settings import Settings
from hostd.errors import InternalError


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_obj
def command(settings: Settings, shell: str) -> None:
    """Print shell completion.

    For bash: hostctl completion bash > /etc/bash_completion.d/hostctl
    """
    completer = get_completion_class(shell)
    if completer is None:
        raise InternalError(f"click has no completion for {shell}")
    root = click.get_current_context().find_root().command
    print(completer(root, {}, "hostctl", "_HOSTCTL_COMPLETE").source())
