"""The client stream: one WebSocket per client that carries its calls, results, logs and progress.

A message is 4 bytes big-endian length of the header, the header (JSON, a record of hostd.model),
and a body: the concatenated payloads whose sizes the header lists. Payloads are opaque here.

Concurrency: everything runs on the daemon's loop. The scheduler calls the sinks of ``ClientStream``
from its own callbacks; they only append to the outbox. One writer task sends what has gathered, so
that results which finish together travel together. When the client goes, its calls are cancelled
and the apps it attached to are stopped.

Bounds: inputs by ``INPUTS_OUTSTANDING_MAX`` per call (the scheduler refuses more), log lines by
``LOG_LINES_MAX`` (older ones are counted as lost), a message by ``MESSAGE_BYTES_MAX``.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Sequence

import msgspec
from aiohttp import WSMsgType, web

from hostd.api.problems import problem_of
from hostd.api.services import Services, services_of
from hostd.errors import Error, InvalidError, to_problem
from hostd.ids import AppId, CallId, FunctionId
from hostd.model import (
    PAYLOAD_BYTES_MAX,
    Attach,
    CallDone,
    CallOpen,
    Cancel,
    ClientMessage,
    ContainerEvent,
    Inputs,
    LogLine,
    Logs,
    Output,
    Outputs,
    OutputStatus,
    Ping,
    Pong,
    StreamError,
)

MESSAGE_BYTES_MAX = PAYLOAD_BYTES_MAX + 2**20
LOG_LINES_MAX = 20_000
"""Of one app, waiting for a slow client: some megabytes."""
OUTPUTS_PER_MESSAGE_MAX = 256
CLOSE_TIMEOUT_S = 5.0
PING_S = 15.0

_decoder = msgspec.json.Decoder(ClientMessage)
_encoder = msgspec.json.Encoder()


def split_message(data: bytes) -> tuple[ClientMessage, memoryview]:
    """The header record of a message and its body.

    Raises:
        InvalidError: the length prefix does not fit.
        msgspec.ValidationError: the header is not a known record.
    """
    if len(data) < 4:
        raise InvalidError(f"stream message is {len(data)} bytes, expected at least 4")
    (length,) = struct.unpack_from(">I", data)
    if 4 + length > len(data):
        raise InvalidError(f"stream header is {length} bytes, the message has {len(data) - 4}")
    return _decoder.decode(memoryview(data)[4 : 4 + length]), memoryview(data)[4 + length :]


def split_body(body: memoryview, sizes: Sequence[int]) -> list[bytes]:
    """Cut a body into the payloads of these sizes.

    Raises:
        InvalidError: the sizes do not add up to the body.
    """
    if sum(sizes) != len(body) or any(size < 0 for size in sizes):
        raise InvalidError(f"stream body is {len(body)} bytes, its sizes add up to {sum(sizes)}")
    payloads = []
    offset = 0
    for size in sizes:
        payloads.append(bytes(body[offset : offset + size]))
        offset += size
    return payloads


def pack(header: msgspec.Struct, fields: Sequence[bytes] = ()) -> bytes:
    """A message from its header and the payloads of its body."""
    text = _encoder.encode(header)
    return b"".join((struct.pack(">I", len(text)), text, *fields))


class _Outbox:
    """What waits to be sent to one client, in the order it must arrive.

    Results of one call gather in one entry; log lines of one app do too and are dropped, counted,
    beyond the limit. Iterating takes messages out.
    """

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._call: CallId | None = None
        self._items: list[Output] = []
        self._fields: list[bytes] = []
        self._logs: dict[str, list[LogLine]] = {}
        self._lost: dict[str, int] = {}
        self.filled = asyncio.Event()

    def output(
        self, call_id: CallId, index: int, status: OutputStatus, fields: Sequence[bytes]
    ) -> None:
        if call_id != self._call or len(self._items) >= OUTPUTS_PER_MESSAGE_MAX:
            self._seal_outputs()
            self._call = call_id
        self._items.append(Output(index, status, [len(field) for field in fields]))
        self._fields.extend(fields)
        self.filled.set()

    def log(self, app: str, line: LogLine) -> None:
        lines = self._logs.setdefault(app, [])
        if len(lines) >= LOG_LINES_MAX:
            self._lost[app] = self._lost.get(app, 0) + 1
            return
        lines.append(line)
        self.filled.set()

    def message(self, header: msgspec.Struct) -> None:
        """Send a header alone, after everything before it: a call's ``done`` follows its logs."""
        self._seal_logs()
        self._seal_outputs()
        self._messages.append(pack(header))
        self.filled.set()

    def take(self) -> deque[bytes]:
        self._seal_logs()
        self._seal_outputs()
        taken, self._messages = self._messages, deque()
        self.filled.clear()
        return taken

    def _seal_outputs(self) -> None:
        if self._call is not None and self._items:
            self._messages.append(pack(Outputs(call=self._call, items=self._items), self._fields))
            self._items, self._fields = [], []
        self._call = None

    def _seal_logs(self) -> None:
        for app, lines in self._logs.items():
            self._messages.append(pack(Logs(app=app, lines=lines, lost=self._lost.pop(app, 0))))
        self._logs = {}


