"""Content, images and how containers see them.

Two halves, described in DESIGN.md. The store: blobs (``CAS``), trees, their indexes (EROFS files)
and images. The service: ``FileSystem`` mounts images and gives each container a root, and a process
of its own (``server.py``) fetches what is not local yet.

Names are loaded on first use: the FUSE process needs a part of this package and must start fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hostd.fs.cas import CAS, CASStatistics
    from hostd.fs.fetch import BlobSource, DirectorySource, Fetcher
    from hostd.fs.image import BigFile, ImageManifest, ImageStore
    from hostd.fs.index import Attributes, IndexReader
    from hostd.fs.ingest import apply_upper, ingest_directory
    from hostd.fs.rootfs import FileSystem, RootFS
    from hostd.fs.tree import (
        Node,
        Tree,
        blob_file,
        directory,
        merge_layer,
        place,
        small_file,
        symlink,
        whiteout,
    )
    from hostd.fs.writer import BlobWriter

__all__ = [
    "CAS",
    "Attributes",
    "BigFile",
    "BlobSource",
    "BlobWriter",
    "CASStatistics",
    "DirectorySource",
    "Fetcher",
    "FileSystem",
    "ImageManifest",
    "ImageStore",
    "IndexReader",
    "Node",
    "RootFS",
    "Tree",
    "apply_upper",
    "blob_file",
    "directory",
    "ingest_directory",
    "merge_layer",
    "place",
    "small_file",
    "symlink",
    "whiteout",
]

_HOMES = {
    "cas": ("CAS", "CASStatistics"),
    "fetch": ("BlobSource", "DirectorySource", "Fetcher"),
    "image": ("BigFile", "ImageManifest", "ImageStore"),
    "index": ("Attributes", "IndexReader"),
    "ingest": ("apply_upper", "ingest_directory"),
    "rootfs": ("FileSystem", "RootFS"),
    "tree": (
        "Node", "Tree", "blob_file", "directory", "merge_layer", "place", "small_file", "symlink",
        "whiteout",
    ),
    "writer": ("BlobWriter",),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value
