"""Pickling of arguments and results, with the errors a person can act on.

The C pickler alone: the ``pickle`` module would cost a millisecond and adds nothing. cloudpickle is
imported only for what the C pickler refuses (lambdas, classes of ``__main__``).
"""

from _pickle import dumps, loads

from hostd.runner.wire import PAYLOAD_BYTES_MAX

PROTOCOL = 5
"""Python 3.8 and later."""


class PayloadError(Exception):
    """A payload that cannot be opened or made: an error code of ``hostd/errors.py`` and a text."""

    def __init__(self, code, text, hint=""):
        Exception.__init__(self, text)
        self.code = code
        self.text = text
        self.hint = hint


load = loads


def dump(value):
    """Pickle a value; what only cloudpickle can do is done by it, when it can be imported.

    Raises:
        BaseException: what the pickler said, or a ``__reduce__`` of the user's.
    """
    try:
        return dumps(value, PROTOCOL)
    except Exception as error:
        try:
            from cloudpickle import dumps as dumps_by_value
        except Exception:
            raise error from None
        return dumps_by_value(value, PROTOCOL)


def arguments(payload, name):
    """``(args, kwargs)`` of an input."""
    try:
        args, kwargs = loads(payload)
    except ModuleNotFoundError as error:
        text = "an argument of %s needs module %s, which the image does not have" % (
            name,
            error.name,
        )
        hint = (
            "add it to the image, for example with .pip_install(%r)"
            % ((error.name or "").partition(".")[0])
        )
        raise PayloadError("not_deserializable", text, hint) from None
    except Exception as error:
        text = "the arguments of %s cannot be unpickled: %s: %s" % (
            name,
            type(error).__name__,
            error,
        )
        raise PayloadError("not_deserializable", text) from None
    return args, kwargs


def result(value, name):
    """The pickled result of a function."""
    try:
        data = dump(value)
    except Exception as error:
        text = "the result of %s is a %s that cannot be pickled: %s: %s" % (
            name,
            _kind(value),
            type(error).__name__,
            error,
        )
        hint = "return plain values: files, locks, connections and generators stay in a container"
        raise PayloadError("not_serializable", text, hint) from None
    if len(data) > PAYLOAD_BYTES_MAX:
        text = "the result of %s is %d bytes pickled, the limit is %d" % (
            name,
            len(data),
            PAYLOAD_BYTES_MAX,
        )
        raise PayloadError("payload_too_large", text, "return it in parts from a generator")
    return data


def _kind(value):
    cls = type(value)
    if cls.__module__ == "builtins":
        return cls.__qualname__
    return "%s.%s" % (cls.__module__, cls.__qualname__)
