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
V1 = "/api/v1"
GROUP = "hostd"
"""Members may use the unix socket."""


async def openapi_document(request: web.Request) -> web.Response:
    """GET /api/v1/openapi.json."""
    return reply(openapi.document(ROUTES))


ROUTES: tuple[Route, ...] = (
    Route("GET", "/healthz", status.healthz, "Whether the daemon answers"),
    Route("GET", V1 + "/openapi.json", openapi_document, "This document"),
    Route("GET", V1 + "/status", status.show_status, "This host in one record", reply=HostStatus),
    Route(
        "GET",
        V1 + "/doctor",
        status.doctor,
        "What the host can and lacks",
        reply=DoctorCheck,
        many=True,
    ),
    Route(
        "POST",
        V1 + "/blobs/missing",
        blobs.list_missing,
        "Which content must be uploaded",
        request=MissingRequest,
        reply=MissingReply,
    ),
    Route(
        "PUT",
        V1 + "/blobs/{digest}",
        blobs.put_blob,
        "Upload content by its SHA-256",
        reply=BlobReply,
    ),
    Route(
        "GET",
        V1 + "/blobs/{digest}",
        blobs.get_blob,
        "Download a blob",
        media="application/octet-stream",
    ),
    Route(
        "POST",
        V1 + "/builds",
        builds.build_image,
        "Build an image and follow its log",
        request=BuildRequest,
        reply=BuildEvent,
        media=LINES,
    ),
    Route("GET", V1 + "/images", images.list_images, "List images", reply=ImageInfo, many=True),
    Route(
        "GET",
        V1 + "/images/{ref}",
        images.show_image,
        "Show an image by id or name",
        reply=ImageInfo,
    ),
    Route("DELETE", V1 + "/images/{ref}", images.delete_image, "Delete an image", reply=ImageInfo),
    Route(
        "POST",
        V1 + "/apps",
        apps.create_app,
        "Create an ephemeral app",
        request=AppRequest,
        reply=AppInfo,
    ),
    Route("GET", V1 + "/apps", apps.list_apps, "List apps", reply=AppInfo, many=True),
    Route("GET", V1 + "/apps/{id}", apps.show_app, "Show an app", reply=AppInfo),
    Route(
        "POST",
        V1 + "/apps/{id}/stop",
        apps.stop_app,
        "Stop an app and its containers",
        reply=AppInfo,
    ),
    Route(
        "GET",
        V1 + "/containers",
        containers.list_containers,
        "List containers",
        reply=ContainerInfo,
        many=True,
        query=(("all", "1: also those that ended lately"),),
    ),
    Route(
        "GET",
        V1 + "/containers/{id}",
        containers.show_container,
        "Show a container",
        reply=ContainerInfo,
    ),
    Route(
        "POST",
        V1 + "/containers/{id}/stop",
        containers.stop_container,
        "Stop a container",
        reply=ContainerInfo,
    ),
    Route(
        "GET",
        V1 + "/containers/{id}/exec",
        terminal.exec_in_container,
        "Run a command in a container (WebSocket)",
        media="application/octet-stream",
    ),
    Route(
        "GET",
        V1 + "/shell",
        terminal.open_shell,
        "Open a container on an image (WebSocket)",
        media="application/octet-stream",
    ),
    Route(
        "GET",
        V1 + "/calls",
        calls.list_calls,
        "List calls, newest first",
        reply=CallInfo,
        many=True,
        query=(("limit", "how many, 1,000 at most"),),
    ),
    Route("GET", V1 + "/calls/{id}", calls.show_call, "Show a call", reply=CallInfo),
    Route("POST", V1 + "/calls/{id}/cancel", calls.cancel_call, "Cancel a call", reply=CallInfo),
    Route(
        "GET",
        V1 + "/explain/{id}",
        calls.explain,
        "Why something waits, is slow or failed",
        reply=Explanation,
    ),
    Route(
        "GET",
        V1 + "/logs/{id}",
        logs.read_logs,
        "Read or follow logs",
        reply=LogLine,
        media=LINES,
        query=(("tail", "how many of the last lines"), ("follow", "1: go on with new lines")),
    ),
    Route(
        "GET",
        V1 + "/stream",
        stream.open_stream,
        "The client stream (WebSocket): ClientMessage in, ServerMessage out",
        media="application/octet-stream",
    ),
)


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
