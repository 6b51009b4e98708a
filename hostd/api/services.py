"""What the handlers work with: the daemon's parts, handed in by the composition root."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from hostd.build import Builder
from hostd.clock import Clock
from hostd.config import Config
from hostd.fs import CAS, FileSystem, ImageStore
from hostd.ids import HostId
from hostd.runtime import Runtime
from hostd.runtime.launcher import Launcher
from hostd.runtime.logstore import LogStore
from hostd.scheduler import Scheduler
from hostd.store import History, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts of one daemon that the API exposes."""

    config: Config
    clock: Clock
    host_id: HostId
    started_at_us: int
    token: str
    """What a caller over TCP must present."""
    store: Store
    history: History
    cas: CAS
    images: ImageStore
    fs: FileSystem
    runtime: Runtime
    launcher: Launcher
    builder: Builder
    scheduler: Scheduler
    logs: LogStore


SERVICES: web.AppKey[Services] = web.AppKey("services", Services)


def services_of(request: web.Request) -> Services:
    """The services that serve this request."""
    return request.app[SERVICES]
