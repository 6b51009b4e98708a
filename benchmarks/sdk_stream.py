"""What the SDK itself costs per call: warm ``remote`` and ``map`` against an echoing process.

The floor of the same run is the same message over the same kind of socket, sent and read by bare
loops: the difference is what payloads, ids, threads, headers and the echoing cost.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import pickle
import re
import socket
import struct
import tempfile
import time
from pathlib import Path

import hostd
from benchmarks.measure import report, summary, timed
from hostd.sdk.calling import Target
from hostd.sdk.client import Client
from hostd.sdk.stream import Stream

app = hostd.App("echo")


@app.function()
def echo(value: object) -> object:
    return value


class EchoServer:
    """A process that answers every input of a call with the pickle of its only argument."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="hostd-bench-")) / "echo.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        self.pid = os.fork()
        if self.pid == 0:
            while True:
                _serve(listener.accept()[0])
        listener.close()

    def __enter__(self) -> EchoServer:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        self.path.unlink()
        self.path.parent.rmdir()


def _serve(sock: socket.socket) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(65536)
    if b"Upgrade: websocket" not in head:
        data = head.partition(b"\r\n\r\n")[2]
        while data := data or sock.recv(65536):  # the floor: bytes come back as they are
            sock.sendall(data)
            data = b""
        return
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", head)
    assert key is not None
    digest = hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    accept = b"Sec-WebSocket-Accept: " + base64.b64encode(digest)
    sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + accept + b"\r\n\r\n")
    data = bytearray()
    indexes: dict[str, int] = {}
    while more := sock.recv(1 << 20):
        data += more
        answers = []
        at = 0
        while (frame := _frame(data, at)) is not None:
            begin, at = frame
            answers += _answers(bytes(data[begin:at]), indexes)
        del data[:at]
        if answers:
            sock.sendall(b"".join(answers))


def _frame(data: bytearray, at: int) -> tuple[int, int] | None:
    if len(data) - at < 14:
        return None
    size, head = data[at + 1] & 127, 6
    if size == 126:
        size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 8
    elif size == 127:
        size, head = int.from_bytes(data[at + 2 : at + 10], "big"), 14
    return (at + head, at + head + size) if len(data) - at >= head + size else None


def _answers(message: bytes, indexes: dict[str, int]) -> list[bytes]:
    (length,) = struct.unpack_from(">I", message)
    header = json.loads(message[4 : 4 + length])
    if "sizes" not in header:
        return []
    at, first = 4 + length, indexes.get(header["call"], 0)
    items, fields = [], []
    for index, size in enumerate(header["sizes"], first):
        fields.append(pickle.dumps(pickle.loads(message[at : at + size])[0][0]))
        items.append([index, "ok", [len(fields[-1])]])
        at += size
    indexes[header["call"]] = first + len(items)
    answers = [_message({"t": "outputs", "call": header["call"], "items": items}, fields)]
    if header["last"]:
        answers.append(_message({"t": "done", "call": header["call"]}, []))
    return answers


def _message(header: dict[str, object], fields: list[bytes]) -> bytes:
    text = json.dumps(header).encode()
    body = b"".join((struct.pack(">I", len(text)), text, *fields))
    if len(body) < 126:
        return bytes((0x82, len(body))) + body
    if len(body) < 65536:
        return struct.pack(">BBH", 0x82, 126, len(body)) + body
    return struct.pack(">BBQ", 0x82, 127, len(body)) + body


def floor_times(server: EchoServer, n: int) -> list[float]:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(server.path))
    sock.sendall(b"x\r\n\r\n")
    message = b"m" * 200

    def ping() -> None:
        sock.sendall(message)
        sock.recv(65536)

    times = [timed(ping) for _ in range(n)]
    sock.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5_000)
    parser.add_argument("--inputs", type=int, default=10_000)
    options = parser.parse_args()
    with EchoServer() as server:
        floor = summary(floor_times(server, options.calls), unit="us")
        client = Client(socket_path=str(server.path))
        stream = Stream.open(client, on_logs=lambda _: None, on_container=lambda _: None)
        echo.target = Target(stream, "fu-echo")
        for _ in range(200):
            echo.remote(0)
        calls = summary([timed(lambda: echo.remote(0)) for _ in range(options.calls)], unit="us")
        rates = {}
        for name, is_ordered in (("ordered", True), ("unordered", False)):
            begin = time.perf_counter()
            results = list(echo.map(range(options.inputs), order_outputs=is_ordered))
            rates[name] = round(options.inputs / (time.perf_counter() - begin))
            assert sorted(results) == list(range(options.inputs))
        big = b"x" * (64 << 20)
        big_s = min(timed(lambda: echo.remote(big)) for _ in range(3))
        stream.close()
    report(
        "sdk_stream",
        {
            "remote": calls,
            "floor": floor,
            "map_per_s": rates,
            "echo_of_64_mib_s": round(big_s, 3),
            "bars": {"remote_minus_floor_us": "<= 150", "map_per_s": ">= 10000"},
        },
    )


if __name__ == "__main__":
    main()
