"""Routes for containers."""

from __future__ import annotations

from aiohttp import web

from hostd.api.routes import reply, reply_list
from hostd.api.services import services_of
from hostd.ids import ContainerId


async def list_containers(request: web.Request) -> web.Response:
    """GET /api/v1/containers: live ones; ``all=1`` adds those that ended lately."""
    everything = request.query.get("all") == "1"
    return reply_list(services_of(request).scheduler.containers(everything))


async def show_container(request: web.Request) -> web.Response:
    """GET /api/v1/containers/{id}."""
    scheduler = services_of(request).scheduler
    return reply(scheduler.container(ContainerId(request.match_info["id"])))


async def stop_container(request: web.Request) -> web.Response:
    """POST /api/v1/containers/{id}/stop: its input, if it has one, is run again elsewhere."""
    scheduler = services_of(request).scheduler
    container = scheduler.container(ContainerId(request.match_info["id"]))
    scheduler.stop_container(ContainerId(container.id))
    return reply(scheduler.container(ContainerId(container.id)))
