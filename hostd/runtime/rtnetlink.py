"""Routing netlink, as far as containers need it: links, veth pairs, bridges, addresses, routes.

A ``ip`` process costs more than the work itself (10.6 ms for one container against 1.6 ms here,
measured). Messages are built by pure functions (rtnetlink(7), ``linux/if_link.h``) and sent through
a ``RouteSocket``, which belongs to the network namespace of the thread that made it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWADDR = 20
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_GETROUTE = 26

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_REQUEST = 0x001
_ACK = 0x004
_DUMP = 0x300
_CREATE = 0x400
_EXCLUSIVE = 0x200
_NESTED = 0x8000

_IFLA_ADDRESS = 1
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_MASTER = 10
_IFLA_PROTINFO = 12
_IFLA_LINKINFO = 18
_IFLA_AF_SPEC = 26
_IFLA_NET_NS_FD = 28
_INFO_KIND = 1
_INFO_DATA = 2
_VETH_PEER = 1
_BRPORT_ISOLATED = 33
_BRIDGE_MCAST_SNOOPING = 23
_INET6_ADDR_GEN_MODE = 8
_ADDR_GEN_NONE = 1

_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_RTA_DST = 1
_RTA_OIF = 4
_RTA_GATEWAY = 5
_TABLE_MAIN = 254
_PROTOCOL_STATIC = 4
_IFF_UP = 1

RECEIVE_TIMEOUT_S = 5.0
"""For the kernel's answer; it comes at once unless another process holds the rtnl lock."""

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + b"\0" * (-length % 4)


def _nested(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(attributes))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


_WITHOUT_IPV6 = _nested(
    _IFLA_AF_SPEC,
    _nested(socket.AF_INET6, _attribute(_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_NONE]))),
)


@dataclass(frozen=True, slots=True)
class Message:
    """One request: type, flags beyond REQUEST|ACK, and the bytes after the header."""

    kind: int
    flags: int
    body: bytes
    about: str


def new_bridge(name: str, *, mtu: int, mac: bytes) -> Message:
    """Make a bridge, down. Its address is fixed, or it would change with its ports."""
    info = _nested(
        _IFLA_LINKINFO,
        _text(_INFO_KIND, "bridge"),
        _nested(_INFO_DATA, _attribute(_BRIDGE_MCAST_SNOOPING, b"\0")),
    )
    body = _IFINFO.pack(0, 0, 0, 0, 0)
    body += _text(_IFLA_IFNAME, name) + _u32(_IFLA_MTU, mtu) + _attribute(_IFLA_ADDRESS, mac)
    return Message(RTM_NEWLINK, _CREATE | _EXCLUSIVE, body + info, name)


def new_veth(name: str, *, peer: str, peer_netns_fd: int, bridge: int, mtu: int) -> Message:
    """Make a veth pair: this end down and in the bridge, the other one in a namespace."""
    other = (
        _IFINFO.pack(0, 0, 0, 0, 0)
        + _text(_IFLA_IFNAME, peer)
        + _u32(_IFLA_MTU, mtu)
        + _u32(_IFLA_NET_NS_FD, peer_netns_fd)
    )
    info = _nested(
        _IFLA_LINKINFO,
        _text(_INFO_KIND, "veth"),
        _nested(_INFO_DATA, _nested(_VETH_PEER, other)),
    )
    body = _IFINFO.pack(0, 0, 0, 0, 0)
    body += _text(_IFLA_IFNAME, name) + _u32(_IFLA_MTU, mtu) + _u32(_IFLA_MASTER, bridge)
    return Message(RTM_NEWLINK, _CREATE | _EXCLUSIVE, body + info, name)


def without_ipv6(name: str) -> Message:
    """Give a link no link-local address; must come before it is up.

    Such an address would be reachable from a container, and costs time.
    """
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, name) + _WITHOUT_IPV6
    return Message(RTM_SETLINK, 0, body, name)


def isolate_port(index: int) -> Message:
    """Keep a bridge port from talking to other isolated ports."""
    body = _IFINFO.pack(socket.AF_BRIDGE, 0, index, 0, 0)
    body += _nested(_IFLA_PROTINFO, _attribute(_BRPORT_ISOLATED, b"\1"))
    return Message(RTM_SETLINK, 0, body, f"link {index}")


def set_up(index: int) -> Message:
    """Bring a link up."""
    return Message(RTM_NEWLINK, 0, _IFINFO.pack(0, 0, index, _IFF_UP, _IFF_UP), f"link {index}")


def delete_link(index: int) -> Message:
    """Delete a link (blocks some 30 ms for a veth: never where somebody waits)."""
    return Message(RTM_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0), f"link {index}")


