"""hostctl image: list, show, delete."""

from __future__ import annotations

import sys
from urllib.parse import quote

import click

from hostd.cli.group import CommandGroup
from hostd.cli.output import Columns, print_list, print_record
from hostd.cli.settings import Settings, is_terminal
from hostd.cli.units import age, moment, size

COLUMNS: Columns = (
    ("IMAGE", lambda item: item["id"]),
    ("NAMES", lambda item: ", ".join(item["names"]) or "-"),
    (">FILES", lambda item: f"{item['entries']:,}"),
    (">SIZE", lambda item: size(item["size_bytes"])),
    (">AGE", lambda item: age(item["created_at_us"])),
)


def image_path(ref: str) -> str:
    """Where the API has this image."""
    return f"/api/v1/images/{quote(ref, safe='')}"


@click.group(cls=CommandGroup)
def command() -> None:
    """Look at images and delete them."""


@command.command("list")
@click.pass_obj
def list_images(settings: Settings) -> None:
    """List images."""
    print_list(settings, settings.request("GET", "/api/v1/images"), COLUMNS)


@command.command("show")
@click.argument("image")
@click.pass_obj
def show_image(settings: Settings, image: str) -> None:
    """Show an image and how it was made."""
    record = settings.request("GET", image_path(image))
    config = record["config"]
    lines = [
        ("id", record["id"]),
        ("names", ", ".join(record["names"]) or "-"),
        ("files", f"{record['entries']:,}"),
        ("size", size(record["size_bytes"])),
        ("created", moment(record["created_at_us"])),
        ("workdir", config["workdir"]),
        ("user", config["user"] or "root"),
        ("entrypoint", " ".join(config["entrypoint"]) or "-"),
        ("cmd", " ".join(config["cmd"]) or "-"),
    ]
    lines += [("env", f"{name}={value}") for name, value in sorted(config["env"].items())]
    lines += [("step", step) for step in record["history"]]
    print_record(settings, record, lines)


@command.command("delete")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.pass_obj
def delete_images(settings: Settings, images: tuple[str, ...]) -> None:
    """Delete images; refused while a running app uses one."""
    for ref in images:
        if is_terminal(sys.stdin) and not settings.yes:
            click.confirm(f"Delete image {ref}?", abort=True, err=True)
        record = settings.request("DELETE", image_path(ref))
        print_record(settings, record, [("deleted", record["id"])])
