"""Output: lines, their limits, the budget of a container."""

from __future__ import annotations

import asyncio
import os

from hypothesis import given
from hypothesis import strategies as st

from hostd.clock import SystemClock
from hostd.runtime.output import LINE_BYTES_MAX, Budget, ContainerOutput, LineSplitter


class Sink:
    def __init__(self):
        self.lines = []

    def line(self, stream, text, at_us):
        self.lines.append((stream, text))


@given(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"x", b"\n")), max_size=30))
def test_lines_do_not_depend_on_how_bytes_arrive(pieces):
    splitter = LineSplitter()
    lines = [line for piece in pieces for line in splitter.feed(piece)] + splitter.flush()
    whole = b"".join(pieces).split(b"\n")

    assert lines == (whole[:-1] if whole[-1] == b"" else whole)


@given(st.integers(0, 4 * LINE_BYTES_MAX), st.integers(5_000, 2 * LINE_BYTES_MAX), st.booleans())
def test_no_line_is_longer_than_the_limit_and_no_byte_is_lost(size, step, ends):
    data = b"a" * size + (b"\n" if ends else b"")
    splitter = LineSplitter()
    lines = [line for n in range(0, len(data), step) for line in splitter.feed(data[n : n + step])]
    lines += splitter.flush()

    assert b"".join(lines) == b"a" * size
    assert all(len(line) <= LINE_BYTES_MAX for line in lines)


def test_budget_counts_what_it_drops_and_never_opens_again():
    budget = Budget(10)

    admitted = [budget.admit(line) for line in (b"1234", b"12345", b"", b"1")]

    assert admitted == [True, False, False, False]
    assert budget.dropped == 6 + 1 + 2


async def test_output_ends_when_every_writer_has_gone():
    sink = Sink()
    output = ContainerOutput(sink, clock=SystemClock(), bytes_max=1000)
    copies = [os.dup(fd) for fd in output.write_fds]
    output.begin()
    os.write(copies[0], b"one\ntwo")
    os.write(copies[1], b"err\n")
    for fd in copies:
        os.close(fd)
    await asyncio.wait_for(output.ended, 5)

    assert sorted(sink.lines) == [("stderr", b"err"), ("stdout", b"one"), ("stdout", b"two")]


async def test_closing_reads_what_is_there_and_does_not_wait_for_writers():
    sink = Sink()
    output = ContainerOutput(sink, clock=SystemClock(), bytes_max=1000)
    escaped = os.dup(output.write_fds[0])
    output.begin()
    os.write(escaped, b"last words")
    output.close()

    assert output.ended.done()
    assert sink.lines == [("stdout", b"last words")]
    os.close(escaped)


async def test_dropped_output_is_told_once():
    sink = Sink()
    output = ContainerOutput(sink, clock=SystemClock(), bytes_max=4)
    copy = os.dup(output.write_fds[0])
    output.begin()
    os.write(copy, b"abc\ndefg\nh\n")
    os.close(copy)
    await asyncio.wait_for(output.ended, 5)

    assert sink.lines == [("stdout", b"abc"), ("system", b"7 bytes of output were dropped after 4")]
