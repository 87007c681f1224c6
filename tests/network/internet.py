"""The Internet between the machines: one bridge, and the failures of the lines that it connects."""

from __future__ import annotations

from pathlib import Path

from tests.network.machine import NetworkMachine

V4, V6 = "203.0.113.{}/24", "2001:db8::{}/64"


class Internet:
    """A bridge in its own namespace. Each line is named by the machine at its end."""

    def __init__(self, logs: Path) -> None:
        self.machine = NetworkMachine("internet", logs)
        self.machine.run("ip", "link", "add", "br0", "type", "bridge")
        self.machine.run("ip", "link", "set", "br0", "up")
        for address in (V4.format(1), V6.format(1)):
            self.machine.run("ip", "address", "add", address, "dev", "br0")
        # The routers of the Internet report private addresses as unreachable.
        self.machine.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.machine.run("ip", "route", "add", "unreachable", "10.0.0.0/8")
        self.machine.run(
            "nft",
            "-f",
            "-",
            stdin="table bridge line {\n chain forward { type filter hook forward priority 0; }\n}\n",
        )

    def plug(self, machine: NetworkMachine, *numbers: int) -> None:
        """Connect ``machine`` with the addresses of these last numbers, in both families."""
        port = _port(machine)
        argv = ["ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid)]
        self.machine.run(*argv)
        self.machine.run("ip", "link", "set", port, "master", "br0", "up")
        # Single packets as on a wire, without offload: a line that drops large ones must see their size.
        for owner, device in ((self.machine, port), (machine, "eth0")):
            owner.run("ip", "link", "set", device, "gso_max_segs", "1")
        # A machine keeps its network card over a boot; its neighbours have the address in their cache.
        machine.run("ip", "link", "set", "eth0", "address", f"02:00:00:00:00:{numbers[0]:02x}")
        machine.run("ip", "link", "set", "eth0", "up")
        for number in numbers:
            self.add_address(machine, number)

    def unplug(self, machine: NetworkMachine) -> None:
        """Disconnect ``machine`` permanently."""
        self.machine.run("ip", "link", "delete", _port(machine))

    def add_address(self, machine: NetworkMachine, number: int) -> None:
        """Add an address to ``machine``."""
        machine.run("ip", "address", "add", V4.format(number), "dev", "eth0")
        machine.run("ip", "address", "add", V6.format(number), "dev", "eth0", "nodad")
        machine.run("ip", "route", "replace", "default", "via", V4.format(1).partition("/")[0])

    def cut(self, machine: NetworkMachine) -> None:
        """Drop all packets on the line silently."""
        self._only(machine, "drop")

    def separate(self, machine: NetworkMachine, address: str) -> None:
        """Drop all packets between ``machine`` and ``address``; all other connections work."""
        self._only(machine, f"ip saddr {address} drop", f"ip daddr {address} drop")

    def renumber(self, machine: NetworkMachine, number: int, other: int) -> None:
        """Change the public address of the home router of ``machine``, which is not informed.

        Its packets have the address ``other`` from now on, and the old address is unreachable.
        """
        old, new = (V4.format(n).partition("/")[0] for n in (number, other))
        machine.run("ip", "address", "add", V4.format(other), "dev", "eth0")
        port = _port(machine)
        out = f"iifname {port} ip saddr {old} ip saddr set {new}"
        into = [f"oifname {port} ip daddr {old} drop", f"oifname {port} ip daddr {new} ip daddr set {old}"]
        self._load(machine, [*into, out])

    def drop_packets(self, machine: NetworkMachine, percent: int) -> None:
        """Drop this percentage of packets at random, in both directions."""
        self._only(machine, f"numgen random mod 100 < {percent} drop")

    def limit_packets(self, machine: NetworkMachine, mtu: int) -> None:
        """Drop IPv4 packets over ``mtu`` bytes silently, without an ICMP."""
        self._only(machine, f"ip length > {mtu} drop")

    def restore(self, machine: NetworkMachine) -> None:
        """Remove all failures of the line."""
        self._only(machine)

    def _only(self, machine: NetworkMachine, *rules: str) -> None:
        port = _port(machine)
        self._load(
            machine, [f"{direction} {port} {rule}" for rule in rules for direction in ("iifname", "oifname")]
        )

    def _load(self, machine: NetworkMachine, lines: list[str]) -> None:
        """Replace the rules of the line."""
        port = _port(machine)
        chain = f"chain {port.replace('-', '_')}"
        text = f"table bridge line {{\n {chain} {{ type filter hook forward priority 1; }}\n}}\n"
        text += f"flush {chain.replace('chain ', 'chain bridge line ')}\n"
        text += f"table bridge line {{\n {chain} {{\n" + "".join(f"  {line}\n" for line in lines) + " }\n}\n"
        self.machine.run("nft", "-f", "-", stdin=text)

    def close(self) -> None:
        """Remove the bridge."""
        self.machine.close()


def _port(machine: NetworkMachine) -> str:
    return f"to-{machine.name}"[:15]
