"""hostctl app: list, show, stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from hostd.cli.group import CommandGroup
from hostd.cli.output import Columns, print_list, print_record
from hostd.cli.settings import Settings
from hostd.cli.units import age, moment
from hostd.errors import NotFoundError

COLUMNS: Columns = (
    ("APP", lambda item: item["id"]),
    ("NAME", lambda item: item["name"]),
    ("STATE", lambda item: item["state"]),
    (">AGE", lambda item: age(item["created_at_us"])),
    (">FUNCTIONS", lambda item: str(len(item["functions"]))),
    (">CONTAINERS", lambda item: str(sum(f["containers"] for f in item["functions"]))),
    ("REASON", lambda item: item.get("reason") or ""),
)


def app_id(settings: Settings, ref: str) -> str:
    """The id of an app that is named by id, prefix of an id, or name; running ones come first."""
    if ref.startswith("ap-"):
        return ref
    apps = [app for app in settings.request("GET", "/api/v1/apps")["items"] if app["name"] == ref]
    if not apps:
        raise NotFoundError(f"app {ref} is not known", hint="hostctl app list shows all")
    newest = max(apps, key=lambda app: (app["state"] == "running", app["id"]))
    return str(newest["id"])


def stop_app(settings: Settings, ref: str) -> Mapping[str, Any]:
    """Stop an app with all its containers."""
    path = f"/api/v1/apps/{quote(app_id(settings, ref), safe='')}/stop"
    stopped: Mapping[str, Any] = settings.request("POST", path)
    return stopped


@click.group(cls=CommandGroup)
def command() -> None:
    """Look at apps and stop them."""


@command.command("list")
@click.pass_obj
def list_apps(settings: Settings) -> None:
    """List apps."""
    print_list(settings, settings.request("GET", "/api/v1/apps"), COLUMNS)


@command.command("show")
@click.argument("app")
@click.pass_obj
def show_app(settings: Settings, app: str) -> None:
    """Show an app and its functions."""
    record = settings.request("GET", f"/api/v1/apps/{quote(app_id(settings, app), safe='')}")
    lines = [
        ("id", record["id"]),
        ("name", record["name"]),
        ("state", record["state"]),
        ("created", moment(record["created_at_us"])),
    ]
    if record.get("reason"):
        lines.append(("reason", record["reason"]))
    lines += [("function", _function_line(function)) for function in record["functions"]]
    print_record(settings, record, lines)


def _function_line(function: Mapping[str, Any]) -> str:
    return (
        f"{function['name']} on {function['image_id']}: {function['containers']} containers, "
        f"{function['inputs_queued']} inputs queued, {function['inputs_running']} running"
    )


@command.command("stop")
@click.argument("app")
@click.pass_obj
def stop(settings: Settings, app: str) -> None:
    """Stop an app and its containers."""
    record = stop_app(settings, app)
    print_record(settings, record, [("stopped", f"{record['id']} {record['name']}")])
