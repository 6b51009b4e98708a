"""Laws of the daemon's frame decoder over any bytes a container may send."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hostd.runner import wire
from hostd.runtime.runner_frames import KINDS, FrameDecoder, ProtocolViolation


@st.composite
def frames(draw: st.DrawFn) -> tuple[int, int, list[bytes]]:
    kind = draw(st.sampled_from(sorted(KINDS)))
    token = draw(st.integers(0, 2**64 - 1))
    fields = [
        draw(st.binary(min_size=f.bytes_max, max_size=f.bytes_max))
        if f.exact
        else draw(st.binary(max_size=min(f.bytes_max, 200)))
        for f in KINDS[kind]
    ]
    return kind, token, fields


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[one:two] for one, two in itertools.pairwise(at)]


@given(st.lists(frames(), max_size=6), st.lists(st.integers(0, 10_000), max_size=20))
def test_frames_survive_any_cutting(
    sent: list[tuple[int, int, list[bytes]]], cuts: list[int]
) -> None:
    data = b"".join(wire.encode(k, t, f) + b"".join(f) for k, t, f in sent)
    decoder = FrameDecoder()
    got = [(f.kind, f.token, f.fields) for piece in pieces(data, cuts) for f in decoder.feed(piece)]
    assert got == sent


@given(st.binary(max_size=600), st.lists(st.integers(0, 10_000), max_size=10))
def test_any_bytes_give_frames_or_a_violation_whatever_the_cutting(
    data: bytes, cuts: list[int]
) -> None:
    def outcome(parts: list[bytes]) -> tuple[list[object], bool]:
        decoder, got = FrameDecoder(), []
        try:
            for part in parts:
                got += [(f.kind, f.token, f.fields) for f in decoder.feed(part)]
        except ProtocolViolation:
            return got, False
        return got, True

    assert outcome([data]) == outcome(pieces(data, cuts))


@given(frames(), st.integers(0, 60), st.integers(0, 255))
def test_one_damaged_byte_never_gives_another_kind_of_error(
    sent: tuple[int, int, list[bytes]], at: int, value: int
) -> None:
    kind, token, fields = sent
    data = bytearray(wire.encode(kind, token, fields) + b"".join(fields))
    data[at % len(data)] = value
    try:
        for frame in FrameDecoder().feed(bytes(data)):
            assert len(frame.fields) == len(KINDS[frame.kind])
    except ProtocolViolation:
        return
