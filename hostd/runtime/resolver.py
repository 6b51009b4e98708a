"""Which name servers containers use. Pure: text in, text out.

The host's own, except loopback addresses, which a container cannot reach. A host with a local stub
(systemd-resolved) has the real servers in ``/run/systemd/resolve/resolv.conf``. When there are
loopback servers only (dnsmasq, unbound), containers ask the bridge's address and the firewall hands
that to the first loopback server.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")
SYSTEMD_RESOLV_CONF = Path("/run/systemd/resolve/resolv.conf")

SERVERS_MAX = 3
"""More are ignored by the C library (resolv.conf(5), MAXNS)."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Resolver:
    """Name service of containers."""

    servers: tuple[ipaddress.IPv4Address, ...] = ()
    """Outside this host or addresses of it; containers may send DNS to them."""
    loopback: ipaddress.IPv4Address | None = None
    """A server that only this host reaches; asked through the bridge's address."""
    other: tuple[str, ...] = ()
    """Lines that are no servers: search, options."""

    def text(self, gateway: ipaddress.IPv4Address) -> str:
        """The resolv.conf of containers."""
        servers = [str(s) for s in self.servers]
        if not servers and self.loopback is not None:
            servers = [str(gateway)]
        return "".join(f"{line}\n" for line in (*(f"nameserver {s}" for s in servers), *self.other))


def read_resolver(paths: Sequence[Path] = (RESOLV_CONF, SYSTEMD_RESOLV_CONF)) -> Resolver:
    """The first file with a server that containers can reach; else one with a loopback server."""
    fallback = Resolver()
    for path in paths:
        try:
            found = parse(path.read_text())
        except OSError:
            continue
        if found.servers:
            return found
        if found.loopback is not None and fallback.loopback is None:
            fallback = found
    return fallback


def parse(text: str) -> Resolver:
    """Sort the lines of a resolv.conf."""
    servers: list[Address] = []
    other = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            address = _address(words[1])
            if address is not None:
                servers.append(address)
        elif words and words[0] in ("search", "domain", "options"):
            other.append(" ".join(words))
    reachable = [s for s in servers if isinstance(s, ipaddress.IPv4Address) and not s.is_loopback]
    loopback = [s for s in servers if isinstance(s, ipaddress.IPv4Address) and s.is_loopback]
    return Resolver(tuple(reachable[:SERVERS_MAX]), loopback[0] if loopback else None, tuple(other))


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
