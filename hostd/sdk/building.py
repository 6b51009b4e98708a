"""Build one image on the host and follow its log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostd.errors import ConnectionError, Error, ImageBuildError, from_problem

if TYPE_CHECKING:
    from hostd.sdk.client import Client
    from hostd.sdk.output import Observer

TAIL_LINES = 20
"""Output of a failed step that its error shows."""


def build(
    client: Client,
    request: dict[str, object],
    observer: Observer,
    *,
    image: int = 1,
    images: int = 1,
) -> str:
    """Send a BuildRequest whose files are uploaded already; the id of the image.

    Args:
        client: of the host that builds.
        request: the BuildRequest record.
        observer: told of every event.
        image: the number of this image among ``images``, for the observer.
        images: how many are built one after another.

    Raises:
        ImageBuildError: a step failed; the text has the last lines of its output.
        Error: the host refused the recipe, or the connection broke.
    """
    tail: list[str] = []
    for event in client.lines("POST", "/api/v1/builds", request):
        observer.building(event, image, images)
        kind = event["kind"]
        if kind == "step":
            tail = []
        elif kind == "line":
            tail = [*tail[1 - TAIL_LINES :], event.get("text", "")]
        elif kind == "done":
            return str(event["image_id"])
        elif kind == "failed":
            raise _with_output(from_problem(event["problem"]), tail)
    raise ConnectionError("the log of a build ended without its result")


def _with_output(error: Error, tail: list[str]) -> Error:
    if not isinstance(error, ImageBuildError) or not tail:
        return error
    text = "\n".join([error.text, *(f"    {line}" for line in tail)])
    return ImageBuildError(text, hint=error.hint, **error.fields)
