"""Warm calls of a no-op in one real container: latency with one in flight, rate of a map of 10,000.

Floors of the same run: a ping over a blocking unix socket between two processes, and
``ProcessPoolExecutor`` (no isolation, no image).
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from concurrent.futures import ProcessPoolExecutor

from benchmarks.functions import app, noop
from benchmarks.measure import daemon, ratio, report, summary, timed


def _identity(value: object) -> object:
    return value


def ping_floor(n: int) -> list[float]:
    """Round trips of one byte between two processes over a unix socket."""
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        here.close()
        while data := there.recv(1):
            there.sendall(data)
        os._exit(0)
    there.close()

    def ping() -> None:
        here.sendall(b"x")
        here.recv(1)

    times = [timed(ping) for _ in range(n)]
    here.close()
    os.waitpid(child, 0)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2_000)
    parser.add_argument("--inputs", type=int, default=10_000)
    options = parser.parse_args()
    floor = summary(ping_floor(options.calls), unit="us")
    with ProcessPoolExecutor(1) as pool:
        pool.submit(_identity, 0).result()
        pool_calls = summary(
            [timed(lambda: pool.submit(_identity, 0).result()) for _ in range(options.calls)]
        )
        pool_map_s = timed(lambda: list(pool.map(_identity, range(options.inputs))))
    with daemon(), app.run():
        for _ in range(50):
            noop.remote(0)
        calls = summary([timed(lambda: noop.remote(0)) for _ in range(options.calls)])
        rates = []
        for _ in range(3):
            begin = time.perf_counter()
            results = list(noop.map(range(options.inputs)))
            rates.append(options.inputs / (time.perf_counter() - begin))
            assert results == list(range(options.inputs))
    rate = sorted(rates)[1]
    pool_rate = options.inputs / pool_map_s
    report(
        "warm_call",
        {
            "remote": calls,
            "map_per_s": round(rate),
            "process_pool": {**pool_calls, "map_per_s": round(pool_rate)},
            "unix_socket_ping": floor,
            "remote_vs_process_pool": ratio(calls["median_ms"], pool_calls["median_ms"]),
            "map_rate_vs_process_pool": ratio(rate, pool_rate),
            "bars": {"remote_median_ms": "<= 1.5", "map_per_s": ">= 4000"},
        },
    )


if __name__ == "__main__":
    main()
