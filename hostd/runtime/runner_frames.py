"""Frames from a runner, opened without trust: typed, capped, checked before anything is kept.

A container is hostile until proven otherwise. A frame is refused at its header when its kind is
unknown, comes from the wrong side or announces more than its kind may hold, so that nobody can make
the daemon buffer what it will not use. The layout of frames is in ``hostd/runner/wire.py``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

from hostd.runner import wire

_CODE_BYTES_MAX = 64
_NAME_BYTES_MAX = 64


class ProtocolViolation(Exception):
    """A runner sent what no runner of ours sends; the text says what."""


@dataclass(frozen=True, slots=True)
class Field:
    """What one field of a kind may be."""

    bytes_max: int
    exact: bool = False
    """Exactly so many bytes."""


_TIMINGS = Field(wire.TIMINGS.size, exact=True)
_TEXT = Field(wire.TEXT_BYTES_MAX)
_NAME = Field(_NAME_BYTES_MAX)
_CODE = Field(_CODE_BYTES_MAX)
_VALUE = Field(wire.PAYLOAD_BYTES_MAX)

KINDS: Mapping[int, tuple[Field, ...]] = {
    wire.HELLO: (Field(wire.START.size, exact=True), _NAME, _NAME, _NAME),
    wire.READY: (Field(wire.LOADED.size, exact=True),),
    wire.LOAD_FAILED: (_CODE, _TEXT, _TEXT, _TEXT, _TEXT),
    wire.OK: (_TIMINGS, _VALUE),
    wire.YIELD: (_TIMINGS, _VALUE),
    wire.END: (_TIMINGS,),
    wire.RAISED: (_TIMINGS, _TEXT, _TEXT, _TEXT, _VALUE),
    wire.FAILED: (_TIMINGS, _CODE, _TEXT, _TEXT),
}
"""Kinds that a runner may send, and their fields in order."""


def _length_max(fields: tuple[Field, ...]) -> int:
    fixed = wire.HEADER_BYTES - wire.PREFIX_BYTES + 4 * len(fields)
    return fixed + sum(field.bytes_max for field in fields)


_LENGTH_MAX = {kind: _length_max(fields) for kind, fields in KINDS.items()}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame whose fields have the number and the sizes of its kind."""

    kind: int
    token: int
    fields: list[bytes]


class FrameDecoder:
    """Cuts a stream of bytes into frames; keeps at most one unfinished frame."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._need = 0
        """How long ``pending`` must be before it is worth another look."""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that these bytes complete; to be consumed before the next call.

        Raises:
            ProtocolViolation: the stream is not worth reading on.
        """
        if not self._pending:
            used = yield from self._frames(data)
            self._pending += data[used:] if used else data
            return
        self._pending += data
        if len(self._pending) < self._need:
            return
        used = yield from self._frames(self._pending)
        del self._pending[:used]

    def _frames(self, data: bytes | bytearray) -> Generator[Frame, None, int]:
        offset = 0
        while True:
            have = len(data) - offset
            if have < wire.HEADER_BYTES:
                self._need = wire.HEADER_BYTES
                return offset
            length, kind, token, count = wire.HEADER.unpack_from(data, offset)
            fields = _checked_kind(kind, length, count)
            total = wire.PREFIX_BYTES + length
            if have < total:
                self._need = total
                return offset
            yield Frame(kind, token, _cut(data, offset, total, fields))
            offset += total


def _checked_kind(kind: int, length: int, count: int) -> tuple[Field, ...]:
    fields = KINDS.get(kind)
    if fields is None:
        raise ProtocolViolation(f"frame of kind {kind}, which no runner sends")
    if count != len(fields):
        raise ProtocolViolation(f"frame of kind {kind} has {count} fields, expected {len(fields)}")
    if not wire.HEADER_BYTES - wire.PREFIX_BYTES + 4 * count <= length <= _LENGTH_MAX[kind]:
        raise ProtocolViolation(
            f"frame of kind {kind} is {length} bytes long, the limit is {_LENGTH_MAX[kind]}"
        )
    return fields


def _cut(
    data: bytes | bytearray, offset: int, total: int, fields: tuple[Field, ...]
) -> list[bytes]:
    sizes = wire.LENGTHS[len(fields)].unpack_from(data, offset + wire.HEADER_BYTES)
    at = offset + wire.HEADER_BYTES + 4 * len(fields)
    if at + sum(sizes) != offset + total:
        raise ProtocolViolation("the fields of a frame do not add up to its length")
    view = memoryview(data)
    found = []
    try:
        for field, size in zip(fields, sizes, strict=True):
            if size > field.bytes_max or (field.exact and size != field.bytes_max):
                raise ProtocolViolation(f"a field has {size} bytes, the limit is {field.bytes_max}")
            found.append(bytes(view[at : at + size]))
            at += size
    finally:
        view.release()  # a bytearray cannot shrink while somebody looks at it
    return found
