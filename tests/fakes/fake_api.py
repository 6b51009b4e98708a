"""A host's API in this process: the contract's endpoints with a local executor of functions.

The only double of the SDK's tests. It keeps what clients upload and send, so that tests can look,
and runs functions in threads of this process: serialized ones from their pickle, others by
importing their module. Faults: ``drop_streams`` cuts every connection; a cleared ``gate`` stops all
functions.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import json
import pickle
import queue
import struct
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from hostd.errors import Error, InvalidError, NotFoundError, to_problem
from hostd.ids import new_id
from hostd.runner import context
from hostd.runner.values import dump

START_TIMEOUT_S = 10


class FakeCall:
    """A call as the host sees it."""

    def __init__(self, api: FakeAPI, stream: FakeStream, header: dict[str, Any]) -> None:
        self.api = api
        self.stream = stream
        self.id = header["call"]
        self.kind = header["kind"]
        self.function = api.functions[header["function"]]
        self.received = 0
        self.answered = 0
        self.is_last = False
        self.is_over = False

    def add(self, payloads: list[bytes], *, last: bool) -> None:
        self.api.frames.append(len(payloads))
        for payload in payloads:
            index = self.received
            self.received += 1
            outstanding = self.received - self.answered
            self.api.outstanding_max = max(self.api.outstanding_max, outstanding)
            self.api.pool.submit(self.run, index, payload)
        self.is_last = self.is_last or last
        self.finish_if_done()

    def run(self, index: int, payload: bytes) -> None:
        self.api.gate.wait()
        if self.is_over:
            return
        context.call_id, context.input_id = self.id, f"{self.id}:{index}"
        last: tuple[str, list[bytes]] | None = None
        try:
            for status, fields in self.results(payload):
                if status == "yield":
                    self.api.post(self.answer, index, status, fields)
                else:
                    last = status, fields
        finally:
            context.call_id = context.input_id = None
        # Only now: whoever gets the answer may look at the ids of this process at once.
        if last is not None:
            self.api.post(self.answer, index, *last)

    def results(self, payload: bytes) -> Any:
        try:
            args, kwargs = pickle.loads(payload)
            value = self.function.load()(*args, **kwargs)
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
            if self.kind == "gen":
                for item in value:
                    if self.is_over:
                        return
                    yield "yield", [dump(item)]
                yield "end", []
            else:
                yield "ok", [dump(value)]
        except Error as error:
            yield "failed", [json.dumps(to_problem(error)).encode()]
        except BaseException as error:  # noqa: BLE001 - the user's code may raise anything
            yield "raised", raised_fields(error)

    def answer(self, index: int, status: str, fields: list[bytes]) -> None:
        if self.is_over:
            return
        self.stream.output(self.id, index, status, fields)
        if status != "yield":
            self.answered += 1
            self.finish_if_done()

    def finish_if_done(self) -> None:
        if self.is_last and self.answered == self.received and not self.is_over:
            self.end(None)

    def end(self, problem: dict[str, Any] | None) -> None:
        self.is_over = True
        self.stream.calls.pop(self.id, None)
        self.stream.message({"t": "done", "call": self.id, "problem": problem})


def raised_fields(error: BaseException) -> list[bytes]:
    """What a runner sends for an exception; see hostd/runner/outcome.py."""
    frames = [
        (f.filename, f.lineno, f.name, f.line) for f in traceback.extract_tb(error.__traceback__)
    ]
    record = {
        "exception": error,
        "cause": error.__cause__,
        "context": error.__context__,
        "suppress_context": error.__suppress_context__,
        "frames": [frame for frame in frames if "fake_api" not in frame[0]],
    }
    try:
        pickled = dump(record)
    except Exception:  # noqa: BLE001 - as the runner does
        pickled = b""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return [type(error).__qualname__.encode(), str(error).encode(), text.encode(), pickled]


class FakeFunction:
    """A function of an app: its spec, and how to find it."""

    def __init__(self, api: FakeAPI, spec: dict[str, Any]) -> None:
        self.api = api
        self.spec = spec
        self.id = new_id("fu")

    def load(self) -> Callable[..., Any]:
        if self.spec.get("serialized"):
            found = pickle.loads(self.api.blobs[self.spec["serialized"]])
        else:
            found = importlib.import_module(self.spec["module"])
            for part in self.spec["qualname"].split("."):
                found = getattr(found, part)
        return getattr(found, "_hostd_raw", found)


class FakeStream:
    """One client's stream."""

    def __init__(self, api: FakeAPI, socket: web.WebSocketResponse) -> None:
        self.api = api
        self.socket = socket
        self.calls: dict[str, FakeCall] = {}
        self.apps: list[str] = []
        self.outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self.pending: tuple[str, list[Any], list[bytes]] | None = None

    def output(self, call: str, index: int, status: str, fields: list[bytes]) -> None:
        if self.pending is None or self.pending[0] != call:
            self.seal()
            self.pending = (call, [], [])
            self.api.loop.call_soon(self.seal)
        self.pending[1].append([index, status, [len(field) for field in fields]])
        self.pending[2].extend(fields)

    def seal(self) -> None:
        if self.pending is not None:
            call, items, fields = self.pending
            self.pending = None
            self.message({"t": "outputs", "call": call, "items": items}, fields)

    def message(self, header: dict[str, Any], fields: list[bytes] | None = None) -> None:
        self.seal()
        text = json.dumps(header).encode()
        self.outbox.put_nowait(b"".join((struct.pack(">I", len(text)), text, *(fields or []))))

    async def write(self) -> None:
        try:
            while True:
                await self.socket.send_bytes(await self.outbox.get())
        except ConnectionError:
            pass

    def handle(self, data: bytes) -> None:
        (length,) = struct.unpack_from(">I", data)
        header = json.loads(data[4 : 4 + length])
        self.api.messages.append(header)
        payloads = []
        at = 4 + length
        for size in header.get("sizes", []):
            payloads.append(data[at : at + size])
            at += size
        assert at == len(data), "the sizes do not add up to the body"
        getattr(self, f"on_{header['t']}")(header, payloads)

    def on_attach(self, header: dict[str, Any], payloads: list[bytes]) -> None:
        self.apps.append(header["app"])

    def on_call(self, header: dict[str, Any], payloads: list[bytes]) -> None:
        assert header["call"].startswith("fc-")
        assert len(header["call"]) == 29
        call = FakeCall(self.api, self, header)
        self.calls[call.id] = call
        call.add(payloads, last=header["last"])

    def on_inputs(self, header: dict[str, Any], payloads: list[bytes]) -> None:
        call = self.calls.get(header["call"])
        if call is not None:
            call.add(payloads, last=header["last"])

    def on_cancel(self, header: dict[str, Any], payloads: list[bytes]) -> None:
        self.api.cancelled.put(header["call"])
        call = self.calls.get(header["call"])
        if call is not None:
            call.end({"code": "cancelled", "detail": "cancelled by the client"})

    def on_ping(self, header: dict[str, Any], payloads: list[bytes]) -> None:
        self.message({"t": "pong", "value": header["value"]})


