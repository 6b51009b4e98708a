"""hostctl shell: a container of one's own, on an image or on a function's image with its code."""

from __future__ import annotations

import click

from hostd.cli.build import build_image
from hostd.cli.group import Command
from hostd.cli.image import image_path
from hostd.cli.passing import pass_through
from hostd.cli.progress import progress
from hostd.cli.settings import Settings
from hostd.cli.terminal import run_session, terminal_request
from hostd.errors import InvalidError
from hostd.sdk.image import SOURCE_ROOT, Image

LIB_ROOT = "/run/hostd/lib"
"""Where every container has the SDK."""
SHELL = "if command -v bash >/dev/null; then exec bash; fi; exec sh"
"""The better of the two that the image has."""


@click.command(cls=Command)
@click.argument("place", metavar="[IMAGE|FILE::NAME]", default="")
@click.option("-c", "--command", "text", metavar="COMMAND", help="Run this and leave.")
@click.pass_obj
def command(settings: Settings, place: str, text: str | None) -> int:
    """Open a shell in an image or in a function's environment.

    IMAGE is an id or a name; without it, Debian with Python. The container is removed when the
    shell ends, whose exit code becomes that of hostctl; 125 says that hostctl or hostd failed.
    """
    with pass_through(settings):
        image_id, source = _environment(settings, place)
        request: dict[str, object] = {
            "image_id": image_id,
            "source": source,
            "args": ["/bin/sh", "-c", SHELL if text is None else text],
            # Where the runner would find the function's module.
            **terminal_request({"PYTHONPATH": f"{SOURCE_ROOT}:{LIB_ROOT}"} if source else {}),
        }
        return run_session(settings.client().websocket("/api/v1/shell"), request)


def _environment(settings: Settings, place: str) -> tuple[str, list[dict[str, object]]]:
    """The image, and the files that lie over it."""
    if "::" in place or place.endswith(".py"):
        return _of_function(settings, place)
    if place:
        return str(settings.request("GET", image_path(place))["id"]), []
    return _built(settings, Image.debian_slim()), []


def _of_function(settings: Settings, place: str) -> tuple[str, list[dict[str, object]]]:
    from hostd.cli.loading import find, load
    from hostd.sdk.function import Function
    from hostd.sdk.output import PlainOutput
    from hostd.sdk.source import of_function
    from hostd.sdk.upload import Contents

    module, name = load(place)
    target = find(module, name)
    if not isinstance(target, Function):
        raise InvalidError(f"{target.name} is a local entrypoint: it has no container")
    image_id = _built(settings, target.image or Image.debian_slim())
    contents = Contents()
    source = contents.describe(of_function(target))
    contents.upload(settings.client(), PlainOutput())
    return image_id, source


def _built(settings: Settings, image: Image) -> str:
    shown = progress(settings)
    with shown.shown():
        return build_image(settings, shown, image)
