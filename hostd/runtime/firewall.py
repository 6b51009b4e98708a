"""What containers may reach: one nft table per daemon.

Open: the internet through NAT, and DNS at the servers of resolv.conf. Closed, with an immediate
refusal so that programs fail at once instead of after minutes: the metadata address and everything
link-local, private ranges (the LAN), loopback, multicast, every address of this host, other
containers, and IPv6. Connections from the host to a container work, and so do answers.

The rules match the bridge and the pool, never the uplink: its name changes. They are loaded through
libnftables (0.1 ms a change) or, where it is missing, the ``nft`` program.
"""

from __future__ import annotations

import ctypes
import ipaddress
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from hostd.errors import InvalidError
from hostd.runtime.resolver import Resolver

NFT_TIMEOUT_S = 10.0
_OUTPUT_HANDLES = 1 << 3  # NFT_CTX_OUTPUT_HANDLE of libnftables.h.

CLOSED_IPV4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
"""This network, private (RFC 1918), carrier-grade NAT, loopback, link-local with the clouds'
metadata address, multicast, reserved."""


def openable(text: str) -> ipaddress.IPv4Address:
    """An address that may be opened for a container.

    Raises:
        InvalidError: no IPv4 address, or one that stays closed: the clouds' metadata service above
            all, loopback and multicast.
    """
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError as error:
        raise InvalidError(f"address {text!r} to open is not IPv4") from error
    if address.is_link_local or address.is_loopback or address.is_multicast or address.is_reserved:
        raise InvalidError(f"address {address} is link-local, loopback or multicast: never opened")
    return address


class FirewallError(OSError):
    """nft refused a change; the text is its own."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The parameters of the table."""

    table: str
    bridge: str
    pool: ipaddress.IPv4Network
    gateway: ipaddress.IPv4Address
    resolver: Resolver

    def load(self) -> str:
        """Commands that make the table anew, in one transaction."""
        return (
            f"add table inet {self.table}\n"
            f"delete table inet {self.table}\n"
            f"table inet {self.table} {{\n"
            f"{self._sets()}{self._forwarded()}{self._local()}{self._nat()}}}\n"
        )

    def set_resolver(self) -> str:
        """Commands after a change of the resolver that keep connections as they are."""
        elements = self._dns_elements()
        flush = f"flush set inet {self.table} dns4\n"
        return flush + (
            f"add element inet {self.table} dns4 {{ {elements} }}\n" if elements else ""
        )

    def open_addresses(
        self, source: ipaddress.IPv4Address, targets: Iterable[ipaddress.IPv4Address]
    ) -> str:
        """Commands that let one container reach addresses in closed ranges."""
        pairs = ", ".join(f"{source} . {target}" for target in targets)
        return f"add element inet {self.table} opened4 {{ {pairs} }}\n"

    def close_addresses(
        self, source: ipaddress.IPv4Address, targets: Iterable[ipaddress.IPv4Address]
    ) -> str:
        """Commands that undo ``open_addresses``."""
        pairs = ", ".join(f"{source} . {target}" for target in targets)
        return f"delete element inet {self.table} opened4 {{ {pairs} }}\n"

    def unload(self) -> str:
        """Commands that remove the table, whether it is there or not."""
        return f"add table inet {self.table}\ndelete table inet {self.table}\n"

    def _dns_elements(self) -> str:
        return ", ".join(str(server) for server in self.resolver.servers)

    def _sets(self) -> str:
        dns = self._dns_elements()
        filled = f" elements = {{ {dns} }};" if dns else ""
        return (
            f"  set closed4 {{ type ipv4_addr; flags interval; auto-merge;"
            f" elements = {{ {', '.join(CLOSED_IPV4)} }}; }}\n"
            f"  set dns4 {{ type ipv4_addr;{filled} }}\n"
            "  set opened4 { type ipv4_addr . ipv4_addr; }\n"
        )

    def _forwarded(self) -> str:
        return f"""  chain from_containers {{
    type filter hook forward priority -10; policy accept;
    iifname != "{self.bridge}" oifname != "{self.bridge}" accept
    ct state established,related accept
    oifname "{self.bridge}" drop
    ip saddr != {self.pool} drop
    meta nfproto ipv6 drop
    ip daddr @dns4 udp dport 53 accept
    ip daddr @dns4 tcp dport 53 accept
    ip saddr . ip daddr @opened4 accept
    ip daddr @closed4 reject with icmpx admin-prohibited
  }}
"""

    def _local(self) -> str:
        dns = ""
        if self.resolver.loopback is not None and not self.resolver.servers:
            dns = (
                f"    ip daddr {self.resolver.loopback} udp dport 53 accept\n"
                f"    ip daddr {self.resolver.loopback} tcp dport 53 accept\n"
            )
        return f"""  chain to_host {{
    type filter hook input priority -10; policy accept;
    iifname != "{self.bridge}" accept
    ct state established,related accept
    ip daddr @dns4 udp dport 53 accept
    ip daddr @dns4 tcp dport 53 accept
{dns}    ip saddr . ip daddr @opened4 accept
    meta nfproto ipv6 drop
    reject with icmpx admin-prohibited
  }}
"""

    def _nat(self) -> str:
        dns = ""
        if self.resolver.loopback is not None and not self.resolver.servers:
            to = f"dnat ip to {self.resolver.loopback}"
            dns = f"""  chain ask_host {{
    type nat hook prerouting priority -110; policy accept;
    iifname "{self.bridge}" ip daddr {self.gateway} udp dport 53 {to}
    iifname "{self.bridge}" ip daddr {self.gateway} tcp dport 53 {to}
  }}
"""
        return f"""{dns}  chain to_internet {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {self.pool} ip daddr != {self.pool} masquerade
  }}
"""


