"""The daemon: builds the parts of a host, wires them, runs them, and takes them down in order.

Nothing imports this module. Start order: lock, state, what an earlier daemon left (containers
first, then mounts), file system, API. A second daemon on the same data or run directory is refused.
SIGTERM and SIGINT stop it cleanly: open calls end with ``daemon_stopped``, containers stop, mounts
go.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import http.client
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from hostd import __version__
from hostd.api.server import APIServer
from hostd.api.services import Services
from hostd.build import Builder
from hostd.clock import Clock, SystemClock
from hostd.config import Config, known_keys, load
from hostd.errors import ConflictError, Error
from hostd.fs import CAS, BlobSource, DirectorySource, Fetcher, FileSystem, ImageStore
from hostd.ids import HostId, new_id
from hostd.log import configure, get_logger
from hostd.runtime import Runtime
from hostd.runtime.checks import check_host
from hostd.runtime.launcher import Launcher
from hostd.runtime.logstore import LogStore
from hostd.scheduler import Scheduler
from hostd.store import History, Store

log = get_logger(__name__)

STATUS_TIMEOUT_S = 5.0


# --- directories and identity ---------------------------------------------------------------------


def lock_directory(path: Path) -> int:
    """Take the directory for this process; the lock ends with the process.

    Raises:
        ConflictError: another daemon has it.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConflictError(
            f"{path} is in use by another hostd", hint="hostd status shows the running daemon"
        ) from None
    return descriptor


def kept_secret(path: Path, make: Callable[[], str]) -> str:
    """The text in a file that only root reads; made on first use."""
    if path.exists():
        return path.read_text().strip()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        text = make()
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    return text


def blob_sources(config: Config) -> list[BlobSource]:
    """Where missing blobs are asked for."""
    if not config.fs.source_dir:
        return []
    return [DirectorySource(Path(config.fs.source_dir))]


# --- the parts, wired -----------------------------------------------------------------------------


async def build_services(config: Config, clock: Clock, stack: AsyncExitStack) -> Services:
    """Make and start every part; the stack undoes it in reverse order."""
    data, run = config.data_dir, config.run_dir
    for path in (data, run):
        stack.callback(os.close, lock_directory(path))
    store = await Store.open(data / "state.db", clock=clock)
    stack.push_async_callback(store.close)
    history = History(data / "history.db", clock=clock)
    stack.callback(history.close)
    cas = CAS(data / "cas")
    images = ImageStore(cas, data / "images")
    runtime = Runtime(config=config.runtime, run_dir=run, clock=clock)
    await runtime.start()
    stack.push_async_callback(runtime.close)
    fetcher = Fetcher(cas, blob_sources(config), config.fs.fetch_timeout_s)
    fs = FileSystem(
        cas=cas, images=images, data_dir=data, run_dir=run, mode=config.fs.mode, fetcher=fetcher
    )
    await fs.start()
    stack.push_async_callback(fs.close)
    logs = LogStore(data / "logs", bytes_max=config.runtime.log_bytes_max)
    stack.callback(logs.close)
    launcher = Launcher(
        fs=fs, images=images, cas=cas, runtime=runtime, run_dir=run, clock=clock, config=config
    )
    return Services(
        config=config,
        clock=clock,
        host_id=HostId(kept_secret(data / "host-id", lambda: new_id("ho"))),
        started_at_us=clock.wall_us(),
        token=kept_secret(data / "api-token", lambda: f"hd_{secrets.token_hex(20)}"),
        store=store,
        history=history,
        cas=cas,
        images=images,
        fs=fs,
        runtime=runtime,
        launcher=launcher,
        builder=Builder(
            cas=cas,
            images=images,
            fs=fs,
            runtime=runtime,
            store=store,
            config=config.build,
            clock=clock,
            data_dir=data,
            run_dir=run,
        ),
        scheduler=Scheduler(
            launcher=launcher, clock=clock, limits=config.limits, history=history, logs=logs
        ),
        logs=logs,
    )


async def run_daemon(config: Config, stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Run until ``stop`` is set or a part fails."""
    async with AsyncExitStack() as stack:
        services = await build_services(config, SystemClock(), stack)
        async with asyncio.TaskGroup() as tasks:
            parts: list[Callable[[], Awaitable[None]]] = [
                services.fs.run,
                services.launcher.run,
                services.builder.run,
                services.scheduler.run,
            ]
            running = [tasks.create_task(_run_part(part)) for part in parts]
            server = APIServer(services)
            try:
                await server.start()
                log.info("ready", socket=str(config.socket), fs=services.fs.mode)
                ready()
                await stop.wait()
                log.info("stopping")
                await services.scheduler.drain()
            finally:
                await server.close()
                for task in reversed(running):
                    task.cancel()


async def _run_part(part: Callable[[], Awaitable[None]]) -> None:
    await part()


def notify_ready() -> None:
    """Tell systemd that the service is ready (sd_notify(3)); nothing without systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(b"READY=1")


def agent(config: Config) -> int:
    """Run the daemon in the foreground until a signal stops it."""
    configure(config.log_level)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await run_daemon(config, stop, notify_ready)

    uvloop.run(main())
    return 0


# --- the command line of the server binary --------------------------------------------------------


def show_doctor(config: Config, *, as_json: bool) -> int:
    """Print every check; the exit status is 1 when one failed."""
    checks = check_host(config)
    if as_json:
        rows = [{name: getattr(c, name) for name in c.__struct_fields__} for c in checks]
        print(json.dumps({"items": rows, "next_cursor": None}))
    else:
        for check in checks:
            print(f"{check.status:5} {check.id:16} {check.found}")
            if check.status in ("fail", "warn"):
                print(f"      why: {check.why}\n      fix: {check.fix}")
    return 1 if any(check.status == "fail" for check in checks) else 0


def show_status(config: Config) -> int:
    """Print what the daemon of this configuration says of itself."""
    connection = http.client.HTTPConnection("localhost", timeout=STATUS_TIMEOUT_S)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(STATUS_TIMEOUT_S)
    try:
        connection.sock.connect(str(config.socket))
        connection.request("GET", "/api/v1/status")
        print(connection.getresponse().read().decode())
    except OSError as error:
        print(f"error: no hostd answers at {config.socket}: {error}", file=sys.stderr)
        return 6
    finally:
        connection.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hostd", description="The hostd daemon of one host.")
    parser.add_argument("--version", action="version", version=f"hostd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "agent": "Run the daemon (systemd does this).",
        "doctor": "Check kernel, cgroups, FUSE, overlay, runc, network and disk; say how to fix.",
        "status": "Show this daemon's health without the network.",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, help="configuration file (TOML)")
        for key in known_keys():
            if key != "build.env":
                flag = "--" + key.replace(".", "-").replace("_", "-")
                command.add_argument(flag, dest=key, metavar="VALUE", help=argparse.SUPPRESS)
        if name == "doctor":
            command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``hostd``."""
    arguments: dict[str, Any] = vars(_parser().parse_args(argv))
    flags = {key: value for key, value in arguments.items() if key in known_keys()}
    try:
        config = load(flags=flags, environ=os.environ, path=arguments["config"])
        match arguments["command"]:
            case "agent":
                return agent(config)
            case "doctor":
                return show_doctor(config, as_json=arguments["json"])
            case _:
                return show_status(config)
    except* Error as group:
        error = _first(group)
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        status = error.exit_status
    return status


def _first(group: BaseExceptionGroup[Error]) -> Error:
    """One of the errors of a group, however deep."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


if __name__ == "__main__":
    sys.exit(main())
