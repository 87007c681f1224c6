"""What an attacker does: scan ports, knock, and send packets under another's address."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.network.machine import NetworkMachine


def scan(machine: NetworkMachine, target: str, ports: str = "-") -> set[int]:
    """TCP ports that answer with a SYN-ACK, seen by nmap from ``machine``."""
    family = ["-6"] if ":" in target else []
    argv = ["nmap", *family, "-n", "-Pn", "-sS", "--min-rate", "20000", "--max-retries", "2", "-T5", "--open"]
    said = machine.do(*argv, "-p", ports, "-oG", "-", target, timeout=100)
    assert "1 host up" in said, said
    return {int(port) for port in re.findall(r"(\d+)/open/tcp", said)}


def knock(machine: NetworkMachine, target: str, port: int, timeout_s: float = 1.5) -> str:
    """What a TCP connection to ``target`` meets: ``open``, ``refused``, ``silence`` or ``unreachable``."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with machine.socket(family) as probe:
        probe.settimeout(timeout_s)
        try:
            probe.connect((target, port))
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silence"
        except OSError:
            return "unreachable"
        return "open"


def knocks(
    machine: NetworkMachine, doors: Iterable[tuple[str, int]], timeout_s: float = 1.0
) -> dict[tuple[str, int], str]:
    """:func:`knock` at many doors at once."""
    listed = [*doors]
    with ThreadPoolExecutor(16) as pool:
        met = pool.map(lambda door: knock(machine, door[0], door[1], timeout_s), listed)
        return dict(zip(listed, met, strict=True))


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(source: str, target: str, port: int) -> bytes:
    """An IPv4 packet that asks ``target`` for a TCP connection in the name of ``source``."""
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    tcp = struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 5 << 4, 0x02, 64240, 0, 0)
    tcp = tcp[:16] + struct.pack("!H", checksum(ends + struct.pack("!BBH", 0, 6, len(tcp)) + tcp)) + tcp[18:]
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + ends + tcp


def send_raw(machine: NetworkMachine, packet: bytes, target: str) -> None:
    """Send a packet with a header of our own making on the way to ``target``."""
    with machine.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(packet, (target, 0))


class PathWatch:
    """Counts packets on a machine, in a table of its own beside the firewall's."""

    def __init__(self, machine: NetworkMachine, hook: str, rule: str) -> None:
        self._machine = machine
        chain = f"chain seen {{ type filter hook {hook} priority 300; {rule} counter name seen\n }}"
        if hook == "prerouting":
            chain = chain.replace("priority 300", "priority -400")
        machine.do("nft", "-f", "-", given=f"table inet watch {{\n counter seen {{ }}\n {chain}\n}}\n")

    def __enter__(self) -> PathWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self._machine.do("nft", "delete", "table", "inet", "watch")

    @property
    def packets(self) -> int:
        """How many so far."""
        found = re.search(r"packets (\d+)", self._machine.do("nft", "list", "counter", "inet", "watch", "seen"))
        assert found
        return int(found[1])


def settled(machine: NetworkMachine, target: str) -> None:
    """Wait until everything sent before on this way has arrived: an echo takes the same way behind it."""
    machine.do("ping", "-c", "1", "-W", "5", "-n", target)
