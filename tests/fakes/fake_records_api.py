"""An HTTP server with records of ``hostd.model`` under fixed paths; keeps what it was asked."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from hostd.errors import Error, NotFoundError, to_problem


class FakeRecordsAPI:
    """Listens on a port of 127.0.0.1; a context manager. ``replies``: "GET /path" to a reply.

    A reply is a record, a list of records (sent in the list envelope), bytes (sent as JSON lines),
    or an Error.
    """

    def __init__(self, replies: dict[str, Any], *, token: str) -> None:
        self.replies = replies
        self.token = token
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    def __enter__(self) -> FakeRecordsAPI:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, request: str, authorization: str | None) -> tuple[int, str, bytes]:
        """Status, content type and body for a request."""
        self.asked.append(request)
        reply = self.replies.get(request, NotFoundError(f"{request} is not known", hint="look"))
        if authorization != f"Bearer {self.token}":
            from hostd.errors import AuthError

            reply = AuthError("the token is wrong", hint="set HOSTD_TOKEN")
        if isinstance(reply, Error):
            body = msgspec.json.encode(to_problem(reply))
            return reply.http_status, "application/problem+json", body
        if isinstance(reply, bytes):
            return 200, "application/x-ndjson", reply
        if isinstance(reply, list):
            reply = {"items": reply, "next_cursor": None}
        return 200, "application/json", msgspec.json.encode(reply)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _reply(self) -> None:
                request = f"{self.command} {self.path}"
                status, kind, body = api.answer(request, self.headers.get("Authorization"))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = _reply

            def log_message(self, *_: object) -> None:
                pass

        return Handler
