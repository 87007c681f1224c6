"""The Internet between the machines: one bridge, and what can be wrong with the lines that meet there."""

from __future__ import annotations

from pathlib import Path

from tests.network.machine import NetworkMachine

V4, V6 = "203.0.113.{}/24", "2001:db8::{}/64"


class Internet:
    """A bridge in a namespace of its own. Lines are known by the machine at their end."""

    def __init__(self, logs: Path) -> None:
        self.machine = NetworkMachine("internet", logs)
        self.machine.do("ip", "link", "add", "br0", "type", "bridge")
        self.machine.do("ip", "link", "set", "br0", "up")
        for address in (V4.format(1), V6.format(1)):
            self.machine.do("ip", "address", "add", address, "dev", "br0")
        # Private addresses lead nowhere, and its routers say so.
        self.machine.do("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.machine.do("ip", "route", "add", "unreachable", "10.0.0.0/8")
        self.machine.do(
            "nft",
            "-f",
            "-",
            given="table bridge line {\n chain forward { type filter hook forward priority 0; }\n}\n",
        )

    def plug(self, machine: NetworkMachine, *numbers: int) -> None:
        """Give ``machine`` a cable, and the addresses with these last numbers, in both families."""
        port = _port(machine)
        argv = ["ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid)]
        self.machine.do(*argv)
        self.machine.do("ip", "link", "set", port, "master", "br0", "up")
        # Packets as they are on a wire, not several in one: what drops large ones has to see them.
        for owner, device in ((self.machine, port), (machine, "eth0")):
            owner.do("ip", "link", "set", device, "gso_max_segs", "1")
        # A machine that boots again has the network card that it had; its neighbours remember it.
        machine.do("ip", "link", "set", "eth0", "address", f"02:00:00:00:00:{numbers[0]:02x}")
        machine.do("ip", "link", "set", "eth0", "up")
        for number in numbers:
            self.give(machine, number)

    def unplug(self, machine: NetworkMachine) -> None:
        """Pull the cable out, for good."""
        self.machine.do("ip", "link", "delete", _port(machine))

    def give(self, machine: NetworkMachine, number: int) -> None:
        """One more address."""
        machine.do("ip", "address", "add", V4.format(number), "dev", "eth0")
        machine.do("ip", "address", "add", V6.format(number), "dev", "eth0", "nodad")
        machine.do("ip", "route", "replace", "default", "via", V4.format(1).partition("/")[0])

    def take(self, machine: NetworkMachine, number: int) -> None:
        """One address less."""
        machine.do("ip", "address", "delete", V4.format(number), "dev", "eth0")
        machine.do("ip", "address", "delete", V6.format(number), "dev", "eth0")

    def cut(self, machine: NetworkMachine) -> None:
        """Nothing passes the line any more, and nobody is told."""
        self._only(machine, "drop")

    def part(self, machine: NetworkMachine, address: str) -> None:
        """Nothing passes between ``machine`` and ``address``; to all others both lines work."""
        self._only(machine, f"ip saddr {address} drop", f"ip daddr {address} drop")

    def renumber(self, machine: NetworkMachine, number: int, other: int) -> None:
        """The home router of ``machine`` gets another address, and the machine behind it is not told.

        Its packets bear ``other`` from now on, and no way leads to the old one.
        """
        old, new = (V4.format(n).partition("/")[0] for n in (number, other))
        machine.do("ip", "address", "add", V4.format(other), "dev", "eth0")
        port = _port(machine)
        out = f"iifname {port} ip saddr {old} ip saddr set {new}"
        into = [f"oifname {port} ip daddr {old} drop", f"oifname {port} ip daddr {new} ip daddr set {old}"]
        self._load(machine, [*into, out])

    def lose(self, machine: NetworkMachine, percent: int) -> None:
        """Packets are lost at random, both ways."""
        self._only(machine, f"numgen random mod 100 < {percent} drop")

    def shrink(self, machine: NetworkMachine, mtu: int) -> None:
        """IPv4 packets over ``mtu`` bytes vanish, and no ICMP tells of it."""
        self._only(machine, f"ip length > {mtu} drop")

    def mend(self, machine: NetworkMachine) -> None:
        """The line is as it was."""
        self._only(machine)

    def _only(self, machine: NetworkMachine, *rules: str) -> None:
        port = _port(machine)
        self._load(machine, [f"{way} {port} {rule}" for rule in rules for way in ("iifname", "oifname")])

    def _load(self, machine: NetworkMachine, lines: list[str]) -> None:
        """Give the line these rules, and no others."""
        port = _port(machine)
        chain = f"chain {port.replace('-', '_')}"
        text = f"table bridge line {{\n {chain} {{ type filter hook forward priority 1; }}\n}}\n"
        text += f"flush {chain.replace('chain ', 'chain bridge line ')}\n"
        text += f"table bridge line {{\n {chain} {{\n" + "".join(f"  {line}\n" for line in lines) + " }\n}\n"
        self.machine.do("nft", "-f", "-", given=text)

    def close(self) -> None:
        """Take it down."""
        self.machine.close()


def _port(machine: NetworkMachine) -> str:
    return f"to-{machine.name}"[:15]
