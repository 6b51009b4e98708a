"""The call stream under trouble: silence, refusals, floods, many calls at once."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hostd import exception
from hostd.errors import Error
from hostd.sdk import stream as stream_module
from hostd.sdk.calling import new_call_id
from hostd.sdk.stream import Stream
from hostd.sdk.websocket import WebSocket
from tests.fakes.fake_api import FakeAPI
from tests.fakes.sample_functions import SampleError, count_to, fail, square

WAIT_S = 10


class Peer:
    """The host's end of a stream, by hand."""

    def __init__(self) -> None:
        here, self.socket = socket.socketpair()
        self.web = WebSocket(here)
        self.stream = Stream(self.web, on_logs=self.note, on_container=self.note)
        self.noted: list[dict[str, Any]] = []

    def note(self, event: dict[str, Any]) -> None:
        self.noted.append(event)

    def say(self, header: dict[str, Any], body: bytes = b"", *, kind: int = 2) -> None:
        text = json.dumps(header).encode()
        data = struct.pack(">I", len(text)) + text + body
        assert len(data) < 1 << 16
        self.socket.sendall(struct.pack(">BBH", 0x80 | kind, 126, len(data)) + data)


class Call:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.ended = threading.Event()

    def outputs(self, items: list[tuple[int, str, list[memoryview]]]) -> None:
        self.told += [
            (index, status, [bytes(f) for f in fields]) for index, status, fields in items
        ]

    def done(self, problem: dict[str, Any] | None) -> None:
        self.told.append(problem)
        self.ended.set()

    def lost(self, error: Error) -> None:
        self.told.append(error)
        self.ended.set()


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.stream.close()
    made.socket.close()


def test_outputs_are_cut_into_their_fields(peer: Peer) -> None:
    call = Call()
    peer.stream.add("fc-1", call)
    items = [[0, "ok", [3]], [2, "raised", [1, 0, 2]]]
    peer.say({"t": "outputs", "call": "fc-1", "items": items}, b"abcdef")
    peer.say({"t": "outputs", "call": "fc-unknown", "items": [[0, "ok", [1]]]}, b"x")
    peer.say({"t": "pong", "value": 1})
    peer.say({"t": "news of a later version"})
    peer.say({"t": "done", "call": "fc-1", "problem": None})
    assert call.ended.wait(WAIT_S)
    assert call.told == [(0, "ok", [b"abc"]), (2, "raised", [b"d", b"", b"ef"]), None]


def test_a_silent_host_is_pinged_and_then_given_up(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "SILENCE_S", 0.05)
    timeout = struct.pack("ll", 0, 20_000)
    peer.web._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
    call = Call()
    peer.stream.add("fc-1", call)
    peer.say({"t": "pong", "value": 1})  # ends the read that began with the longer timeout
    assert call.ended.wait(WAIT_S)
    assert isinstance(call.told[0], exception.ConnectionError)
    assert "silent" in str(call.told[0])
    assert peer.socket.recv(2) == b"\x89\x80"  # a ping


def test_a_refusal_of_the_host_fails_every_call_with_its_error(peer: Peer) -> None:
    call = Call()
    peer.stream.add("fc-1", call)
    peer.say({"t": "error", "problem": {"code": "not_found", "detail": "app ap-1 is not known"}})
    assert call.ended.wait(WAIT_S)
    assert isinstance(call.told[0], exception.NotFoundError)
    with pytest.raises(exception.ConnectionError, match="ap-1 is not known"):
        peer.stream.add("fc-2", Call())


@pytest.mark.parametrize("header", [{}, {"t": "done"}, {"t": "outputs", "call": "fc-1"}])
def test_malformed_messages_fail_the_calls(peer: Peer, header: dict[str, Any]) -> None:
    call = Call()
    peer.stream.add("fc-1", call)
    peer.say(header)
    assert call.ended.wait(WAIT_S)
    assert isinstance(call.told[0], exception.ConnectionError)


def test_text_messages_are_refused(peer: Peer) -> None:
    call = Call()
    peer.stream.add("fc-1", call)
    peer.say({"t": "done", "call": "fc-1"}, kind=1)
    assert call.ended.wait(WAIT_S)
    assert "text message" in str(call.told[0])


def test_pings_of_the_host_are_answered_by_the_writer(peer: Peer) -> None:
    peer.socket.sendall(b"\x89\x02hi")
    assert peer.socket.recv(8) == b"\x8a\x82\0\0\0\0hi"


def test_closing_fails_open_calls_and_ends_both_threads(peer: Peer) -> None:
    call = Call()
    peer.stream.add("fc-1", call)
    peer.stream.close()
    assert "not running any more" in str(call.told[0])
    assert not any(thread.is_alive() for thread in peer.stream._threads)


def test_cancelling_an_ended_call_says_nothing(peer: Peer) -> None:
    peer.stream.cancel("fc-1")
    peer.stream.attach("ap-1")
    assert b'"attach"' in peer.socket.recv(100)


def test_call_ids_of_many_threads_are_unique() -> None:
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.extend(new_call_id() for _ in range(2_000)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(set(ids)) == 8_000


@pytest.mark.slow
def test_many_calls_of_every_kind_at_once(running: FakeAPI) -> None:
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(15):
                n = chance.randrange(1, 200)
                match chance.randrange(5):
                    case 0:
                        assert square.remote(n) == n * n
                    case 1:
                        assert list(square.map(range(n))) == [v * v for v in range(n)]
                    case 2:
                        assert sum(square.map(range(n), order_outputs=False)) == sum(
                            v * v for v in range(n)
                        )
                    case 3:
                        assert list(count_to.remote_gen(n)) == list(range(n))
                    case _:
                        with pytest.raises(SampleError):
                            list(fail.map([*range(n), -1]))
        except BaseException as error:  # noqa: BLE001 - compared below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert not any(thread.is_alive() for thread in threads)
