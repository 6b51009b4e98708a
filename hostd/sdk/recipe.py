"""Resolve an Image into the recipe that the API takes: files hashed, Dockerfiles read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hostd.sdk.image import Image
    from hostd.sdk.upload import Contents


def recipe_of(image: Image, contents: Contents) -> dict[str, object]:
    """A Recipe record; the files it names are noted in ``contents`` for upload.

    Raises:
        InvalidError: a local file cannot be read.
    """
    steps = [step if isinstance(step, dict) else step.resolve(contents) for step in image.steps]
    return {"steps": steps}


def build_request(image: Image, contents: Contents) -> dict[str, object]:
    """A BuildRequest record."""
    return {"recipe": recipe_of(image, contents), "force": image.force_all}
