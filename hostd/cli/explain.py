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
    lines = waterfall(explanation["phases_us"], explanation["wall_us"])
    if lines and (count := _inputs(settings, explanation["id"])) > 1:
        print(f"  the first of {count} inputs:")
    for line in lines:
        print(f"  {line}")


def _inputs(settings: Settings, ref: str) -> int:
    """How many inputs a call has: the waterfall shows one."""
    if not ref.startswith("fc-"):
        return 1
    return int(settings.request("GET", f"/api/v1/calls/{quote(ref, safe='')}")["inputs_total"])
