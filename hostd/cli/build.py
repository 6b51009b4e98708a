import click

from hostd.cli.group import Command


@click.command(cls=Command)
def command() -> None:
    """x."""
