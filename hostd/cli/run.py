"""hostctl run: a local entrypoint here, or one function in a container, while their app runs."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from hostd.cli.group import Command
from hostd.cli.loading import find, load
from hostd.cli.progress import Progress, progress
from hostd.cli.settings import Settings
from hostd.cli.units import duration
from hostd.cli.user_code import UserCodeError, is_remote, text_of
from hostd.errors import Error, InvalidError

if TYPE_CHECKING:
    from hostd.cli.loading import Target

SUMMARY_TIMEOUT_S = 2.0
REMOTE_RAISED = 10


@click.command(cls=Command, context_settings={"allow_interspersed_args": False})
@click.option("-m", "--module", "as_module", is_flag=True, help="REF is a module: pkg.mod[::NAME].")
@click.option("-d", "--detach", is_flag=True, help="Not supported yet.")
@click.argument("ref", metavar="FILE[::NAME]")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
@click.pass_obj
def command(
    settings: Settings, ref: str, words: tuple[str, ...], as_module: bool, detach: bool
) -> None:
    """Run a function or entrypoint now and stream its output.

    NAME is a local entrypoint, which runs here, or a function, which runs in a container and whose
    value is printed. Without NAME: the only entrypoint, or the only function, or main.

    What follows FILE belongs to your program: hostctl run sweep.py --help says what it takes.
    """
    if detach:
        raise InvalidError(
            "run --detach is not supported yet", hint="leave it running in another terminal"
        )
    module, name = load(ref, as_module=as_module)
    target = find(module, name)
    if words and words[0] in ("-h", "--help"):
        _print_usage(target)
        return
    from hostd.sdk.entrypoint import parse

    args, kwargs = parse(target, words)
    run_name = target.app.name or re.sub(r"[^A-Za-z0-9_.-]", "-", module.__name__)[:64].lstrip("-.")
    _run(settings, target, run_name or "app", args, kwargs)


def _print_usage(target: Target) -> None:
    from hostd.sdk.entrypoint import usage

    print(usage(target))
    if target.__doc__:
        print(f"\n{target.__doc__.strip()}")


def _run(
    settings: Settings, target: Target, name: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    shown = progress(settings)
    try:
        with shown.shown(), target.app.run(name=name, client=settings.client(), observer=shown):
            try:
                _call(settings, target, args, kwargs)
            except KeyboardInterrupt:
                shown.say("cancelling; Ctrl-C again leaves at once")
                raise
            finally:
                _say_last_call(settings, shown)
    except Error:
        raise
    except Exception as error:
        status = REMOTE_RAISED if is_remote(error) else 1
        raise UserCodeError(text_of(error), status) from error


def _call(settings: Settings, target: Target, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Call the entrypoint here, or the function in a container."""
    from hostd.sdk.function import Function

    if not isinstance(target, Function):
        result = target(*args, **kwargs)
        if hasattr(result, "__await__"):
            import asyncio

            asyncio.run(result)
        return
    if target.is_generator:
        for value in target.remote_gen(*args, **kwargs):
            _print_value(settings, value)
    else:
        _print_value(settings, target.remote(*args, **kwargs))


def _print_value(settings: Settings, value: object) -> None:
    if settings.output in ("json", "jsonl"):
        print(json.dumps(value, default=repr), flush=True)
    elif value is not None:
        print(value, flush=True)


def _say_last_call(settings: Settings, shown: Progress) -> None:
    """One line about the app's last call, and how to learn more."""
    if settings.quiet or shown.app_id is None:
        return
    try:
        reply = settings.client().request(
            "GET", "/api/v1/calls?limit=1", timeout=min(SUMMARY_TIMEOUT_S, settings.timeout_s)
        )
    except Error:
        return  # What ended the run says more.
    for call in reply["items"]:
        if call["app_id"] == shown.app_id and call.get("finished_at_us"):
            took = duration(call["finished_at_us"] - call["created_at_us"])
            start = f" · {call['start']} start" if call.get("start") else ""
            shown.say(f"call {call['id']} · {took}{start} · hostctl explain {call['id']}")
