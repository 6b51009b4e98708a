"""Data on standard output: tables for people, JSON for programs, ids for pipes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hostd.cli.settings import Settings
from hostd.cli.units import plain

Item = Mapping[str, Any]
Columns = Sequence[tuple[str, Callable[[Item], str]]]
"""Title and text of each column; titles that begin with ``>`` are set flush right."""


def print_list(settings: Settings, reply: Item, columns: Columns) -> None:
    """Print the items of a list reply as ``-o`` says."""
    items: Sequence[Item] = reply["items"]
    if settings.output == "table":
        print_table(columns, items)
    elif settings.output == "json":
        print(json.dumps(reply, indent=2))
    else:
        for item in items:
            print(item["id"] if settings.output == "id" else json.dumps(item))


def print_table(columns: Columns, items: Sequence[Item]) -> None:
    """Print aligned columns; a list without items prints its titles only."""
    rows = [[title.lstrip(">") for title, _ in columns]]
    rows += [[plain(text_of(item)) for _, text_of in columns] for item in items]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        cells = [
            row[i].rjust(widths[i]) if title.startswith(">") else row[i].ljust(widths[i])
            for i, (title, _) in enumerate(columns)
        ]
        print("  ".join(cells).rstrip())


def print_record(settings: Settings, record: Item, lines: Sequence[tuple[str, object]]) -> None:
    """Print one object: as JSON, as its id, or as names and values."""
    if settings.output == "table":
        width = max(len(name) for name, _ in lines)
        for name, value in lines:
            print(f"{name:{width}}  {plain(value)}".rstrip())
    elif settings.output == "id":
        print(record["id"])
    else:
        print(json.dumps(record, indent=2 if settings.output == "json" else None))
