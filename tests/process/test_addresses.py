"""The verdict on addresses, against IANA's special-purpose registries and what clouds say of their metadata."""

from __future__ import annotations

import ipaddress
import random

import pytest

from vl2.process.fetch import is_public

# IANA IPv4 and IPv6 Special-Purpose Address Registries: every entry that is not globally reachable, and multicast.
NOT_GLOBAL = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.0.8/32", "192.0.0.170/31", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
    "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32",
    "::/128", "::1/128", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32", "2001:2::/48",
    "2001:10::/28", "2001:20::/28", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10",
    "fec0::/10", "ff00::/8",
)  # fmt: skip
METADATA = {
    "169.254.169.254": "most clouds",
    "169.254.170.2": "containers of Amazon",
    "169.254.0.23": "Tencent",
    "168.63.129.16": "Azure",
    "100.100.100.200": "Alibaba",
    "192.0.0.192": "Oracle",
    "fd00:ec2::254": "Amazon",
    "fd20:ce::254": "Google",
    "fe80::a9fe:a9fe": "OpenStack",
}
PUBLIC = (
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "93.184.216.34", "100.63.255.255", "100.128.0.0",
    "168.63.129.15", "168.63.129.17", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.88.98.1",
    "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255",
    "2001:200::1", "2001:4860:4860::8888", "2001:db9::", "2003::1", "2606:4700::1111", "2a00:1450:4001::1", "3ffe::1",
    "::ffff:8.8.8.8", "64:ff9b::808:808",
)  # fmt: skip


def ends(network: str) -> list[str]:
    found = ipaddress.ip_network(network)
    return [str(found[0]), str(found[-1]), str(found[found.num_addresses // 2])]


@pytest.mark.parametrize("address", [address for network in NOT_GLOBAL for address in ends(network)])
def test_what_the_registries_call_not_globally_reachable_is_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", METADATA)
def test_addresses_of_cloud_metadata_are_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_known(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::ffff:168.63.129.16", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "::ffff:0:10.0.0.1", "::10.0.0.1", "::8.8.8.8", "2002:7f00:1::", "2002:808:808::1", "2001:0:808:808::1",
        "2a00:1450::5efe:10.0.0.1", "2a00:1450::200:5efe:10.0.0.1", "2a00:1450::200:5efe:8.8.8.8", "fe80::1%eth0",
    ],
)  # fmt: skip
def test_ipv4_wrapped_in_ipv6_reaches_nothing_that_is_private(address: str) -> None:
    assert not is_public(address)


def test_nothing_passes_that_this_python_calls_private() -> None:
    drawn = random.Random(1)
    addresses = [str(ipaddress.IPv4Address(drawn.getrandbits(32))) for _ in range(20_000)]
    addresses += [str(ipaddress.IPv6Address(drawn.getrandbits(128) >> drawn.randrange(4))) for _ in range(20_000)]
    passed = [address for address in addresses if is_public(address)]
    assert len(passed) > 10_000
    assert [address for address in passed if not ipaddress.ip_address(address).is_global] == []
