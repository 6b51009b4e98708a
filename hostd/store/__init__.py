"""State that survives: a log of commands and the tables they make, in one SQLite file; telemetry.

``Store`` is what must not be lost (images, names, the build cache); ``History`` is what may be
(calls and containers of the past). The file formats are in ``schema.py`` and DESIGN.md.
"""

from hostd.store.commands import (
    Command,
    DeleteImage,
    DropLayers,
    ForgetUploads,
    NameImage,
    RecordImage,
    RecordLayer,
    RecordUploads,
    UnnameImage,
    Upload,
)
from hostd.store.history import History, HistoryStatistics
from hostd.store.reading import ImageRow
from hostd.store.store import Store, StoreStatistics

__all__ = [
    "Command",
    "DeleteImage",
    "DropLayers",
    "ForgetUploads",
    "History",
    "HistoryStatistics",
    "ImageRow",
    "NameImage",
    "RecordImage",
    "RecordLayer",
    "RecordUploads",
    "Store",
    "StoreStatistics",
    "UnnameImage",
    "Upload",
]
