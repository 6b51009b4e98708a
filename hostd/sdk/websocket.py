"""A WebSocket client over a connected socket (RFC 6455), from the standard library.

Blocking, binary and text messages, no extensions. One thread reads; any thread may send: a lock
keeps frames whole. Frames are masked with a key of zero, which the RFC allows to choose and which
saves a pass over the data: masking protects proxies from scripts in browsers, and here is neither.

Waits are bounded by the socket's own timeouts (SO_RCVTIMEO, SO_SNDTIMEO) and not by Python's, which
would make every read two system calls and end a send in the middle of a frame.
"""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from hostd.errors import ConnectionError, PayloadTooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Union

    Part = Union[bytes, bytearray, memoryview]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MESSAGE_BYTES_MAX = 256 * 2**20 + 2**20
"""The largest payload and its header; the server has the same bound."""
CONTROL_BYTES_MAX = 125
READ_BYTES = 64 * 1024
"""Below the size at which malloc asks the kernel for every buffer."""
JOIN_BYTES_MAX = 64 * 1024
"""Smaller messages are copied into one buffer; larger ones are sent in parts."""
HANDSHAKE_BYTES_MAX = 64 * 1024
RECEIVE_TIMEOUT_S = 20
SEND_TIMEOUT_S = 60
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_ZERO_KEY = b"\0\0\0\0"


class WebSocket:
    """An open connection."""

    def __init__(self, sock: socket.socket, rest: bytes = b"") -> None:
        self._socket = sock
        self._data = rest
        self._at = 0
        self._send_lock = threading.Lock()
        self._fragments: list[bytes] = []
        self._fragment_bytes = 0
        self._fragment_kind = BINARY
        self.is_closed = False
        self.close_code: int | None = None
        self.close_reason = ""
        self.answer_ping: Callable[[bytes], None] = self.pong
        """Called by the reading thread; one that must never wait for a sender puts its own here."""
        _set_timeouts(sock)

    def send(self, parts: Sequence[Part], *, kind: int = BINARY) -> None:
        """Send one message, the concatenation of the parts.

        Raises:
            ConnectionError: the connection is closed, or the other side reads nothing for too long.
        """
        size = sum(map(len, parts))
        head = _frame_head(kind, size)
        with self._send_lock:
            if self.is_closed:
                raise ConnectionError("the connection is closed")
            try:
                if size <= JOIN_BYTES_MAX:
                    self._write(b"".join((head, *parts)))
                else:
                    self._write(head)
                    for part in parts:
                        self._write(part)
            except OSError as error:
                self.abort()
                raise ConnectionError(f"the connection broke while sending: {error}") from error
            except BaseException:
                # Ctrl-C may have hit in the middle of a frame: nothing can follow it.
                self.abort()
                raise

    def receive(self) -> tuple[int, memoryview] | None:
        """The next message and its kind (TEXT, BINARY or PONG); None when none came in time.

        Raises:
            ConnectionError: the connection ended or broke.
        """
        try:
            while True:
                message = self._receive_frame()
                if message is not None:
                    return message
        except BlockingIOError:
            return None
        except OSError as error:
            self.abort()
            if isinstance(error, ConnectionError):
                raise
            raise ConnectionError(f"the connection broke: {error}") from error

    def ping(self) -> None:
        """Ask the other side for a pong."""
        self.send([b""], kind=PING)

    def pong(self, payload: bytes) -> None:
        """Answer a ping."""
        self.send([payload], kind=PONG)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Say good-bye and close; the other side's answer is not waited for."""
        if not self.is_closed:
            try:
                text = reason.encode()[: CONTROL_BYTES_MAX - 2]
                self.send([struct.pack(">H", code), text], kind=CLOSE)
            except OSError:
                pass  # It is gone already, which is what was wanted.
        self.abort()

    def abort(self) -> None:
        """Close at once; a thread that is reading wakes up."""
        self.is_closed = True
        with suppress(OSError):  # It may not be connected any more.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    # --- reading ------------------------------------------------------------------------------

    def _receive_frame(self) -> tuple[int, memoryview] | None:
        """Read one frame; a whole message, or None when there is more to come.

        Nothing is taken out of the buffer before the frame's head is complete, so that a timeout
        between two frames loses nothing.
        """
        self._need(2)
        first, second = self._data[self._at], self._data[self._at + 1]
        head = 2
        size = second & 0x7F
        if size == 126:
            head = 4
            self._need(4)
            size = int.from_bytes(self._data[self._at + 2 : self._at + 4], "big")
        elif size == 127:
            head = 10
            self._need(10)
            size = int.from_bytes(self._data[self._at + 2 : self._at + 10], "big")
        if first & 0x70 or second & 0x80:
            raise ConnectionError(
                f"the server sent a frame with the bits {first & 0x70 | second & 0x80:#x}"
            )
        if size > MESSAGE_BYTES_MAX:
            raise ConnectionError(
                f"the server sent a frame of {size} bytes, the limit is {MESSAGE_BYTES_MAX}"
            )
        payload = self._take(head, size)
        return self._accept(first & 0x0F, bool(first & 0x80), payload)

    def _accept(
        self, kind: int, is_final: bool, payload: memoryview
    ) -> tuple[int, memoryview] | None:
        if kind in (BINARY, TEXT) and is_final and not self._fragments:
            return kind, payload
        if kind == CLOSE:
            self._closed_by_peer(bytes(payload))
        if kind == PING:
            self.answer_ping(bytes(payload))
            return None
        if kind == PONG:
            return kind, payload
        return self._collect(kind, is_final, payload)

    def _collect(
        self, kind: int, is_final: bool, payload: memoryview
    ) -> tuple[int, memoryview] | None:
        if kind not in (CONTINUATION, BINARY, TEXT) or (kind == CONTINUATION) != bool(
            self._fragments
        ):
            raise ConnectionError(f"the server sent a frame of kind {kind} out of turn")
        if kind != CONTINUATION:
            self._fragment_kind = kind
        # An empty first fragment still counts as begun.
        self._fragments.append(bytes(payload))
        self._fragment_bytes += len(payload)
        if self._fragment_bytes > MESSAGE_BYTES_MAX:
            raise ConnectionError(f"the server sent a message over {MESSAGE_BYTES_MAX} bytes")
        if not is_final:
            return None
        whole = b"".join(self._fragments)
        self._fragments, self._fragment_bytes = [], 0
        return self._fragment_kind, memoryview(whole)

    def _closed_by_peer(self, payload: bytes) -> None:
        self.close_code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
        self.close_reason = payload[2:].decode("utf-8", "replace")
        with suppress(OSError):  # The answer is a courtesy.
            self.send([payload[:2]], kind=CLOSE)
        reason = f": {self.close_reason}" if self.close_reason else ""
        raise ConnectionError(f"the server closed the connection (code {self.close_code}){reason}")

    def _need(self, count: int) -> None:
        """Have so many bytes in the buffer; BlockingIOError when they do not come in time."""
        while len(self._data) - self._at < count:
            more = self._socket.recv(READ_BYTES)
            if not more:
                raise ConnectionError("the server closed the connection without good-bye")
            self._data = self._data[self._at :] + more if self._at < len(self._data) else more
            self._at = 0

    def _take(self, head: int, size: int) -> memoryview:
        """The payload of the frame at hand, without a copy when it is in the buffer already."""
        begin = self._at + head
        if len(self._data) - begin >= size:
            self._at = begin + size
            return memoryview(self._data)[begin : begin + size]
        whole = memoryview(bytearray(size))
        have = len(self._data) - begin
        whole[:have] = self._data[begin:]
        self._data, self._at = b"", 0
        while have < size:
            try:
                count = self._socket.recv_into(whole[have:])
            except BlockingIOError:
                raise ConnectionError(
                    f"the server stopped in the middle of a frame for {RECEIVE_TIMEOUT_S} s"
                ) from None
            if count == 0:
                raise ConnectionError("the server closed the connection in the middle of a frame")
            have += count
        return whole

    # --- writing ------------------------------------------------------------------------------

    def _write(self, data: Part) -> None:
        view = memoryview(data)
        while len(view):
            # SO_SNDTIMEO: BlockingIOError when nothing at all was taken for so long.
            sent = self._socket.send(view)
            view = view[sent:]


