"""What every benchmark shares: a daemon of its own, medians, and one JSON document as output."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.daemon_process import DaemonProcess, shared_data_dir


def summary(seconds: Sequence[float], *, unit: str = "ms") -> dict[str, float]:
    """Median, p99, least and number of some durations."""
    scale = {"s": 1, "ms": 1e3, "us": 1e6}[unit]
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {
        f"median_{unit}": round(statistics.median(ordered) * scale, 3),
        f"p99_{unit}": round(p99 * scale, 3),
        f"min_{unit}": round(ordered[0] * scale, 3),
        "n": len(ordered),
    }


def timed(work: Callable[[], Any]) -> float:
    """Seconds that the work took."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def ratio(value: float, baseline: float) -> float:
    """How many times the baseline."""
    return round(value / baseline, 3) if baseline else float("nan")


@contextmanager
def daemon(**settings: Any) -> Iterator[DaemonProcess]:
    """A daemon on the data directory that keeps images between runs; the SDK of this process uses it."""
    with DaemonProcess(shared_data_dir(), **settings) as process:
        before = os.environ.get("HOSTD_SOCKET")
        os.environ["HOSTD_SOCKET"] = str(process.socket)
        try:
            yield process
        finally:
            os.environ.pop("HOSTD_SOCKET")
            if before is not None:
                os.environ["HOSTD_SOCKET"] = before


def report(name: str, figures: dict[str, Any]) -> None:
    """Print the result as one JSON document."""
    machine = {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    print(json.dumps({"benchmark": name, **figures, "machine": machine}, indent=2))
