"""Which IP addresses belong to the public internet. The list is our own: Python's changes with its version.

Refused are the networks of IANA's special-purpose registries for IPv4 and IPv6 that are not globally reachable or hold
no hosts, and the metadata addresses of clouds. A network is refused as a whole, even where parts of it are global:
nobody serves pictures from there.
"""

from __future__ import annotations

import ipaddress

_REFUSED_IPV4 = (
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # shared by customers of a provider; 100.100.100.200 is Alibaba's metadata
    "127.0.0.0/8",  # loopback
    "168.63.129.16/32",  # Azure's host, from every virtual machine; otherwise a public network
    "169.254.0.0/16",  # link-local; 169.254.169.254 is most clouds' metadata
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # IETF protocol assignments; 192.0.0.192 is Oracle's metadata
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # relays of 6to4, deprecated
    "192.168.0.0/16",  # private
    "198.18.0.0/15",  # benchmarking
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
)
# All unicast addresses are assigned from here. Outside lie loopback, private (fc00::/7, with fd00:ec2::254, Amazon's
# metadata, and fd20:ce::254, Google's), link-local, site-local (fec0::/10), multicast, segment routing (5f00::/16),
# discard (100::/64), local NAT64 (64:ff9b:1::/48) and deprecated forms of IPv4.
_GLOBAL_IPV6 = "2000::/3"
_REFUSED_IPV6 = (
    "2001::/23",  # IETF protocol assignments: Teredo, benchmarking, ORCHID
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4
    "3fff::/20",  # documentation
)
# For these the embedded IPv4 address decides.
_WRAPPED_IPV4 = (
    "::ffff:0:0/96",  # mapped
    "64:ff9b::/96",  # NAT64
)
# ISATAP: an IPv4 address behind 0:5efe or 200:5efe, in any network.
_ISATAP, _ISATAP_MASK = 0x0000_5EFE, 0xFDFF_FFFF

_IPV4 = tuple(map(ipaddress.IPv4Network, _REFUSED_IPV4))
_IPV6 = tuple(map(ipaddress.IPv6Network, _REFUSED_IPV6))
_GLOBAL = ipaddress.IPv6Network(_GLOBAL_IPV6)
_WRAPPED = tuple(map(ipaddress.IPv6Network, _WRAPPED_IPV4))


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the public internet, looking into IPv4 wrapped in IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _IPV4)
    if any(ip in network for network in _WRAPPED):
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)))
    if (int(ip) >> 32) & _ISATAP_MASK == _ISATAP:
        return False
    return ip in _GLOBAL and not any(ip in network for network in _IPV6)
