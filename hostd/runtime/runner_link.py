"""The daemon's end of the connection to a runner: one unix socket per container, one connection.

An ``asyncio.Protocol``, since streams cost a task switch per frame. The link is a small state
machine (HELLO, then READY or LOAD_FAILED, then answers to the inputs that were sent) and calls its
``LinkEvents`` on the event loop. Whatever else a runner sends ends the connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import msgspec

from hostd import errors
from hostd.clock import Clock
from hostd.errors import PayloadTooLargeError, ResourceExhaustedError, to_problem
from hostd.model import PAYLOAD_BYTES_MAX, InputTimings, OutputStatus
from hostd.runner import wire
from hostd.runtime.runner_frames import Frame, FrameDecoder, ProtocolViolation

INPUTS_MAX = wire.CANCEL_SLOTS
"""Inputs in one runner at a time: every one of them must find a place in the cancel cell."""

SOCKET_NAME = "runner.sock"
CELL_NAME = "cancel"

_FAILED_CODES = {
    cls.code: cls
    for cls in (
        errors.SerializationError,
        errors.DeserializationError,
        errors.PayloadTooLargeError,
        errors.CancelledError,
    )
}
_LOAD_CODES = {
    cls.code: cls
    for cls in (
        errors.FunctionImportError,
        errors.DeserializationError,
        errors.VersionMismatchError,
        errors.InvalidError,
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A runner has connected. Times are CLOCK_MONOTONIC in µs, as the container claims."""

    started_us: int
    connecting_us: int
    protocol: str
    python: str
    implementation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The function is loaded. Times as in Hello."""

    load_begun_us: int
    load_done_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Which function to load, and how."""

    name: str
    module: str
    qualname: str
    is_generator: bool
    serialized: bytes = b""
    python_version: str = ""
    source_dir: str = ""
    """What becomes ``sys.path[0]``; empty: ``/root``."""

    def fields(self) -> tuple[bytes, ...]:
        """As the LOAD frame carries them."""
        flags = wire.FLAG_GENERATOR if self.is_generator else 0
        return (
            self.module.encode(),
            self.qualname.encode(),
            bytes([flags]),
            self.python_version.encode(),
            self.serialized,
            self.source_dir.encode(),
            self.name.encode(),
        )


class LinkEvents(Protocol):
    """What the owner of a link is told, on the event loop, in order."""

    def link_hello(self, hello: Hello) -> None:
        """First of all; the owner answers with ``send_load``."""

    def link_ready(self, ready: Ready) -> None:
        """The function is loaded and inputs are answered."""

    def link_load_failed(self, error: errors.Error) -> None:
        """The function cannot be loaded; the runner ends by itself."""

    def link_output(
        self, token: int, status: OutputStatus, fields: Sequence[bytes], timings: InputTimings
    ) -> None:
        """An input was answered, wholly or (``yield``) in part."""

    def link_closed(self, violation: str | None) -> None:
        """Last, once: the connection is gone; violation: what the runner did to deserve it."""


