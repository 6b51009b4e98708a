"""The link's state machine, against a runner that is not ours."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from hostd.clock import SystemClock
from hostd.errors import (
    Error,
    FunctionImportError,
    PayloadTooLargeError,
    ResourceExhaustedError,
)
from hostd.model import InputTimings, OutputStatus
from hostd.runner import wire
from hostd.runtime import runner_link
from hostd.runtime.runner_link import INPUTS_MAX, Hello, Load, Ready, RunnerLink, RunnerSocket

TIMINGS = wire.TIMINGS.pack(1, 2, 3)
LOAD = Load(name="f", module="app", qualname="f", is_generator=False)
WAIT_S = 10.0


class Told:
    """LinkEvents that note what they are told."""

    def __init__(self) -> None:
        self.story: list[object] = []
        self.outputs: list[tuple[int, OutputStatus, list[bytes], InputTimings]] = []
        self.changed = asyncio.Event()

    def note(self, what: object) -> None:
        self.story.append(what)
        self.changed.set()

    def link_hello(self, hello: Hello) -> None:
        self.note(("hello", hello.python))

    def link_ready(self, ready: Ready) -> None:
        self.note("ready")

    def link_load_failed(self, error: Error) -> None:
        self.note(error)

    def link_output(
        self, token: int, status: OutputStatus, fields: Sequence[bytes], timings: InputTimings
    ) -> None:
        self.outputs.append((token, status, list(fields), timings))
        self.note((token, status))

    def link_closed(self, violation: str | None) -> None:
        self.note(("closed", violation))


class Peer:
    """A hostile runner: sends what a test wants."""

    def __init__(self, directory: Path) -> None:
        self.told = Told()
        self.link = RunnerLink(self.told, SystemClock())
        self.listener = RunnerSocket(directory / "io")
        self.path = directory / "io" / "runner.sock"
        self.writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        """Be the one that is accepted."""
        accepting = self.listener.accept(self.link)
        _, opened = await asyncio.gather(accepting, asyncio.open_unix_connection(str(self.path)))
        self.reader, self.writer = opened

    async def send(self, kind: int, token: int, *fields: bytes) -> object:
        """Send a frame and return what the owner of the link is told then."""
        return await self.send_raw(wire.encode(kind, token, fields) + b"".join(fields))

    async def send_raw(self, data: bytes) -> object:
        assert self.writer is not None
        self.told.changed.clear()
        self.writer.write(data)
        async with asyncio.timeout(WAIT_S):
            await self.told.changed.wait()
        return self.told.story[-1]

    async def hello(self) -> object:
        """As ours begins."""
        return await self.send(wire.HELLO, 0, wire.START.pack(1, 2), b"1", b"3.11.2", b"cpython")

    async def ready(self) -> object:
        """Begin and be ready."""
        await self.hello()
        self.link.send_load(LOAD)
        return await self.send(wire.READY, 0, wire.LOADED.pack(1, 2))

    async def close(self) -> None:
        self.link.abort()
        self.listener.close()
        if self.writer is not None:
            self.writer.close()
            await asyncio.wait({asyncio.ensure_future(self.writer.wait_closed())})


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    peer = Peer(tmp_path)
    await peer.connect()
    yield peer
    await peer.close()


def violation(told: object) -> str:
    assert isinstance(told, tuple)
    assert told[0] == "closed"
    assert told[1], "closed without a violation"
    return str(told[1])


async def test_hello_ready_and_an_output_are_told_in_order(peer: Peer) -> None:
    await peer.ready()
    peer.link.send_input(7, b"payload")
    await peer.send(wire.OK, 7, TIMINGS, b"value")
    assert peer.told.story == [("hello", "3.11.2"), "ready", (7, "ok")]
    assert peer.told.outputs[0][2] == [b"value"]
    assert not peer.link.has_input(7)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (wire.READY, (wire.LOADED.pack(1, 2),)),
        (wire.OK, (TIMINGS, b"")),
        (wire.LOAD_FAILED, (b"invalid", b"", b"", b"", b"")),
    ],
)
async def test_anything_before_hello_is_a_violation(
    peer: Peer, kind: int, fields: tuple[bytes, ...]
) -> None:
    assert "out of turn" in violation(await peer.send(kind, 1, *fields))


async def test_second_hello_is_a_violation(peer: Peer) -> None:
    await peer.hello()
    assert "out of turn" in violation(await peer.hello())


async def test_ready_before_load_is_a_violation(peer: Peer) -> None:
    await peer.hello()
    told = await peer.send(wire.READY, 0, wire.LOADED.pack(1, 2))
    assert "out of turn" in violation(told)


async def test_answer_to_an_input_that_was_not_sent_is_a_violation(peer: Peer) -> None:
    await peer.ready()
    assert "for input 3" in violation(await peer.send(wire.OK, 3, TIMINGS, b""))


async def test_second_answer_to_an_input_is_a_violation(peer: Peer) -> None:
    await peer.ready()
    peer.link.send_input(3, b"")
    await peer.send(wire.OK, 3, TIMINGS, b"")
    assert "for input 3" in violation(await peer.send(wire.OK, 3, TIMINGS, b""))


async def test_values_after_the_end_of_a_generator_are_a_violation(peer: Peer) -> None:
    await peer.ready()
    peer.link.send_input(3, b"")
    assert await peer.send(wire.YIELD, 3, TIMINGS, b"1") == (3, "yield")
    assert await peer.send(wire.END, 3, TIMINGS) == (3, "end")
    assert violation(await peer.send(wire.YIELD, 3, TIMINGS, b"2"))


async def test_text_that_is_not_utf8_is_a_violation(peer: Peer) -> None:
    await peer.ready()
    peer.link.send_input(3, b"")
    told = await peer.send(wire.RAISED, 3, TIMINGS, b"E", b"\xff", b"", b"")
    assert "UTF-8" in violation(told)


@pytest.mark.parametrize("code", [b"auth_failed", b"", b"internal"])
async def test_error_codes_that_no_runner_uses_are_a_violation(peer: Peer, code: bytes) -> None:
    await peer.ready()
    peer.link.send_input(3, b"")
    assert "code" in violation(await peer.send(wire.FAILED, 3, TIMINGS, code, b"", b""))


async def test_failure_becomes_a_problem_document(peer: Peer) -> None:
    await peer.ready()
    peer.link.send_input(3, b"")
    await peer.send(wire.FAILED, 3, TIMINGS, b"not_serializable", b"no", b"try")
    problem = json.loads(peer.told.outputs[0][2][0])
    assert (problem["code"], problem["detail"], problem["hint"]) == (
        "not_serializable", "no", "try"
    )  # fmt: skip


async def test_load_error_carries_text_traceback_and_hint(peer: Peer) -> None:
    await peer.hello()
    peer.link.send_load(LOAD)
    fields = (b"function_import_failed", b"KeyError", b"it raised", b"Traceback\n", b"look")
    error = await peer.send(wire.LOAD_FAILED, 0, *fields)
    assert isinstance(error, FunctionImportError)
    assert (error.text, error.hint) == ("it raised\n\nTraceback", "look")
    assert error.fields == {"exception": "KeyError"}


async def test_claimed_timings_never_exceed_the_wall_time(peer: Peer) -> None:
    await peer.ready()
    peer.link.send_input(3, b"")
    await peer.send(wire.OK, 3, wire.TIMINGS.pack(2**64 - 1, 2**64 - 1, 2**64 - 1), b"")
    timings = peer.told.outputs[0][3]
    assert timings.run_us == timings.output_store_us == 0
    assert 0 < timings.input_load_us < WAIT_S * 1e6


async def test_end_of_the_stream_is_no_violation(peer: Peer) -> None:
    await peer.hello()
    peer.told.changed.clear()
    assert peer.writer is not None
    peer.writer.close()
    async with asyncio.timeout(WAIT_S):
        await peer.told.changed.wait()
    assert peer.told.story[-1] == ("closed", None)


async def test_nothing_is_told_after_a_violation(peer: Peer) -> None:
    await peer.ready()
    peer.link.send_input(1, b"")
    good = wire.encode(wire.OK, 1, (TIMINGS, b"")) + TIMINGS
    await peer.send_raw(b"\xff" * 64 + good)
    assert peer.told.outputs == []
    assert sum(told[0] == "closed" for told in peer.told.story if isinstance(told, tuple)) == 1


async def test_only_one_connection_is_accepted(peer: Peer) -> None:
    with socket.socket(socket.AF_UNIX) as second, pytest.raises(ConnectionRefusedError):
        second.connect(str(peer.path))


async def test_inputs_in_one_runner_are_bounded(peer: Peer) -> None:
    await peer.ready()
    for token in range(1, INPUTS_MAX + 1):
        peer.link.send_input(token, b"")
    with pytest.raises(ResourceExhaustedError, match=str(INPUTS_MAX)):
        peer.link.send_input(INPUTS_MAX + 1, b"")


async def test_input_over_the_limit_is_refused(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_link, "PAYLOAD_BYTES_MAX", 10)
    with pytest.raises(PayloadTooLargeError, match="11 bytes, the limit is 10"):
        peer.link.send_input(1, bytes(11))


def test_cancel_cell_is_a_ring_of_tokens(tmp_path: Path) -> None:
    listener = RunnerSocket(tmp_path / "io")
    try:
        for token in range(1, wire.CANCEL_SLOTS + 3):
            listener.mark_cancelled(token)
        cell = wire.CANCEL_CELL.unpack((tmp_path / "io" / "cancel").read_bytes())
        assert cell[:4] == (wire.CANCEL_SLOTS + 1, wire.CANCEL_SLOTS + 2, 3, 4)
    finally:
        listener.close()
        listener.close()


def test_socket_works_under_a_strict_umask_and_a_long_path(tmp_path: Path) -> None:
    before = os.umask(0o077)
    directory = tmp_path / ("d" * 100) / "io"
    try:
        listener = RunnerSocket(directory)
    finally:
        os.umask(before)
    listener.close()
    modes = [oct(p.stat().st_mode & 0o777) for p in (directory, directory / "runner.sock", directory / "cancel")]  # fmt: skip
    assert modes == ["0o755", "0o666", "0o644"]