class FakeAPI:
    """The server; a context manager that runs it on a thread of its own, on a unix socket."""

    def __init__(self, folder: Path, *, threads: int = 16, token: str | None = None) -> None:
        self.socket_path = folder / "api.sock"
        self.token = token
        self.port: int | None = None
        self.pool = ThreadPoolExecutor(threads)
        self.gate = threading.Event()
        self.gate.set()
        self.blobs: dict[str, bytes] = {}
        self.put_digests: list[str] = []
        self.builds: list[dict[str, Any]] = []
        self.build_events: list[dict[str, Any]] | None = None
        self.apps: dict[str, dict[str, Any]] = {}
        self.stopped: list[str] = []
        self.functions: dict[str, FakeFunction] = {}
        self.streams: list[FakeStream] = []
        self.messages: list[dict[str, Any]] = []
        self.frames: list[int] = []
        self.cancelled: queue.Queue[str] = queue.Queue()
        self.outstanding_max = 0
        self.loop: asyncio.AbstractEventLoop
        self._ready = threading.Event()
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> FakeAPI:
        self._thread.start()
        assert self._ready.wait(START_TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_TIMEOUT_S)
        self.pool.shutdown(wait=False, cancel_futures=True)

    def post(self, function: Callable[..., Any], *args: Any) -> None:
        with suppress(RuntimeError):  # The server may stop while a function runs.
            self.loop.call_soon_threadsafe(function, *args)

    # --- faults and looks ----------------------------------------------------------------------

    def drop_streams(self) -> None:
        """Cut every stream, without good-bye."""
        for stream in self.streams:
            self.post(lambda s=stream: s.socket._req.transport.abort())

    def log(self, text: str, *, stream: str = "stdout", lost: int = 0) -> None:
        """A container writes a line."""
        line = {"at_us": 1, "container_id": "co-1", "stream": stream, "text": text}
        for client in self.streams:
            header = {"t": "logs", "app": "ap", "lines": [line], "lost": lost}
            self.post(client.message, header)

    @property
    def call_headers(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["t"] == "call"]

    # --- HTTP ------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=1 << 30, middlewares=[self._answer])
        app.add_routes(
            [
                web.get("/healthz", self._health),
                web.post("/api/v1/blobs/missing", self._missing),
                web.put("/api/v1/blobs/{digest}", self._put_blob),
                web.get("/api/v1/blobs/{digest}", self._get_blob),
                web.post("/api/v1/builds", self._build),
                web.post("/api/v1/apps", self._create_app),
                web.post("/api/v1/apps/{id}/stop", self._stop_app),
                web.get("/api/v1/stream", self._open_stream),
                web.get("/api/v1/broken", self._broken),
            ]
        )
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(self.socket_path)).start()
        tcp = web.TCPSite(runner, "127.0.0.1", 0)
        await tcp.start()
        self.port = runner.addresses[-1][1]
        self._ready.set()
        await self._stop.wait()
        for stream in self.streams:
            await stream.socket.close()
        await runner.cleanup()

    @web.middleware
    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            if (
                self.token is not None
                and request.headers.get("Authorization") != f"Bearer {self.token}"
            ):
                from hostd.errors import AuthError

                raise AuthError("the token is wrong")
            return await handler(request)
        except Error as error:
            return web.json_response(to_problem(error), status=error.http_status)

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _broken(self, request: web.Request) -> web.Response:
        return web.Response(status=502, text="bad gateway")

    async def _missing(self, request: web.Request) -> web.Response:
        wanted = (await request.json())["digests"]
        return web.json_response({"missing": [name for name in wanted if name not in self.blobs]})

    async def _put_blob(self, request: web.Request) -> web.Response:
        data = await request.read()
        name = request.match_info["digest"]
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != name:
            from hostd.errors import BlobCorruptError

            raise BlobCorruptError(f"upload {name} has {len(data)} other bytes")
        self.blobs[name] = data
        self.put_digests.append(name)
        return web.json_response({"digest": "blake3:" + "0" * 64, "size_bytes": len(data)})

    async def _get_blob(self, request: web.Request) -> web.Response:
        return web.Response(body=self.blobs[request.match_info["digest"]])

    async def _build(self, request: web.Request) -> web.StreamResponse:
        wanted = await request.json()
        self.builds.append(wanted)
        for step in wanted["recipe"]["steps"]:
            for file in step.get("files", []) + step.get("context", []):
                assert file["kind"] != "file" or file["digest"] in self.blobs, file
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        image_id = "im-" + hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:26]
        for event in self.build_events or [{"kind": "done", "image_id": image_id}]:
            await response.write(json.dumps({"seq": 1, "at_us": 1, **event}).encode() + b"\n")
        await response.write_eof()
        return response

    async def _create_app(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        functions = [FakeFunction(self, spec) for spec in wanted["functions"]]
        for function in functions:
            for file in function.spec["source"]:
                if file["kind"] == "file" and file["digest"] not in self.blobs:
                    raise NotFoundError(f"file {file['path']} was not uploaded")
            self.functions[function.id] = function
        app_id = new_id("ap")
        self.apps[app_id] = wanted
        infos = [{"id": function.id, "name": function.spec["name"]} for function in functions]
        return web.json_response(
            {"id": app_id, "name": wanted["name"], "functions": infos}, status=201
        )

    async def _stop_app(self, request: web.Request) -> web.Response:
        app_id = request.match_info["id"]
        if app_id not in self.apps:
            raise InvalidError(f"app {app_id} is not known")
        self.stopped.append(app_id)
        return web.json_response({"id": app_id})

    async def _open_stream(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=0, compress=False)
        await socket.prepare(request)
        stream = FakeStream(self, socket)
        self.streams.append(stream)
        writer = asyncio.create_task(stream.write())
        try:
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    stream.handle(message.data)
        finally:
            writer.cancel()
            for call in list(stream.calls.values()):
                call.is_over = True
            self.stopped.extend(app for app in stream.apps if app not in self.stopped)
        return socket
