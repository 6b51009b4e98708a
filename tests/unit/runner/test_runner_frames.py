"""The daemon's decoder: strict, incremental, bounded."""

from __future__ import annotations

import pytest

from hostd import model
from hostd.runner import wire
from hostd.runtime.runner_frames import KINDS, FrameDecoder, ProtocolViolation


def frame(kind: int, token: int, *fields: bytes) -> bytes:
    return wire.encode(kind, token, fields) + b"".join(fields)


TIMINGS = wire.TIMINGS.pack(1, 2, 3)


def test_limit_is_the_same_on_both_sides() -> None:
    assert wire.PAYLOAD_BYTES_MAX == model.PAYLOAD_BYTES_MAX
    assert wire.PROTOCOL_VERSION == model.PROTOCOL_VERSION


def test_frames_that_come_together_are_all_seen() -> None:
    data = frame(wire.OK, 1, TIMINGS, b"a") + frame(wire.END, 2, TIMINGS)
    got = [(f.kind, f.token, f.fields) for f in FrameDecoder().feed(data)]
    assert got == [(wire.OK, 1, [TIMINGS, b"a"]), (wire.END, 2, [TIMINGS])]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12, 13, 14, 64])
def test_frames_in_pieces_are_put_together(size: int) -> None:
    data = frame(wire.OK, 1, TIMINGS, b"value") + frame(wire.YIELD, 2, TIMINGS, b"")
    decoder = FrameDecoder()
    got = [
        (f.kind, f.fields[1])
        for at in range(0, len(data), size)
        for f in decoder.feed(data[at : at + size])
    ]
    assert got == [(wire.OK, b"value"), (wire.YIELD, b"")]


def refused(data: bytes) -> str:
    with pytest.raises(ProtocolViolation) as caught:
        list(FrameDecoder().feed(data))
    return str(caught.value)


def test_unknown_kind_is_refused_at_its_header() -> None:
    assert "kind 99" in refused(wire.HEADER.pack(10, 99, 0, 0))


def test_kind_of_the_other_side_is_refused() -> None:
    assert "no runner sends" in refused(frame(wire.INPUT, 1, b"", b"", b""))


def test_wrong_number_of_fields_is_refused() -> None:
    assert "has 1 fields, expected 2" in refused(frame(wire.OK, 1, TIMINGS))


@pytest.mark.parametrize("length", [0, 9, 2**32 - 1])
def test_announced_length_out_of_range_is_refused_before_it_arrives(length: int) -> None:
    assert f"is {length} bytes long" in refused(wire.HEADER.pack(length, wire.OK, 1, 2))


def test_payload_over_the_limit_is_refused_before_it_arrives() -> None:
    sizes = wire.LENGTHS[2].pack(len(TIMINGS), wire.PAYLOAD_BYTES_MAX + 1)
    length = 10 + len(sizes) + len(TIMINGS) + wire.PAYLOAD_BYTES_MAX + 1
    assert "the limit is" in refused(wire.HEADER.pack(length, wire.OK, 1, 2) + sizes)


def test_sizes_that_do_not_add_up_are_refused() -> None:
    data = bytearray(frame(wire.OK, 1, TIMINGS, b"abc"))
    data[wire.HEADER_BYTES + 7] = 2
    assert "do not add up" in refused(bytes(data))


@pytest.mark.parametrize("timings", [b"", TIMINGS[1:], TIMINGS + b"x"])
def test_field_of_the_wrong_size_is_refused(timings: bytes) -> None:
    assert "bytes" in refused(frame(wire.END, 1, timings))


def test_text_over_its_limit_is_refused() -> None:
    long = b"x" * (wire.TEXT_BYTES_MAX + 1)
    assert "a field has" in refused(frame(wire.RAISED, 1, TIMINGS, b"", long, b"", b""))


def test_every_kind_of_a_runner_is_accepted_at_its_limits() -> None:
    for kind, fields in KINDS.items():
        values = [bytes(f.bytes_max if f.exact else min(f.bytes_max, 100)) for f in fields]
        (got,) = FrameDecoder().feed(frame(kind, 1, *values))
        assert got.fields == values
