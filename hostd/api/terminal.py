"""Interactive commands over a WebSocket: in a running container, or in a new one on an image.

The first message (text) is the request. Then binary messages carry bytes: their first byte is the
channel (0 stdin, 1 stdout, 2 stderr; a terminal has 0 and 1 only). Text from the client is
``{"resize": [rows, columns]}`` or ``{"eof": true}``. The server ends with ``{"exit_code": n}`` or
``{"problem": {…}}`` as text. When the client goes, the command is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import msgspec
from aiohttp import WSMessage, WSMsgType, web

from hostd.api.problems import problem_of
from hostd.api.registration import known_image, layers_of
from hostd.api.services import Services, services_of
from hostd.errors import InvalidError, to_problem
from hostd.ids import ContainerId, new_id
from hostd.model import ExecRequest, Record, ShellRequest
from hostd.runtime import BindMount, ContainerSpec
from hostd.runtime.bundle import INIT_TARGET
from hostd.runtime.function_spec import LIB_TARGET

STDIN, STDOUT, STDERR = b"\0", b"\1", b"\2"
FIRST_MESSAGE_TIMEOUT_S = 10.0
MESSAGE_BYTES_MAX = 2**20
PING_S = 15.0

R = TypeVar("R", bound=Record)


class Session(Protocol):
    """A running command: ``hostd.runtime.ExecProcess``."""

    async def read(self) -> tuple[str, bytes] | None:
        """The next piece of output and its stream; None at the end."""

    async def write(self, data: bytes) -> bool:
        """Give it input."""

    async def write_eof(self) -> None:
        """End its input."""

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal."""

    async def wait(self) -> int:
        """Its exit status."""


class Control(Record, frozen=True, kw_only=True):
    """A text message of the client."""

    resize: tuple[int, int] | None = None
    eof: bool = False


class _Silent:
    """Output of a container that only waits: there is none."""

    def line(self, stream: str, text: bytes, at_us: int) -> None:
        pass


async def exec_in_container(request: web.Request) -> web.StreamResponse:
    """GET /api/v1/containers/{id}/exec (WebSocket)."""
    services = services_of(request)
    wanted = request.match_info["id"]

    @asynccontextmanager
    async def start(record: ExecRequest) -> AsyncIterator[Session]:
        known = services.scheduler.container(ContainerId(wanted))
        container = services.runtime.container(known.id)
        size = (record.rows, record.columns) if record.tty else None
        process = await container.exec(record.args, env=record.env, cwd=record.workdir, tty=size)
        try:
            yield process
        finally:
            await process.close()

    return await _converse(request, ExecRequest, start)


async def open_shell(request: web.Request) -> web.StreamResponse:
    """GET /api/v1/shell (WebSocket)."""
    services = services_of(request)

    @asynccontextmanager
    async def start(record: ShellRequest) -> AsyncIterator[Session]:
        async with _container_on(services, record) as container:
            size = (record.rows, record.columns) if record.tty else None
            process = await container.exec(record.args, tty=size)
            try:
                yield process
            finally:
                await process.close()

    return await _converse(request, ShellRequest, start)


@asynccontextmanager
async def _container_on(services: Services, record: ShellRequest) -> AsyncIterator[Any]:
    """A container on an image that does nothing until it is left."""
    image = await known_image(services, record.image_id)
    layers = await layers_of(services, image, tuple(record.source))
    config = services.images.manifest(image).config
    name = new_id("ct")
    rootfs = await services.fs.mount_rootfs(name, layers)
    try:
        spec = ContainerSpec(
            id=name,
            rootfs=rootfs.path,
            args=(INIT_TARGET, "-P"),
            env={**config.env, **record.env},
            mounts=[BindMount(source=services.config.run_dir / "lib", target=LIB_TARGET)],
            cwd=config.workdir or "/",
            user=config.user,
            profile="shell",
        )
        container = await services.runtime.create(spec, _Silent())
        try:
            await container.start()
            yield container
        finally:
            await container.delete()
    finally:
        await services.fs.unmount_rootfs(rootfs)


async def _converse(
    request: web.Request, record: type[R], start: Callable[[R], Any]
) -> web.StreamResponse:
    """Read the request, run the command, connect it to the client."""
    socket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES_MAX, heartbeat=PING_S, compress=False)
    await socket.prepare(request)
    try:
        async with asyncio.timeout(FIRST_MESSAGE_TIMEOUT_S):
            first = await socket.receive()
        if first.type is not WSMsgType.TEXT:
            raise InvalidError(f"the first message must be a {record.__name__} as text")
        async with start(msgspec.json.decode(first.data, type=record)) as session:
            await _connect(socket, session)
    except Exception as error:  # noqa: BLE001 - the root of a session: every error is told
        await _end(socket, {"problem": to_problem(problem_of(error))})
    return socket


async def _connect(socket: web.WebSocketResponse, session: Session) -> None:
    """Pass bytes both ways until the command ends or the client goes."""
    async with asyncio.TaskGroup() as tasks:
        output = tasks.create_task(_send_output(socket, session))
        try:
            async for message in socket:
                if output.done():
                    break
                await _take(message, session)
        finally:
            output.cancel()


async def _send_output(socket: web.WebSocketResponse, session: Session) -> None:
    while (piece := await session.read()) is not None:
        stream, data = piece
        await socket.send_bytes((STDERR if stream == "stderr" else STDOUT) + data)
    await _end(socket, {"exit_code": await session.wait()})


async def _take(message: WSMessage, session: Session) -> None:
    if message.type is WSMsgType.BINARY and message.data[:1] == STDIN:
        await session.write(message.data[1:])
    elif message.type is WSMsgType.TEXT:
        control = msgspec.json.decode(message.data, type=Control)
        if control.resize is not None:
            session.resize(*control.resize)
        if control.eof:
            await session.write_eof()
    else:
        raise InvalidError("a message of a session is stdin bytes, resize or eof")


async def _end(socket: web.WebSocketResponse, last: dict[str, Any]) -> None:
    """Send the last message and close; a client that is gone needs neither."""
    try:
        await socket.send_str(msgspec.json.encode(last).decode())
        await socket.close()
    except ConnectionError:
        return
