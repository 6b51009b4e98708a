"""Routes for logs: of a container, a call, an app or a build, as JSON lines."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from hostd.api.calls import number_of
from hostd.api.routes import line_of, start_lines
from hostd.api.services import Services, services_of
from hostd.ids import BuildId
from hostd.model import LogLine

TAIL_DEFAULT = 100
TAIL_MAX = 1_000_000


BUILD_PREFIX = "bd-"


async def _build_lines(services: Services, build_id: str) -> AsyncGenerator[LogLine, None]:
    """The log of one of the last builds, to its end."""
    build = services.builder.find(BuildId(build_id))
    async with aclosing(build.events()) as events:
        async for event in events:
            if event.kind in ("step", "line", "cached"):
                yield LogLine(
                    at_us=event.at_us,
                    container_id=build_id,
                    stream=event.stream if event.kind == "line" else "system",
                    text=event.text,
                )


async def read_logs(request: web.Request) -> web.StreamResponse:
    """GET /api/v1/logs/{id}: the last ``tail`` lines, then new ones while ``follow`` is 1."""
    services = services_of(request)
    tail = number_of(request, "tail", TAIL_DEFAULT, TAIL_MAX)
    follow = request.query.get("follow") == "1"
    ident = request.match_info["id"]
    lines = (
        _build_lines(services, ident)
        if ident.startswith(BUILD_PREFIX)
        else services.logs.read(ident, tail=tail, follow=follow)
    )
    async with aclosing(lines):
        # The reply begins with the first line: until then an unknown id can be told as such.
        line = await anext(lines, None)
        response = await start_lines(request)
        while line is not None:
            await response.write(line_of(line))
            line = await anext(lines, None)
    await response.write_eof()
    return response