def connect(sock: socket.socket, host: str, path: str, headers: dict[str, str]) -> WebSocket:
    """Turn a fresh connection into a WebSocket.

    Raises:
        ConnectionError: the server does not speak the protocol.
        HandshakeRefused: it answered with another HTTP status.
    """
    key = base64.b64encode(os.urandom(16))
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
    lines += [f"Sec-WebSocket-Key: {key.decode()}", "Sec-WebSocket-Version: 13"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    head, rest = _read_head(sock)
    status, fields = _parse_head(head)
    if status != 101:
        raise HandshakeRefused(status, _read_body(sock, fields, rest))
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
    if fields.get("sec-websocket-accept") != accept:
        raise ConnectionError("the server's WebSocket handshake has a wrong Sec-WebSocket-Accept")
    return WebSocket(sock, rest)


class HandshakeRefused(Exception):
    """The server answered the upgrade with an HTTP error."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.body = body


def _frame_head(kind: int, size: int) -> bytes:
    first = 0x80 | kind
    if kind >= CLOSE and size > CONTROL_BYTES_MAX:
        raise PayloadTooLargeError(
            f"control frame of {size} bytes, the limit is {CONTROL_BYTES_MAX}"
        )
    if size < 126:
        return struct.pack(">BB", first, 0x80 | size) + _ZERO_KEY
    if size < 1 << 16:
        return struct.pack(">BBH", first, 0x80 | 126, size) + _ZERO_KEY
    if size > MESSAGE_BYTES_MAX:
        raise PayloadTooLargeError(f"message of {size} bytes, the limit is {MESSAGE_BYTES_MAX}")
    return struct.pack(">BBQ", first, 0x80 | 127, size) + _ZERO_KEY


def _set_timeouts(sock: socket.socket) -> None:
    sock.settimeout(None)
    for option, seconds in (
        (socket.SO_RCVTIMEO, RECEIVE_TIMEOUT_S),
        (socket.SO_SNDTIMEO, SEND_TIMEOUT_S),
    ):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))


def _read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(READ_BYTES)
        if not more:
            raise ConnectionError("the server closed the connection during the handshake")
        data += more
        if len(data) > HANDSHAKE_BYTES_MAX:
            raise ConnectionError(f"the server's handshake is over {HANDSHAKE_BYTES_MAX} bytes")
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise ConnectionError(f"the server answered {lines[0][:80]!r}, which is not HTTP")
    fields = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip()
    return int(words[1]), fields


def _read_body(sock: socket.socket, fields: dict[str, str], rest: bytes) -> bytes:
    length = fields.get("content-length", "0")
    wanted = min(int(length) if length.isdigit() else 0, HANDSHAKE_BYTES_MAX)
    while len(rest) < wanted:
        more = sock.recv(READ_BYTES)
        if not more:
            break
        rest += more
    return rest
