"""Connections to checked addresses only.

Name and address are checked where the connection is made. One look-up returns the addresses; each of them is
checked; the connection uses one of them. A name that changes between check and connection has no effect. TLS and
the header Host still have the name.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address

import httpcore

from appliance.errors import PageError
from appliance.search.address_rule import AddressRule

Resolver = Callable[[str], Awaitable[Sequence[str]]]
"""A function from a host name to all of its addresses; it raises :class:`OSError` for an unknown name."""


async def system_addresses(host: str) -> Sequence[str]:
    """Return the addresses of ``host`` by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_own(address: str) -> bool:
    """Return whether ``address`` belongs to this host. No packet is sent.

    The kernel selects the address itself as the source of a packet to an address of its own.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            # Without a route, the connection fails as well.
            return False
        return ip_address(probe.getsockname()[0]) == ip_address(address)


class CheckedDialer(httpcore.AsyncNetworkBackend):
    """The network of one download: it dials addresses that its rule allows."""

    def __init__(self, rule: AddressRule, resolver: Resolver = system_addresses) -> None:
        self._rule = rule
        self._resolver = resolver
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature of the base class
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Return a connection to ``host``.

        Raises :class:`PageError` ``address_not_allowed`` if one of its addresses is not allowed, ``unknown_host``
        if it has none, and :class:`httpcore.ConnectError` if no address accepts the connection.
        """
        failure: Exception = httpcore.ConnectError("no address")
        for address in await self.addresses(host):
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def addresses(self, host: str) -> Sequence[str]:
        """Return the addresses of ``host``; raises as :meth:`connect_tcp`."""
        try:
            found = [str(ip_address(host))]
        except ValueError:
            try:
                found = list(await self._resolver(host))
            except (OSError, UnicodeError):
                found = []
        if not found:
            raise PageError("the host has no address", code="unknown_host")
        for address in found:
            if not self._rule.allows(address) or (is_own(address) and not self._rule.exempts(address)):
                raise PageError(
                    "the host has an address that is not public; only public pages are read",
                    code="address_not_allowed",
                )
        return found
