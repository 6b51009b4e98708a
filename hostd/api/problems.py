"""Errors as answers: RFC 9457 problem documents, and the middlewares that make and guard them."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from hostd.api.services import services_of
from hostd.errors import (
    AuthError,
    Error,
    InternalError,
    InvalidError,
    NotFoundError,
    PayloadTooLargeError,
    to_problem,
)
from hostd.ids import new_id
from hostd.log import get_logger

log = get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def problem_response(error: Error) -> web.Response:
    """An error as ``application/problem+json``."""
    return web.Response(
        body=msgspec.json.encode(to_problem(error)),
        status=error.http_status,
        content_type="application/problem+json",
    )


def problem_of(error: BaseException) -> Error:
    """The expected error that an exception stands for; a bug of ours is logged under a trace id."""
    if isinstance(error, Error):
        return error
    if isinstance(error, msgspec.ValidationError | msgspec.DecodeError):
        return InvalidError(
            f"request: {error}", hint="GET /api/v1/openapi.json describes every request"
        )
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return PayloadTooLargeError("the request body is larger than this route accepts")
    trace_id = new_id("ev")
    log.error("request failed", trace_id=trace_id, exc_info=error)
    return InternalError(f"unexpected {type(error).__name__}", trace_id=trace_id)


@web.middleware
async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into a problem document."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return problem_response(NotFoundError(f"no route {request.method} {request.path}"))
    except web.HTTPMethodNotAllowed as error:
        response = problem_response(InvalidError(f"{request.path} does not take {request.method}"))
        response.set_status(405)
        response.headers["Allow"] = error.headers.get("Allow", "")
        return response
    except Exception as error:  # noqa: BLE001 - the root of a request: every error becomes an answer
        return problem_response(problem_of(error))


@web.middleware
async def require_token(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let in who comes by the unix socket, or presents the token: all users reach a port."""
    transport = request.transport
    peer = transport.get_extra_info("socket") if transport is not None else None
    if request.path == "/healthz" or (peer is not None and peer.family == socket.AF_UNIX):
        return await handler(request)
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    expected = services_of(request).token
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), expected.encode()):
        raise AuthError(
            "the bearer token is missing or wrong",
            hint="set HOSTD_TOKEN to the content of api-token in the host's data directory",
        )
    return await handler(request)
