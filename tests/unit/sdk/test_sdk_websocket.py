"""The WebSocket client, frame by frame, against a peer that is written out here."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostd.errors import ConnectionError, PayloadTooLargeError
from hostd.sdk import websocket
from hostd.sdk.websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, WebSocket, connect


@pytest.fixture
def pair() -> Iterator[tuple[WebSocket, socket.socket]]:
    here, there = socket.socketpair()
    client = WebSocket(here)
    yield client, there
    client.abort()
    there.close()


def frame(kind: int, payload: bytes, *, is_final: bool = True) -> bytes:
    first = (0x80 if is_final else 0) | kind
    if len(payload) < 126:
        return bytes((first, len(payload))) + payload
    if len(payload) < 1 << 16:
        return struct.pack(">BBH", first, 126, len(payload)) + payload
    return struct.pack(">BBQ", first, 127, len(payload)) + payload


def read_frame(sock: socket.socket) -> tuple[int, bytes]:
    """A frame from a client, which must be masked."""

    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += sock.recv(count - len(data))
        return data

    first, second = exactly(2)
    assert first & 0x80
    assert second & 0x80
    size = second & 0x7F
    if size == 126:
        (size,) = struct.unpack(">H", exactly(2))
    elif size == 127:
        (size,) = struct.unpack(">Q", exactly(8))
    mask = exactly(4)
    data = exactly(size)
    return first & 0x0F, bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 70_000), min_size=1, max_size=4),
    st.lists(st.integers(1, 40_000), min_size=1, max_size=8),
)
def test_messages_arrive_whole_however_the_bytes_are_cut(sizes: list[int], cuts: list[int]) -> None:
    here, there = socket.socketpair()
    client = WebSocket(here)
    messages = [bytes([size % 251]) * size for size in sizes]
    stream = b"".join(frame(BINARY, message) for message in messages)

    def send() -> None:
        at = 0
        while at < len(stream):
            step = cuts[at % len(cuts)]
            there.sendall(stream[at : at + step])
            at += step

    thread = threading.Thread(target=send)
    thread.start()
    received = [bytes(client.receive()[1]) for _ in messages]  # type: ignore[index]
    thread.join()
    client.abort()
    there.close()
    assert received == messages


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 65_537, 1_000_000])
def test_frames_of_every_length_are_masked_and_whole(
    pair: tuple[WebSocket, socket.socket], size: int
) -> None:
    client, there = pair
    data = b"d" * size
    thread = threading.Thread(target=lambda: client.send([data[:10], data[10:]]))
    thread.start()
    assert read_frame(there) == (BINARY, data)
    thread.join()


def test_fragments_become_one_message(pair: tuple[WebSocket, socket.socket]) -> None:
    client, there = pair
    there.sendall(
        frame(TEXT, b"a", is_final=False)
        + frame(PING, b"in between")
        + frame(CONTINUATION, b"", is_final=False)
        + frame(CONTINUATION, b"b")
    )
    assert client.receive() == (TEXT, memoryview(b"ab"))
    assert read_frame(there) == (PONG, b"in between")


def test_pings_can_be_answered_by_somebody_else(pair: tuple[WebSocket, socket.socket]) -> None:
    client, there = pair
    asked: list[bytes] = []
    client.answer_ping = asked.append
    there.sendall(frame(PING, b"x") + frame(BINARY, b"y"))
    assert client.receive() == (BINARY, memoryview(b"y"))
    assert asked == [b"x"]


def test_silence_is_none_and_loses_nothing(
    pair: tuple[WebSocket, socket.socket],
) -> None:
    client, there = pair
    client._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 20_000))
    assert client.receive() is None
    there.sendall(frame(BINARY, b"x")[:1])
    assert client.receive() is None
    there.sendall(frame(BINARY, b"x")[1:])
    assert client.receive() == (BINARY, memoryview(b"x"))


def test_the_peers_good_bye_is_answered_and_named(pair: tuple[WebSocket, socket.socket]) -> None:
    client, there = pair
    there.sendall(frame(CLOSE, struct.pack(">H", 1001) + b"the daemon stops"))
    with pytest.raises(ConnectionError, match=r"code 1001\): the daemon stops"):
        client.receive()
    assert read_frame(there) == (CLOSE, struct.pack(">H", 1001))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "without good-bye"),
        (frame(BINARY, b"x" * 100_000)[:50_000], "in the middle of a frame"),
        (b"\xc2\x00", "with the bits"),
        (b"\x82\x80", "with the bits"),
        (frame(CONTINUATION, b"x"), "out of turn"),
        (frame(BINARY, b"x", is_final=False) + frame(BINARY, b"y"), "out of turn"),
        (frame(3, b"x"), "out of turn"),
        (struct.pack(">BBQ", 0x82, 127, 1 << 40), "the limit is"),
    ],
)
def test_broken_peers_give_connection_errors(
    pair: tuple[WebSocket, socket.socket], data: bytes, message: str
) -> None:
    client, there = pair
    there.sendall(data)
    there.close()
    with pytest.raises(ConnectionError, match=message):
        client.receive()
    assert client.is_closed
    with pytest.raises(ConnectionError, match="is closed"):
        client.send([b"x"])


def test_a_peer_that_does_not_read_is_given_up(pair: tuple[WebSocket, socket.socket]) -> None:
    client, _ = pair
    client._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 20_000))
    with pytest.raises(ConnectionError, match="while sending"):
        client.send([b"x" * 10_000_000])
    assert client.is_closed


def test_messages_over_the_limit_are_refused_here(
    pair: tuple[WebSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "MESSAGE_BYTES_MAX", 100_000)
    with pytest.raises(PayloadTooLargeError, match="message of 100001 bytes"):
        pair[0].send([b"x" * 100_001])
    assert not pair[0].is_closed


def test_aborting_wakes_the_reader(pair: tuple[WebSocket, socket.socket]) -> None:
    client, _ = pair
    threading.Timer(0.02, client.abort).start()
    with pytest.raises(ConnectionError):
        client.receive()


# --- handshake ---------------------------------------------------------------------------------


def handshake(answer: str) -> WebSocket:
    here, there = socket.socketpair()

    def serve() -> None:
        with there:
            request = there.recv(65536)
            key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
            assert key is not None
            digest = hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            text = answer.replace("ACCEPT", base64.b64encode(digest).decode())
            there.sendall(text.encode() + frame(BINARY, b"early"))
            there.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        return connect(here, "localhost", "/stream", {"X-A": "b"})
    finally:
        here.shutdown(socket.SHUT_WR)
        thread.join()
        if "101" not in answer or "ACCEPT" not in answer:
            here.close()


def test_bytes_after_the_handshake_are_the_first_message() -> None:
    client = handshake("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: ACCEPT\r\n\r\n")
    assert client.receive() == (BINARY, memoryview(b"early"))
    client.abort()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("HTTP/1.1 101 ok\r\nSec-WebSocket-Accept: wrong\r\n\r\n", "wrong Sec-WebSocket-Accept"),
        ("SSH-2.0-OpenSSH\r\n\r\n", "which is not HTTP"),
    ],
)
def test_other_servers_are_refused(answer: str, error: str) -> None:
    with pytest.raises(ConnectionError, match=error):
        handshake(answer)
