"""Routes for images."""

from __future__ import annotations

import asyncio

from aiohttp import web

from hostd.api.routes import reply, reply_list
from hostd.api.services import Services, services_of
from hostd.errors import ConflictError, NotFoundError
from hostd.model import ImageInfo
from hostd.store import DeleteImage, ImageRow


def _info(row: ImageRow) -> ImageInfo:
    return ImageInfo(
        id=row.id,
        names=list(row.names),
        entries=row.entries,
        size_bytes=row.size_bytes,
        created_at_us=row.created_at_us,
        config=row.config,
        history=list(row.history),
    )


async def _row(services: Services, ref: str) -> ImageRow:
    row = await services.store.image(ref)
    if row is None:
        raise NotFoundError(f"image {ref} is not known here", hint="hostctl image list shows all")
    return row


async def list_images(request: web.Request) -> web.Response:
    """GET /api/v1/images."""
    services = services_of(request)
    return reply_list([_info(row) for row in await services.store.images()])


async def show_image(request: web.Request) -> web.Response:
    """GET /api/v1/images/{ref}."""
    services = services_of(request)
    return reply(_info(await _row(services, request.match_info["ref"])))


async def delete_image(request: web.Request) -> web.Response:
    """DELETE /api/v1/images/{ref}: refused while a running app uses it."""
    services = services_of(request)
    row = await _row(services, request.match_info["ref"])
    users = [
        app.name
        for app in services.scheduler.apps()
        if app.state == "running" and any(f.image_id == row.id for f in app.functions)
    ]
    if users:
        raise ConflictError(
            f"image {row.id} is used by app {users[0]}", hint="stop the app first: hostctl app stop"
        )
    at_us = services.clock.wall_us()
    await services.store.propose(DeleteImage(image_id=row.id, at_us=at_us))
    await services.fs.forget_image(row.id)
    await asyncio.to_thread(services.images.delete, row.id)
    return reply(_info(row))
