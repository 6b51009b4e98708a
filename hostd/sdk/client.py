"""A client of a host's API: JSON requests, JSON lines, uploads, WebSockets; TCP or unix socket.

Connections are kept and used again; one that the server closed meanwhile is noticed before it is
used. Errors of the server arrive as the classes of ``hostd.errors``. Safe to share between threads.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import threading
from typing import TYPE_CHECKING, Union
from urllib.parse import urlsplit

from hostd.errors import ConnectionError, Error, InvalidError, TimeoutError, from_problem
from hostd.sdk import websocket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

DEFAULT_SOCKET = "/run/hostd/hostd.sock"
REQUEST_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 10.0
LINES_TIMEOUT_S = 3_600.0
"""Between two lines of a stream: a build step may be silent for long."""
UPLOAD_TIMEOUT_S = 600.0
UPLOAD_CHUNK_BYTES = 256 * 1024
IDLE_CONNECTIONS_MAX = 8
ERROR_BYTES_MAX = 1 << 20
LINE_BYTES_MAX = 64 << 20


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = _unix_socket(self._path, self.timeout)


class Client:
    """Talks to one host."""

    def __init__(
        self,
        *,
        socket_path: str | None = None,
        url: str | None = None,
        token: str | None = None,
    ) -> None:
        self._socket_path = socket_path
        self._address = None if url is None else _address(url)
        self._token = token
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        if socket_path is None and url is None:
            self._socket_path = DEFAULT_SOCKET

    @classmethod
    def from_env(cls) -> Client:
        """The host that the environment names: HOSTD_URL and HOSTD_TOKEN, else HOSTD_SOCKET."""
        url = os.environ.get("HOSTD_URL")
        if url:
            return cls(url=url, token=os.environ.get("HOSTD_TOKEN"))
        return cls(socket_path=os.environ.get("HOSTD_SOCKET") or DEFAULT_SOCKET)

    @property
    def where(self) -> str:
        """The host as messages name it."""
        if self._address is not None:
            return f"http://{self._address[0]}:{self._address[1]}"
        return f"unix socket {self._socket_path}"

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        timeout: float = REQUEST_TIMEOUT_S,
    ) -> Any:
        """One request with a JSON body; the decoded answer.

        Raises:
            Error: what the server's problem document says; ConnectionError when there is no server.
        """
        data = None if body is None else json.dumps(body).encode()
        connection, response = self._send(method, path, data, _JSON, timeout)
        with _Exchange(self, connection, timeout):
            content = response.read()
        return json.loads(content) if content else None

    def lines(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        timeout: float = LINES_TIMEOUT_S,
    ) -> Iterator[dict[str, Any]]:
        """A request whose answer is JSON lines, given as they come.

        Leaving the iteration closes the connection, which tells the server to stop.
        """
        data = None if body is None else json.dumps(body).encode()
        connection, response = self._send(method, path, data, _JSON, timeout)
        with _Exchange(self, connection, timeout):
            while line := response.readline(LINE_BYTES_MAX):
                if line.strip():
                    yield json.loads(line)

    def put_blob(self, digest: str, source: Union[bytes, str]) -> dict[str, Any]:
        """Upload content under its ``sha256:`` digest: bytes, or the path of a file."""
        if isinstance(source, bytes):
            return self._put(digest, source, len(source))
        with open(source, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            return self._put(digest, _exactly(file, size), size)

    def get_blob(self, digest: str) -> bytes:
        """The content of a blob."""
        path = f"/api/v1/blobs/{digest}"
        connection, response = self._send("GET", path, None, {}, UPLOAD_TIMEOUT_S)
        with _Exchange(self, connection, UPLOAD_TIMEOUT_S):
            return response.read()

    def websocket(self, path: str) -> websocket.WebSocket:
        """Open a WebSocket.

        Raises:
            Error: as for ``request``.
        """
        try:
            sock = self._connect()
        except OSError as error:
            raise self._unreachable(error) from error
        host = self._address[0] if self._address is not None else "localhost"
        try:
            return websocket.connect(sock, host, path, self._headers({}))
        except websocket.HandshakeRefused as refused:
            sock.close()
            raise _problem(refused.status, refused.body) from None
        except OSError as error:
            sock.close()
            raise self._unreachable(error) from error
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        """Close the connections that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    # --- inside -------------------------------------------------------------------------------

    def _put(self, digest: str, body: Union[bytes, Iterator[bytes]], size: int) -> dict[str, Any]:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        path = f"/api/v1/blobs/{digest}"
        connection, response = self._send("PUT", path, body, headers, UPLOAD_TIMEOUT_S)
        with _Exchange(self, connection, UPLOAD_TIMEOUT_S):
            reply: dict[str, Any] = json.loads(response.read())
        return reply

    def _send(
        self,
        method: str,
        path: str,
        body: Union[bytes, Iterator[bytes], None],
        headers: dict[str, str],
        timeout: float,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = self._take(timeout)
        try:
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(timeout)
            connection.request(method, path, body, self._headers(headers))
            response = connection.getresponse()
            if response.status >= 400:
                raise _problem(response.status, response.read(ERROR_BYTES_MAX))
        except Error:
            connection.close()
            raise
        except socket.timeout as error:
            connection.close()
            raise TimeoutError(
                f"{self.where} did not answer {method} {path} in {timeout:g} s"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error
        except BaseException:
            connection.close()
            raise
        return connection, response

    def _headers(self, headers: dict[str, str]) -> dict[str, str]:
        if self._token:
            return {**headers, "Authorization": f"Bearer {self._token}"}
        return headers

    def _connect(self) -> socket.socket:
        if self._address is None:
            assert self._socket_path is not None
            return _unix_socket(self._socket_path, CONNECT_TIMEOUT_S)
        sock = socket.create_connection(self._address, CONNECT_TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _take(self, timeout: float) -> http.client.HTTPConnection:
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                # Readable while nothing was asked: the server has closed it.
                if connection.sock is not None and not _is_readable(connection.sock):
                    return connection
                connection.close()
        if self._address is None:
            assert self._socket_path is not None
            return _UnixConnection(self._socket_path, timeout)
        return http.client.HTTPConnection(*self._address, timeout=min(timeout, CONNECT_TIMEOUT_S))

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if connection.sock is not None and len(self._idle) < IDLE_CONNECTIONS_MAX:
                self._idle.append(connection)
                return
        connection.close()

    def _unreachable(self, error: Exception) -> ConnectionError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return ConnectionError(
            f"hostd at {self.where} cannot be reached: {reason}",
            hint="is the daemon running? HOSTD_URL and HOSTD_SOCKET say where to look",
        )


class _Exchange:
    """An answer that is being read: afterwards the connection is kept, or closed when it broke."""

    def __init__(
        self, client: Client, connection: http.client.HTTPConnection, timeout: float
    ) -> None:
        self._client = client
        self._connection = connection
        self._timeout = timeout

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self._client._give_back(self._connection)
            return
        self._connection.close()
        if isinstance(error, socket.timeout):
            raise TimeoutError(
                f"{self._client.where} was silent for {self._timeout:g} s"
            ) from error
        if isinstance(error, (OSError, http.client.HTTPException)) and not isinstance(error, Error):
            raise self._client._unreachable(error) from error


_JSON = {"Content-Type": "application/json", "Accept": "application/json, application/x-ndjson"}


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
        raise InvalidError(
            f"HOSTD_URL is {url!r}, expected http://host:port",
            hint="https is not supported yet; use a tunnel across networks you do not trust",
        )
    return parts.hostname, parts.port or 7900


def _unix_socket(path: str, timeout: float | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _exactly(file: IO[bytes], size: int) -> Iterator[bytes]:
    """So many bytes of a file, which may grow meanwhile; one that shrank cannot be sent."""
    while size > 0:
        chunk = file.read(min(size, UPLOAD_CHUNK_BYTES))
        if not chunk:
            raise InvalidError(f"file {file.name} became shorter while it was uploaded")
        size -= len(chunk)
        yield chunk


def _is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _problem(status: int, content: bytes) -> Error:
    """The error that an answer with an error status describes."""
    try:
        problem = json.loads(content)
    except ValueError:
        problem = None
    if isinstance(problem, dict) and "code" in problem:
        return from_problem(problem)
    text = content[:200].decode("utf-8", "replace").strip()
    return Error(f"the server answered with HTTP status {status}: {text or 'no text'}")