class RunnerLink(asyncio.Protocol):
    """One connected runner. All methods are called on the event loop."""

    def __init__(self, events: LinkEvents, clock: Clock) -> None:
        self._events = events
        self._clock = clock
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._is_closed = False
        self._expects = wire.HELLO
        self._sent_us: dict[int, int] = {}
        """Inputs without a last answer, and when they were sent."""
        self._waiting: list[bytes] | None = []
        """Frames of inputs that were sent before LOAD; None once it has gone out."""

    # --- to the runner ---

    def send_load(self, load: Load) -> None:
        """Answer HELLO; inputs may follow at once."""
        self._write(wire.LOAD, 0, load.fields())
        waiting, self._waiting = self._waiting or [], None
        for frame in waiting:
            self._transport_write(frame)

    def send_input(
        self, token: int, payload: bytes, *, call_id: str = "", input_id: str = ""
    ) -> None:
        """Hand over an input; several may wait in the runner, which answers them in order.

        Raises:
            ResourceExhaustedError: it has INPUTS_MAX already.
            PayloadTooLargeError: see PAYLOAD_BYTES_MAX.
        """
        if len(self._sent_us) >= INPUTS_MAX:
            raise ResourceExhaustedError(f"the runner has {INPUTS_MAX} inputs, the limit")
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise PayloadTooLargeError(
                f"an input is {len(payload)} bytes, the limit is {PAYLOAD_BYTES_MAX}"
            )
        if token in self._sent_us or not 0 < token < 1 << 64:
            raise ValueError(f"token {token} is in use or not a token")
        self._sent_us[token] = self._clock.monotonic_us()
        fields = (payload, call_id.encode(), input_id.encode())
        if self._waiting is not None:
            self._waiting.append(_frame(wire.INPUT, token, fields))
        else:
            self._write(wire.INPUT, token, fields)

    def has_input(self, token: int) -> bool:
        """Whether this input was sent and is not answered to its end."""
        return token in self._sent_us

    def end(self) -> None:
        """Send no more: an idle runner ends by itself when it sees that."""
        if self._transport is not None and not self._is_closed:
            self._transport.write_eof()

    def abort(self) -> None:
        """Drop the connection; ``link_closed`` follows."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self, kind: int, token: int, fields: Sequence[bytes]) -> None:
        self._transport_write(_frame(kind, token, fields))

    def _transport_write(self, frame: bytes) -> None:
        # Not bounded by a pause: INPUTS_MAX is the bound.
        if self._transport is not None and not self._is_closed:
            self._transport.write(frame)

    # --- from the runner: asyncio calls these ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The runner has connected."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of a hostile container."""
        if self._is_closed:
            return
        try:
            for frame in self._decoder.feed(data):
                self._receive(frame)
        except ProtocolViolation as violation:
            self.abort()
            self._close(str(violation))

    def connection_lost(self, exc: Exception | None) -> None:
        """The runner has gone, or we dropped it."""
        self._close(None)

    def _close(self, violation: str | None) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._sent_us.clear()
            self._events.link_closed(violation)

    def _receive(self, frame: Frame) -> None:
        if self._expects == 0:
            self._receive_output(frame)
        elif frame.kind == self._expects == wire.HELLO:
            self._expects = wire.READY
            self._events.link_hello(_hello(frame.fields))
        elif frame.kind == self._expects == wire.READY and self._waiting is None:
            self._expects = 0
            begun_ns, done_ns = wire.LOADED.unpack(frame.fields[0])
            self._events.link_ready(
                Ready(load_begun_us=begun_ns // 1000, load_done_us=done_ns // 1000)
            )
        elif frame.kind == wire.LOAD_FAILED and self._expects == wire.READY:
            self._expects = wire.LOAD_FAILED  # twice is not expected of anybody
            self._events.link_load_failed(_load_error(frame.fields))
        else:
            raise ProtocolViolation(f"frame of kind {frame.kind} out of turn")

    def _receive_output(self, frame: Frame) -> None:
        sent_us = self._sent_us.get(frame.token)
        status = _STATUS.get(frame.kind)
        if sent_us is None or status is None:
            raise ProtocolViolation(f"frame of kind {frame.kind} for input {frame.token}")
        if status != "yield":
            del self._sent_us[frame.token]
        timings = _timings(frame.fields[0], self._clock.monotonic_us() - sent_us)
        fields = _output_fields(frame)
        self._events.link_output(frame.token, status, fields, timings)


_STATUS: dict[int, OutputStatus] = {
    wire.OK: "ok",
    wire.YIELD: "yield",
    wire.END: "end",
    wire.RAISED: "raised",
    wire.FAILED: "failed",
}


def _frame(kind: int, token: int, fields: Sequence[bytes]) -> bytes:
    return b"".join((wire.encode(kind, token, fields), *fields))


def _text(field: bytes) -> str:
    try:
        return field.decode()
    except UnicodeDecodeError as error:
        raise ProtocolViolation("a text field is not UTF-8") from error


def _hello(fields: Sequence[bytes]) -> Hello:
    started_ns, connecting_ns = wire.START.unpack(fields[0])
    return Hello(
        started_us=started_ns // 1000,
        connecting_us=connecting_ns // 1000,
        protocol=_text(fields[1]),
        python=_text(fields[2]),
        implementation=_text(fields[3]),
    )


def _load_error(fields: Sequence[bytes]) -> errors.Error:
    code, kind, text, traceback, hint = map(_text, fields)
    cls = _LOAD_CODES.get(code)
    if cls is None:
        raise ProtocolViolation(f"load error with the code {code!r}")
    whole = f"{text}\n\n{traceback}".rstrip() if traceback else text
    extra = {"exception": kind} if kind else {}
    return cls(whole, hint=hint or None, **extra)


def _timings(field: bytes, elapsed_us: int) -> InputTimings:
    """As measured by the runner, but never more than has passed since the input was sent."""
    left = max(elapsed_us, 0)
    parts = []
    for value in wire.TIMINGS.unpack(field):
        parts.append(min(value, left))
        left -= parts[-1]
    return InputTimings(input_load_us=parts[0], run_us=parts[1], output_store_us=parts[2])


def _output_fields(frame: Frame) -> list[bytes]:
    """The fields as model.OutputStatus describes them."""
    fields = frame.fields[1:]
    if frame.kind == wire.RAISED:
        for field in fields[:3]:
            _text(field)
    elif frame.kind == wire.FAILED:
        code, text, hint = map(_text, fields)
        cls = _FAILED_CODES.get(code)
        if cls is None:
            raise ProtocolViolation(f"failure with the code {code!r}")
        fields = [msgspec.json.encode(to_problem(cls(text, hint=hint or None)))]
    return fields


# --- the socket and the cancel cell ---------------------------------------------------------------


class RunnerSocket:
    """The directory that a container gets as ``/run/hostd/io``: a socket and the cancel cell.

    It is made before the container and is read-only for it; the daemon keeps the descriptors, so
    that nothing done to the directory later can lead it elsewhere.
    """

    def __init__(self, directory: Path) -> None:
        """Make both; blocking, but only a handful of system calls on a tmpfs."""
        directory.mkdir(mode=0o755, parents=True)
        directory.chmod(0o755)  # whatever the umask: user code need not run as root
        self._cancelled = 0
        self._cell = -1
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # A name through the descriptor is short, however long the run directory's is.
            path = f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
            self._listener.bind(path)
            Path(path).chmod(0o666)
            self._listener.listen(1)
            self._listener.setblocking(False)
            self._cell = os.open(
                CELL_NAME,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                0o644,
                dir_fd=descriptor,
            )
            os.fchmod(self._cell, stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IROTH)
            os.pwrite(self._cell, bytes(wire.CANCEL_CELL_BYTES), 0)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(descriptor)

    async def accept(self, link: RunnerLink) -> None:
        """Wait for the one connection and give it to the link; later ones are refused."""
        loop = asyncio.get_running_loop()
        connection, _ = await loop.sock_accept(self._listener)
        self._listener.close()
        await loop.connect_accepted_socket(lambda: link, connection)

    def mark_cancelled(self, token: int) -> None:
        """Write the token into the cell; the runner looks when it gets SIGUSR1."""
        slot = self._cancelled % wire.CANCEL_SLOTS
        self._cancelled += 1
        os.pwrite(self._cell, token.to_bytes(8, "big"), slot * 8)

    def close(self) -> None:
        """Give the descriptors back; idempotent."""
        self._listener.close()
        if self._cell >= 0:
            os.close(self._cell)
            self._cell = -1
