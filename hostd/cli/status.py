"""hostctl status."""

from __future__ import annotations

import click

from hostd.cli.group import Command
from hostd.cli.output import print_record
from hostd.cli.settings import Settings
from hostd.cli.units import age, size


@click.command(cls=Command)
@click.pass_obj
def command(settings: Settings) -> None:
    """Show whether the host is healthy, in one screen."""
    record = settings.request("GET", "/api/v1/status")
    lines = [
        ("host", record["host_id"]),
        ("version", f"{record['version']} (protocol {record['protocol_version']})"),
        ("up for", age(record["started_at_us"])),
        ("containers", record["containers"]),
        ("images", f"served the {record['fs_mode']} way, run by {record['oci_runtime']}"),
        ("machine", f"{record['cpu_count']} CPUs, {size(record['memory_bytes'])} memory"),
        ("disk free", f"{size(record['disk_free_bytes'])} at {record['data_dir']}"),
    ]
    print_record(settings, {"id": record["host_id"], **record}, lines)
