"""Durable commands per second of the store with 1, 16 and 256 in flight.

The floor of the same run is a loop of bare sqlite3 commits (WAL, synchronous=FULL) of such rows,
one per transaction: what one caller gets from the disk without hostd.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from hostd.clock import SystemClock
from hostd.ids import ImageId
from hostd.store import RecordLayer, Store

IMAGE = ImageId("im-" + "a" * 26)


def bare_rate(path: Path, seconds: float) -> float:
    """Commits per second of one connection and one thread."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE layers (key TEXT PRIMARY KEY, image_id TEXT, at_us INTEGER) STRICT")
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        db.execute("INSERT INTO layers VALUES (?, ?, ?)", (f"key-{done}", IMAGE, done))
        done += 1
    rate = done / (time.perf_counter() - begin)
    db.close()
    return rate


async def store_rate(path: Path, in_flight: int, seconds: float) -> dict[str, float]:
    """Commands per second through ``Store.propose``, and how long one took."""
    store = await Store.open(path, clock=SystemClock(), ballast_bytes=0)
    begin = time.perf_counter()
    latencies: list[float] = []

    async def work(worker: int) -> None:
        n = 0
        while (start := time.perf_counter()) - begin < seconds:
            await store.propose(RecordLayer(at_us=n, key=f"{worker}-{n}", image_id=IMAGE))
            latencies.append(time.perf_counter() - start)
            n += 1

    await asyncio.gather(*(work(worker) for worker in range(in_flight)))
    took = time.perf_counter() - begin
    batches = store.statistics().batches
    await store.close()
    latencies.sort()
    return {
        "commands_per_s": round(len(latencies) / took),
        "median_ms": round(statistics.median(latencies) * 1e3, 3),
        "p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1e3, 3),
        "commands_per_sync": round(len(latencies) / batches, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bare: list[float] = []
    runs: dict[int, list[dict[str, float]]] = {1: [], 16: [], 256: []}
    with tempfile.TemporaryDirectory(prefix="hostd-store-rate-") as folder:
        for round_number in range(options.rounds):
            bare.append(bare_rate(Path(folder, f"bare-{round_number}.db"), options.seconds))
            for in_flight, results in runs.items():
                path = Path(folder, f"store-{round_number}-{in_flight}.db")
                results.append(asyncio.run(store_rate(path, in_flight, options.seconds)))
    floor = statistics.median(bare)
    figures: dict[str, object] = {"bare_sqlite_commits_per_s": round(floor)}
    for in_flight, results in runs.items():
        middle = sorted(results, key=lambda each: each["commands_per_s"])[len(results) // 2]
        figures[f"in_flight_{in_flight}"] = {
            **middle,
            "vs_bare": round(middle["commands_per_s"] / floor, 2),
        }
    figures["bars"] = {"in_flight_256_commands_per_s": ">= 5000"}
    print(json.dumps({"benchmark": "store_rate", **figures, "cpus": os.cpu_count()}, indent=2))


if __name__ == "__main__":
    main()
