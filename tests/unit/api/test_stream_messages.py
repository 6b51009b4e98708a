"""The framing of the client stream: what is packed is what is split; damage is refused."""

import json
import struct

import msgspec
import pytest

from hostd.api.stream import _Outbox, split_body, split_message
from hostd.errors import InvalidError
from hostd.ids import CallId
from hostd.model import CallDone, LogLine, Logs, Outputs, Ping, Pong, ServerMessage

CALL = "fc-" + "0" * 26


def client_message(header: dict, *payloads: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack(">I", len(text)) + text + b"".join(payloads)


def read(message: bytes) -> tuple[object, bytes]:
    (length,) = struct.unpack_from(">I", message)
    return msgspec.json.decode(message[4 : 4 + length], type=ServerMessage), message[4 + length :]


def test_header_and_body_of_a_client_message_are_split():
    header, body = split_message(client_message({"t": "ping", "value": 7}, b"rest"))
    assert header == Ping(value=7)
    assert bytes(body) == b"rest"


@pytest.mark.parametrize("data", [b"", b"\0\0", struct.pack(">I", 9) + b"{}"])
def test_a_length_that_does_not_fit_is_refused(data):
    with pytest.raises(InvalidError, match="stream"):
        split_message(data)


@pytest.mark.parametrize(
    "header",
    [{"t": "dance"}, {"value": 1}, {"t": "ping"}, {"t": "ping", "value": "1"}, {"t": "cancel", "call": 3},
     {"t": "call", "call": "fc-1", "function": "fu-1", "kind": "unary"}],
)  # fmt: skip
def test_a_header_of_unknown_shape_is_refused(header):
    with pytest.raises(msgspec.ValidationError):
        split_message(client_message(header))


def test_a_body_is_cut_by_its_sizes():
    assert split_body(memoryview(b"abcde"), [2, 0, 3]) == [b"ab", b"", b"cde"]


@pytest.mark.parametrize("sizes", [[4], [6], [], [-1, 6]])
def test_sizes_that_do_not_add_up_are_refused(sizes):
    with pytest.raises(InvalidError, match="add up"):
        split_body(memoryview(b"abcde"), sizes)


def test_results_of_one_call_travel_together_and_done_comes_after_them():
    outbox = _Outbox()
    call = CallId(CALL)
    outbox.output(call, 0, "ok", [b"a"])
    outbox.output(call, 1, "raised", [b"T", b"m", b"tb", b""])
    outbox.message(CallDone(call=call))
    outputs, done = (read(message) for message in outbox.take())
    header, body = outputs
    assert isinstance(header, Outputs)
    assert [(item.index, item.status, item.sizes) for item in header.items] == [
        (0, "ok", [1]),
        (1, "raised", [1, 1, 2, 0]),
    ]
    assert body == b"aTmtb"
    assert done[0] == CallDone(call=call)


def test_a_line_is_sent_before_the_end_of_the_call_that_wrote_it():
    outbox = _Outbox()
    line = LogLine(at_us=1, container_id="ct-1", stream="stdout", text="hello")
    outbox.log("ap-1", line)
    outbox.message(CallDone(call=CALL))
    assert [type(read(message)[0]) for message in outbox.take()] == [Logs, CallDone]


def test_lines_beyond_the_limit_are_counted_not_kept(monkeypatch):
    monkeypatch.setattr("hostd.api.stream.LOG_LINES_MAX", 2)
    outbox = _Outbox()
    for number in range(5):
        outbox.log("ap-1", LogLine(at_us=number, container_id="ct-1", stream="stdout", text=""))
    (message,) = outbox.take()
    header, _ = read(message)
    assert isinstance(header, Logs)
    assert (len(header.lines), header.lost) == (2, 3)


def test_taking_empties_the_outbox():
    outbox = _Outbox()
    outbox.message(Pong(value=1))
    assert outbox.filled.is_set()
    assert len(outbox.take()) == 1
    assert not outbox.filled.is_set()
    assert not outbox.take()
