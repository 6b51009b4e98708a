"""hostctl ps."""

from __future__ import annotations

import click

from hostd.cli.group import Command
from hostd.cli.output import Columns, print_list
from hostd.cli.settings import Settings
from hostd.cli.units import age, size

COLUMNS: Columns = (
    ("CONTAINER", lambda item: item["id"]),
    ("APP", lambda item: item["app"]),
    ("FUNCTION", lambda item: item["function"]),
    ("STATE", lambda item: item["state"]),
    (">AGE", lambda item: age(item["started_at_us"])),
    (">INPUTS", lambda item: str(item["inputs_done"])),
    (">MEMORY", lambda item: size(item.get("memory_bytes"))),
    ("CALL", lambda item: item.get("call_id") or "-"),
)


@click.command(cls=Command)
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that ended lately.")
@click.pass_obj
def command(settings: Settings, everything: bool) -> None:
    """List the containers that run now."""
    path = "/api/v1/containers?all=1" if everything else "/api/v1/containers"
    print_list(settings, settings.request("GET", path), COLUMNS)
