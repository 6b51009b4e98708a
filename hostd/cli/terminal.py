"""A command elsewhere with its input and output here: pipes, or this terminal in raw mode.

The main thread writes what arrives; a second one reads standard input and sends it. Window sizes
travel through a pipe to that thread: a signal handler must not wait for the socket's lock.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from hostd.cli.settings import is_terminal
from hostd.errors import ConnectionError, from_problem

if TYPE_CHECKING:
    from hostd.sdk.websocket import WebSocket

TEXT, BINARY, PONG = 1, 2, 10
"""Kinds of messages (RFC 6455)."""
STDIN, STDOUT = b"\0", 1
READ_BYTES = 32 * 1024


def terminal_request(env: Mapping[str, str]) -> dict[str, object]:
    """What the request says of this terminal, if both its ends are one, and of variables."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        return {"tty": False, "env": dict(env)}
    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    known = {"TERM": os.environ.get("TERM", "xterm"), **env}
    return {"tty": True, "rows": rows, "columns": columns, "env": known}


def run_session(socket: WebSocket, request: dict[str, object]) -> int:
    """Run what the request asks for until it ends; its exit code.

    Raises:
        Error: the server refused, or the connection broke.
    """
    socket.send([json.dumps(request).encode()], kind=TEXT)
    with _wake_pipe() as (resized, wake), _raw_mode(bool(request["tty"]), wake):
        reader = threading.Thread(target=_send_input, args=(socket, resized), daemon=True)
        reader.start()
        try:
            return _write_output(socket)
        finally:
            socket.close()


def _write_output(socket: WebSocket) -> int:
    was_silent = False
    while True:
        message = _next(socket)
        if message is None:
            # Silence is normal; no answer to a ping is not.
            if was_silent:
                raise ConnectionError("hostd does not answer any more")
            was_silent = True
            socket.ping()
            continue
        was_silent = False
        kind, data = message
        if kind == BINARY and len(data):
            _write_all(1 if data[0] == STDOUT else 2, data[1:])
        elif kind == TEXT:
            return _exit_code(json.loads(bytes(data)))


def _next(socket: WebSocket) -> tuple[int, memoryview] | None:
    try:
        return socket.receive()
    except ConnectionError as error:
        # Which of the two threads saw it first only decides how the error is worded.
        raise ConnectionError(
            "the connection to hostd ended before the command did", hint="hostctl doctor"
        ) from error


def _exit_code(end: dict[str, Any]) -> int:
    if "problem" in end:
        raise from_problem(end["problem"])
    return int(end["exit_code"])


def _write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]


def _send_input(socket: WebSocket, resized: int) -> None:
    """Send standard input until it ends, and window sizes when they change.

    Ends with the session: the pipe's other end is closed then.
    """
    stdin = sys.stdin.fileno() if sys.stdin is not None else -1
    sources = [resized, stdin] if stdin >= 0 else [resized]
    try:
        while True:
            ready, _, _ = select.select(sources, [], [])
            if resized in ready:
                if not os.read(resized, READ_BYTES):
                    return
                columns, rows = os.get_terminal_size(sys.stdout.fileno())
                socket.send([json.dumps({"resize": [rows, columns]}).encode()], kind=TEXT)
            if stdin in ready:
                data = os.read(stdin, READ_BYTES)
                if data:
                    socket.send([STDIN, data])
                else:
                    socket.send([b'{"eof":true}'], kind=TEXT)
                    sources.remove(stdin)
    except (OSError, ConnectionError, ValueError):
        return  # The session is over: the main thread knows how it ended.
    finally:
        os.close(resized)


@contextmanager
def _wake_pipe() -> Iterator[tuple[int, int]]:
    """A pipe by which a signal handler wakes the thread that reads input."""
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    try:
        yield ends
    finally:
        os.close(ends[1])


@contextmanager
def _raw_mode(is_tty: bool, wake: int) -> Iterator[None]:
    """Hand every key to the other side; the terminal is as before when the block is left."""
    if not is_tty:
        yield
        return
    import termios
    import tty

    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    previous = signal.signal(signal.SIGWINCH, lambda *_: _notify(wake))
    try:
        tty.setraw(stdin, termios.TCSAFLUSH)
        yield
    finally:
        signal.signal(signal.SIGWINCH, previous)
        # Not TCSAFLUSH: what was typed ahead belongs to the shell that comes back.
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _notify(wake: int) -> None:
    # A full pipe: many wake-ups are waiting already.
    with suppress(BlockingIOError):
        os.write(wake, b"r")
