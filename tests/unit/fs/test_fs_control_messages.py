"""What the daemon and hostd-fs say to each other."""

from __future__ import annotations

import msgspec
import pytest

from hostd.fs import control

TO_SERVER = [
    control.Serve(token=1, image="im-1", path="/var/lib/a b\n/ü"),
    control.Drop(image="im-1"),
    control.Ping(value=7),
    control.FetchDone(token=3, problem="no source has it"),
]
TO_DAEMON = [
    control.Ready(pid=12),
    control.Served(token=1),
    control.Pong(value=7, requests={"lookup": 3}),
    control.Fetch(token=3, blob="blake3:" + "0" * 64),
]


@pytest.mark.parametrize("message", TO_SERVER)
def test_messages_to_the_server_survive_the_line(message: control.Message) -> None:
    line = control.encode(message)
    assert line.count(b"\n") == 1
    assert control.decode_to_server(line.rstrip(b"\n")) == message


@pytest.mark.parametrize("message", TO_DAEMON)
def test_messages_to_the_daemon_survive_the_line(message: control.Message) -> None:
    assert control.decode_to_daemon(control.encode(message)) == message


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b'{"t":"ready"}', b'{"t":"ping","value":1,"more":2}', b'{"t":"serve"}', b"\xff"],
)
def test_other_lines_are_refused(line: bytes) -> None:
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
        control.decode_to_daemon(line)
