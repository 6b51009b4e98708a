"""Exceptions in a form that crosses the border: type, message, traceback text, pickle.

Loaded only when something went wrong: ``traceback`` costs several milliseconds.
"""

import os
import traceback

from hostd.runner.wire import PAYLOAD_BYTES_MAX, TEXT_BYTES_MAX

_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep
_ASYNCIO = os.sep + "asyncio" + os.sep
FRAMES_MAX = 200
"""Frames of the pickled list: a deep recursion repeats itself."""


def to_text(value):
    """Bytes of a text field: UTF-8 whatever the text holds, cut in the middle when too long."""
    data = value.encode("utf-8", "backslashreplace")
    if len(data) <= TEXT_BYTES_MAX:
        return data
    half = TEXT_BYTES_MAX // 2 - 64
    note = "\n… %d bytes left out …\n" % (len(data) - 2 * half)
    cut = data[:half].decode("utf-8", "ignore") + note + data[-half:].decode("utf-8", "ignore")
    return cut.encode("utf-8")


def type_name(error):
    """``ValueError``, or ``package.module.Name`` for what is not built in."""
    cls = type(error)
    if cls.__module__ in ("builtins", "__main__"):
        return cls.__qualname__
    return "%s.%s" % (cls.__module__, cls.__qualname__)


def message(error):
    """``str(error)``, which is user code and may fail itself."""
    try:
        return str(error)
    except BaseException:
        return "<str() of the exception failed>"


def user_traceback(error):
    """The traceback object from the user's first frame on; None when the user has none."""
    tb = error.__traceback__
    while tb is not None:
        filename = tb.tb_frame.f_code.co_filename
        if not filename.startswith(_OWN) and _ASYNCIO not in filename:
            break
        tb = tb.tb_next
    return tb


def traceback_text(error):
    """What Python would print, without the runner's own frames."""
    try:
        lines = traceback.format_exception(type(error), error, user_traceback(error))
        return "".join(lines)
    except BaseException as failure:  # a hostile __repr__, a broken source encoding
        return "%s: %s\n(no traceback: %s while formatting it)\n" % (
            type_name(error),
            message(error),
            type(failure).__name__,
        )


def pickled(error):
    """A pickled dict of the exception, or b"" when it cannot make the journey.

    Keys: ``exception``; ``cause``, ``context``, ``suppress_context`` (pickling an exception drops
    them); ``frames``: tuples of file, line, function and source line, outermost first.
    """
    from hostd.runner.values import dump, load

    record = {
        "exception": error,
        "cause": error.__cause__,
        "context": error.__context__,
        "suppress_context": error.__suppress_context__,
        "frames": _frames(error),
    }
    for drop in ((), ("cause", "context")):
        for key in drop:
            record[key] = None
        try:
            data = dump(record)
            load(data)  # many exceptions pickle well and cannot be rebuilt
        except BaseException:
            continue
        if len(data) <= PAYLOAD_BYTES_MAX:
            return data
    return b""


def _frames(error):
    try:
        entries = traceback.extract_tb(user_traceback(error), limit=-FRAMES_MAX)
        return [(entry.filename, entry.lineno, entry.name, entry.line) for entry in entries]
    except BaseException:
        return []


def raised(error):
    """The fields of RAISED that follow the timings."""
    return (
        to_text(type_name(error)),
        to_text(message(error)),
        to_text(traceback_text(error)),
        pickled(error),
    )


def load_failed(failure):
    """The fields of LOAD_FAILED, of a LoadError."""
    error = failure.error
    return (
        failure.code.encode(),
        to_text(type_name(error) if error is not None else ""),
        to_text(failure.text),
        to_text(traceback_text(error) if error is not None else ""),
        to_text(failure.hint),
    )
