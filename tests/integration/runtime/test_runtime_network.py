"""What containers reach and what they do not, against a small world in a namespace of our own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from hostd.errors import InvalidError
from hostd.runtime.resolver import Resolver

pytestmark = pytest.mark.root

SERVER = """
import socket, sys, threading
def serve(port):
    listener = socket.create_server(("0.0.0.0", port))
    while True:
        connection, peer = listener.accept()
        connection.sendall(peer[0].encode()); connection.close()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind((sys.argv[1], 53))
threading.Thread(target=serve, args=(80,), daemon=True).start()
threading.Thread(target=serve, args=(53,), daemon=True).start()
print("ready", flush=True)
while True:
    data, peer = udp.recvfrom(512)
    udp.sendto(b"answer " + data, peer)
"""


@dataclass
class World:
    """Another machine: a public address, one in the LAN, and the clouds' metadata address."""

    internet: str
    lan: str
    metadata: str = "169.254.169.254"


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, timeout=10, capture_output=True)


@pytest.fixture
def world() -> Iterator[World]:
    name = f"hw{os.getpid()}"
    third = os.getpid() % 250 + 1
    made = World(internet=f"198.18.{third}.2", lan=f"10.251.{third}.2")
    _ip("netns", "add", name)
    try:
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", f"198.18.{third}.1/24", "dev", name)
        _ip("link", "set", name, "up")
        for address in (f"{made.internet}/24", f"{made.lan}/32", f"{made.metadata}/32"):
            _ip("-n", name, "addr", "add", address, "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", name, "link", "set", device, "up")
        for address in (made.lan, made.metadata):
            _ip("route", "add", address, "dev", name)
        command = ["ip", "netns", "exec", name, sys.executable, "-c", SERVER, made.lan]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == b"ready\n"
                yield made
            finally:
                server.kill()
    finally:
        subprocess.run(["ip", "link", "del", name], check=False, capture_output=True, timeout=10)
        _ip("netns", "del", name)


TRY = """
import socket, sys, time
for target in sys.argv[1:]:
    kind, address, port = target.split(",")
    begun = time.monotonic()
    try:
        if kind == "tcp":
            with socket.create_connection((address, int(port)), 2) as s: got = s.recv(100).decode()
        else:
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)
            s.connect((address, int(port))); s.send(b"hello"); got = s.recv(100).decode()
    except OSError as error:
        got = "closed" + ("" if time.monotonic() - begun < 1 else " after a wait")
    print(got)
"""


async def attempts(ward, *targets: str, **options: object) -> list[str]:
    _, sink = await ward.run("python3", "-I", "-S", "-c", TRY, *targets, **options)
    assert sink.text("stderr") == []
    return sink.text()


async def test_internet_is_open_and_everything_else_closed_at_once(ward, world):
    gateway = str(ward.runtime.network.block[1])
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        answers = await attempts(
            ward,
            f"tcp,{world.internet},80",
            f"tcp,{world.metadata},80",
            f"tcp,{world.lan},80",
            f"udp,{world.lan},53",
            f"tcp,{gateway},{port}",
            f"tcp,{world.internet[:-1]}1,{port}",
            f"udp,{gateway},53",
        )

    # The world sees the host's address, not the container's.
    assert answers == [f"{world.internet[:-1]}1"] + ["closed"] * 6


async def test_build_containers_are_bound_by_the_same_rules(ward, world):
    answers = await attempts(
        ward,
        f"tcp,{world.internet},80",
        f"tcp,{world.metadata},80",
        f"tcp,{world.lan},80",
        profile="build",
    )

    assert answers[1:] == ["closed", "closed"]


async def test_addresses_of_the_site_can_be_opened_for_one_container(ward, world):
    targets = [f"tcp,{world.lan},80", f"tcp,{world.metadata},80"]
    opened = await attempts(ward, *targets, profile="build", opened=[world.lan])
    await ward.runtime.network.use_resolver(Resolver())
    others = await attempts(ward, *targets)

    assert opened == [f"{world.internet[:-1]}1", "closed"]
    assert others == ["closed", "closed"]


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "127.0.0.1", "224.0.0.1", "example.org", ""]
)
async def test_metadata_and_loopback_are_never_opened(ward, address):
    with pytest.raises(InvalidError, match="address"):
        await ward.begin("true", opened=[address])


