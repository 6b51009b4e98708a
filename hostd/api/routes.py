"""The table of routes: one row per operation, from which both the server and OpenAPI are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from hostd.model import Record

R = TypeVar("R", bound=Record)

JSON_BODY_BYTES_MAX = 64 * 2**20
"""A recipe may list every file of a large build context."""


@dataclass(frozen=True, slots=True)
class Route:
    """One operation of the API."""

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    summary: str
    _: KW_ONLY
    request: type | None = None
    reply: type | None = None
    """None: no JSON document (a stream, raw bytes or a WebSocket); ``media`` says what."""
    many: bool = False
    """The reply is a list of ``reply`` in the list envelope."""
    media: str = "application/json"
    query: tuple[tuple[str, str], ...] = ()
    """Query parameters and what they mean."""


def reply(record: Any, *, status: int = 200) -> web.Response:
    """A record as a JSON answer."""
    return web.Response(
        body=msgspec.json.encode(record), status=status, content_type="application/json"
    )


def reply_list(records: list[Any]) -> web.Response:
    """Records in the list envelope of the API."""
    return reply({"items": records, "next_cursor": None})


async def body_of(request: web.Request, record: type[R]) -> R:
    """The request's body as a record; what does not fit is refused with its place."""
    return msgspec.json.decode(await request.read(), type=record)


async def start_lines(
    request: web.Request, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """Begin a reply of JSON lines (application/x-ndjson) that are sent as they come."""
    response = web.StreamResponse(headers={"Cache-Control": "no-store", **(headers or {})})
    response.content_type = "application/x-ndjson"
    await response.prepare(request)
    return response


def line_of(record: Any) -> bytes:
    """One record as a line of a JSON-lines reply."""
    return msgspec.json.encode(record) + b"\n"
