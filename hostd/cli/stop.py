"""hostctl stop."""

from __future__ import annotations

from urllib.parse import quote

import click

from hostd.cli.app import stop_app
from hostd.cli.calls import cancel_call
from hostd.cli.group import Command
from hostd.cli.output import print_record
from hostd.cli.settings import Settings


@click.command(cls=Command)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.pass_obj
def command(settings: Settings, ids: tuple[str, ...]) -> None:
    """Stop apps and containers, cancel calls.

    Apps go by id or name; a container's input is run again elsewhere.
    """
    for ref in ids:
        if ref.startswith("ct-"):
            path = f"/api/v1/containers/{quote(ref, safe='')}/stop"
            record = settings.request("POST", path)
        elif ref.startswith("fc-"):
            record = cancel_call(settings, ref)
        else:
            record = stop_app(settings, ref)
        print_record(settings, record, [("stopped", record["id"])])