async def test_name_servers_in_the_lan_answer_dns_and_nothing_else(ward, world):
    await ward.runtime.network.use_resolver(Resolver(servers=(IPv4Address(world.lan),)))
    answers = await attempts(
        ward,
        f"udp,{world.lan},53",
        f"tcp,{world.lan},53",
        f"tcp,{world.lan},80",
        f"udp,{world.metadata},53",
    )
    _, sink = await ward.run("cat", "/etc/resolv.conf")

    assert answers == ["answer hello", f"{world.internet[:-1]}1", "closed", "closed"]
    assert sink.text() == [f"nameserver {world.lan}"]


async def test_running_containers_follow_a_change_of_name_servers(ward):
    container, _ = await ward.begin(
        "sh", "-c", "read x; cat /etc/resolv.conf", tty=(24, 80), init=False
    )
    await ward.runtime.network.use_resolver(Resolver(servers=(IPv4Address("192.0.2.53"),)))
    await container.terminal.write(b"go\n")
    text = b""
    while piece := await container.terminal.read():
        text += piece[1]
    await container.delete()

    assert b"nameserver 192.0.2.53" in text


async def test_a_name_server_on_loopback_is_asked_through_the_bridge(ward):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.77", 53))
        server.setblocking(False)

        async def serve() -> None:
            loop = asyncio.get_running_loop()
            data, peer = await loop.sock_recvfrom(server, 512)
            await loop.sock_sendto(server, b"local " + data, peer)

        await ward.runtime.network.use_resolver(Resolver(loopback=IPv4Address("127.0.0.77")))
        gateway = str(ward.runtime.network.block[1])
        async with asyncio.TaskGroup() as group, asyncio.timeout(20):
            group.create_task(serve())
            answers = await attempts(
                ward, f"udp,{gateway},53", f"tcp,{gateway},22", "tcp,127.0.0.77,53"
            )
        _, sink = await ward.run("cat", "/etc/resolv.conf")

    assert answers == ["local hello", "closed", "closed"]
    assert sink.text() == [f"nameserver {gateway}"]


LISTEN = """
import socket
listener = socket.create_server(("0.0.0.0", 8000))
print("up", flush=True)
while True:
    listener.accept()[0].sendall(b"found")
"""


async def test_containers_do_not_reach_each_other_but_the_host_reaches_them(ward):
    server, sink = await ward.begin("python3", "-I", "-S", "-c", LISTEN)
    await ward.until(lambda: sink.lines)
    _, other = await ward.run("python3", "-I", "-S", "-c", TRY, f"tcp,{server.address},8000")
    with socket.create_connection((server.address, 8000), 5) as connection:
        found = connection.recv(10)
    await server.delete()

    assert other.text()[0].startswith("closed")
    assert found == b"found"


async def test_blocked_network_has_a_loopback_device_only(ward, world):
    code = (
        "import os, socket\n"
        "print(os.listdir('/sys/class/net'))\n"
        "socket.create_server(('127.0.0.1', 0))"
    )
    ended, sink = await ward.run("python3", "-c", code, network="none")
    answers = await attempts(
        ward, f"tcp,{world.internet},80", f"udp,{world.lan},53", network="none"
    )

    devices = eval(sink.text()[0])
    assert ended.status == 0
    assert "lo" in devices
    assert "eth0" not in devices
    assert answers == ["closed", "closed"]


async def test_containers_have_no_ipv6_beyond_loopback(ward):
    _, sink = await ward.run("cat", "/proc/net/if_inet6")

    assert [line.split()[-1] for line in sink.text()] == ["lo"]


async def test_users_may_ping_and_use_low_ports_without_capabilities(ward):
    code = (
        "import socket\n"
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()\n"
        "socket.create_server(('0.0.0.0', 80)).close()\n"
        "print('both')"
    )
    _, sink = await ward.run("python3", "-c", code, user="ana")

    assert sink.text() == ["both"]


async def test_mtu_is_the_uplinks(ward):
    _, sink = await ward.run("cat", "/sys/class/net/eth0/mtu")

    assert int(sink.text()[0]) == min(mtu for _, mtu in _uplinks())


def _uplinks() -> list[tuple[str, int]]:
    lines = Path("/proc/net/route").read_text().splitlines()[1:]
    names = [line.split()[0] for line in lines if line.split()[1] == "00000000"]
    return [(name, int(Path(f"/sys/class/net/{name}/mtu").read_text())) for name in names]


async def test_addresses_and_namespaces_are_never_shared(ward):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ward.begin("sleep", "60")) for _ in range(20)]
    containers = [task.result()[0] for task in tasks]

    assert len({c.address for c in containers}) == 20
    assert len({os.readlink(f"/proc/{c.pid}/ns/net") for c in containers}) == 20
    await asyncio.gather(*(c.delete() for c in containers))
