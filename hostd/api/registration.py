"""Make an app ready to run: resolve the names in its functions' specs to content that is here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from hostd.api.services import Services
from hostd.errors import InvalidError, NotFoundError
from hostd.fs.image import SourceEntry
from hostd.ids import AppId, Digest, FunctionId, ImageId, new_id
from hostd.model import AppRequest, FunctionDefinition, FunctionSpec, SourceFile
from hostd.runtime.bundle import INIT_TARGET
from hostd.runtime.function_spec import IO_TARGET, LIB_TARGET


async def digests_of(services: Services, names: Iterable[str]) -> dict[str, Digest]:
    """What the store has under names like ``sha256:…`` and ``blake3:…``; the rest is left out."""
    wanted = set(names)
    found = {name: Digest(name) for name in wanted if name.startswith("blake3:")}
    found.update(await services.store.uploads(wanted - found.keys()))
    return {name: blob for name, blob in found.items() if services.cas.has(blob)}


async def define_functions(
    services: Services, app_id: AppId, request: AppRequest
) -> list[FunctionDefinition]:
    """Resolve every function of an app.

    Raises:
        NotFoundError: an image is not known here, or a file was not uploaded.
        InvalidError: two functions have one name.
    """
    names = [spec.name for spec in request.functions]
    for name in names:
        if names.count(name) > 1:
            raise InvalidError(
                f"function {name} is defined {names.count(name)} times in app {request.name}"
            )
    layers: dict[tuple[ImageId, tuple[SourceFile, ...]], tuple[ImageId, ...]] = {}
    definitions = []
    for spec in request.functions:
        image = await known_image(services, spec.image_id)
        key = (image, tuple(spec.source))
        if key not in layers:
            layers[key] = await layers_of(services, image, tuple(spec.source))
        definitions.append(await _define(services, app_id, spec, layers[key]))
    return definitions


async def known_image(services: Services, ref: str) -> ImageId:
    """The image that an id, an id's beginning or a name means.

    Raises:
        NotFoundError: no image of this host.
    """
    row = await services.store.image(ref)
    if row is None:
        raise NotFoundError(f"image {ref} is not known here", hint="hostctl image list shows all")
    return ImageId(row.id)


def mount_points(services: Services) -> list[SourceEntry]:
    """What every container has mounted over: made once here, not in each container's own layer."""
    empty = services.cas.put_bytes(b"")
    rows: list[SourceEntry] = [(path, None, 0o755, "dir", None) for path in (LIB_TARGET, IO_TARGET)]
    return [*rows, (INIT_TARGET, empty, 0o755, "file", None)]


async def layers_of(
    services: Services, image: ImageId, files: tuple[SourceFile, ...]
) -> tuple[ImageId, ...]:
    """The layers of a root, top first: an index of the client's files, then the image."""
    # Before its index is read below: damage is healed here, or told as such. What it takes is
    # saved by the first container.
    await services.fs.prepare_image(image)
    if not files:
        return (image,)
    rows = await asyncio.to_thread(mount_points, services)
    blobs = await digests_of(services, [file.digest for file in files if file.digest is not None])
    for file in files:
        if file.kind == "file" and file.digest not in blobs:
            raise NotFoundError(
                f"file {file.path} ({file.digest}) was not uploaded",
                hint="PUT /api/v1/blobs/{digest} what POST /api/v1/blobs/missing names",
            )
        digest = blobs.get(file.digest) if file.digest is not None else None
        rows.append((file.path, digest, file.mode, file.kind, file.target))
    return (await asyncio.to_thread(services.images.source_index, rows, base=image), image)


async def _define(
    services: Services, app_id: AppId, spec: FunctionSpec, layers: tuple[ImageId, ...]
) -> FunctionDefinition:
    serialized = None
    if spec.serialized is not None:
        serialized = (await digests_of(services, [spec.serialized])).get(spec.serialized)
        if serialized is None:
            raise NotFoundError(f"the serialized function {spec.name} was not uploaded")
    elif not spec.module or not spec.qualname:
        raise InvalidError(f"function {spec.name} names neither module and qualname nor serialized")
    return FunctionDefinition(
        id=FunctionId(new_id("fu")), app_id=app_id, spec=spec, layers=layers, serialized=serialized
    )
