"""The state of one map, which four parties share.

- the *pump* (``pump.py``) takes inputs from the user's iterator as room appears, pickles them and
  queues them. It is a thread of its own (a task, for async iterators), because the user's iterator
  may block, even until an earlier result was used;
- the stream's *writer* thread sends what is queued: at once what there is, up to a frame. A fast
  iterator thus fills frames and a slow one never waits for them to fill;
- the stream's *reader* thread brings results;
- the *consumer* (``mapping.py``), the user's loop, unpickles them and puts them in order.

Bounds: ``OUTSTANDING_MAX`` inputs sent and not answered, or answered and not yet taken by the
consumer, together; ``QUEUED_BYTES_MAX`` of them not sent yet, and one more; ``HELD_MAX`` results
that wait for an earlier one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from hostd.errors import InternalError, from_problem
from hostd.sdk.calling import new_call_id

if TYPE_CHECKING:
    from typing import Any

    from hostd.errors import Error
    from hostd.sdk.calling import Target
    from hostd.sdk.flag import Flag

    Item = tuple[int, str, list[memoryview]]

OUTSTANDING_MAX = 1_000
"""The same figure as INPUTS_OUTSTANDING_MAX in hostd/model.py; a test compares them."""
REFILL = 64
"""A full window is refilled when it has room for a frame, not for every single result."""
HELD_MAX = 10_000
"""Results behind a slow first one: ten windows may overtake it."""
QUEUED_BYTES_MAX = 32 << 20
"""Pickled and not sent: enough to keep a fast network busy while the next one is pickled."""
FRAME_INPUTS_MAX = 64
FRAME_BYTES_MAX = 1 << 20
"""Of the inputs of one message, unless a single one is larger: other calls share the connection."""


class MapCall:
    """The state of one map; see the module for who calls what from where."""

    def __init__(self, target: Target, *, pump: Flag, consumer: Flag) -> None:
        self._target = target
        self._pump = pump
        self._consumer = consumer
        self._lock = threading.Lock()
        self.call_id = new_call_id()
        self._queued: list[bytes] = []
        self._queued_bytes = 0
        self._sent = 0
        self._outstanding = 0
        self._arrived: list[Item] = []
        self._is_open = False
        self._is_last = False
        self._is_last_sent = False
        self.total: int | None = None
        """How many inputs there were; None until the iterator has ended."""
        self.held = 0
        """Results that the consumer keeps until an earlier one comes."""
        self.input_error: BaseException | None = None
        """What the input iterator raised, or pickling an input."""
        self.error: Error | None = None
        """What ended the call or the connection."""
        self.is_closed = False

    # --- the pump -----------------------------------------------------------------------------

    def room(self) -> int:
        """How many inputs may be taken from the iterator now; 0 unless it is worth the trouble."""
        with self._lock:
            return self._room()

    def put(self, payload: bytes) -> bool:
        """Queue an input; whether another may follow at once, within the room."""
        with self._lock:
            self._queued.append(payload)
            self._queued_bytes += len(payload)
            self._outstanding += 1
            is_first = len(self._queued) == 1
            goes_on = self._queued_bytes < QUEUED_BYTES_MAX
        if is_first:
            self._target.stream.later(self.send_queued)
        return goes_on and not self.is_closed

    def finish(self, error: BaseException | None = None) -> None:
        """The iterator has ended, or raised."""
        with self._lock:
            self._is_last = True
            self.total = self._sent + len(self._queued)
            is_sent = self.total > 0
            self.input_error = error
        if is_sent and error is None:
            self._target.stream.later(self.send_queued)
        self._consumer.raise_()

    # --- the writer thread --------------------------------------------------------------------

    def send_queued(self) -> None:
        """Send a frame of what is queued, and come back for more: others get their turn between."""
        with self._lock:
            is_ending = self._is_last and not self._is_last_sent
            if self.is_closed or not (self._queued or is_ending):
                return
            header, payloads = self._next_frame()
            has_more = bool(self._queued)
        self._target.stream.send(header, payloads)
        if has_more:
            self._target.stream.later(self.send_queued)

    # --- the reader thread --------------------------------------------------------------------

    def outputs(self, items: list[Item]) -> None:
        """Results arrived."""
        with self._lock:
            self._arrived += items
            self._outstanding -= len(items)
            was_empty = len(self._arrived) == len(items)
        if was_empty:
            self._consumer.raise_()

    def done(self, problem: dict[str, Any] | None) -> None:
        """The call has ended."""
        with self._lock:
            if problem is not None:
                self._fail(from_problem(problem))
            elif self._outstanding > 0 or not self._is_last:
                self._fail(
                    InternalError(f"the call ended with {self._outstanding} inputs unanswered")
                )
        self._consumer.raise_()
        self._pump.raise_()

    def lost(self, error: Error) -> None:
        """The connection has ended."""
        with self._lock:
            self._fail(type(error)(error.text, hint=error.hint, **error.fields))
        self._consumer.raise_()
        self._pump.raise_()

    # --- the consumer -------------------------------------------------------------------------

    def take(self, held: int) -> list[Item]:
        """The results that arrived since; ``held`` of earlier ones still wait for their turn."""
        with self._lock:
            taken, self._arrived = self._arrived, []
            self.held = held
            has_room = self._room() > 0
        if has_room:
            self._pump.raise_()
        return taken

    def is_over(self, given: int, items: list[Item]) -> bool:
        """Whether all values were given.

        Raises:
            BaseException: the input iterator's, at once; what ended the call, after its results.
        """
        if self.input_error is not None:
            raise self.input_error
        if given == self.total:
            return True
        if self.error is not None and not items:
            raise self.error
        return False

    def close(self, *, is_done: bool) -> None:
        """Nothing more is wanted: stop the pump, cancel what is not done."""
        with self._lock:
            self.is_closed = True
            is_open, self._queued = self._is_open, []
        self._pump.raise_()
        if is_open and not is_done:
            self._target.stream.cancel(self.call_id)
        else:
            self._target.stream.drop(self.call_id)

    # --- under the lock -----------------------------------------------------------------------

    def _room(self) -> int:
        free = OUTSTANDING_MAX - self._outstanding - len(self._arrived)
        is_blocked = self.held >= HELD_MAX or self._queued_bytes >= QUEUED_BYTES_MAX
        return 0 if is_blocked or free < REFILL else free

    def _next_frame(self) -> tuple[bytes, list[bytes]]:
        count = self._frame_size()
        payloads, self._queued = self._queued[:count], self._queued[count:]
        was_full = self._queued_bytes >= QUEUED_BYTES_MAX
        self._queued_bytes -= sum(map(len, payloads))
        if was_full and self._queued_bytes < QUEUED_BYTES_MAX:
            self._pump.raise_()
        self._sent += count
        self._is_last_sent = last = self._is_last and not self._queued
        is_open, self._is_open = self._is_open, True
        sizes = [len(payload) for payload in payloads]
        if is_open:
            return self._inputs_header(sizes, last=last), payloads
        return self._target.header(self.call_id, "map", sizes, last=last), payloads

    def _frame_size(self) -> int:
        size = 0
        for count, payload in enumerate(self._queued[:FRAME_INPUTS_MAX]):
            size += len(payload)
            if count and size > FRAME_BYTES_MAX:
                return count
        return min(len(self._queued), FRAME_INPUTS_MAX)

    def _inputs_header(self, sizes: list[int], *, last: bool) -> bytes:
        end = "true" if last else "false"
        return f'{{"t":"inputs","call":"{self.call_id}","sizes":{sizes},"last":{end}}}'.encode()

    def _fail(self, error: Error) -> None:
        if self.error is None:
            self.error = error
