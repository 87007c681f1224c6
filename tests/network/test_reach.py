"""Case 2: connections that bypass the edge. Each is closed, and open in a control without its rule."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from tests.network.machine import NetworkMachine
from tests.network.probes import PacketCounter, probe, probe_all, scan, send_raw, syn, wait_for_echo
from tests.network.site import NUMBERS, NetworkSite, address

RecordRow = Callable[[str, str, str], None]
LEFT_OPEN = (22, 2375, 3000, 9100)
"""Ports of listeners on every address of every host: sshd, and forgotten services."""
DECLARED = {"vps-a": {22, 80, 443}, "gpu": set[int]()}
"""Ports that the modules open to the Internet. SSH of the GPU host is for private networks and the tunnel."""
GATEWAY, ENGINES = 8000, (8101, 8102)


def address6(name: str) -> str:
    return f"2001:db8::{NUMBERS[name]}"


@pytest.fixture(scope="module", autouse=True)
def left_open(site: NetworkSite) -> Iterator[None]:
    with ExitStack() as stack:
        for host in site.hosts.values():
            for port in LEFT_OPEN:
                listener = stack.enter_context(host.machine.socket(socket.AF_INET6))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("::", port))
                listener.listen(16)
        yield


@contextmanager
def route(machine: NetworkMachine, network: str, via: str) -> Iterator[None]:
    """Route packets of ``machine`` for ``network`` to ``via``."""
    machine.run("ip", "route", "replace", network, "via", via)
    try:
        yield
    finally:
        machine.run("ip", "route", "delete", network)


def without_rules(site: NetworkSite, name: str) -> ExitStack:
    """Delete the firewall table of a host; the returned stack restores it."""
    host = site.hosts[name]
    stack = ExitStack()
    host.machine.run("nft", "delete", "table", "inet", "appliance")
    stack.callback(host.restart, "nftables")
    return stack


def test_a_full_scan_finds_only_the_declared_ports(site: NetworkSite, record_row: RecordRow) -> None:
    targets = [(name, family(name)) for name in DECLARED for family in (address, address6)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda target: scan(site.attacker, target[1]), targets))
    for (name, target), ports in zip(targets, found, strict=True):
        assert ports == DECLARED[name], target
    seen = "; ".join(
        f"{target}: {sorted(ports) or 'none'}" for (_, target), ports in zip(targets, found, strict=True)
    )
    record_row("2 port scan, 65535 ports, IPv4 and IPv6", "VPS 22, 80, 443; GPU host none", seen)


def test_control_a_scan_without_rules_finds_the_listeners(site: NetworkSite) -> None:
    with without_rules(site, "gpu"):
        for target in (address("gpu"), address6("gpu")):
            assert scan(site.attacker, target, "22,2375,3000,8000,9100") >= set(LEFT_OPEN)


@pytest.mark.parametrize("origin", ["client", "attacker", "vps-a"])
def test_the_gpu_host_is_reachable_only_through_the_tunnel(
    site: NetworkSite, origin: str, record_row: RecordRow
) -> None:
    machine = {"client": site.client.machine, "attacker": site.attacker}.get(origin) or site.hosts[origin].machine
    targets, ports = (address("gpu"), address6("gpu")), (GATEWAY, *ENGINES, *LEFT_OPEN)
    results = probe_all(machine, [(target, port) for target in targets for port in ports])
    assert set(results.values()) == {"silence"}, results
    record_row(
        f"2 {origin} to the GPU host outside the tunnel",
        "silence at gateway, engines and SSH",
        "silence at 14 of 14",
    )


def test_tunnel_addresses_are_unreachable_from_outside(site: NetworkSite, record_row: RecordRow) -> None:
    """Linux accepts packets for its addresses at any interface, so a neighbour may try those of the tunnel."""
    for via in ("gpu", "vps-a"):
        with route(site.attacker, "10.77.0.0/24", address(via)):
            results = probe_all(site.attacker, [("10.77.0.1", port) for port in (GATEWAY, *ENGINES, 22)])
            assert set(results.values()) == {"silence"}, (via, results)
    record_row("2 attacker to 10.77.0.1 by way of GPU host or VPS", "silence", "silence")


def test_control_without_rules_a_neighbour_reaches_the_gateway(site: NetworkSite) -> None:
    with without_rules(site, "gpu"), route(site.attacker, "10.77.0.0/24", address("gpu")):
        assert probe(site.attacker, "10.77.0.1", GATEWAY) == "open"
        assert [probe(site.attacker, "10.77.0.1", port) for port in ENGINES] == ["refused", "refused"]


def test_inside_the_tunnel_only_the_gateway_and_ssh_are_open(site: NetworkSite, record_row: RecordRow) -> None:
    vps = site.hosts["vps-a"].machine
    ports = ",".join(str(port) for port in (GATEWAY, *ENGINES, *LEFT_OPEN, 80, 443, 51820))
    assert scan(vps, "10.77.0.1", ports) == {GATEWAY, 22}
    gpu = site.hosts["gpu"].machine
    assert scan(gpu, "10.77.0.2", ports) == {22, 80, 443}
    record_row("2 VPS to the GPU host through the tunnel", "8000 and 22", "8000 and 22")


def test_packets_with_spoofed_tunnel_addresses_get_no_response(site: NetworkSite, record_row: RecordRow) -> None:
    """A SYN with the address of the VPS gets no response, from the Internet or from another peer."""
    gpu, vps = site.hosts["gpu"].machine, site.hosts["vps-a"].machine
    responses = f"tcp sport {GATEWAY} tcp flags & (syn | ack) == syn | ack"
    with PacketCounter(gpu, "output", f"oifname wg0 ip daddr 10.77.0.2 {responses}") as watch:
        with route(site.attacker, "10.77.0.1/32", address("gpu")):
            for _ in range(3):
                send_raw(site.attacker, syn("10.77.0.2", "10.77.0.1", GATEWAY), "10.77.0.1")
        wait_for_echo(site.attacker, address("gpu"))
        assert watch.packets == 0
    with PacketCounter(gpu, "prerouting", "iifname wg0 ip saddr { 10.77.0.4, 203.0.113.66 }") as watch:
        for source in ("10.77.0.4", "203.0.113.66"):
            send_raw(vps, syn(source, "10.77.0.1", GATEWAY), "10.77.0.1")
        wait_for_echo(vps, "10.77.0.1")
        assert watch.packets == 0
    record_row("2 spoofed tunnel addresses", "no response, from outside or from another peer", "0 packets")


def test_control_spoofed_packets_arrive_without_the_rule(site: NetworkSite) -> None:
    gpu, vps = site.hosts["gpu"].machine, site.hosts["vps-a"].machine
    responses = f"tcp sport {GATEWAY} tcp flags & (syn | ack) == syn | ack"
    loose = site.hosts["gpu"].edited("nftables", lambda text: text.replace('iifname "wg0" ip saddr', "ip saddr"))
    out = PacketCounter(gpu, "output", f"oifname wg0 ip daddr 10.77.0.2 {responses}")
    with loose, route(site.attacker, "10.77.0.1/32", address("gpu")), out as watch:
        send_raw(site.attacker, syn("10.77.0.2", "10.77.0.1", GATEWAY), "10.77.0.1")
        wait_for_echo(site.attacker, address("gpu"))
        assert watch.packets > 0
    with PacketCounter(gpu, "prerouting", "iifname wg0 ip saddr 10.77.0.2 tcp dport 8000") as watch:
        send_raw(vps, syn("10.77.0.2", "10.77.0.1", GATEWAY), "10.77.0.1")
        wait_for_echo(vps, "10.77.0.1")
        assert watch.packets > 0


def test_udp_gets_no_response(site: NetworkSite, record_row: RecordRow) -> None:
    """The port of WireGuard sends nothing to an unknown peer, and other ports get no packet."""
    vps = site.hosts["vps-a"].machine
    with (
        vps.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
        PacketCounter(
            vps, "output", f"oifname eth0 ip daddr {address('attacker')} meta l4proto != tcp ip protocol != icmp"
        ) as watch,
    ):
        listener.bind(("0.0.0.0", 5353))
        listener.setblocking(False)
        with site.attacker.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for port in (5353, 51820):
                stranger.sendto(b"\1\0\0\0" + bytes(144), (address("vps-a"), port))
        wait_for_echo(site.attacker, address("vps-a"))
        with pytest.raises(BlockingIOError):
            listener.recv(1)
        assert watch.packets == 0
        with without_rules(site, "vps-a"):  # the control
            with site.attacker.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                stranger.sendto(b"x", (address("vps-a"), 5353))
            wait_for_echo(site.attacker, address("vps-a"))
            assert listener.recv(1) == b"x"
    record_row("2 UDP", "WireGuard silent to unknown peers, other ports closed", "0 responses, 0 received")