class ClientStream:
    """One client's stream; the scheduler's CallSink and AppSink."""

    def __init__(self, services: Services, socket: web.WebSocketResponse) -> None:
        self._services = services
        self._socket = socket
        self._outbox = _Outbox()
        self._calls: set[CallId] = set()
        self._apps: set[AppId] = set()

    async def serve(self) -> None:
        """Serve until the client goes; then cancel its calls and stop its apps."""
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write())
                try:
                    await self._read()
                finally:
                    writer.cancel()
        finally:
            self._let_go()

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is not WSMsgType.BINARY:
                return
            try:
                header, body = split_message(message.data)
                self._handle(header, body)
            except (Error, msgspec.ValidationError, msgspec.DecodeError) as error:
                await self._refuse(problem_of(error))
                return

    async def _refuse(self, error: Error) -> None:
        for message in (*self._outbox.take(), pack(StreamError(problem=to_problem(error)))):
            await self._socket.send_bytes(message)
        await self._socket.close()

    def _handle(self, header: ClientMessage, body: memoryview) -> None:
        match header:
            case CallOpen():
                self._open(header, body)
            case Inputs():
                self._add(CallId(header.call), split_body(body, header.sizes), last=header.last)
            case Cancel():
                self._services.scheduler.cancel_call(CallId(header.call), "cancelled by the client")
            case Attach():
                self._attach(AppId(header.app))
            case Ping():
                self._outbox.message(Pong(value=header.value))

    def _open(self, header: CallOpen, body: memoryview) -> None:
        payloads = split_body(body, header.sizes)
        call_id = CallId(header.call)
        try:
            self._services.scheduler.open_call(
                call_id, FunctionId(header.function), header.kind, self
            )
        except Error as error:
            self._outbox.message(CallDone(call=call_id, problem=to_problem(error)))
            return
        self._calls.add(call_id)
        if payloads or header.last:
            self._add(call_id, payloads, last=header.last)

    def _add(self, call_id: CallId, payloads: list[bytes], *, last: bool) -> None:
        if call_id not in self._calls:
            return  # It ended while these inputs were on their way.
        self._services.scheduler.add_inputs(call_id, payloads, last=last)

    def _attach(self, app_id: AppId) -> None:
        self._services.scheduler.attach(app_id, self)
        self._apps.add(app_id)

    def _let_go(self) -> None:
        for call_id in list(self._calls):
            self._services.scheduler.cancel_call(call_id, "the client is gone")
        for app_id in self._apps:
            self._services.scheduler.stop_app(app_id, "the client is gone")

    async def _write(self) -> None:
        while True:
            await self._outbox.filled.wait()
            try:
                for message in self._outbox.take():
                    await self._socket.send_bytes(message)
            except ConnectionError:
                return  # The reader sees the same end and lets go.

    # --- what the scheduler calls --------------------------------------------------------------

    def outputs(
        self, call_id: CallId, index: int, status: OutputStatus, fields: Sequence[bytes]
    ) -> None:
        """Pass on one result."""
        self._outbox.output(call_id, index, status, fields)

    def done(
        self,
        call_id: CallId,
        problem: dict[str, object] | None,
        phases_us: dict[str, int],
        start: str | None,
    ) -> None:
        """Tell that a call has ended."""
        self._calls.discard(call_id)
        self._outbox.message(
            CallDone(call=call_id, problem=problem, phases_us=phases_us, start=start)
        )

    def log(self, line: LogLine, app: str) -> None:
        """Pass on a line that a container of an attached app wrote."""
        self._outbox.log(app, line)

    def container(self, event: ContainerEvent) -> None:
        """Pass on that a container changed its state."""
        self._outbox.message(event)


Streams = set[web.WebSocketResponse]
OPEN_STREAMS: web.AppKey[Streams] = web.AppKey("open_streams", set)


async def close_streams(app: web.Application) -> None:
    """End every stream when the daemon stops; what the scheduler told them last is sent before."""
    streams = app[OPEN_STREAMS]
    for socket in tuple(streams):
        await socket.close(message=b"the daemon stops")


async def open_stream(request: web.Request) -> web.StreamResponse:
    """GET /api/v1/stream."""
    socket = web.WebSocketResponse(
        max_msg_size=MESSAGE_BYTES_MAX, compress=False, heartbeat=PING_S, timeout=CLOSE_TIMEOUT_S
    )
    await socket.prepare(request)
    request.app[OPEN_STREAMS].add(socket)
    try:
        await ClientStream(services_of(request), socket).serve()
    finally:
        request.app[OPEN_STREAMS].discard(socket)
    return socket
