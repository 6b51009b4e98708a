"""The runner's loop: receive a frame, run, flush, answer. One thread, blocking, in order.

Order of one input: open the payload, run, pickle the result, flush stdout and stderr, answer. The
flush comes first so that the daemon finds every line in the pipes when the answer arrives.
"""

import faulthandler
import sys
from posix import _exit, getpid
from time import monotonic_ns

from hostd.runner import context, values, wire
from hostd.runner.cancel import Cancellation, cancellation, is_cancellation


class Runner:
    """A loaded function and the connection it answers on."""

    def __init__(self, connection, cancel):
        self._connection = connection
        self._cancel = cancel
        self._pid = getpid()
        self._function = None
        self._name = ""
        self._streams = False
        self._loop = None

    def load(self, fields):
        """Load the function and say READY; or say LOAD_FAILED and return False."""
        from hostd.runner import load

        begun = monotonic_ns()
        request = load.Request(fields)
        self._name = request.name
        self._streams = bool(request.flags & wire.FLAG_GENERATOR)
        self._cancel.install()  # before user code, which may put its own handlers in their place
        writes = sys.dont_write_bytecode
        sys.dont_write_bytecode = True  # the container's own files are thrown away with it
        try:
            if request.source:
                sys.path[0] = request.source
            sys.argv[:] = [request.name]
            self._function = load.load(request)
            if load.needs_loop(self._function):
                self._need_loop()
        except load.LoadError as failure:
            from hostd.runner.outcome import load_failed

            flush()
            self._connection.send(wire.LOAD_FAILED, 0, load_failed(failure))
            return False
        finally:
            sys.dont_write_bytecode = writes
        flush()
        self._connection.send(wire.READY, 0, (wire.LOADED.pack(begun, monotonic_ns()),))
        return True

    def serve(self):
        """Answer inputs until the daemon closes the connection."""
        connection = self._connection
        while True:
            if self._loop is not None and not connection.has_bytes():
                self._loop.wait_readable(connection.fileno())
            frame = connection.receive()
            if frame is None:
                break
            kind, token, fields = frame
            if kind != wire.INPUT:
                raise SystemExit("hostd: frame of kind %d in the place of an input" % kind)
            self._answer(token, fields)

    def close(self):
        """End what still runs in the event loop."""
        if self._loop is not None:
            self._loop.close()

    def _need_loop(self):
        if self._loop is None:
            from hostd.runner.aio import Loop

            self._loop = Loop(self._cancel)
        return self._loop

    def _answer(self, token, input_fields):
        """Run one input and send its last frame."""
        payload, call_id, input_id = input_fields
        input_fields.clear()  # a payload of 256 MiB must not stay beside the arguments made of it
        begun = monotonic_ns()
        loaded = ran = begun
        try:
            if self._cancel.wanted(token):
                raise cancellation()
            args, kwargs = values.arguments(payload, self._name)
            del payload
            loaded = ran = monotonic_ns()
            context.call_id = str(call_id, "utf-8") or None
            context.input_id = str(input_id, "utf-8") or None
            if self._streams:
                self._stream(token, args, kwargs)
                ran = monotonic_ns()
                kind, fields = wire.END, ()
            else:
                value = self._run(token, self._function, args, kwargs)
                ran = monotonic_ns()
                kind, fields = wire.OK, (values.result(value, self._name),)
        except values.PayloadError as error:
            kind, fields = _failed(error.code, error.text, error.hint)
        except SystemExit:
            raise  # the container ends, with this exit code
        except BaseException as error:  # the user's function may raise anything
            self._cancel.running = 0
            ran = monotonic_ns()
            kind, fields = self._raised(token, error)
        finally:
            context.call_id = context.input_id = None
        self._send(kind, token, (_timings(begun, loaded, ran), *fields))

    def _send(self, kind, token, fields):
        if getpid() != self._pid:
            _exit(0)  # the user's code forked, and the child came back here
        flush()
        self._connection.send(kind, token, fields)

    def _run(self, token, function, args, kwargs):
        """Call it; cancellation may strike here and nowhere else."""
        cancel = self._cancel
        try:
            cancel.running = token
            value = function(*args, **kwargs)
            if hasattr(type(value), "__await__") and hasattr(type(value), "send"):  # a coroutine
                value = self._need_loop().run(value)
        finally:
            cancel.running = 0
        return value

    def _stream(self, token, args, kwargs):
        """Send what the generator yields, each value as it comes."""
        iterator = self._run(token, self._function, args, kwargs)
        if hasattr(type(iterator), "__aiter__"):
            cancel = self._cancel
            try:
                cancel.running = token
                self._need_loop().stream(iterator, lambda value: self._yield(token, value))
            finally:
                cancel.running = 0
            return
        if not hasattr(type(iterator), "__next__"):
            iterator = iter(iterator)
        while True:
            value = self._run(token, next, (iterator, _END), {})
            if value is _END:
                return
            self._yield(token, value)
            if self._cancel.wanted(token):
                _throw(iterator)

    def _yield(self, token, value):
        begun = monotonic_ns()
        data = values.result(value, self._name)
        self._send(wire.YIELD, token, (_timings(begun, begun, begun), data))

    def _raised(self, token, error):
        """The kind and fields that tell of an exception."""
        if is_cancellation(error) and self._cancel.wanted(token):
            return _failed("cancelled", "the input was cancelled", "")
        from hostd.runner import outcome

        return wire.RAISED, outcome.raised(error)


_END = object()


def _throw(iterator):
    """Raise the cancellation where the generator waits; what it answers is not wanted any more."""
    throw = getattr(iterator, "throw", None)
    if throw is not None:
        try:
            throw(cancellation())
        except StopIteration:
            pass
    raise cancellation()


def _failed(code, text, hint):
    from hostd.runner.outcome import to_text

    return wire.FAILED, (code.encode(), to_text(text), to_text(hint))


def _timings(begun, loaded, ran):
    now = monotonic_ns()
    return wire.TIMINGS.pack((loaded - begun) // 1000, (ran - loaded) // 1000, (now - ran) // 1000)


def flush():
    """Push out what was printed; user code may have put anything in place of the streams."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            continue


def main(directory, started_ns):
    """Connect, load, serve. ``directory`` holds ``runner.sock`` and ``cancel``."""
    connecting_ns = monotonic_ns()
    connection = wire.connect(directory + "/runner.sock")
    version = "%d.%d.%d" % sys.version_info[:3]
    connection.send(
        wire.HELLO,
        0,
        (
            wire.START.pack(started_ns, connecting_ns),
            b"%d" % wire.PROTOCOL_VERSION,
            version.encode(),
            sys.implementation.name.encode(),
        ),
    )
    faulthandler.enable()  # a crash in an extension module leaves a traceback in the log
    cancel = Cancellation(directory + "/cancel")
    runner = Runner(connection, cancel)
    try:
        frame = connection.receive()
        if frame is not None and runner.load(frame[2]):
            runner.serve()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the daemon is gone, and with it the reason to live
    finally:
        cancel.is_ending = True
        runner.close()
