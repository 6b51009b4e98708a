"""Routes for calls, and the explanation of anything."""

from __future__ import annotations

from aiohttp import web

from hostd.api.routes import reply, reply_list
from hostd.api.services import services_of
from hostd.errors import InvalidError
from hostd.ids import CallId

LIMIT_DEFAULT = 50
LIMIT_MAX = 1_000


def number_of(request: web.Request, name: str, default: int, most: int) -> int:
    """A query parameter that is a whole number from 0 to ``most``."""
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isdigit() or int(text) > most:
        raise InvalidError(f"{name} is {text[:40]!r}, expected 0 to {most}")
    return int(text)


async def list_calls(request: web.Request) -> web.Response:
    """GET /api/v1/calls: newest first, running ones before finished ones."""
    limit = number_of(request, "limit", LIMIT_DEFAULT, LIMIT_MAX)
    return reply_list(await services_of(request).scheduler.calls(limit=limit))


async def show_call(request: web.Request) -> web.Response:
    """GET /api/v1/calls/{id}."""
    return reply(await services_of(request).scheduler.call(CallId(request.match_info["id"])))


async def cancel_call(request: web.Request) -> web.Response:
    """POST /api/v1/calls/{id}/cancel."""
    scheduler = services_of(request).scheduler
    call = await scheduler.call(CallId(request.match_info["id"]))
    scheduler.cancel_call(CallId(call.id), "cancelled by request")
    return reply(await scheduler.call(CallId(call.id)))


async def explain(request: web.Request) -> web.Response:
    """GET /api/v1/explain/{id}."""
    return reply(await services_of(request).scheduler.explain(request.match_info["id"]))
