"""Every failure hostd expects, as one tree that daemon, SDK and CLI share.

    Error
    ├── InvalidError            the caller's arguments or files are wrong
    │   ├── DockerfileError     with line and column
    │   ├── ConfigError         a setting is unknown or out of range
    │   └── VersionMismatchError  Python or protocol versions of two sides do not fit
    ├── NotFoundError
    ├── AlreadyExistsError
    ├── ConflictError           a precondition does not hold any more
    ├── AuthError
    ├── PermissionDeniedError
    ├── ConnectionError         the daemon cannot be reached, or the connection broke
    ├── ResourceExhaustedError  a limit was reached
    │   ├── NoCapacityError     no host is large enough, even when idle
    │   ├── StorageFullError    the data directory has no space left
    │   └── PayloadTooLargeError
    ├── ImageBuildError         a build step failed
    ├── BlobError               content is absent or damaged
    │   ├── BlobMissingError
    │   └── BlobCorruptError
    ├── ExecutionError          the function could not be run, or its container died
    │   ├── ContainerExitedError
    │   ├── OutOfMemoryError
    │   ├── ContainerStartError   mounts, runc or the runner failed before user code
    │   └── FunctionImportError   the user's module raised when it was imported
    ├── RemoteError             the function raised what this side cannot rebuild
    ├── SerializationError
    ├── DeserializationError
    ├── TimeoutError
    │   ├── FunctionTimeoutError
    │   └── OutputExpiredError
    ├── CancelledError          somebody cancelled the call
    ├── DaemonStoppedError      the daemon restarted while the call ran
    └── InternalError           a bug of ours
    InputCancellation           (BaseException) raised inside a running input that is cancelled

Each class has a stable ``code`` (clients match on it), an ``exit_status`` for scripts (table in
``docs/cli.md``) and an ``http_status``. Instances carry a ``hint`` and fields. Texts are lower
case, start with the thing, name value and limit, and have no final period.

Standard library only and Python 3.9: the SDK imports this module on laptops and in containers.
"""

from __future__ import annotations

import builtins

# Importing typing takes ten times as long as everything else here, in every container.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Error(Exception):
    """Base of all expected failures."""

    code = "error"
    exit_status = 1
    http_status = 500

    def __init__(self, text: str = "", *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.text, self.hint, self.fields))


def _rebuild(cls: type[Error], text: str, hint: str | None, fields: dict[str, Any]) -> Error:
    return cls(text, hint=hint, **fields)


class InvalidError(Error):
    """The caller's arguments or files are wrong."""

    code = "invalid"
    exit_status = 2
    http_status = 422


class DockerfileError(InvalidError):
    """A Dockerfile cannot be understood; fields ``line`` and ``column`` count from 1."""

    code = "dockerfile_invalid"


class ConfigError(InvalidError):
    """A setting is unknown or out of range."""

    code = "config_invalid"


class VersionMismatchError(InvalidError):
    """Python or protocol versions of two sides do not fit."""

    code = "version_mismatch"
    exit_status = 12
    http_status = 409


class NotFoundError(Error):
    """No object has this id or name."""

    code = "not_found"
    exit_status = 3
    http_status = 404


class AlreadyExistsError(Error):
    """An object with this name is there already."""

    code = "already_exists"
    exit_status = 5
    http_status = 409


class ConflictError(Error):
    """A precondition does not hold (any more)."""

    code = "conflict"
    exit_status = 5
    http_status = 409


class AuthError(Error):
    """The caller is not known: token missing, wrong or expired."""

    code = "unauthenticated"
    exit_status = 4
    http_status = 401


class PermissionDeniedError(Error):
    """The caller is known but may not do this."""

    code = "permission_denied"
    exit_status = 4
    http_status = 403


class ConnectionError(Error, builtins.ConnectionError):
    """The daemon cannot be reached, or the connection to it broke."""

    code = "unreachable"
    exit_status = 6
    http_status = 503


class ResourceExhaustedError(Error):
    """A limit was reached."""

    code = "resource_exhausted"
    exit_status = 8
    http_status = 429


class NoCapacityError(ResourceExhaustedError):
    """No host is large enough, even when idle."""

    code = "no_capacity"
    http_status = 422


