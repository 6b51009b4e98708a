"""Routes for apps."""

from __future__ import annotations

from aiohttp import web

from hostd.api.registration import define_functions
from hostd.api.routes import body_of, reply, reply_list
from hostd.api.services import services_of
from hostd.ids import AppId, new_id
from hostd.model import AppRequest


async def create_app(request: web.Request) -> web.Response:
    """POST /api/v1/apps."""
    services = services_of(request)
    wanted = await body_of(request, AppRequest)
    app_id = AppId(new_id("ap"))
    functions = await define_functions(services, app_id, wanted)
    services.scheduler.add_app(wanted.name, functions, app_id, None)
    return reply(services.scheduler.app(app_id), status=201)


async def list_apps(request: web.Request) -> web.Response:
    """GET /api/v1/apps."""
    return reply_list(services_of(request).scheduler.apps())


async def show_app(request: web.Request) -> web.Response:
    """GET /api/v1/apps/{id}."""
    return reply(services_of(request).scheduler.app(AppId(request.match_info["id"])))


async def stop_app(request: web.Request) -> web.Response:
    """POST /api/v1/apps/{id}/stop."""
    scheduler = services_of(request).scheduler
    app = scheduler.app(AppId(request.match_info["id"]))
    scheduler.stop_app(AppId(app.id), "stopped by request")
    return reply(scheduler.app(AppId(app.id)))
