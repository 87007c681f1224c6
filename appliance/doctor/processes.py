"""Reads listening sockets from /proc/net/{tcp,udp}* and the process of each from /proc/PID."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

from appliance.doctor.host import CannotLookError, HostReader

LISTEN, UNCONNECTED = "0A", "07"
"""States of a listening TCP socket and of an unconnected UDP socket (include/net/tcp_states.h)."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A running process; a text is empty if it may not be read."""

    pid: int
    name: str
    unit: str
    program: str


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that accepts connections or datagrams."""

    protocol: Literal["tcp", "udp"]
    address: IPv4Address | IPv6Address
    port: int
    process: ProcessInfo | None

    @property
    def beyond_loopback(self) -> bool:
        """Return whether another machine could reach it without a firewall."""
        inner = self.address.ipv4_mapped if isinstance(self.address, IPv6Address) else None
        return not (inner or self.address).is_loopback

    def __str__(self) -> str:
        address = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{address}:{self.port}/{self.protocol}"


def read_listeners(host: HostReader) -> list[Listener]:
    """Return every listening socket of this network namespace.

    The process of a socket is ``None`` if it may not be read. Raises :class:`CannotLookError` without /proc/net.
    """
    if host.text("/proc/net/tcp") is None:
        raise CannotLookError("/proc/net/tcp does not exist", "run `appliance doctor` on the host itself")
    owners = _owners(host)
    found = []
    for protocol in ("tcp", "udp"):
        for family in ("", "6"):
            for address, port, inode in _sockets(host.text(f"/proc/net/{protocol}{family}") or "", protocol):
                process = read_process(host, owners[inode]) if inode in owners else None
                found.append(
                    Listener(
                        protocol="tcp" if protocol == "tcp" else "udp", address=address, port=port, process=process
                    )
                )
    return sorted(found, key=lambda one: (one.protocol, one.port, str(one.address)))


def _sockets(text: str, protocol: str) -> Iterator[tuple[IPv4Address | IPv6Address, int, int]]:
    state = LISTEN if protocol == "tcp" else UNCONNECTED
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == state:
            address, _, port = words[1].partition(":")
            yield parse_address(address), int(port, 16), int(words[9])


def parse_address(text: str) -> IPv4Address | IPv6Address:
    """Parse ``0100007F`` as 127.0.0.1: 32-bit words in the byte order of the machine (little-endian here)."""
    raw = bytes.fromhex(text)
    words = [raw[i : i + 4][::-1] for i in range(0, len(raw), 4)]
    return ip_address(b"".join(words))


def _owners(host: HostReader) -> dict[int, int]:
    """Return the process by inode of a socket: the lowest process number, which is the parent of forked ones."""
    owners: dict[int, int] = {}
    for pid in sorted(int(name) for name in host.folder("/proc") if name.isdigit()):
        for handle in host.folder(f"/proc/{pid}/fd"):
            match = re.fullmatch(r"socket:\[(\d+)]", host.link(f"/proc/{pid}/fd/{handle}") or "")
            if match:
                owners.setdefault(int(match[1]), pid)
    return owners


def read_process(host: HostReader, pid: int) -> ProcessInfo:
    """Read the process ``pid``."""
    unit = re.search(r"/([^/\n]+\.service)(?:/|$)", host.text(f"/proc/{pid}/cgroup") or "", re.MULTILINE)
    name = (host.text(f"/proc/{pid}/comm") or "?").strip()
    return ProcessInfo(
        pid=pid, name=name, unit=unit[1] if unit else "", program=host.link(f"/proc/{pid}/exe") or ""
    )
