"""hostctl exec: run a command in a running container."""

from __future__ import annotations

import click

from hostd.cli.group import Command
from hostd.cli.passing import pass_through
from hostd.cli.settings import Settings
from hostd.cli.terminal import run_session, terminal_request


@click.command(cls=Command, context_settings={"allow_interspersed_args": False})
@click.option("-w", "--workdir", metavar="DIR", help="Where to run it (the container's own).")
@click.argument("id")
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND...", type=click.UNPROCESSED)
@click.pass_obj
def command(settings: Settings, id: str, workdir: str | None, words: tuple[str, ...]) -> int:
    """Run a command in a running container.

    Its exit code becomes that of hostctl; 125 says that hostctl or hostd failed.
    """
    from urllib.parse import quote

    args = list(words[1:] if words[0] == "--" else words)
    if not args:
        raise click.UsageError("missing argument '-- COMMAND...'", click.get_current_context())
    with pass_through(settings):
        request: dict[str, object] = {"args": args, **terminal_request({})}
        if workdir is not None:
            request["workdir"] = workdir
        socket = settings.client().websocket(f"/api/v1/containers/{quote(id, safe='')}/exec")
        return run_session(socket, request)
