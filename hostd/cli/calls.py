"""hostctl calls: list, show, cancel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from hostd.cli.group import CommandGroup
from hostd.cli.output import Columns, print_list, print_record
from hostd.cli.settings import Settings
from hostd.cli.units import age, duration, moment

LIMIT_DEFAULT = 50


def _took(call: Mapping[str, Any]) -> str:
    finished = call.get("finished_at_us")
    return duration(finished - call["created_at_us"]) if finished else "-"


def _inputs(call: Mapping[str, Any]) -> str:
    failed = call["inputs_failed"]
    text = f"{call['inputs_done']}/{call['inputs_total']}"
    return f"{text} ({failed} failed)" if failed else text


COLUMNS: Columns = (
    ("CALL", lambda item: item["id"]),
    ("FUNCTION", lambda item: item["function"]),
    ("KIND", lambda item: item["kind"]),
    ("STATE", lambda item: item["state"]),
    (">AGE", lambda item: age(item["created_at_us"])),
    (">TOOK", _took),
    ("START", lambda item: item.get("start") or "-"),
    (">INPUTS", _inputs),
)


def cancel_call(settings: Settings, call: str) -> Mapping[str, Any]:
    """Cancel a call: queued inputs are dropped, running ones interrupted."""
    path = f"/api/v1/calls/{quote(call, safe='')}/cancel"
    cancelled: Mapping[str, Any] = settings.request("POST", path)
    return cancelled


@click.group(cls=CommandGroup)
def command() -> None:
    """Look at function calls and cancel them."""


@command.command("list")
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000),
    default=LIMIT_DEFAULT,
    metavar="N",
    help=f"How many at most ({LIMIT_DEFAULT}).",
)
@click.pass_obj
def list_calls(settings: Settings, limit: int) -> None:
    """List calls, newest first."""
    print_list(settings, settings.request("GET", f"/api/v1/calls?limit={limit}"), COLUMNS)


@command.command("show")
@click.argument("call")
@click.pass_obj
def show_call(settings: Settings, call: str) -> None:
    """Show a call; hostctl explain says where its time went."""
    record = settings.request("GET", f"/api/v1/calls/{quote(call, safe='')}")
    lines = [
        ("id", record["id"]),
        ("function", record["function"]),
        ("app", record["app_id"]),
        ("state", record["state"]),
        ("created", moment(record["created_at_us"])),
        ("took", _took(record)),
        ("start", record.get("start") or "-"),
        ("inputs", _inputs(record)),
        ("container", record.get("container_id") or "-"),
        ("why", record.get("why") or "-"),
    ]
    error = record.get("error")
    if error:
        lines.append(("error", error.get("detail") or error.get("code")))
    print_record(settings, record, lines)


@command.command("cancel")
@click.argument("call")
@click.pass_obj
def cancel(settings: Settings, call: str) -> None:
    """Cancel a call."""
    record = cancel_call(settings, call)
    print_record(settings, record, [("cancelled", record["id"])])
