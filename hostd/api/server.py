"""The API server: the route table, its middlewares, and the two places where it listens."""

from __future__ import annotations

import grp
import os
from pathlib import Path

from aiohttp import web

from hostd.api import (
    apps,
    blobs,
    builds,
    calls,
    containers,
    images,
    logs,
    openapi,
    status,
    stream,
    terminal,
)
from hostd.api.problems import answer_problems, require_token
from hostd.api.routes import JSON_BODY_BYTES_MAX, Route, reply
from hostd.api.services import SERVICES, Services
from hostd.errors import ConfigError
from hostd.model import (
    AppInfo,
    AppRequest,
    BlobReply,
    BuildEvent,
    BuildRequest,
    CallInfo,
    ContainerInfo,
    DoctorCheck,
    Explanation,
    HostStatus,
    ImageInfo,
    LogLine,
    MissingReply,
    MissingRequest,
)

LINES = "application/x-ndjson"
SHUTDOWN_TIMEOUT_S = 2.0
GROUP = "hostd"
"""Members may use the unix socket."""


async def openapi_document(request: web.Request) -> web.Response:
    """GET /api/v1/openapi.json."""
    return reply(openapi.document(ROUTES))


ROUTES: tuple[Route, ...] = (
    Route(method="GET", path="/healthz", handler=status.healthz, summary="Whether the daemon answers"),
    Route(method="GET", path="/api/v1/openapi.json", handler=openapi_document, summary="This document"),
    Route(method="GET", path="/api/v1/status", handler=status.show_status, summary="This host in one record", reply=HostStatus),
    Route(method="GET", path="/api/v1/doctor", handler=status.doctor, summary="What the host can and lacks", reply=DoctorCheck, many=True),
    Route(method="POST", path="/api/v1/blobs/missing", handler=blobs.list_missing, summary="Which content must be uploaded", request=MissingRequest, reply=MissingReply),
    Route(method="PUT", path="/api/v1/blobs/{digest}", handler=blobs.put_blob, summary="Upload content by its SHA-256", reply=BlobReply),
    Route(method="GET", path="/api/v1/blobs/{digest}", handler=blobs.get_blob, summary="Download a blob", media="application/octet-stream"),
    Route(method="POST", path="/api/v1/builds", handler=builds.build_image, summary="Build an image and follow its log", request=BuildRequest, reply=BuildEvent, media=LINES),
    Route(method="GET", path="/api/v1/images", handler=images.list_images, summary="List images", reply=ImageInfo, many=True),
    Route(method="GET", path="/api/v1/images/{ref}", handler=images.show_image, summary="Show an image by id or name", reply=ImageInfo),
    Route(method="DELETE", path="/api/v1/images/{ref}", handler=images.delete_image, summary="Delete an image", reply=ImageInfo),
    Route(method="POST", path="/api/v1/apps", handler=apps.create_app, summary="Create an ephemeral app", request=AppRequest, reply=AppInfo),
    Route(method="GET", path="/api/v1/apps", handler=apps.list_apps, summary="List apps", reply=AppInfo, many=True),
    Route(method="GET", path="/api/v1/apps/{id}", handler=apps.show_app, summary="Show an app", reply=AppInfo),
    Route(method="POST", path="/api/v1/apps/{id}/stop", handler=apps.stop_app, summary="Stop an app and its containers", reply=AppInfo),
    Route(method="GET", path="/api/v1/containers", handler=containers.list_containers, summary="List containers", reply=ContainerInfo, many=True, query=(("all", "1: also those that ended lately"),)),
    Route(method="GET", path="/api/v1/containers/{id}", handler=containers.show_container, summary="Show a container", reply=ContainerInfo),
    Route(method="POST", path="/api/v1/containers/{id}/stop", handler=containers.stop_container, summary="Stop a container", reply=ContainerInfo),
    Route(method="GET", path="/api/v1/containers/{id}/exec", handler=terminal.exec_in_container, summary="Run a command in a container (WebSocket)", media="application/octet-stream"),
    Route(method="GET", path="/api/v1/shell", handler=terminal.open_shell, summary="Open a container on an image (WebSocket)", media="application/octet-stream"),
    Route(method="GET", path="/api/v1/calls", handler=calls.list_calls, summary="List calls, newest first", reply=CallInfo, many=True, query=(("limit", "how many, 1,000 at most"),)),
    Route(method="GET", path="/api/v1/calls/{id}", handler=calls.show_call, summary="Show a call", reply=CallInfo),
    Route(method="POST", path="/api/v1/calls/{id}/cancel", handler=calls.cancel_call, summary="Cancel a call", reply=CallInfo),
    Route(method="GET", path="/api/v1/explain/{id}", handler=calls.explain, summary="Why something waits, is slow or failed", reply=Explanation),
    Route(method="GET", path="/api/v1/logs/{id}", handler=logs.read_logs, summary="Read or follow logs", reply=LogLine, media=LINES, query=(("tail", "how many of the last lines"), ("follow", "1: go on with new lines"))),
    Route(method="GET", path="/api/v1/stream", handler=stream.open_stream, summary="The client stream (WebSocket): ClientMessage in, ServerMessage out", media="application/octet-stream"),
)  # fmt: skip


def application(services: Services) -> web.Application:
    """The aiohttp application of one daemon."""
    app = web.Application(
        middlewares=[answer_problems, require_token], client_max_size=JSON_BODY_BYTES_MAX
    )
    app[SERVICES] = services
    app[stream.OPEN_STREAMS] = set()
    app.on_shutdown.append(stream.close_streams)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
    return app


class APIServer:
    """Listens on the unix socket and, when configured, on TCP."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._runner = web.AppRunner(
            application(services),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        )

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the port is taken.
        """
        config = self._services.config
        await self._runner.setup()
        config.socket.unlink(missing_ok=True)
        await web.UnixSite(self._runner, str(config.socket)).start()
        _admit_group(config.socket)
        if not config.api.listen:
            return
        host, _, port = config.api.listen.rpartition(":")
        try:
            await web.TCPSite(self._runner, host, int(port)).start()
        except OSError as error:
            raise ConfigError(
                f"api.listen {config.api.listen} cannot be used: {error.strerror}",
                hint="another program has this port: choose another with --api-listen",
            ) from error

    async def close(self) -> None:
        """Stop listening and end every request."""
        await self._runner.cleanup()
        self._services.config.socket.unlink(missing_ok=True)


def _admit_group(path: Path) -> None:
    try:
        group = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        path.chmod(0o600)
        return
    os.chown(path, -1, group)
    path.chmod(0o660)
