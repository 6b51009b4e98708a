"""The call stream: calls, results, logs and progress of one app over one WebSocket.

A message is 4 bytes big-endian length of the header, the header in JSON, and the payloads whose
sizes the header lists (``hostd/model.py``, last section).

Concurrency: the reader thread receives and hands every message to the call it belongs to; a call's
methods run on that thread and must not wait. A caller sends from its own thread, under the socket's
lock: one system call, no hand-over. The writer thread sends what must not make its producer wait:
inputs of maps, messages of event loops, pongs. A connection that ends, or is silent for
``SILENCE_S`` although it was pinged, fails every open call; nothing waits without that bound.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from typing import TYPE_CHECKING

from hostd.errors import ConnectionError, Error, from_problem
from hostd.sdk.websocket import BINARY, PONG, WebSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol, Union

    from hostd.sdk.client import Client

    Buffer = Union[bytes, memoryview]

    class OpenCall(Protocol):
        """A call that waits for results; the reader thread calls its methods, one at a time."""

        def outputs(self, items: list[tuple[int, str, list[memoryview]]]) -> None:
            """Results arrived: index of the input, status, fields."""

        def done(self, problem: dict[str, Any] | None) -> None:
            """The call has ended; nothing follows."""

        def lost(self, error: Error) -> None:
            """The connection has ended; nothing follows."""


SILENCE_S = 60.0
"""With nothing received for this long, pings included, the host counts as gone."""
JOIN_TIMEOUT_S = 5.0


class Stream:
    """One open stream."""

    def __init__(
        self,
        socket: WebSocket,
        *,
        on_logs: Callable[[dict[str, Any]], None],
        on_container: Callable[[dict[str, Any]], None],
    ) -> None:
        self._socket = socket
        self._on_logs = on_logs
        self._on_container = on_container
        self._calls: dict[str, OpenCall] = {}
        self._lock = threading.Lock()
        """Of ``_calls`` and ``_error``: a call is added before the loss, or learns of it."""
        self._error: Error | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        socket.answer_ping = lambda payload: self.later(lambda: socket.pong(payload))
        self._threads = [
            threading.Thread(target=self._read, name="hostd-stream-reader", daemon=True),
            threading.Thread(target=self._write, name="hostd-stream-writer", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def open(
        cls,
        client: Client,
        *,
        on_logs: Callable[[dict[str, Any]], None],
        on_container: Callable[[dict[str, Any]], None],
    ) -> Stream:
        """Connect to the client's host."""
        socket = client.websocket("/api/v1/stream")
        return cls(socket, on_logs=on_logs, on_container=on_container)

    @property
    def error(self) -> Error | None:
        """Why the stream has ended; None while it is open."""
        return self._error

    def add(self, call_id: str, call: OpenCall) -> None:
        """Deliver the results of a call here from now on.

        Raises:
            ConnectionError: the stream has ended.
        """
        with self._lock:
            if self._error is not None:
                raise ConnectionError(self._error.text, hint=self._error.hint)
            self._calls[call_id] = call

    def drop(self, call_id: str) -> bool:
        """Deliver nothing more to a call; whether it was still open."""
        with self._lock:
            return self._calls.pop(call_id, None) is not None

    def send(self, header: bytes, payloads: Sequence[Buffer] = ()) -> None:
        """Send a message now, from this thread.

        Raises:
            ConnectionError: the stream has ended.
        """
        self._socket.send([len(header).to_bytes(4, "big"), header, *payloads])

    def later(self, job: Callable[[], None]) -> None:
        """Let the writer thread do this: it sends, and may wait for the host to read."""
        self._jobs.put(job)

    def attach(self, app_id: str) -> None:
        """Own an app: its logs come here, and it stops when this stream ends."""
        self.send(json.dumps({"t": "attach", "app": app_id}).encode())

    def cancel(self, call_id: str) -> None:
        """Cancel a call and forget it; safe to call when it has ended."""
        if self.drop(call_id) and self._error is None:
            header = f'{{"t":"cancel","call":"{call_id}"}}'.encode()
            self.later(lambda: self.send(header))

    def flush(self, timeout_s: float) -> None:
        """Wait until the writer thread has done everything so far, at most this long."""
        reached = threading.Event()
        self.later(reached.set)
        reached.wait(timeout_s)

    def close(self) -> None:
        """Say good-bye and end both threads; open calls fail."""
        self._lose(ConnectionError("the stream was closed: the app is not running any more"))
        self._socket.close()
        self._jobs.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(JOIN_TIMEOUT_S)

    # --- the reader thread --------------------------------------------------------------------

    def _read(self) -> None:
        try:
            self._receive_all()
        except Error as error:
            self._lose(error)
        except Exception as error:  # noqa: BLE001 - the root of a thread: it fails the calls
            self._lose(ConnectionError(f"the stream broke: {type(error).__name__}: {error}"))
        self._socket.abort()
        self._jobs.put(None)

    def _receive_all(self) -> None:
        heard_at = time.monotonic()
        while True:
            message = self._socket.receive()
            if message is None:
                silent_s = time.monotonic() - heard_at
                if silent_s > SILENCE_S:
                    raise ConnectionError(
                        f"the host was silent for {silent_s:.0f} s, pings included"
                    )
                self.later(self._socket.ping)
                continue
            heard_at = time.monotonic()
            kind, data = message
            if kind == BINARY:
                self._handle(data)
            elif kind != PONG:
                raise ConnectionError("the host sent a text message on the stream")

    def _handle(self, data: memoryview) -> None:
        begin = 4 + int.from_bytes(data[:4], "big")
        header = json.loads(bytes(data[4:begin]))
        kind = header["t"]
        if kind == "outputs":
            # Read without the lock: the dict is atomic, and a call dropped meanwhile is ignored.
            call = self._calls.get(header["call"])
            if call is not None:
                call.outputs(_items(header["items"], data, begin))
        elif kind == "done":
            with self._lock:
                call = self._calls.pop(header["call"], None)
            if call is not None:
                call.done(header.get("problem"))
        elif kind == "logs":
            self._on_logs(header)
        elif kind == "container":
            self._on_container(header)
        elif kind == "error":
            raise from_problem(header["problem"])

    def _lose(self, error: Error) -> None:
        with self._lock:
            if self._error is None:
                self._error = error
            calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            call.lost(self._error)

    # --- the writer thread --------------------------------------------------------------------

    def _write(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except ConnectionError:
                pass  # The reader sees the same end and fails the calls.
            except Exception as error:  # noqa: BLE001 - the root of a thread: it fails the calls
                self._lose(ConnectionError(f"the stream broke: {type(error).__name__}: {error}"))
                self._socket.abort()


def _items(
    items: list[list[Any]], data: memoryview, begin: int
) -> list[tuple[int, str, list[memoryview]]]:
    """The outputs of a message, as views of it: nothing is copied."""
    found = []
    for index, status, sizes in items:
        fields = []
        for size in sizes:
            fields.append(data[begin : begin + size])
            begin += size
        found.append((index, status, fields))
    return found
