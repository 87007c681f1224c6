"""Probes of an attacker: port scans, single connections, and packets with a spoofed address."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.network.machine import NetworkMachine

SPOOFED_PORT = 20000
"""Source port of a spoofed packet, which no real connection has: below ``ip_local_port_range`` (32768 to 60999).

A SYN whose addresses and ports equal those of a recent connection gets no SYN-ACK, with or without the rule.
"""


def scan(machine: NetworkMachine, target: str, ports: str = "-") -> set[int]:
    """Return the TCP ports of ``target`` that respond with a SYN-ACK, by nmap on ``machine``."""
    family = ["-6"] if ":" in target else []
    argv = ["nmap", *family, "-n", "-Pn", "-sS", "--min-rate", "20000", "--max-retries", "2", "-T5", "--open"]
    output = machine.run(*argv, "-p", ports, "-oG", "-", target, timeout=100)
    assert "1 host up" in output, output
    return {int(port) for port in re.findall(r"(\d+)/open/tcp", output)}


def probe(machine: NetworkMachine, target: str, port: int, timeout_s: float = 1.5) -> str:
    """Return the result of a TCP connection: ``open``, ``refused``, ``silence`` or ``unreachable``."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with machine.socket(family) as channel:
        channel.settimeout(timeout_s)
        try:
            channel.connect((target, port))
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silence"
        except OSError:
            return "unreachable"
        return "open"


def probe_all(
    machine: NetworkMachine, targets: Iterable[tuple[str, int]], timeout_s: float = 1.0
) -> dict[tuple[str, int], str]:
    """Return the result of :func:`probe` for each address and port, concurrently."""
    listed = [*targets]
    with ThreadPoolExecutor(16) as pool:
        results = pool.map(lambda target: probe(machine, target[0], target[1], timeout_s), listed)
        return dict(zip(listed, results, strict=True))


def checksum(data: bytes) -> int:
    """Return the Internet checksum of ``data`` (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(source: str, target: str, port: int) -> bytes:
    """Return an IPv4 packet with a SYN for ``target`` from the address ``source``."""
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    tcp = struct.pack("!HHIIBBHHH", SPOOFED_PORT, port, 1, 0, 5 << 4, 0x02, 64240, 0, 0)
    tcp = tcp[:16] + struct.pack("!H", checksum(ends + struct.pack("!BBH", 0, 6, len(tcp)) + tcp)) + tcp[18:]
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + ends + tcp


def send_raw(machine: NetworkMachine, packet: bytes, target: str) -> None:
    """Send ``packet``, which has its own IP header, towards ``target``."""
    with machine.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(packet, (target, 0))


class PacketCounter:
    """A counter of packets on a machine, in a separate table of nftables."""

    def __init__(self, machine: NetworkMachine, hook: str, rule: str) -> None:
        self._machine = machine
        chain = f"chain seen {{ type filter hook {hook} priority 300; {rule} counter name seen\n }}"
        if hook == "prerouting":
            chain = chain.replace("priority 300", "priority -400")
        machine.run("nft", "-f", "-", stdin=f"table inet watch {{\n counter seen {{ }}\n {chain}\n}}\n")

    def __enter__(self) -> PacketCounter:
        return self

    def __exit__(self, *_: object) -> None:
        self._machine.run("nft", "delete", "table", "inet", "watch")

    @property
    def packets(self) -> int:
        """Return the number of packets so far."""
        found = re.search(r"packets (\d+)", self._machine.run("nft", "list", "counter", "inet", "watch", "seen"))
        assert found
        return int(found[1])


def wait_for_echo(machine: NetworkMachine, target: str) -> None:
    """Wait until all earlier packets to ``target`` have arrived: an echo request follows them on the same path."""
    machine.run("ping", "-c", "1", "-W", "5", "-n", target)
