"""hostctl build: images of functions, or of a directory with a Dockerfile."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from hostd.cli.group import Command
from hostd.cli.output import print_record
from hostd.cli.progress import progress
from hostd.cli.settings import Settings
from hostd.errors import InvalidError

if TYPE_CHECKING:
    from hostd.cli.progress import Progress
    from hostd.sdk.image import Image


@click.command(cls=Command)
@click.argument("source", metavar="FILE[::NAME]|DIRECTORY")
@click.option("-f", "--file", "dockerfile", metavar="FILE", help="Another Dockerfile.")
@click.option("--name", help="Give the finished image this name.")
@click.option(
    "--build-arg",
    "build_args",
    metavar="NAME=VALUE",
    multiple=True,
    help="Set an ARG.",
)
@click.option("--no-cache", is_flag=True, help="Execute every step again.")
@click.pass_obj
def command(
    settings: Settings,
    source: str,
    dockerfile: str | None,
    name: str | None,
    build_args: tuple[str, ...],
    no_cache: bool,
) -> None:
    """Build an image from a Python file or a Dockerfile.

    Of a Python file: the images of its functions, or that of function NAME. Of a directory: its
    Dockerfile, with the directory as context. Prints the ids of the images.
    """
    if os.path.isdir(source):
        named = [("", _of_directory(source, dockerfile, build_args))]
    else:
        if dockerfile or build_args:
            raise InvalidError(f"{source} is no directory; -f and --build-arg are for one")
        named = _of_file(source)
    if name is not None and len(named) > 1:
        raise InvalidError(f"--name {name} is one name for {len(named)} images", hint="add ::NAME")
    shown = progress(settings)
    with shown.shown():
        for number, (function, image) in enumerate(named, 1):
            image_id = build_image(
                settings, shown, image, name=name, force=no_cache, number=number, count=len(named)
            )
            record = {"id": image_id, "name": name, "function": function or None}
            print_record(settings, record, [(image_id, function)])


def build_image(
    settings: Settings,
    shown: Progress,
    image: Image,
    *,
    name: str | None = None,
    force: bool = False,
    number: int = 1,
    count: int = 1,
) -> str:
    """Upload what an image needs and build it; its id."""
    from hostd.sdk.building import build
    from hostd.sdk.recipe import build_request
    from hostd.sdk.upload import Contents

    contents, client = Contents(), settings.client()
    request = build_request(image, contents)
    if name is not None:
        request["name"] = name
    if force:
        request["force"] = True
    contents.upload(client, shown)
    return build(client, request, shown, image=number, images=count)


def _of_directory(directory: str, dockerfile: str | None, build_args: tuple[str, ...]) -> Image:
    from hostd.sdk.image import Image

    path = dockerfile or os.path.join(directory, "Dockerfile")
    if not os.path.isfile(path):
        raise InvalidError(f"Dockerfile {path} is not there", hint="-f names another one")
    return Image.from_dockerfile(path, context_dir=directory, build_args=_pairs(build_args))


def _pairs(build_args: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in build_args:
        key, equals, value = text.partition("=")
        if not equals:
            # As docker does: a name alone takes the value of the environment.
            if key not in os.environ:
                raise InvalidError(f"--build-arg {text} has no value, and the environment has none")
            value = os.environ[key]
        pairs[key] = value
    return pairs


def _of_file(source: str) -> list[tuple[str, Image]]:
    """Names of functions and their images, each image once."""
    from hostd.cli.loading import apps_of, find, load
    from hostd.sdk.function import Function
    from hostd.sdk.image import Image

    module, name = load(source)
    if name:
        target = find(module, name)
        if not isinstance(target, Function):
            raise InvalidError(f"{name} is a local entrypoint: it has no image")
        functions = [target]
    else:
        functions = [f for app in apps_of(module) for f in app.registered_functions.values()]
    images: dict[int, tuple[list[str], Image]] = {}
    default = Image.debian_slim()
    for function in functions:
        image = function.image or default
        images.setdefault(id(image), ([], image))[0].append(function.name)
    return [(", ".join(names), image) for names, image in images.values()]
