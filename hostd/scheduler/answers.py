"""How an outcome reaches its caller: delivered, tried again, or overtaken by the end of the call.

An input has one answer and a call one ``done``; both are enforced by ``calls.Call``, whose state is
changed before any sink is called. A sink may therefore call the scheduler back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from hostd.clock import Clock
from hostd.errors import CancelledError, Error, to_problem
from hostd.ids import CallId
from hostd.model import CallInfo, OutputStatus
from hostd.scheduler import explain
from hostd.scheduler.calls import Again, Call, CallState, Cause, Input, InputPhase
from hostd.scheduler.dispatch import Pool
from hostd.scheduler.ports import LogWriter, Timers
from hostd.scheduler.views import call_info
from hostd.store import History

RECENT_MAX = 1_000
"""Ended calls that are kept in memory beside the history, for those who ask at once."""
ERROR_TEXT_MAX = 4_096
"""Of an error in a call's record; the caller gets the whole."""


class Answers:
    """The open calls, and those that ended lately."""

    def __init__(
        self,
        *,
        clock: Clock,
        timers: Timers,
        history: History | None,
        logs: LogWriter | None,
        pump: Callable[[Pool], None],
    ) -> None:
        self._clock = clock
        self._timers = timers
        self._history = history
        self._logs = logs
        self._pump = pump
        self.calls: dict[CallId, Call] = {}
        self.recent: OrderedDict[CallId, CallInfo] = OrderedDict()
        self.inputs_done = 0
        self.calls_done = 0
        self.retries = 0
        self.bytes_held = 0
        """Arguments of all inputs that are not answered."""

    def open(self, call: Call) -> None:
        """Begin a call."""
        assert call.id not in self.calls, call.id
        self.calls[call.id] = call
        if self._logs is not None:
            self._logs.begin(call.id, call.app_id)

    # --- outcomes ------------------------------------------------------------------------------

    def deliver(
        self, entry: Input, status: OutputStatus, fields: Sequence[bytes], *, is_failure: bool
    ) -> None:
        """Hand the one answer of an input to its caller."""
        call = entry.call
        self.bytes_held -= len(entry.payload)
        call.answered(entry, is_failure=is_failure)
        self.inputs_done += 1
        call.sink.outputs(call.id, entry.index, status, fields)
        # The sink may have ended the call from inside.
        if call.is_complete and call.is_open:
            self.end(call, None)

    def refuse(self, entry: Input, error: Error) -> None:
        """Answer an input with an error of ours."""
        problem = to_problem(error)
        self._note_error(entry.call, problem)
        self.deliver(entry, "failed", (msgspec.json.encode(problem),), is_failure=True)

    def failed(self, entry: Input, fields: Sequence[bytes]) -> None:
        """The runner could not run it or not send its result; it would be the same again."""
        self._note_error(entry.call, msgspec.json.decode(fields[0], type=dict[str, object]))
        self.deliver(entry, "failed", fields, is_failure=True)

    def did_not_succeed(self, entry: Input, cause: Cause, error: Error) -> None:
        """An attempt ended without a result: try again, or answer with the error."""
        if not self._tries_again(entry, cause):
            self.refuse(entry, error)

    def raised(self, entry: Input, fields: Sequence[bytes]) -> None:
        """The user's function raised: try again, or answer with its exception."""
        if self._tries_again(entry, Cause.RAISED):
            return
        kind, message = (field[:ERROR_TEXT_MAX].decode(errors="replace") for field in fields[:2])
        detail = f"{kind}: {message}" if message else kind
        self._note_error(entry.call, {"code": "remote_raised", "detail": detail, "exception": kind})
        self.deliver(entry, "raised", fields, is_failure=True)

    def _tries_again(self, entry: Input, cause: Cause) -> bool:
        pool = entry.call.pool
        verdict = entry.verdict(cause, pool.function.spec.retries)
        if not isinstance(verdict, Again):
            return False
        self.retries += 1
        if cause is Cause.LOST:
            pool.enqueue_first(entry)
        elif verdict.delay_s > 0:
            self._delay(entry, pool, verdict.delay_s)
        else:
            pool.enqueue(entry)
        return True

    def _delay(self, entry: Input, pool: Pool, delay_s: float) -> None:
        def queue() -> None:
            entry.timer = None
            pool.enqueue(entry)
            self._pump(pool)

        entry.phase = InputPhase.DELAYED
        entry.retry_at_us = self._clock.monotonic_us() + round(delay_s * 1e6)
        entry.timer = self._timers.call_later(delay_s, queue)

    @staticmethod
    def _note_error(call: Call, problem: dict[str, object]) -> None:
        """Keep the first error of a call for its record."""
        if call.error is None:
            detail = str(problem.get("detail", ""))[:ERROR_TEXT_MAX]
            call.error = {**problem, "detail": detail}

    # --- ends ----------------------------------------------------------------------------------

    def end(self, call: Call, error: Error | None) -> list[Input]:
        """End a call and tell its caller.

        Args:
            call: an open one.
            error: why it ends before its inputs do; None: they are all answered.

        Returns:
            The inputs that were running: their containers still work on them.
        """
        running = self._let_go(call)
        problem = to_problem(error) if error is not None else None
        if problem is not None:
            self._note_error(call, problem)
        call.ended(_final_state(call, error), self._clock.monotonic_us())
        self.calls_done += 1
        del self.calls[call.id]
        self._record(call)
        if self._logs is not None:
            self._logs.end(call.id)
        call.sink.done(call.id, problem, call.phases_us, call.start)
        return running

    def _let_go(self, call: Call) -> list[Input]:
        running = []
        for entry in call.inputs.values():
            if entry.phase is InputPhase.QUEUED:
                call.pool.drop(entry)
            elif entry.phase is InputPhase.RUNNING:
                running.append(entry)
            elif entry.timer is not None:
                entry.timer.cancel()
                entry.timer = None
            entry.phase = InputPhase.DROPPED
            self.bytes_held -= len(entry.payload)
            entry.payload = b""
        return running

    def _record(self, call: Call) -> None:
        info = call_info(call, why=explain.ended_call(call))
        self.recent[call.id] = info
        if len(self.recent) > RECENT_MAX:
            self.recent.popitem(last=False)
        if self._history is not None:
            self._history.record_call(info)


def _final_state(call: Call, error: Error | None) -> CallState:
    if isinstance(error, CancelledError):
        return CallState.CANCELLED
    return CallState.FAILED if error is not None or call.failed else CallState.SUCCEEDED
