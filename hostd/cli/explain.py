"""hostctl explain (why)."""

from __future__ import annotations

import json
from urllib.parse import quote

import click

from hostd.cli.group import Command
from hostd.cli.settings import Settings
from hostd.cli.units import plain
from hostd.cli.waterfall import waterfall


@click.command(cls=Command)
@click.argument("id")
@click.pass_obj
def command(settings: Settings, id: str) -> None:
    """Say why something is waiting, slow or failed.

    One sentence with figures, then what it rests on. For calls the waterfall follows: every phase,
    how long it took, and their sum, the wall time.
    """
    explanation = settings.request("GET", f"/api/v1/explain/{quote(id, safe='')}")
    if settings.output in ("json", "jsonl"):
        print(json.dumps(explanation, indent=2 if settings.output == "json" else None))
        return
    if settings.output == "id":
        print(explanation["id"])
        return
    print(plain(explanation["sentence"]))
    for line in explanation["lines"]:
        # The waterfall has the phases, with their bars.
        if line.split(maxsplit=1)[:1] not in [[phase] for phase in explanation["phases_us"]]:
            print(f"  {plain(line)}")
    for line in waterfall(explanation["phases_us"], explanation["wall_us"]):
        print(f"  {line}")
