"""hostctl version."""

from __future__ import annotations

import click

from hostd import __version__
from hostd.cli.group import Command
from hostd.cli.output import print_record
from hostd.cli.settings import Settings


@click.command(cls=Command)
@click.pass_obj
def command(settings: Settings) -> None:
    """Print the version of hostctl.

    hostctl status has the daemon's.
    """
    record = {"id": __version__, "version": __version__}
    print_record(settings, record, [("hostctl", __version__)])