class StorageFullError(ResourceExhaustedError):
    """The data directory has no space left; what was stored before is intact."""

    code = "storage_full"
    exit_status = 1
    http_status = 507


class PayloadTooLargeError(ResourceExhaustedError):
    """An argument, a result or a request body is over its limit."""

    code = "payload_too_large"
    exit_status = 1
    http_status = 413


class ImageBuildError(Error):
    """A build step failed; fields ``image_id`` (or None), ``step`` and ``exit_code``."""

    code = "image_build_failed"
    exit_status = 9
    http_status = 422


class BlobError(Error):
    """Content is absent or damaged."""

    code = "blob_error"


class BlobMissingError(BlobError):
    """No reachable holder has this blob."""

    code = "blob_missing"
    http_status = 404


class BlobCorruptError(BlobError):
    """The bytes on disk do not hash to their name; they were quarantined, not served."""

    code = "blob_corrupt"


class ExecutionError(Error):
    """The function could not be run, or its container died."""

    code = "execution_failed"
    exit_status = 10
    http_status = 500


class ContainerExitedError(ExecutionError):
    """The container ended in the middle of an input; fields ``exit_code`` or ``signal``."""

    code = "container_exited"


class OutOfMemoryError(ExecutionError):
    """The kernel killed the container at its memory limit; fields limit_bytes, peak_bytes."""

    code = "out_of_memory"


class ContainerStartError(ExecutionError):
    """Mounts, runc or the runner failed before any user code ran."""

    code = "container_start_failed"


class FunctionImportError(ExecutionError):
    """The user's module raised when it was imported; the text holds its own traceback."""

    code = "function_import_failed"


class RemoteError(Error):
    """The function raised what this side cannot rebuild; the text holds its traceback."""

    code = "remote_raised"
    exit_status = 10


class SerializationError(Error):
    """An argument or a result cannot be pickled."""

    code = "not_serializable"
    exit_status = 10
    http_status = 422


class DeserializationError(Error):
    """A payload cannot be unpickled here; the text names the missing module."""

    code = "not_deserializable"
    exit_status = 10
    http_status = 422


class TimeoutError(Error, builtins.TimeoutError):
    """Something was not ready in time."""

    code = "timed_out"
    exit_status = 7
    http_status = 504


class FunctionTimeoutError(TimeoutError):
    """An input ran longer than the function's timeout."""

    code = "function_timed_out"


class OutputExpiredError(TimeoutError):
    """The result was kept for its retention time and is gone."""

    code = "output_expired"
    http_status = 410


class CancelledError(Error):
    """Somebody cancelled the call."""

    code = "cancelled"
    exit_status = 11
    http_status = 409


class DaemonStoppedError(Error):
    """The daemon restarted while the call ran: it did not finish."""

    code = "daemon_stopped"
    exit_status = 6
    http_status = 503


class InternalError(Error):
    """A bug of ours; the daemon's log has the traceback under ``trace_id``."""

    code = "internal"
    exit_status = 1
    http_status = 500


class InputCancellation(BaseException):
    """Raised inside a running input when its call is cancelled; no Exception, so that it passes."""


def _tree(cls: type[Error]) -> list[type[Error]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _tree(child))]


BY_CODE: dict[str, type[Error]] = {cls.code: cls for cls in reversed(_tree(Error))}


def from_problem(problem: dict[str, Any]) -> Error:
    """Rebuild the error that a problem document describes (RFC 9457); unknown codes: Error."""
    cls = BY_CODE.get(str(problem.get("code")), Error)
    known = {"type", "title", "status", "detail", "code", "hint"}
    fields = {key: value for key, value in problem.items() if key not in known}
    text = str(problem.get("detail") or problem.get("title") or "unknown error")
    return cls(text, hint=problem.get("hint"), **fields)


def to_problem(error: Error) -> dict[str, Any]:
    """Describe an error as a problem document (RFC 9457) with our code, hint and fields."""
    problem = {
        "type": f"https://hostd.invalid/errors/{error.code}",
        "title": error.code.replace("_", " "),
        "status": error.http_status,
        "detail": error.text,
        "code": error.code,
    }
    if error.hint is not None:
        problem["hint"] = error.hint
    problem.update({key: value for key, value in error.fields.items() if key not in problem})
    return problem