def docker_rules(bridge: str) -> str:
    """Commands that let containers through where Docker drops what it does not know.

    Docker sets the policy of FORWARD to drop and leaves its chain DOCKER-USER to others. A packet
    that our own table refuses is refused all the same: a verdict to drop is final, one to accept is
    not (nft(8)).
    """
    return (
        f'insert rule ip filter DOCKER-USER iifname "{bridge}" accept\n'
        f'insert rule ip filter DOCKER-USER oifname "{bridge}" accept\n'
    )


def stale_docker_rules(listing: str, bridge: str) -> str:
    """Commands that remove those rules again, from the chain's listing with handles."""
    handles = re.findall(rf'[io]ifname "{re.escape(bridge)}" .*# handle (\d+)', listing)
    return "".join(f"delete rule ip filter DOCKER-USER handle {h}\n" for h in handles)


class Nft:
    """Runs nft commands, in this process if it can. For one thread at a time."""

    def __init__(self, *, binary: str = "nft", use_library: bool = True) -> None:
        self._binary = binary
        self._library = _load_library() if use_library else None
        self._context = self._library.nft_ctx_new(0) if self._library is not None else None
        if self._library is not None and self._context:
            self._library.nft_ctx_buffer_output(self._context)
            self._library.nft_ctx_buffer_error(self._context)

    def close(self) -> None:
        """Free the library's context."""
        if self._library is not None and self._context:
            self._library.nft_ctx_free(self._context)
        self._context = None

    def docker_chain(self) -> str | None:
        """The chain DOCKER-USER with the handles of its rules; None without Docker."""
        command = "list chain ip filter DOCKER-USER"
        try:
            if self._library is None or not self._context:
                return self._run_binary(command, "-a")
            self._library.nft_ctx_output_set_flags(self._context, _OUTPUT_HANDLES)
            return self._run_library(self._library, command)
        except FirewallError:
            return None

    def run(self, commands: str) -> str:
        """Run commands as one transaction; returns what they print.

        Raises:
            FirewallError: one was refused, so none was carried out.
        """
        if self._library is not None and self._context:
            return self._run_library(self._library, commands)
        return self._run_binary(commands)

    def _run_library(self, library: ctypes.CDLL, commands: str) -> str:
        if library.nft_run_cmd_from_buffer(self._context, commands.encode()) != 0:
            raise FirewallError(_decode(library.nft_ctx_get_error_buffer(self._context)))
        return _decode(library.nft_ctx_get_output_buffer(self._context))

    def _run_binary(self, commands: str, *options: str) -> str:
        try:
            done = subprocess.run(
                [self._binary, *options, "-f", "-"],
                input=commands,
                text=True,
                capture_output=True,
                timeout=NFT_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FirewallError(f"{self._binary} could not be run: {error}") from error
        if done.returncode != 0:
            raise FirewallError(done.stderr.strip())
        return done.stdout


def _decode(text: bytes | None) -> str:
    return (text or b"").decode("utf-8", "replace").strip()


def _load_library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError:
        return None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    return library