def add_address(index: int, address: ipaddress.IPv4Interface) -> Message:
    """Give a link an address."""
    body = _IFADDR.pack(socket.AF_INET, address.network.prefixlen, 0, 0, index)
    body += _attribute(_IFA_LOCAL, address.ip.packed) + _attribute(_IFA_ADDRESS, address.ip.packed)
    return Message(RTM_NEWADDR, _CREATE | _EXCLUSIVE, body, str(address))


def add_default_route(gateway: ipaddress.IPv4Address) -> Message:
    """Send everything else to a gateway."""
    body = _RTMSG.pack(socket.AF_INET, 0, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, 0, 1, 0)
    body += _attribute(_RTA_GATEWAY, gateway.packed)
    return Message(RTM_NEWROUTE, _CREATE | _EXCLUSIVE, body, f"default via {gateway}")


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface as the kernel lists it."""

    index: int
    name: str
    mtu: int


@dataclass(frozen=True, slots=True)
class Route:
    """An IPv4 route of the main table."""

    destination: ipaddress.IPv4Network
    out_index: int | None


class RouteSocket:
    """A netlink socket of the network namespace in which it was made. For one thread at a time."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        try:
            self._socket.bind((0, 0))
            self._socket.settimeout(RECEIVE_TIMEOUT_S)
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def run(self, messages: Sequence[Message]) -> None:
        """Carry out requests, several in one system call.

        Raises:
            OSError: of the first one that the kernel refused, with what it was about.
        """
        first = self._sequence + 1
        packet = b"".join(self._encode(m, m.flags | _REQUEST | _ACK) for m in messages)
        self._socket.send(packet)
        waiting = dict(enumerate(messages, first))
        failure: OSError | None = None
        while waiting:
            for kind, sequence, body in _split(self._socket.recv(65536)):
                if kind != _NLMSG_ERROR or sequence not in waiting:
                    continue
                message = waiting.pop(sequence)
                code = -struct.unpack_from("=i", body)[0]
                if code and failure is None:
                    failure = OSError(code, os.strerror(code), message.about)
        if failure is not None:
            raise failure

    def links(self) -> list[Link]:
        """All interfaces of the namespace."""
        found = []
        for body in self._dump(RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0)):
            index = _IFINFO.unpack_from(body)[2]
            attributes = _attributes(body[_IFINFO.size :])
            name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode()
            mtu = struct.unpack("=I", attributes.get(_IFLA_MTU, b"\0\0\0\0"))[0]
            found.append(Link(index, name, mtu))
        return found

    def addresses(self) -> list[ipaddress.IPv4Interface]:
        """All IPv4 addresses of the namespace."""
        found = []
        for body in self._dump(RTM_GETADDR, _IFADDR.pack(socket.AF_INET, 0, 0, 0, 0)):
            family, prefix = _IFADDR.unpack_from(body)[:2]
            attributes = _attributes(body[_IFADDR.size :])
            packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
            if family == socket.AF_INET and packed:
                found.append(ipaddress.IPv4Interface((packed, prefix)))
        return found

    def routes(self) -> list[Route]:
        """All IPv4 routes of the main table."""
        found = []
        request = _RTMSG.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
        for body in self._dump(RTM_GETROUTE, request):
            family, length, _, _, table = _RTMSG.unpack_from(body)[:5]
            if family != socket.AF_INET or table != _TABLE_MAIN:
                continue
            attributes = _attributes(body[_RTMSG.size :])
            packed = attributes.get(_RTA_DST, b"\0\0\0\0")
            out = attributes.get(_RTA_OIF)
            network = ipaddress.IPv4Network((packed, length), strict=False)
            found.append(Route(network, struct.unpack("=I", out)[0] if out else None))
        return found

    def _dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        self._socket.send(self._encode(Message(kind, 0, body, "dump"), _REQUEST | _DUMP))
        wanted = self._sequence
        while True:
            for got, sequence, payload in _split(self._socket.recv(1 << 18)):
                if sequence != wanted:
                    continue
                if got == _NLMSG_DONE:
                    return
                if got == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", payload)[0] or errno.EPROTO
                    raise OSError(code, os.strerror(code), "netlink dump")
                yield payload

    def _encode(self, message: Message, flags: int) -> bytes:
        self._sequence += 1
        length = _HEADER.size + len(message.body)
        header = _HEADER.pack(length, message.kind, flags, self._sequence, 0)
        return header + message.body + b"\0" * (-length % 4)


def _split(packet: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence number and body of each message of a packet."""
    offset = 0
    while offset + _HEADER.size <= len(packet):
        length, kind, _, sequence, _ = _HEADER.unpack_from(packet, offset)
        if length < _HEADER.size:
            return
        yield kind, sequence, packet[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found
