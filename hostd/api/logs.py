"""Routes for logs: of a container, a call, an app or a build, as JSON lines."""

from __future__ import annotations

from aiohttp import web

from hostd.api.calls import number_of
from hostd.api.routes import line_of, start_lines
from hostd.api.services import services_of

TAIL_DEFAULT = 100
TAIL_MAX = 1_000_000


async def read_logs(request: web.Request) -> web.StreamResponse:
    """GET /api/v1/logs/{id}: the last ``tail`` lines, then new ones while ``follow`` is 1."""
    services = services_of(request)
    tail = number_of(request, "tail", TAIL_DEFAULT, TAIL_MAX)
    follow = request.query.get("follow") == "1"
    lines = services.logs.read(request.match_info["id"], tail=tail, follow=follow)
    first = await anext(lines, None)  # Raises NotFoundError before the reply begins.
    response = await start_lines(request)
    if first is not None:
        await response.write(line_of(first))
        async for line in lines:
            await response.write(line_of(line))
    await response.write_eof()
    return response
