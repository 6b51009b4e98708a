"""The commands that change the state: what a log entry contains.

Apply is deterministic, so whatever differs between two hosts or two moments (times, ids, random
draws) is inside the command, made by its proposer. Commands only grow, with defaults: an old log
must stay readable. All of them may be repeated: twice leaves what once left.
"""

from __future__ import annotations

import msgspec

from hostd.ids import Digest, ImageId
from hostd.model import ImageConfig


class Change(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="kind"):
    """Base of all commands."""

    at_us: int
    """Wall clock of the proposer."""


class RecordImage(Change, frozen=True, kw_only=True):
    """An image exists: its manifest's facts. Recorded again, only an absent record is written."""

    id: ImageId
    index: Digest
    index_bytes: int
    entries: int
    size_bytes: int
    blobs: int
    config: ImageConfig
    history: tuple[str, ...] = ()
    python: str | None = None


class NameImage(Change, frozen=True, kw_only=True):
    """Give an image a name, taking it from the one that had it. Rejected for an absent image."""

    name: str
    image_id: ImageId


class UnnameImage(Change, frozen=True, kw_only=True):
    """Take a name away. Rejected when nothing has it."""

    name: str


class DeleteImage(Change, frozen=True, kw_only=True):
    """Forget an image, its names and the build steps that end in it. Rejected when it is absent."""

    image_id: ImageId


class RecordLayer(Change, frozen=True, kw_only=True):
    """A build step with this cache key made this image."""

    key: str
    image_id: ImageId


class DropLayers(Change, frozen=True, kw_only=True):
    """Forget the build steps that ended in this image: its content is damaged or deleted."""

    image_id: ImageId


class Upload(msgspec.Struct, frozen=True, array_like=True):
    """A blob that a client knows by its SHA-256."""

    sha256: str
    digest: Digest
    size_bytes: int = 0


class RecordUploads(Change, frozen=True, kw_only=True):
    """Blobs that clients sent. A later record of the same SHA-256 replaces the earlier one."""

    uploads: tuple[Upload, ...]


class ForgetUploads(Change, frozen=True, kw_only=True):
    """These blobs are gone (collected or damaged): clients must send them again."""

    digests: tuple[Digest, ...]


Command = (
    RecordImage
    | NameImage
    | UnnameImage
    | DeleteImage
    | RecordLayer
    | DropLayers
    | RecordUploads
    | ForgetUploads
)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)


def encode(command: Command) -> bytes:
    """The bytes of a log entry: JSON, so that a person can read a log with the sqlite3 shell."""
    return _encoder.encode(command)


def decode(data: bytes) -> Command:
    """Read a log entry back.

    Raises:
        msgspec.DecodeError: it is not a command this version knows.
    """
    return _decoder.decode(data)
