"""The Internet between the machines: one bridge, and what can be wrong with the lines that meet there."""

from __future__ import annotations

from pathlib import Path

from tests.network.machine import Machine

V4, V6 = "203.0.113.{}/24", "2001:db8::{}/64"


class Internet:
    """A bridge in a namespace of its own. Lines are known by the machine at their end."""

    def __init__(self, logs: Path) -> None:
        self.machine = Machine("internet", logs)
        self.machine.do("ip", "link", "add", "br0", "type", "bridge")
        self.machine.do("ip", "link", "set", "br0", "up")
        for address in (V4.format(1), V6.format(1)):
            self.machine.do("ip", "address", "add", address, "dev", "br0")
        self.machine.do(
            "nft",
            "-f",
            "-",
            given="table bridge line {\n chain forward { type filter hook forward priority 0; }\n}\n",
        )

    def plug(self, machine: Machine, *numbers: int) -> None:
        """Give ``machine`` a cable, and the addresses with these last numbers, in both families."""
        port = _port(machine)
        argv = ["ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid)]
        self.machine.do(*argv)
        self.machine.do("ip", "link", "set", port, "master", "br0", "up")
        machine.do("ip", "link", "set", "eth0", "up")
        for number in numbers:
            self.give(machine, number)
        machine.do("ip", "route", "replace", "default", "via", V4.format(1).partition("/")[0])

    def give(self, machine: Machine, number: int) -> None:
        """One more address."""
        machine.do("ip", "address", "add", V4.format(number), "dev", "eth0")
        machine.do("ip", "address", "add", V6.format(number), "dev", "eth0", "nodad")

    def take(self, machine: Machine, number: int) -> None:
        """One address less."""
        machine.do("ip", "address", "delete", V4.format(number), "dev", "eth0")
        machine.do("ip", "address", "delete", V6.format(number), "dev", "eth0")

    def cut(self, machine: Machine) -> None:
        """Nothing passes the line any more, and nobody is told."""
        self._only(machine, "drop")

    def lose(self, machine: Machine, percent: int) -> None:
        """Packets are lost at random, both ways."""
        self._only(machine, f"numgen random mod 100 < {percent} drop")

    def shrink(self, machine: Machine, mtu: int) -> None:
        """IPv4 packets over ``mtu`` bytes vanish, and no ICMP tells of it."""
        self._only(machine, f"ip length > {mtu} drop")

    def mend(self, machine: Machine) -> None:
        """The line is as it was."""
        self._only(machine, None)

    def _only(self, machine: Machine, rule: str | None) -> None:
        port = _port(machine)
        chain = f"chain {port.replace('-', '_')}"
        text = f"table bridge line {{\n {chain} {{ type filter hook forward priority 1; }}\n}}\n"
        text += f"flush {chain.replace('chain ', 'chain bridge line ')}\n"
        if rule is not None:
            text += f"table bridge line {{\n {chain} {{\n"
            text += f"  iifname {port} {rule}\n  oifname {port} {rule}\n }}\n}}\n"
        self.machine.do("nft", "-f", "-", given=text)

    def close(self) -> None:
        """Take it down."""
        self.machine.close()


def _port(machine: Machine) -> str:
    return f"to-{machine.name}"[:15]
