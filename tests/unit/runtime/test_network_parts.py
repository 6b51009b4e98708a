"""Address blocks, resolv.conf, rules and netlink messages: the pure parts of the network."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from hostd.errors import ConfigError, ContainerStartError, ResourceExhaustedError
from hostd.runtime import resolver, rtnetlink
from hostd.runtime.firewall import Rules, docker_rules, stale_docker_rules
from hostd.runtime.naming import Names
from hostd.runtime.network import _Addresses, choose_block, parse_subnet

SUBNET = IPv4Network("10.117.0.0/16")


def test_block_begins_where_the_name_says_and_avoids_what_is_taken():
    assert choose_block(SUBNET, [], 5) == IPv4Network("10.117.20.0/22")
    assert choose_block(SUBNET, [IPv4Network("10.117.21.0/24")], 5) == IPv4Network("10.117.24.0/22")
    assert choose_block(SUBNET, [IPv4Network("10.117.252.0/22")], 63) == IPv4Network(
        "10.117.0.0/22"
    )


def test_wider_networks_do_not_count():
    taken = [IPv4Network("0.0.0.0/0"), IPv4Network("10.0.0.0/8")]

    assert choose_block(SUBNET, taken, 0) == IPv4Network("10.117.0.0/22")


def test_small_subnets_are_one_block():
    small = IPv4Network("10.9.8.0/24")

    assert choose_block(small, [], 12345) == small
    with pytest.raises(ContainerStartError, match="all 1 blocks of"):
        choose_block(small, [IPv4Network("10.9.8.128/25")], 0)


@pytest.mark.parametrize("text", ["", "10.0.0.0/30", "10.0.0.1/16", "fd00::/64", "0.0.0.0/0"])
def test_subnets_that_cannot_hold_containers_are_refused(text):
    with pytest.raises(ConfigError, match=r"runtime\.subnet"):
        parse_subnet(text)


def test_addresses_come_in_turn_and_never_twice():
    addresses = _Addresses(IPv4Network("10.0.0.0/29"))
    taken = [addresses.take() for _ in range(5)]

    assert taken == [IPv4Address(f"10.0.0.{n}") for n in (2, 3, 4, 5, 6)]
    with pytest.raises(ResourceExhaustedError, match="all 5 container addresses"):
        addresses.take()
    addresses.give_back(taken[1])
    assert addresses.take() == taken[1]


def test_an_address_comes_back_as_late_as_possible():
    addresses = _Addresses(IPv4Network("10.0.0.0/29"))
    first = addresses.take()
    addresses.give_back(first)

    assert [addresses.take() for _ in range(5)][-1] == first


def test_names_fit_the_kernel_and_differ_by_run_directory():
    one, other = Names.of(Path("/run/hostd")), Names.of(Path("/run/hostd2"))

    assert one != other
    assert Names.of(Path("/run/../run/hostd")) == one
    for name in (one.bridge, one.veth(0), one.veth(2**30 - 1), one.veth(2**31)):
        assert len(name) <= 15
    assert one.veth(7).startswith(one.veth_prefix)


def test_name_servers_are_the_hosts_without_loopback():
    servers = ("127.0.0.53", "192.0.2.1", "fe80::1%eth0", "x")
    text = "".join(f"nameserver {s}\n" for s in servers) + "search lab.example\nbad\n"
    found = resolver.parse(text)

    assert (found.servers, found.loopback) == ((IPv4Address(servers[1]),), IPv4Address(servers[0]))
    assert found.text(IPv4Address("10.0.0.1")) == "nameserver 192.0.2.1\nsearch lab.example\n"


def test_a_stub_is_replaced_by_what_stands_behind_it(tmp_path):
    (tmp_path / "stub").write_text("nameserver 127.0.0.53\noptions edns0\n")
    (tmp_path / "real").write_text("nameserver 192.0.2.7\n")
    found = resolver.read_resolver([tmp_path / "stub", tmp_path / "real", tmp_path / "missing"])

    assert found.servers == (IPv4Address("192.0.2.7"),)


def test_a_lone_loopback_server_is_asked_through_the_bridge(tmp_path):
    (tmp_path / "only").write_text("nameserver 127.0.0.1\noptions edns0\n")
    found = resolver.read_resolver([tmp_path / "only"])

    assert found.text(IPv4Address("10.0.0.1")) == "nameserver 10.0.0.1\noptions edns0\n"


def rules(found: resolver.Resolver) -> Rules:
    return Rules(
        table="hostd_t",
        bridge="hd-t",
        pool=IPv4Network("10.0.0.0/22"),
        gateway=IPv4Address("10.0.0.1"),
        resolver=found,
    )


def test_rules_name_the_bridge_and_the_pool_never_the_uplink():
    text = rules(resolver.Resolver((IPv4Address("192.168.0.1"),))).load()

    assert "ip saddr 10.0.0.0/22 ip daddr != 10.0.0.0/22 masquerade" in text
    assert "elements = { 192.168.0.1 }" in text
    assert "eth0" not in text
    assert "dnat" not in text
    assert text.startswith("add table inet hostd_t\ndelete table inet hostd_t\n")


def test_a_loopback_server_gets_a_rule_of_its_own():
    text = rules(resolver.Resolver((), IPv4Address("127.0.0.1"))).load()

    assert 'iifname "hd-t" ip daddr 10.0.0.1 udp dport 53 dnat ip to 127.0.0.1' in text


def test_rules_in_dockers_chain_are_found_again_by_their_handles():
    listing = """table ip filter {
    chain DOCKER-USER { # handle 7
        iifname "hd-t" accept # handle 12
        iifname "hd-other" accept # handle 13
        oifname "hd-t" counter packets 5 bytes 3 accept # handle 14
    }
}"""

    assert stale_docker_rules(listing, "hd-t").splitlines() == [
        "delete rule ip filter DOCKER-USER handle 12",
        "delete rule ip filter DOCKER-USER handle 14",
    ]
    assert docker_rules("hd-t").count("accept") == 2


def test_messages_are_as_the_kernel_reads_them():
    message = rtnetlink.add_address(7, IPv4Interface("10.0.0.5/22"))
    family, prefix, flags, scope, index = struct.unpack_from("=BBBBI", message.body)

    assert (family, prefix, flags, scope, index) == (2, 22, 0, 0, 7)
    assert message.body[8:] == b"\x08\0\x02\0\x0a\0\0\x05\x08\0\x01\0\x0a\0\0\x05"


def test_kernel_lists_its_links_and_routes():
    link = rtnetlink.RouteSocket()
    try:
        names = {found.name: found for found in link.links()}
        addresses = link.addresses()
        link.routes()
    finally:
        link.close()

    assert names["lo"].index == 1
    assert IPv4Interface("127.0.0.1/8") in addresses


def test_a_refused_request_names_what_it_was_about():
    link = rtnetlink.RouteSocket()
    try:
        with pytest.raises(OSError, match="link 999999"):
            link.run([rtnetlink.set_up(999_999)])
    finally:
        link.close()
