"""Which addresses the fetcher may dial. Pure: the rule is data, and :meth:`AddressRule.allows` is its only reader.

Only global unicast addresses are allowed. IPv4 has a list of exceptions, from IANA's registry of special-purpose
addresses. IPv6 has one allowed block, ``2000::/3``, and exceptions in it. So an address that contains an IPv4
address is refused: v4-mapped (``::ffff:0:0/96``), NAT64 (``64:ff9b::/96``, ``64:ff9b:1::/48``), 6to4, Teredo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

GLOBAL_V6 = IPv6Network("2000::/3")
SPECIAL: tuple[Network, ...] = tuple(
    ip_network(one)
    for one in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
"""Blocks that are not public hosts, as of 2026."""


@dataclass(frozen=True, slots=True)
class AddressRule:
    """The addresses that may be dialled.

    ``denied`` are networks beyond :data:`SPECIAL`, such as the public address of the own home. ``exempt`` are
    allowed in spite of everything: only a test has some, and no option or variable sets them.
    """

    denied: Sequence[Network] = ()
    exempt: Sequence[Network] = ()

    def allows(self, address: str) -> bool:
        """Return whether ``address``, in the form that the system's resolver returns, may be dialled.

        A text that is not an address is not allowed. Neither is one with a zone (``fe80::1%eth0``).
        """
        try:
            found = ip_address(address)
        except ValueError:
            return False
        if self.exempts(address):
            return True
        if isinstance(found, IPv6Address) and (found.scope_id is not None or found not in GLOBAL_V6):
            return False
        return not _within(found, SPECIAL) and not _within(found, self.denied)

    def exempts(self, address: str) -> bool:
        """Return whether ``address``, which is valid, is exempt from all checks."""
        return _within(ip_address(address), self.exempt)


def _within(address: IPv4Address | IPv6Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
