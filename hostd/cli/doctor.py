"""hostctl doctor."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hostd import __version__
from hostd.cli.group import Command
from hostd.cli.output import Item
from hostd.cli.settings import Settings
from hostd.cli.units import plain
from hostd.errors import Error

LOCAL_CHECKS_TIMEOUT_S = 60
"""`hostd doctor` mounts and runs a container to see that it can."""


@click.command(cls=Command)
@click.pass_obj
def command(settings: Settings) -> int:
    """Check this machine and the host; say how to fix what is wrong.

    Asks the daemon; when none answers, the checks of a host run here, if hostd is installed here.
    Exit status 1 when a check failed.
    """
    checks = [_python(), *_host(settings)]
    if settings.output == "json":
        print(json.dumps({"items": checks, "next_cursor": None}, indent=2))
    else:
        for check in checks:
            _print_check(settings, check)
    return int(any(check["status"] == "fail" for check in checks))


def _check(name: str, status: str, found: str, why: str = "", fix: str = "") -> dict[str, str]:
    return {"id": name, "status": status, "found": found, "why": why, "fix": fix}


def _python() -> dict[str, str]:
    version = ".".join(map(str, sys.version_info[:3]))
    return _check("client", "ok", f"hostctl {__version__} on Python {version}")


def _host(settings: Settings) -> list[Item]:
    try:
        status = settings.request("GET", "/api/v1/status")
        items = settings.request("GET", "/api/v1/doctor")["items"]
    except Error as error:
        lost = _check(
            "daemon", "fail", error.text, "every command needs it", error.hint or "hostd agent"
        )
        return [lost, *_local_checks()]
    return [_daemon(status), *items]


def _daemon(status: Mapping[str, Any]) -> dict[str, str]:
    found = f"hostd {status['version']}, data in {status['data_dir']}"
    if status["version"] == __version__:
        return _check("daemon", "ok", found)
    return _check(
        "daemon", "warn", found, f"hostctl is {__version__}", "install the same version on both"
    )


def _local_checks() -> list[Item]:
    beside = Path(sys.executable).with_name("hostd")
    program = str(beside) if beside.exists() else shutil.which("hostd")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, "doctor", "--json"],
            capture_output=True,
            check=False,
            timeout=LOCAL_CHECKS_TIMEOUT_S,
        )
        items: list[Item] = json.loads(done.stdout)["items"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        return [_check("host", "warn", f"hostd doctor gave no answer: {error}")]
    return items


def _print_check(settings: Settings, check: Item) -> None:
    print(f"{_mark(settings, check['status'])}  {check['id']:16}  {plain(check['found'])}")
    if check["status"] in ("fail", "warn"):
        for name in ("why", "fix"):
            if check.get(name):
                print(f"      {name}: {plain(check[name])}")


def _mark(settings: Settings, status: str) -> str:
    colors = {"ok": 32, "warn": 33, "fail": 31}
    text = f"{status:4}"
    if status in colors and settings.has_color(sys.stdout):
        return f"\033[{colors[status]}m{text}\033[0m"
    return text
