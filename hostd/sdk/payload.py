"""Arguments, results and exceptions as bytes.

An input is the pickle of ``(args, kwargs)``, a result the pickle of a value. The C pickler is tried
first; cloudpickle takes what it refuses (lambdas, local classes) and what lives in ``__main__``:

- a script's own classes and functions go by name, under the name of the script as a module, so that
  the container's objects are of the container's classes;
- those of a prompt or a notebook have no module, so they go by value, as do those that serialized
  functions get: these bring their own copies of the classes they use.
"""

from __future__ import annotations

import io
import pickle
from types import FunctionType
from typing import TYPE_CHECKING

from hostd.errors import (
    CancelledError,
    DeserializationError,
    InputCancellation,
    PayloadTooLargeError,
    RemoteError,
    SerializationError,
)
from hostd.sdk.entry_module import script_name
from hostd.sdk.reference import ByValue, named_in_main, resolve, resolve_raw
from hostd.sdk.remote_traceback import with_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Union

    from hostd.sdk.function import Function
    from hostd.sdk.remote_traceback import Frames

    Buffer = Union[bytes, memoryview]

PROTOCOL = 5
"""Python 3.8 and later."""
PAYLOAD_BYTES_MAX = 256 * 2**20
"""The same figure as in hostd/model.py, which needs msgspec; a test compares them."""


def pack_input(
    function: Function[Any, Any, Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> bytes:
    """The payload of one input.

    Raises:
        SerializationError: an argument cannot be pickled.
        PayloadTooLargeError: it can, but is over the limit.
    """
    value = (tuple(args), kwargs)
    what = f"arguments of {function.name}"
    data = _plain(value)
    if data is None:
        data = _dump_by_value(what, value, _pickler(by_name=not function.is_serialized))
        if b"CodeType" in data:
            data = pickle.dumps(ByValue(data), PROTOCOL)
    return _limited(what, data)


def pack_function(raw: Callable[..., Any], name: str) -> bytes:
    """A function by value, for ``serialized=True``.

    Raises:
        SerializationError: it refers to something that cannot be pickled.
    """
    what = f"function {name}"
    return _limited(what, _dump_by_value(what, raw, _pickler(by_name=False)))


def unpack(field: Buffer) -> Any:
    """The value of a result.

    Raises:
        DeserializationError: it needs a module or class that is not here.
    """
    try:
        return pickle.loads(field)
    except Exception as error:
        raise DeserializationError(
            f"the result cannot be unpickled here: {type(error).__name__}: {error}",
            hint=_hint(error),
        ) from error


def unpack_exception(fields: Sequence[Buffer]) -> Exception:
    """The exception that a function raised: the user's own type with the container's frames.

    One that cannot be rebuilt here becomes a RemoteError with the remote traceback in its text; so
    does one that would end this process (SystemExit, KeyboardInterrupt).
    """
    kind, message, text = (str(field, "utf-8", "replace") for field in fields[:3])
    record = _record(fields[3] if len(fields) > 3 else b"")
    error = record.get("exception")
    if isinstance(error, InputCancellation):
        return CancelledError("the input was cancelled while it ran")
    if not isinstance(error, Exception):
        return RemoteError(
            f"{kind}: {message}\n\nin the container:\n\n{text.rstrip()}", type_name=kind
        )
    try:
        error.__cause__ = record.get("cause")
        error.__context__ = record.get("context")
        error.__suppress_context__ = bool(record.get("suppress_context"))
        frames: Frames = record.get("frames") or ()
        return with_frames(error, frames)
    except Exception as failure:  # noqa: BLE001 - a hostile class must not hide the failure
        return RemoteError(
            f"{kind}: {message}\n\n{text.rstrip()}\n({failure!r} while rebuilding it)"
        )


def _record(field: Buffer) -> dict[str, Any]:
    if not len(field):
        return {}
    try:
        record = pickle.loads(field)
    except Exception:  # noqa: BLE001 - the caller has the text
        return {}
    return record if isinstance(record, dict) else {}


def _plain(value: Any) -> bytes | None:
    """The pickle of the C pickler; None when it refuses, or something is of ``__main__``."""
    try:
        data = pickle.dumps(value, PROTOCOL)
    except Exception:  # noqa: BLE001 - cloudpickle succeeds, or says what is wrong
        return None
    # The name may also be part of a text; then the detour is only taken in vain.
    return None if b"__main__" in data else data


def _dump_by_value(what: str, value: Any, pickler: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        pickler(buffer, PROTOCOL).dump(value)
    except Exception as error:
        raise SerializationError(
            f"{what} cannot be pickled: {type(error).__name__}: {error}",
            hint="open files, locks, connections and generators cannot leave the process",
        ) from error
    return buffer.getvalue()


_cached_pickler: list[Any] = []


def _pickler(*, by_name: bool) -> Any:
    """cloudpickle's pickler, or one that goes by name for what the running script defines."""
    import cloudpickle  # When first needed: 14 ms.

    if not by_name:
        return cloudpickle.Pickler
    if not _cached_pickler:

        class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is not typed
            """Names of a running script go under its name in containers."""

            def reducer_override(self, value: Any) -> Any:
                if getattr(value, "__module__", None) == "__main__":
                    reduced = _by_name(value)
                    if reduced is not None:
                        return reduced
                return super().reducer_override(value)

        _cached_pickler.append(Pickler)
    return _cached_pickler[0]


def _by_name(value: Any) -> tuple[Any, ...] | None:
    if not isinstance(value, (type, FunctionType)):
        return None
    name = script_name()
    if name is None or not named_in_main(value):
        return None
    finder = resolve if isinstance(value, type) else resolve_raw
    return finder, (name, value.__qualname__)


def _limited(what: str, data: bytes) -> bytes:
    if len(data) > PAYLOAD_BYTES_MAX:
        raise PayloadTooLargeError(
            f"{what} are {len(data)} bytes pickled, the limit is {PAYLOAD_BYTES_MAX}",
            hint="put large data into the image or pass it in parts",
        )
    return data


def _hint(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"install {error.name.partition('.')[0]} here, or return plain values"
    return "return values whose classes can be imported here"
