"""hostd: a self-hosted serverless cloud for small labs.

The names of the SDK load on first use: ``import hostd`` alone costs a fraction of a millisecond, in
the daemon and in containers alike.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hostd.sdk import exception as exception
    from hostd.sdk.app import App as App
    from hostd.sdk.context import current_function_call_id as current_function_call_id
    from hostd.sdk.context import current_input_id as current_input_id
    from hostd.sdk.context import is_local as is_local
    from hostd.sdk.dockerignore import FilePatternMatcher as FilePatternMatcher
    from hostd.sdk.entrypoint import LocalEntrypoint as LocalEntrypoint
    from hostd.sdk.function import Function as Function
    from hostd.sdk.image import Image as Image
    from hostd.sdk.output import enable_output as enable_output
    from hostd.sdk.retries import Retries as Retries

__version__ = "0.1.0"

_HOMES = {
    "App": "hostd.sdk.app",
    "FilePatternMatcher": "hostd.sdk.dockerignore",
    "Function": "hostd.sdk.function",
    "Image": "hostd.sdk.image",
    "LocalEntrypoint": "hostd.sdk.entrypoint",
    "Retries": "hostd.sdk.retries",
    "current_function_call_id": "hostd.sdk.context",
    "current_input_id": "hostd.sdk.context",
    "enable_output": "hostd.sdk.output",
    "is_local": "hostd.sdk.context",
}
_LATER = [
    "Cls",
    "CloudBucketMount",
    "Cron",
    "Dict",
    "FunctionCall",
    "Period",
    "Queue",
    "Sandbox",
    "Secret",
    "Tunnel",
    "Volume",
    "asgi_app",
    "batched",
    "concurrent",
    "enter",
    "exit",
    "fastapi_endpoint",
    "forward",
    "interact",
    "method",
    "parameter",
    "web_server",
    "wsgi_app",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Load a name of the SDK, or its module of exceptions, on first use."""
        if name == "exception":
            value = __import__("hostd.sdk.exception", None, None, ["Error"])
        elif name in _HOMES:
            value = getattr(__import__(_HOMES[name], None, None, [name]), name)
        else:
            later = " yet: this version does not support it" if name in _LATER else ""
            raise AttributeError(f"module 'hostd' has no attribute {name!r}{later}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """What completion offers, the names that are not loaded yet included."""
        return sorted({*globals(), *_HOMES, "exception"})
