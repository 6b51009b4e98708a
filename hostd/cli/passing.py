"""Commands that pass on another command's exit code: failures of our own are 125 there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from hostd.cli.failures import report
from hostd.cli.settings import Settings
from hostd.errors import ContainerStartError, Error

OWN_FAILURE = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127


@contextmanager
def pass_through(settings: Settings) -> Iterator[None]:
    """Report an expected failure of the block and exit as a shell would: 125, 126 or 127."""
    try:
        yield
    except Error as error:
        report(error, settings)
        raise click.exceptions.Exit(_status(error)) from None


def _status(error: Error) -> int:
    """runc and crun tell why a program did not start in words only."""
    if isinstance(error, ContainerStartError):
        if "not found" in error.text or "no such file" in error.text.lower():
            return NOT_FOUND
        if "permission denied" in error.text.lower():
            return NOT_EXECUTABLE
    return OWN_FAILURE
