"""Cancellation of the running input, by signal.

The daemon writes the input's token into the cancel cell (see wire.py) and sends SIGUSR1. The handler
runs in the main thread between two bytecodes, or wakes a blocking call, and raises InputCancellation
there, but only while the input it was meant for runs. Tokens of inputs that wait are remembered.

SIGTERM ends the container: SystemExit, so that the user's ``finally`` blocks and atexit hooks run.
"""

import sys
from _signal import (
    SIG_BLOCK,
    SIG_DFL,
    SIG_SETMASK,
    SIGTERM,
    SIGUSR1,
    getsignal,
    pthread_sigmask,
    signal,
)
from posix import O_CLOEXEC, O_RDONLY, pread, register_at_fork
from posix import open as open_file

from hostd.runner.wire import CANCEL_CELL, CANCEL_CELL_BYTES


class Cancellation:
    """Which inputs are to be cancelled, and whether the running one may be interrupted now."""

    def __init__(self, path):
        self._cell = open_file(path, O_RDONLY | O_CLOEXEC)
        self._mask = ()
        self.tokens = set()
        self.running = 0
        """Token of the input whose code runs now, so that an exception may be raised in it; else 0."""
        self.is_ending = False
        """The container ends already: atexit hooks are not to be interrupted by a SIGTERM."""
        self.interrupt = None
        """How to interrupt instead of raising: set while an event loop runs the input."""

    def install(self):
        """Take over the two signals, unless user code changes them; forked children get them back."""
        signal(SIGUSR1, self._on_cancel)
        signal(SIGTERM, self._on_terminate)
        register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork,
            after_in_child=self._after_fork_in_child,
        )
        self.refresh()

    # A forked child must die of a SIGTERM as children do, also of one that comes before the child
    # has put the default back: Python forgets signals that are pending when a child begins.

    def _before_fork(self):
        self._mask = pthread_sigmask(SIG_BLOCK, (SIGUSR1, SIGTERM))

    def _after_fork(self):
        pthread_sigmask(SIG_SETMASK, self._mask)

    def _after_fork_in_child(self):
        for number, handler in ((SIGUSR1, self._on_cancel), (SIGTERM, self._on_terminate)):
            if getsignal(number) == handler:
                signal(number, SIG_DFL)
        pthread_sigmask(SIG_SETMASK, self._mask)

    def refresh(self):
        """Read the cell."""
        data = pread(self._cell, CANCEL_CELL_BYTES, 0)
        if len(data) == CANCEL_CELL_BYTES:
            self.tokens.update(CANCEL_CELL.unpack(data))

    def wanted(self, token):
        """Whether this input is to be cancelled."""
        return token in self.tokens

    def _on_cancel(self, number, frame):
        self.refresh()
        running = self.running
        if running == 0 or running not in self.tokens:
            return
        if self.interrupt is not None:
            self.interrupt()
            return
        self.running = 0  # one exception per input: its finally blocks are not interrupted again
        raise cancellation()

    def _on_terminate(self, number, frame):
        if not self.is_ending:
            self.is_ending = True
            sys.exit(143 if self.running else 0)


def cancellation():
    """A new InputCancellation: the class that user code can name, if it can be had at this moment."""
    try:
        from hostd.errors import InputCancellation
    except Exception:  # interrupted in the middle of this very import

        class InputCancellation(BaseException):
            """The input was cancelled."""

    return InputCancellation("the input was cancelled")


def is_cancellation(error):
    """Whether the exception is ours; by name, since its module may not be loaded."""
    return type(error).__name__ in ("InputCancellation", "CancelledError")
