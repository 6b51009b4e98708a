"""The smallest app: run it with  hostctl run examples/hello.py  or  …/hello.py::square 7."""

import platform

import hostd

app = hostd.App("hello")


@app.function(image=hostd.Image.debian_slim())
def square(x: int) -> int:
    print(f"squaring {x} on {platform.node()}")
    return x * x


@app.local_entrypoint()
def main(count: int = 5):
    print("one:", square.remote(7))
    print("many:", list(square.map(range(count))))
