"""Where this code runs: on a client or in a container, and for which input."""

from __future__ import annotations

import os
import sys

REMOTE_VARIABLE = "HOSTD_IS_REMOTE"
"""Set to 1 in every container that hostd starts."""


def is_local() -> bool:
    """Whether this runs outside hostd's containers: on a laptop, in a notebook, in a test."""
    return os.environ.get(REMOTE_VARIABLE) != "1"


def current_input_id() -> str | None:
    """The id of the input that this container works on; None outside an input."""
    return _of_runner("input_id")


def current_function_call_id() -> str | None:
    """The id of the call whose input this container works on; None outside an input."""
    return _of_runner("call_id")


def _of_runner(name: str) -> str | None:
    # The runner has loaded this module already; where it has not, there is no input.
    value = getattr(sys.modules.get("hostd.runner.context"), name, None)
    return value if isinstance(value, str) else None


def is_interactive() -> bool:
    """Whether definitions come from a prompt or a notebook, where redefining is how people work."""
    if getattr(sys, "ps1", None) is not None:
        return True
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None
