"""A namespace with a bridge, and a whole container, to see that this host can: for ``hostd
doctor``.

The container has a run directory, a bridge and addresses of its own, so it works beside a running
daemon.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from hostd.clock import SystemClock
from hostd.config import RuntimeConfig
from hostd.runtime import rtnetlink, syscalls
from hostd.runtime.runtime import Runtime
from hostd.runtime.spec import BindMount, ContainerSpec

SELF_TEST_TIMEOUT_S = 60.0


async def run_container(config: RuntimeConfig, init: Path) -> float:
    """Run a container that has nothing but the init in it; returns how many ms that took.

    Raises:
        Error, OSError: what does not work.
    """
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="hostd-doctor-", dir="/tmp") as directory:
        runtime = Runtime(config=config, run_dir=Path(directory) / "run", clock=clock)
        rootfs = Path(directory) / "rootfs"
        rootfs.mkdir()
        spec = ContainerSpec(
            id="doctor",
            rootfs=rootfs,
            args=["/program", "-V"],
            mounts=[BindMount(source=init, target="/program")],
            init=False,
        )
        try:
            async with asyncio.timeout(SELF_TEST_TIMEOUT_S):
                await runtime.start()
                begun_us = clock.monotonic_us()
                container = await runtime.create(spec, _Silence())
                await container.start()
                ended = await container.wait()
                took_ms = (clock.monotonic_us() - begun_us) / 1_000
        finally:
            await runtime.close()
        if ended.status != 0:
            raise OSError(f"a container {ended.describe()}")
        return took_ms


class _Silence:
    """An output sink for what nobody wants to read."""

    def line(self, stream: str, text: bytes, at_us: int) -> None:
        """Drop a line."""


def try_links() -> OSError | None:
    """In a thread that ends afterwards: what it makes goes with its namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        inside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        links = rtnetlink.RouteSocket()
        try:
            links.run([rtnetlink.new_bridge("bridge", mtu=1500, mac=b"\x02\0\0\0\0\1")])
            index = next(link.index for link in links.links() if link.name == "bridge")
            pair = rtnetlink.new_veth(
                "one", peer="two", peer_netns_fd=inside, bridge=index, mtu=1500
            )
            links.run([pair])
        finally:
            links.close()
            os.close(inside)
            syscalls.setns(home, syscalls.CLONE_NEWNET)
    except OSError as error:
        return error
    finally:
        os.close(home)
    return None
