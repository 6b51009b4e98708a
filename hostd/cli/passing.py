"""Commands that pass on another command's exit code: failures of our own are 125 there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from hostd.cli.failures import report
from hostd.cli.settings import Settings
from hostd.errors import Error

OWN_FAILURE = 125


@contextmanager
def pass_through(settings: Settings) -> Iterator[None]:
    """Report an expected failure of the block and exit with 125."""
    try:
        yield
    except Error as error:
        report(error, settings)
        raise click.exceptions.Exit(OWN_FAILURE) from None
