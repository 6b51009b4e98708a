"""Indexes and ingest: build, open, look up; files stored per second against a plain copy.

    python benchmarks/index.py [--entries 30000 500000] [--files 30000] [--repeat 3]

Prints JSON. Times are medians; ``copy`` is ``cp -a`` and a syncfs of the same files in the same
run, so that only the ratio travels.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hostd.fs import CAS, ImageStore, IndexReader, Tree, apply_upper, ingest_directory
from hostd.fs.erofs import write_index
from hostd.fs.tree import blob_file, directory, small_file
from hostd.ids import digest
from hostd.model import ImageConfig

NAMES_PER_DIRECTORY = 20
LOOKUPS = 100_000
TIME_NS = 1_700_000_000_123_456_789


def synthetic(entries: int) -> Tree:
    """A tree with names and sizes like site-packages; a quarter of the files lies inline."""
    root = directory()
    for number in range(entries):
        package = root.children.setdefault(b"package%d" % (number // 2000), directory())
        group = b"module_%d" % (number // NAMES_PER_DIRECTORY)
        folder = package.children.setdefault(group, directory(mtime_ns=TIME_NS))
        if number % 4:
            name = digest(hashlib.sha256(b"%d" % number).hexdigest())
            node = blob_file(name, 2000 + number % 100_000, mtime_ns=TIME_NS)
        else:
            node = small_file(b"x" * (number % 1024), mtime_ns=TIME_NS)
        folder.children[b"source_%d_%d.py" % (number % 7, number)] = node
    return Tree(root)


def median_s(action: Callable[[], object], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_index(entries: int, repeat: int, base: Path) -> dict[str, float]:
    tree = synthetic(entries)
    data = write_index(tree)
    path = base / f"{entries}.erofs"
    path.write_bytes(data)
    reader = IndexReader(path)
    found = [(at.rpartition(b"/")[0] or b"/", at.rpartition(b"/")[2]) for at, _ in reader.walk()]
    chosen = random.Random(1).choices([pair for pair in found if pair[1]], k=LOOKUPS)
    where = dict(reader.walk())
    pairs = [(where[above], name) for above, name in chosen]
    nids = list(where.values())

    def look_up() -> None:
        lookup = reader.lookup
        for nid, name in pairs:
            lookup(nid, name)

    def stat_all() -> None:
        for nid in nids:
            reader.stat(nid)

    return {
        "entries": len(nids),
        "bytes_per_entry": round(len(data) / len(nids), 1),
        "build_s": round(median_s(lambda: write_index(tree), repeat), 4),
        "open_ms": round(1e3 * median_s(lambda: IndexReader(path), 20), 4),
        "lookup_us": round(1e6 * median_s(look_up, repeat) / LOOKUPS, 3),
        "stat_us": round(1e6 * median_s(stat_all, repeat) / len(nids), 3),
        "digests_s": round(median_s(reader.digests, repeat), 4),
        "to_tree_s": round(median_s(lambda: IndexReader(path).to_tree(), repeat), 4),
        "validate_s": round(median_s(lambda: IndexReader(path).validate(), 1), 4),
    }


def make_files(top: Path, count: int, seed: int = 0) -> int:
    """Files from 0 to 64 KiB, most of them small; returns their bytes."""
    rng = random.Random(seed)
    total = 0
    for number in range(count):
        folder = top / f"d{number // 50}"
        folder.mkdir(parents=True, exist_ok=True)
        size = int(rng.paretovariate(0.9) * 700) % 65_536
        (folder / f"f{number}").write_bytes(rng.randbytes(size))
        total += size
    return total


def measure_ingest(count: int, repeat: int, base: Path) -> dict[str, float]:
    source = base / "source"
    total = make_files(source, count)
    libc = ctypes.CDLL(None)
    disk = os.open(base, os.O_RDONLY)
    times: dict[str, list[float]] = {name: [] for name in ("copy", "ingest", "move", "again")}
    for _ in range(repeat):
        for name in ("cas", "copied", "moved"):
            shutil.rmtree(base / name, ignore_errors=True)
        libc.syncfs(disk)
        start = time.perf_counter()
        subprocess.run(["cp", "-a", source, base / "copied"], check=True)
        libc.syncfs(disk)
        times["copy"].append(time.perf_counter() - start)
        cas = CAS(base / "cas")
        libc.syncfs(disk)
        times["ingest"].append(median_s(lambda: ingest_directory(source, cas), 1))  # noqa: B023
        times["again"].append(median_s(lambda: ingest_directory(source, cas), 1))  # noqa: B023
        shutil.rmtree(base / "cas")
        cas = CAS(base / "cas")
        upper = base / "copied"
        libc.syncfs(disk)
        times["move"].append(median_s(lambda: apply_upper(Tree(), upper, cas), 1))  # noqa: B023
    os.close(disk)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "files": count,
        "bytes": total,
        **{f"{name}_s": round(value, 3) for name, value in medians.items()},
        **{f"{name}_files_per_s": round(count / value) for name, value in medians.items()},
        **{f"{name}_mb_per_s": round(total / value / 1e6, 1) for name, value in medians.items()},
        "ingest_to_copy": round(medians["ingest"] / medians["copy"], 2),
        "move_to_copy": round(medians["move"] / medians["copy"], 2),
    }


def measure_step(entries: int, repeat: int, base: Path) -> dict[str, float]:
    """A build step that adds 20 files to a large image."""
    cas = CAS(base / "step-cas")
    images = ImageStore(cas, base / "step-images")
    parent = synthetic(entries)
    times: dict[str, list[float]] = {"apply_upper": [], "save": [], "save_unsynced": []}
    for number in range(repeat):
        upper = base / f"upper{number}"
        make_files(upper, 20, number + 1)
        start = time.perf_counter()
        tree = apply_upper(parent, upper, cas)
        times["apply_upper"].append(time.perf_counter() - start)
        times["save"].append(median_s(lambda: images.save(tree, ImageConfig()), 1))  # noqa: B023
        tree = Tree(tree.root.replace(mtime_ns=number))
        unsynced = median_s(lambda: images.save(tree, ImageConfig(), sync=False), 1)  # noqa: B023
        times["save_unsynced"].append(unsynced)
    return {
        "entries": entries,
        **{f"{name}_s": round(statistics.median(values), 4) for name, values in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, nargs="+", default=[30_000, 500_000])
    parser.add_argument("--files", type=int, default=30_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostd-bench-", dir=options.dir) as name:
        base = Path(name)
        result = {
            "index": [measure_index(count, options.repeat, base) for count in options.entries],
            "step": measure_step(25_000, options.repeat, base),
            "ingest": measure_ingest(options.files, options.repeat, base),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
