"""A server for ``hostctl exec`` and ``shell``: what it is asked is kept, and it answers by rules.

It echoes input in upper case, answers a resize with ``size R C``, ends input with ``eof``, and
exits with the code that the command names (``exit-7``); ``fail`` is refused with a problem,
``break`` cuts the connection.
"""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

START_TIMEOUT_S = 10
REFUSALS = {
    "absent": 'exec: "absent": executable file not found in $PATH',
    "/etc/passwd": 'exec: "/etc/passwd": permission denied',
}
PROBLEM = {"code": "not_found", "detail": "container ct-none is not known", "hint": "hostctl ps"}


class FakeTerminalAPI:
    """Runs on a thread of its own, on a unix socket; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.socket_path = folder / "terminal.sock"
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> FakeTerminalAPI:
        self._thread.start()
        assert self._ready.wait(START_TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_TIMEOUT_S)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.add_routes(
            [
                web.get("/api/v1/containers/{id}/exec", self._converse),
                web.get("/api/v1/shell", self._converse),
                web.get("/api/v1/images/{ref}", self._image),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.UnixSite(runner, str(self.socket_path)).start()
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _image(self, request: web.Request) -> web.Response:
        if request.match_info["ref"] == "absent":
            return web.json_response({**PROBLEM, "detail": "image absent is not known"}, status=404)
        return web.json_response({"id": "im-found"})

    async def _converse(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.paths.append(request.path)
        wanted = json.loads((await socket.receive()).data)
        self.requests.append(wanted)
        word = wanted["args"][-1]
        if word == "fail":
            await socket.send_json({"problem": PROBLEM})
        elif word in REFUSALS:
            problem = {"code": "container_start_failed", "detail": REFUSALS[word]}
            await socket.send_json({"problem": problem})
        elif word == "break":
            assert request.transport is not None
            request.transport.abort()
        elif word.startswith("exit-"):
            await socket.send_bytes(b"\1to stdout\n")
            await socket.send_bytes(b"\2to stderr\n")
            await socket.send_json({"exit_code": int(word[5:])})
        else:
            await self._echo(socket)
        return socket

    async def _echo(self, socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(b"\1ready\r\n")
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                await socket.send_bytes(b"\1" + message.data[1:].upper())
                if b"\x04" in message.data:
                    return await socket.send_json({"exit_code": 0})
                continue
            control = json.loads(message.data)
            if control.get("eof"):
                await socket.send_bytes(b"\1eof\n")
                return await socket.send_json({"exit_code": 0})
            rows, columns = control["resize"]
            await socket.send_bytes(f"\1size {rows} {columns}\r\n".encode())
        return None
