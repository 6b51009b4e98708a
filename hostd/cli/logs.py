"""hostctl logs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from hostd.cli.group import Command
from hostd.cli.settings import Settings
from hostd.cli.units import moment

TAIL_DEFAULT = 100


@click.command(cls=Command)
@click.argument("id")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until Ctrl-C.")
@click.option(
    "--tail",
    type=click.IntRange(0, 1_000_000),
    default=TAIL_DEFAULT,
    metavar="N",
    help=f"How many of the last lines ({TAIL_DEFAULT}).",
)
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@click.pass_obj
def command(settings: Settings, id: str, follow: bool, tail: int, timestamps: bool) -> None:
    """Show or follow logs of an app, call, container or build.

    Everything goes to standard output; -o jsonl says the stream of each line.
    """
    path = f"/api/v1/logs/{quote(id, safe='')}?tail={tail}&follow={int(follow)}"
    for line in settings.client().lines("GET", path):
        print(_text(settings, line, timestamps))
        if follow:
            sys.stdout.flush()


def _text(settings: Settings, line: Mapping[str, Any], timestamps: bool) -> str:
    if settings.output in ("json", "jsonl"):
        return json.dumps(line)
    if settings.output == "id":
        return str(line["container_id"])
    return f"{moment(line['at_us'])} {line['text']}" if timestamps else str(line["text"])
