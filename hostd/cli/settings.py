"""The options that every command takes, before or after its name, and what follows from them."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hostd.sdk.client import Client

OUTPUTS = ("table", "json", "jsonl", "id")
TIMEOUT_DEFAULT_S = 30.0
"""Of one request to the API that is not a stream."""


@dataclass
class Settings:
    """What the global options and the environment say."""

    url: str | None = None
    output: str = "table"
    no_color: bool = False
    quiet: bool = False
    debug: bool = False
    timeout_s: float = TIMEOUT_DEFAULT_S
    yes: bool = False
    _client: Client | None = field(default=None, compare=False)

    def client(self) -> Client:
        """The client of the daemon that ``--url`` or the environment names; one per command."""
        if self._client is None:
            from hostd.sdk.client import Client

            # The user's own script may make its client from the environment: both must agree.
            if self.url is not None:
                os.environ["HOSTD_URL"] = self.url
            self._client = Client.from_env()
        return self._client

    def close(self) -> None:
        """Close what the command opened."""
        if self._client is not None:
            self._client.close()

    def request(self, method: str, path: str) -> Any:
        """The API's answer, within ``--timeout``."""
        return self.client().request(method, path, timeout=self.timeout_s)

    def has_color(self, stream: Any) -> bool:
        """Whether escape sequences may go to this stream."""
        return not self.no_color and not os.environ.get("NO_COLOR") and is_terminal(stream)

    @property
    def is_live(self) -> bool:
        """Whether progress may be drawn and redrawn on standard error."""
        return not self.quiet and self.has_color(sys.stderr) and os.environ.get("TERM") != "dumb"


def is_terminal(stream: Any) -> bool:
    """Whether a person sees this stream."""
    try:
        return bool(stream.isatty())
    except ValueError:  # It was closed.
        return False


def _store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is None or context.resilient_parsing:
        return
    settings = context.find_root().ensure_object(Settings)
    if parameter.name == "json":
        settings.output = "json"
    else:
        setattr(settings, str(parameter.name), value)


def _global(*names: str, help_text: str, **attributes: Any) -> click.Option:
    return click.Option(
        names, expose_value=False, callback=_store, help=help_text, default=None, **attributes
    )


def global_options(*, hidden: bool) -> list[click.Option]:
    """New option objects for one command; commands hide them, the overview shows them."""
    return [
        _global("--url", help_text="Daemon to talk to (HOSTD_URL).", hidden=hidden),
        _global(
            "-o",
            "--output",
            type=click.Choice(OUTPUTS),
            help_text="Form of the data on standard output.",
            hidden=hidden,
        ),
        _global("--json", is_flag=True, help_text="The same as -o json.", hidden=hidden),
        _global("--no-color", is_flag=True, help_text="No colour (NO_COLOR).", hidden=hidden),
        _global("-q", "--quiet", is_flag=True, help_text="No progress, no advice.", hidden=hidden),
        _global(
            "-v",
            "--debug",
            is_flag=True,
            help_text="Tracebacks of hostctl itself (HOSTD_DEBUG).",
            hidden=hidden,
        ),
        _global(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(min=0, min_open=True),
            metavar="S",
            help_text=f"Seconds that one request may take ({TIMEOUT_DEFAULT_S:g}).",
            hidden=hidden,
        ),
        _global("-y", "--yes", is_flag=True, help_text="Do not ask.", hidden=hidden),
    ]
