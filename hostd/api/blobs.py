"""Routes for content: which blobs are missing, uploads, downloads."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re

from aiohttp import web

from hostd.api.registration import digests_of
from hostd.api.routes import body_of, reply
from hostd.api.services import services_of
from hostd.errors import BlobCorruptError, BlobMissingError, InvalidError
from hostd.ids import Digest, is_digest
from hostd.model import BlobReply, MissingReply, MissingRequest
from hostd.store import RecordUploads, Upload

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
READ_BYTES = 1 << 20


async def list_missing(request: web.Request) -> web.Response:
    """POST /api/v1/blobs/missing."""
    wanted = await body_of(request, MissingRequest)
    have = await digests_of(services_of(request), wanted.digests)
    return reply(MissingReply(missing=[name for name in wanted.digests if name not in have]))


async def put_blob(request: web.Request) -> web.Response:
    """PUT /api/v1/blobs/{digest}: streamed into the store; kept only when it hashes to its name."""
    services = services_of(request)
    name = request.match_info["digest"]
    if _SHA256.fullmatch(name) is None:
        raise InvalidError(f"upload name {name[:80]!r} is not sha256: and 64 hexadecimal digits")
    sha256 = hashlib.sha256()
    size = 0
    with services.cas.writer() as writer:
        async for chunk in request.content.iter_chunked(READ_BYTES):
            sha256.update(chunk)
            size += len(chunk)
            await asyncio.to_thread(writer.write, chunk)
        if f"sha256:{sha256.hexdigest()}" != name:
            raise BlobCorruptError(f"upload {name} is {size} bytes that hash to something else")
        digest = await asyncio.to_thread(writer.commit)
    upload = Upload(name, digest, size)
    await services.store.propose(RecordUploads(uploads=(upload,), at_us=services.clock.wall_us()))
    return reply(BlobReply(digest=digest, size_bytes=size))


async def get_blob(request: web.Request) -> web.StreamResponse:
    """GET /api/v1/blobs/{digest}: verified before the first byte leaves."""
    services = services_of(request)
    name = request.match_info["digest"]
    if not is_digest(name):
        raise InvalidError(f"blob name {name[:80]!r} is not blake3: and 64 hexadecimal digits")
    if not services.cas.has(Digest(name)):
        raise BlobMissingError(f"blob {name} is not on this host")
    descriptor = await asyncio.to_thread(services.cas.open, Digest(name))
    try:
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = os.fstat(descriptor).st_size
        await response.prepare(request)
        while chunk := await asyncio.to_thread(os.read, descriptor, READ_BYTES):
            await response.write(chunk)
        return response
    finally:
        os.close(descriptor)
