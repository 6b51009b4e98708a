"""The containers' network: one bridge, a block of addresses, and namespaces made ahead.

Everything that talks to the kernel runs in one thread, in order; it starts in the host's network
namespace and returns to it after each namespace it makes. ``take`` gives a prepared namespace at
once while the pool is filled again behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hostd.errors import ConfigError, ContainerStartError, ResourceExhaustedError
from hostd.log import get_logger
from hostd.runtime import rtnetlink
from hostd.runtime.firewall import Nft, Rules, docker_rules, openable, stale_docker_rules
from hostd.runtime.naming import Names
from hostd.runtime.netns import Attachment, NamespaceMaker, NetworkNamespace
from hostd.runtime.resolver import RESOLV_CONF, Resolver, read_resolver
from hostd.runtime.spec import NetworkMode

log = get_logger(__name__)
T = TypeVar("T")

BLOCK_PREFIX = 22
"""Addresses of one daemon: 1,021 containers, as many as one bridge has ports (1,023). A /16 has
room for 64 daemons on one machine."""

SUBNET_PREFIX_MIN, SUBNET_PREFIX_MAX = 8, 29

POOL_READY = {"bridge": 16, "none": 2}
"""Namespaces kept ready. A burst of 100 starts takes longer per container (20 ms) than the pool
needs for a new one (2 ms), so few are enough; an idle one costs some 100 KiB of kernel memory."""

STEP_TIMEOUT_S = 30.0
"""For the network thread to do one thing, with everything queued before it."""

LOCK_TIMEOUT_S = 5.0
MTU_DEFAULT = 1500
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def parse_subnet(text: str) -> ipaddress.IPv4Network:
    """Read the setting ``runtime.subnet``.

    Raises:
        ConfigError: no IPv4 network, or one without room for a container.
    """
    try:
        subnet = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise ConfigError(f"runtime.subnet is {text!r}, expected such as 10.117.0.0/16") from error
    if not SUBNET_PREFIX_MIN <= subnet.prefixlen <= SUBNET_PREFIX_MAX:
        raise ConfigError(
            f"runtime.subnet is {text!r}, expected a /{SUBNET_PREFIX_MIN} to /{SUBNET_PREFIX_MAX}"
        )
    return subnet


def choose_block(
    subnet: ipaddress.IPv4Network, taken: Iterable[ipaddress.IPv4Network], start: int
) -> ipaddress.IPv4Network:
    """Pick a part of the subnet that overlaps nothing, beginning with the ``start``-th.

    Networks that are wider than the subnet (a VPN's 10.0.0.0/8) do not count: ours is more
    specific.

    Raises:
        ContainerStartError: every block is in use.
    """
    size = max(BLOCK_PREFIX, subnet.prefixlen)
    blocks = 1 << (size - subnet.prefixlen)
    inside = [n for n in taken if n.prefixlen > 0 and n.subnet_of(subnet)]
    for n in range(blocks):
        base = int(subnet.network_address) + (((start + n) % blocks) << (32 - size))
        block = ipaddress.IPv4Network((base, size))
        if not any(block.overlaps(other) for other in inside):
            return block
    raise ContainerStartError(
        f"all {blocks} blocks of {subnet} are in use on this machine",
        hint="set runtime.subnet to a free range",
    )


@dataclass(slots=True)
class _Addresses:
    """Hands out the addresses of a block in turn, so that one comes back as late as possible."""

    block: ipaddress.IPv4Network
    used: set[int] = field(default_factory=set)
    last: int = 1

    def take(self) -> ipaddress.IPv4Address:
        count = self.block.num_addresses
        for _ in range(count):
            self.last = 2 if self.last + 1 >= count - 1 else self.last + 1
            if self.last not in self.used:
                self.used.add(self.last)
                return self.block.network_address + self.last
        raise ResourceExhaustedError(
            f"all {count - 3} container addresses of {self.block} are in use"
        )

    def give_back(self, address: ipaddress.IPv4Address) -> None:
        self.used.discard(int(address) - int(self.block.network_address))


class Network:
    """Bridge, firewall and namespaces of one daemon."""

    def __init__(self, *, names: Names, run_dir: Path, subnet: str) -> None:
        self._names = names
        self._directory = run_dir / "netns"
        self.resolv_conf = run_dir / "resolv.conf"
        self._subnet = parse_subnet(subnet)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hostd-network")
        self._ready: dict[NetworkMode, deque[NetworkNamespace]] = {
            "bridge": deque(),
            "none": deque(),
        }
        self._coming: dict[NetworkMode, int] = {"bridge": 0, "none": 0}
        self._serial = secrets.randbits(30)
        self._resolver_stamp: tuple[int, int] | None = None
        self._closed = False
        self._started = False
        # What follows belongs to the network thread.
        self._maker: NamespaceMaker | None = None
        self._nft: Nft | None = None
        self._rules: Rules | None = None
        self._addresses: _Addresses | None = None
        self._opened: dict[ipaddress.IPv4Address, tuple[ipaddress.IPv4Address, ...]] = {}
        self._bridge_index = 0
        self._mtu = MTU_DEFAULT

    async def start(self) -> None:
        """Remove what an earlier daemon left, make the bridge and load the rules.

        Raises:
            ContainerStartError: the kernel or nft refused; the text says what.
        """
        try:
            await self._call(self._set_up)
        except OSError as error:
            raise ContainerStartError(
                f"container network cannot be set up: {error}",
                hint="hostd doctor names what is missing",
            ) from error
        self._started = True
        for kind in POOL_READY:
            self._refill("bridge" if kind == "bridge" else "none")

    async def close(self) -> None:
        """Remove everything; containers must be gone."""
        self._closed = True
        self._started = False
        with contextlib.suppress(OSError, TimeoutError):
            await self._call(self._tear_down)
        await asyncio.to_thread(self._thread.shutdown)

    @property
    def block(self) -> ipaddress.IPv4Network | None:
        """The addresses of this daemon's containers; None before ``start``."""
        return self._addresses.block if self._addresses is not None else None

    async def take(self, kind: NetworkMode, opened: Sequence[str] = ()) -> NetworkNamespace:
        """A namespace for one container; give it to ``release`` in the end.

        Args:
            kind: connected to the bridge, or with a loopback device only.
            opened: addresses in closed ranges that it may reach.

        Raises:
            ContainerStartError, ResourceExhaustedError: none can be made.
        """
        targets = tuple(openable(text) for text in opened)
        self._refresh_resolver()
        ready = self._ready[kind]
        try:
            namespace = ready.popleft() if ready else await self._call(lambda: self._make(kind))
        except OSError as error:
            raise ContainerStartError(f"network namespace cannot be made: {error}") from error
        self._refill(kind)
        source = namespace.address
        if targets and source is not None:
            try:
                await self._call(lambda: self._open(source, targets))
            except BaseException:
                self.release(namespace)
                raise
        return namespace

    def release(self, namespace: NetworkNamespace) -> None:
        """Delete a namespace, soon."""
        with contextlib.suppress(RuntimeError):  # The thread is gone: so is the namespace.
            self._thread.submit(self._delete, namespace)

    async def use_resolver(self, resolver: Resolver) -> None:
        """Give containers other name servers, those that run already included."""
        await self._call(lambda: self._load_rules(resolver))

    async def _call(self, function: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(STEP_TIMEOUT_S):
            return await loop.run_in_executor(self._thread, function)

    def _refill(self, kind: NetworkMode) -> None:
        """Order as many namespaces as the pool lacks."""
        loop = asyncio.get_running_loop()
        while not self._closed and len(self._ready[kind]) + self._coming[kind] < POOL_READY[kind]:
            self._coming[kind] += 1
            future = self._thread.submit(self._make, kind)
            future.add_done_callback(
                lambda done: loop.call_soon_threadsafe(self._arrived, kind, done)
            )

    def _arrived(self, kind: NetworkMode, done: Future[NetworkNamespace]) -> None:
        self._coming[kind] -= 1
        error = done.exception()
        if error is not None:
            # The next take() makes one itself and reports why it cannot.
            log.warning("network namespace not made ahead", error=str(error))
        elif self._closed:
            self.release(done.result())
        else:
            self._ready[kind].append(done.result())

    # --- in the network thread --------------------------------------------------------------------

    def _set_up(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._maker = NamespaceMaker(self._directory)
        self._nft = Nft()
        remove_leftovers(self._names, self._directory, self._maker.outside, self._nft)
        outside = self._maker.outside
        with _machine_lock():
            taken = [i.network for i in outside.addresses()]
            taken += [route.destination for route in outside.routes()]
            block = choose_block(self._subnet, taken, int(self._names.tag, 16))
            self._addresses = _Addresses(block)
            self._mtu = _uplink_mtu(outside)
            self._make_bridge(block)
        self._load_rules(read_resolver())
        if self._nft.docker_chain() is not None:
            self._nft.run(docker_rules(self._names.bridge))
        if IP_FORWARD.read_text().strip() != "1":
            IP_FORWARD.write_text("1")

    def _make_bridge(self, block: ipaddress.IPv4Network) -> None:
        assert self._maker is not None
        outside, name = self._maker.outside, self._names.bridge
        mac = b"\x02" + bytes.fromhex(self._names.tag.zfill(10))
        outside.run([rtnetlink.new_bridge(name, mtu=self._mtu, mac=mac)])
        self._bridge_index = socket.if_nametoindex(name)
        gateway = ipaddress.IPv4Interface((int(block.network_address) + 1, block.prefixlen))
        outside.run(
            [
                rtnetlink.without_ipv6(name),
                rtnetlink.add_address(self._bridge_index, gateway),
                rtnetlink.set_up(self._bridge_index),
            ]
        )

    def _load_rules(self, resolver: Resolver) -> None:
        assert self._nft is not None
        assert self._addresses is not None
        block = self._addresses.block
        self._rules = Rules(
            table=self._names.nft_table,
            bridge=self._names.bridge,
            pool=block,
            gateway=block.network_address + 1,
            resolver=resolver,
        )
        self._nft.run(self._rules.load())
        for source, targets in self._opened.items():
            self._nft.run(self._rules.open_addresses(source, targets))
        self._write_resolv_conf()

    def _write_resolv_conf(self) -> None:
        assert self._rules is not None
        if self._rules.resolver.loopback is not None and not self._rules.resolver.servers:
            # The bridge hands DNS to a loopback address of this host; to_host lets only that pass.
            Path(f"/proc/sys/net/ipv4/conf/{self._names.bridge}/route_localnet").write_text("1")
        # Written in place: containers have this very file bound.
        self.resolv_conf.write_text(self._rules.resolver.text(self._rules.gateway))
        self.resolv_conf.chmod(0o644)

    def _refresh_resolver(self) -> None:
        """When the host's name servers changed, follow."""
        try:
            status = RESOLV_CONF.stat()
            stamp = (status.st_ino, status.st_mtime_ns)
        except OSError:
            return
        if self._resolver_stamp not in (None, stamp):
            self._thread.submit(self._follow_resolver)
        self._resolver_stamp = stamp

    def _follow_resolver(self) -> None:
        try:
            self._load_rules(read_resolver())
        except OSError:
            log.exception("name servers of containers not updated")

    def _make(self, kind: NetworkMode) -> NetworkNamespace:
        assert self._maker is not None
        self._serial += 1
        name = self._names.netns(self._serial)
        if kind == "none":
            return self._maker.make(name, None)
        assert self._addresses is not None
        block = self._addresses.block
        address = self._addresses.take()
        try:
            attachment = Attachment(
                host_interface=self._names.veth(self._serial),
                bridge_index=self._bridge_index,
                mtu=self._mtu,
                address=ipaddress.IPv4Interface((int(address), block.prefixlen)),
                gateway=block.network_address + 1,
            )
            return self._maker.make(name, attachment)
        except BaseException:
            self._addresses.give_back(address)
            raise

    def _open(
        self, source: ipaddress.IPv4Address, targets: tuple[ipaddress.IPv4Address, ...]
    ) -> None:
        assert self._nft is not None
        assert self._rules is not None
        self._nft.run(self._rules.open_addresses(source, targets))
        self._opened[source] = targets

    def _close(self, source: ipaddress.IPv4Address) -> None:
        targets = self._opened.pop(source, ())
        if targets and self._nft is not None and self._rules is not None:
            try:
                self._nft.run(self._rules.close_addresses(source, targets))
            except OSError:
                log.exception("opened addresses not closed", source=str(source))

    def _delete(self, namespace: NetworkNamespace) -> None:
        NamespaceMaker.delete(namespace.path)
        if namespace.address is not None and self._addresses is not None:
            self._close(namespace.address)
            self._addresses.give_back(namespace.address)

    def _tear_down(self) -> None:
        for pool in self._ready.values():
            while pool:
                self._delete(pool.popleft())
        if self._maker is None or self._nft is None:
            return
        remove_leftovers(self._names, self._directory, self._maker.outside, self._nft)
        self._nft.close()
        self._maker.close()
        self._maker = self._nft = None


def remove_leftovers(
    names: Names, directory: Path, outside: rtnetlink.RouteSocket, nft: Nft
) -> int:
    """Remove namespaces, interfaces and rules of a run directory; returns how many there were."""
    removed = 0
    for path in list(directory.iterdir()) if directory.is_dir() else []:
        NamespaceMaker.delete(path)
        removed += 1
    for link in outside.links():
        if link.name == names.bridge or link.name.startswith(names.veth_prefix):
            with contextlib.suppress(OSError):  # The kernel may have freed it meanwhile.
                outside.run([rtnetlink.delete_link(link.index)])
                removed += 1
    unload = Rules(
        table=names.nft_table,
        bridge=names.bridge,
        pool=ipaddress.IPv4Network("0.0.0.0/32"),
        gateway=ipaddress.IPv4Address(0),
        resolver=Resolver(),
    ).unload()
    nft.run(unload)
    stale = stale_docker_rules(nft.docker_chain() or "", names.bridge)
    if stale:
        nft.run(stale)
    return removed


def _uplink_mtu(outside: rtnetlink.RouteSocket) -> int:
    """The smallest MTU of interfaces with a default route."""
    by_index = {link.index: link.mtu for link in outside.links()}
    uplinks = [r.out_index for r in outside.routes() if r.destination.prefixlen == 0]
    mtus = [by_index[i] for i in uplinks if i is not None and by_index.get(i)]
    return min(mtus, default=MTU_DEFAULT)


@contextlib.contextmanager
def _machine_lock() -> Iterator[None]:
    """Held while a block is chosen: two daemons that start at once must not choose the same.

    An abstract unix socket is visible in one network namespace only, which is exactly the scope.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                lock.bind("\0hostd-network-blocks")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield
