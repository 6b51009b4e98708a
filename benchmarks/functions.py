"""The functions that benchmarks run in containers."""

from __future__ import annotations

import hostd

app = hostd.App("benchmark")
image = hostd.Image.debian_slim()


@app.function(image=image, max_containers=1)
def noop(value: object = None) -> object:
    return value


@app.function(image=image, max_containers=100, single_use_containers=True)
def once(value: int) -> int:
    return value
