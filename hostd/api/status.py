"""Routes about the host itself."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import Any

from aiohttp import web

from hostd import __version__
from hostd.api.routes import reply, reply_list
from hostd.api.services import services_of
from hostd.model import PROTOCOL_VERSION, HostStatus
from hostd.runtime.checks import check_host


async def healthz(request: web.Request) -> web.Response:
    """GET /healthz: the daemon answers."""
    return reply({"status": "ok"})


async def show_status(request: web.Request) -> web.Response:
    """GET /api/v1/status."""
    services = services_of(request)
    config = services.config
    statistics: dict[str, Any] = {
        "fs": services.fs.statistics(),
        "cas": services.cas.statistics(),
        "scheduler": services.scheduler.statistics(),
    }
    return reply(
        HostStatus(
            version=__version__,
            protocol_version=PROTOCOL_VERSION,
            host_id=services.host_id,
            started_at_us=services.started_at_us,
            data_dir=str(config.data_dir),
            run_dir=str(config.run_dir),
            fs_mode=services.fs.mode,
            oci_runtime=config.runtime.oci,
            containers=len(services.scheduler.containers(False)),
            cpu_count=os.cpu_count() or 1,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            disk_free_bytes=shutil.disk_usage(config.data_dir).free,
            statistics=statistics,
        )
    )


async def doctor(request: web.Request) -> web.Response:
    """GET /api/v1/doctor: what this host can and lacks, with fixes."""
    return reply_list(await asyncio.to_thread(check_host, services_of(request).config))
