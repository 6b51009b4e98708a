"""Frames between the daemon and the runner, over a unix stream socket, and the runner's end of it.

A frame is ``u32 length of what follows | u8 kind | u64 token | u8 n | n x u32 length | n fields``,
big-endian. The token names an input and is 0 elsewhere. Fields are bytes; which ones a kind has is
in the table below. There is no pickle, JSON or version negotiation in the frames themselves: HELLO
carries the protocol version and the daemon refuses others.

The daemon's end is ``hostd/runtime/runner_link.py``; it trusts nothing. This end trusts the daemon.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself would cost milliseconds
    from collections.abc import Sequence

from _socket import AF_UNIX, SOCK_STREAM, socket
from _struct import Struct

PROTOCOL_VERSION = 1
PAYLOAD_BYTES_MAX = 256 * 2**20
"""The same figure as in hostd/model.py (a test compares them)."""
FIELDS_MAX = 8
TEXT_BYTES_MAX = 256 * 1024
"""One text field: a message or a traceback; the runner cuts longer ones in the middle."""

# runner -> daemon
HELLO = 1  # times (START), protocol version, "3.11.2", implementation
READY = 2  # times (LOADED)
LOAD_FAILED = 3  # error code, type, message, traceback, hint
OK = 4  # timings, pickled value
YIELD = 5  # timings, pickled value
END = 6  # timings
RAISED = 7  # timings, type, message, traceback, pickled dict (may be empty)
FAILED = 8  # timings, error code, message, hint
# daemon -> runner
LOAD = 16  # module, qualname, flags, "major.minor" or empty, serialized, source directory, name
INPUT = 17  # payload, call id, input id

FLAG_GENERATOR = 1
"""In the flags of LOAD: the function's values are streamed."""

HEADER = Struct(">IBQB")
HEADER_BYTES = HEADER.size
"""Length, kind, token and the number of fields."""
PREFIX_BYTES = 4
"""What the length does not count: itself."""

START = Struct(">QQ")
"""CLOCK_MONOTONIC in ns: first line of the runner, its modules loaded and about to connect."""
LOADED = Struct(">QQ")
"""CLOCK_MONOTONIC in ns: LOAD received, function there."""
TIMINGS = Struct(">QQQ")
"""Microseconds: unpickling the input, running, pickling the result."""

CANCEL_SLOTS = 64
CANCEL_CELL_BYTES = CANCEL_SLOTS * 8
"""The file ``cancel`` beside the socket: a ring of big-endian u64 tokens that are to be cancelled.

A signal says that the file changed. A frame could lie behind a large input that nobody reads while
user code runs, and a signal alone could hit the input after the one that was meant.
"""
CANCEL_CELL = Struct(">%dQ" % CANCEL_SLOTS)

LENGTHS = tuple(Struct(">%dI" % count) for count in range(FIELDS_MAX + 1))

_BUFFER_BYTES = 64 * 1024


def encode(kind: int, token: int, fields: "Sequence[bytes | memoryview]") -> bytes:
    """The frame without the fields themselves: header and lengths."""
    lengths = [len(field) for field in fields]
    rest = HEADER_BYTES - PREFIX_BYTES + 4 * len(lengths) + sum(lengths)
    return HEADER.pack(rest, kind, token, len(lengths)) + LENGTHS[len(lengths)].pack(*lengths)


class Connection:
    """The runner's end of the socket, blocking.

    Frames that arrive together are kept: the daemon may send the next inputs while one runs.
    """

    def __init__(self, sock: socket) -> None:
        self._socket = sock
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0

    def fileno(self) -> int:
        """The descriptor, for an event loop to wait on."""
        return self._socket.fileno()

    def has_bytes(self) -> bool:
        """Whether a part of a frame is here already, so that waiting for the socket may be wrong."""
        return self._end > self._start

    def send(self, kind: int, token: int, fields: "Sequence[bytes | memoryview]" = ()) -> None:
        """Send one frame, waiting for as long as the daemon does not read."""
        head = encode(kind, token, fields)
        if sum(map(len, fields)) <= _BUFFER_BYTES:
            self._socket.sendall(b"".join((head, *fields)))
            return
        self._socket.sendall(head)
        for field in fields:
            self._socket.sendall(field)

    def receive(self) -> "tuple[int, int, list[memoryview]] | None":
        """The next ``(kind, token, fields)``, or None when the daemon closed the connection."""
        if not self._fill(HEADER_BYTES):
            return None
        length, kind, token, count = HEADER.unpack_from(self._buffer, self._start)
        total = PREFIX_BYTES + length
        body = self._whole(total)
        if body is None:
            return None
        offset = HEADER_BYTES + 4 * count
        fields = []
        for size in LENGTHS[count].unpack_from(body, HEADER_BYTES):
            fields.append(body[offset : offset + size])
            offset += size
        return kind, token, fields

    def _whole(self, total: int) -> "memoryview | None":
        """The bytes of a whole frame as a view on memory of its own; None at the end of the stream."""
        if total <= _BUFFER_BYTES:
            if not self._fill(total):
                return None
            whole = bytes(self._view[self._start : self._start + total])
            self._start += total
            return memoryview(whole)
        frame = memoryview(bytearray(total))
        have = self._end - self._start
        frame[:have] = self._view[self._start : self._end]
        self._start = self._end = 0
        while have < total:
            count = self._socket.recv_into(frame[have:])
            if count == 0:
                return None
            have += count
        return frame

    def _fill(self, wanted: int) -> bool:
        """Wait until so many bytes are in the buffer; False when the stream ends before."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start + wanted > _BUFFER_BYTES:
            rest = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, len(rest)
            self._view[: len(rest)] = rest
        while self._end - self._start < wanted:
            count = self._socket.recv_into(self._view[self._end :])
            if count == 0:
                return False
            self._end += count
        return True


def connect(path: str) -> Connection:
    """Connect to the daemon's socket."""
    sock = socket(AF_UNIX, SOCK_STREAM)
    sock.connect(path)
    return Connection(sock)
