"""Names of things: typed ids that sort by time, digests that name their algorithm.

An id is a prefix that tells its kind and the 26 characters of a ULID, lower-case Crockford base32
(https://github.com/ulid/spec): 48 bits of Unix milliseconds, 80 random bits. Ids of one process
sort in the order they were made. Image ids are the exception: they are derived from content.
Standard library only; Python 3.9, because the SDK makes call ids.
"""

from __future__ import annotations

import os
import re
import time
from typing import NewType

AppId = NewType("AppId", str)
FunctionId = NewType("FunctionId", str)
CallId = NewType("CallId", str)
ContainerId = NewType("ContainerId", str)
ImageId = NewType("ImageId", str)
BuildId = NewType("BuildId", str)
HostId = NewType("HostId", str)

Digest = NewType("Digest", str)
"""``blake3:`` and 64 lower-case hexadecimal digits: the name of a blob."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_DIGEST = re.compile(r"blake3:[0-9a-f]{64}")
_last = [0, 0]


def _base32(value: int, length: int) -> str:
    digits = []
    for _ in range(length):
        digits.append(_ALPHABET[value & 31])
        value >>= 5
    return "".join(reversed(digits))


def new_id(prefix: str) -> str:
    """Make an id such as ``fc-01j9…``; later ids of this process are greater."""
    now_ms = time.time_ns() // 1_000_000
    tail = int.from_bytes(os.urandom(10), "big")
    if now_ms <= _last[0]:
        now_ms, tail = _last[0], _last[1] + 1
    _last[0], _last[1] = now_ms, tail
    return f"{prefix}-{_base32((now_ms << 80) | (tail & ((1 << 80) - 1)), 26)}"


def image_id(manifest_hash: bytes) -> ImageId:
    """The id of an image: the first 130 bits of its manifest's BLAKE3 hash (32 bytes)."""
    return ImageId("im-" + _base32(int.from_bytes(manifest_hash, "big") >> (256 - 130), 26))


def digest(hash_hex: str) -> Digest:
    """Name a blob by its BLAKE3 hash in hexadecimal."""
    return Digest("blake3:" + hash_hex)


def is_digest(text: str) -> bool:
    """Whether the text is a digest of ours; nothing else may ever become part of a path."""
    return _DIGEST.fullmatch(text) is not None


def hex_of(name: Digest) -> str:
    """The 64 hexadecimal digits of a digest.

    Raises:
        ValueError: the text is not a digest.
    """
    if _DIGEST.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not blake3: and 64 hexadecimal digits")
    return name[7:]
