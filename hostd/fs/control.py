"""What the daemon and hostd-fs say to each other: typed records, a JSON line each, on a socket.

hostd-fs connects and says Ready; from then on both sides speak when they want. Requests carry a
token that the answer repeats. When the connection ends, hostd-fs ends: a daemon that died has
nobody left to fetch for, and its successor starts with a fresh hostd-fs.

    daemon -> hostd-fs   Serve, Drop, Ping, FetchDone
    hostd-fs -> daemon   Ready, Served, Pong, Fetch

This module does no I/O: the daemon reads with asyncio, hostd-fs with trio.
"""

from __future__ import annotations

import msgspec

LINE_BYTES_MAX = 64 * 1024
"""The longest line: a path (4 KiB), escaped, has room."""

PROTOCOL = 1


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line."""


class Ready(Message, frozen=True, tag_field="t", tag="ready"):
    """The file system is mounted and answers."""

    pid: int
    protocol: int = PROTOCOL


class Serve(Message, frozen=True, tag_field="t", tag="serve"):
    """Offer an image as /img/<image>; answered by Served."""

    token: int
    image: str
    path: str


class Served(Message, frozen=True, tag_field="t", tag="served"):
    """The image is there, or why not."""

    token: int
    problem: str = ""


class Drop(Message, frozen=True, tag_field="t", tag="drop"):
    """Forget an image; what has it open keeps it."""

    image: str


class Ping(Message, frozen=True, tag_field="t", tag="ping"):
    """Answered by Pong with the same value: the loop is alive."""

    value: int


class Pong(Message, frozen=True, tag_field="t", tag="pong"):
    """The answer, with the requests served so far by kind."""

    value: int
    requests: dict[str, int] = {}


class Fetch(Message, frozen=True, tag_field="t", tag="fetch"):
    """A blob is missing: get it, and link it into ``late``; answered by FetchDone."""

    token: int
    blob: str


class FetchDone(Message, frozen=True, tag_field="t", tag="fetched"):
    """The blob is there, or why not."""

    token: int
    problem: str = ""


ToServer = Serve | Drop | Ping | FetchDone
ToDaemon = Ready | Served | Pong | Fetch

_to_server: msgspec.json.Decoder[ToServer] = msgspec.json.Decoder(ToServer)
_to_daemon: msgspec.json.Decoder[ToDaemon] = msgspec.json.Decoder(ToDaemon)


def encode(message: Message) -> bytes:
    """A message as the line that carries it."""
    return msgspec.json.encode(message) + b"\n"


def decode_to_server(line: bytes) -> ToServer:
    """Read a line of the daemon.

    Raises:
        msgspec.DecodeError: the line is none.
    """
    return _to_server.decode(line)


def decode_to_daemon(line: bytes) -> ToDaemon:
    """Read a line of hostd-fs.

    Raises:
        msgspec.DecodeError: the line is none.
    """
    return _to_daemon.decode(line)
