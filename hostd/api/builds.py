"""Routes that build images; the reply is the build's log as it grows."""

from __future__ import annotations

from contextlib import aclosing

from aiohttp import web

from hostd.api.routes import body_of, line_of, start_lines
from hostd.api.services import services_of
from hostd.model import BuildRequest


async def build_image(request: web.Request) -> web.StreamResponse:
    """POST /api/v1/builds: JSON lines of BuildEvent; identical builds at once share one log."""
    wanted = await body_of(request, BuildRequest)
    build = services_of(request).builder.build(wanted)
    response = await start_lines(request, {"Hostd-Build": build.id})
    # Closed at once when the client goes: a build goes on only while somebody reads its log.
    async with aclosing(build.events()) as events:
        async for event in events:
            await response.write(line_of(event))
    await response.write_eof()
    return response
