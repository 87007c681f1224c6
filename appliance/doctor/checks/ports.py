"""Judges who listens where. An engine beyond loopback is a failure, whatever the firewall does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance.contract.machine import Machine, Tunnel
from appliance.doctor.check import (
    NotApplicable,
    check,
)
from appliance.doctor.checks.tunnel import read_state
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, warn
from appliance.doctor.host import CannotLookError, HostReader
from appliance.doctor.processes import Listener

OWN_PORTS = {("udp", 68): "DHCP", ("udp", 546): "DHCPv6", ("udp", 5353): "mDNS"}
"""What an ordinary host listens to by itself; the firewall's table decides what reaches it."""


def judge_engine_ports(ports: dict[int, str], listeners: Sequence[Listener]) -> Iterator[Finding]:
    """Engines listen on loopback and nowhere else: their control paths know no key (`/pause`, `/sleep`, …)."""
    for port, name in ports.items():
        mine = [one for one in listeners if one.protocol == "tcp" and one.port == port]
        open_ones = [one for one in mine if one.beyond_loopback]
        subject = f"engine {name}"
        if open_ones:
            yield fail(
                f"listens on {', '.join(map(str, open_ones))}",
                meaning=(
                    "Whoever reaches it needs no key, and can stop it: /pause, "
                    "/sleep and /invocations ask for none."
                ),
                fix=f"remove `host` from its options; systemctl restart appliance-engine-{name}",
                subject=subject,
                cause="engine-exposed",
            )
        elif mine:
            yield ok(", ".join(map(str, mine)), subject=subject)
    yield from _strays(set(ports), {one.process.pid for one in _of(ports, listeners) if one.process}, listeners)


def _of(ports: dict[int, str], listeners: Sequence[Listener]) -> Iterator[Listener]:
    yield from (one for one in listeners if one.protocol == "tcp" and one.port in ports)


def _strays(ports: set[int], pids: set[int], listeners: Sequence[Listener]) -> Iterator[Finding]:
    """Further ports of engines: torch's TCPStore listens on every address, whatever the engine was told."""
    units = {one.process.unit for one in listeners if one.process and one.process.pid in pids and one.process.unit}
    for one in listeners:
        process = one.process
        if process is None or one.port in ports or not one.beyond_loopback:
            continue
        if process.pid in pids or process.unit in units:
            yield warn(
                f"{one} of {process.name} ({process.unit or process.pid})",
                meaning="Workers of an engine meet there (TCPStore), and only the firewall keeps others out.",
                fix="appliance doctor --only firewall",
                subject="engine's workers",
            )


def judge_gateway_port(address: str, port: int, listeners: Sequence[Listener]) -> Iterator[Finding]:
    """The gateway listens where the site says: loopback or the tunnel's address."""
    mine = [one for one in listeners if one.protocol == "tcp" and one.port == port]
    wrong = [one for one in mine if str(one.address) != address]
    if not mine:
        yield fail(
            f"nothing listens on {address}:{port}",
            meaning="Nobody gets an answer.",
            fix="systemctl status appliance-gateway; journalctl -u appliance-gateway",
            subject="gateway",
            cause="gateway-not-listening",
        )
    elif wrong:
        yield fail(
            f"listens on {', '.join(map(str, wrong))}; the site says {address}",
            meaning="Keys and prompts would cross a network without TLS.",
            fix="systemctl restart appliance-gateway",
            subject="gateway",
        )
    else:
        yield ok(str(mine[0]), subject="gateway")


def judge_other_ports(
    machine: Machine, known: set[int], listeners: Sequence[Listener], tunnel_port: int | None
) -> Iterator[Finding]:
    """What the machine opens is listened to, and nothing else listens beyond loopback.

    ``tunnel_port`` is where WireGuard listens now; one that only dials out takes any free port.
    """
    openings = machine.firewall.openings if machine.firewall else ()
    for opening in openings:
        if opening.port in known:
            continue
        if not any((one.protocol, one.port) == (opening.protocol, opening.port) for one in listeners):
            yield fail(
                f"nothing listens on {opening.port}/{opening.protocol}",
                meaning=f"{opening.by} does not run, or not there.",
                fix="systemctl --failed",
                subject=opening.by,
                cause=f"{opening.by}-not-listening" if opening.by in {"edge", "tunnel"} else "",
            )
    wanted = {(o.protocol, o.port) for o in openings} | set(OWN_PORTS) | {("udp", tunnel_port)}
    strangers = []
    for one in listeners:
        if not one.beyond_loopback or (one.protocol, one.port) in wanted or one.port in known:
            continue
        if one.process is not None and one.process.unit.startswith("appliance-engine-"):
            continue  # said above
        strangers.append(one)
    for one in strangers:
        yield warn(
            f"{one} of {one.process.name if one.process else 'a process one may not see'}",
            meaning="The machine does not name it; only the firewall keeps others out.",
            fix=(
                f"ss -lnp 'sport = :{one.port}'; switch it off, or name it in appliance.network.firewall.extraInput"
            ),
            subject=f"port {one.port}",
        )
    if not strangers:
        yield ok("nothing else listens beyond loopback", subject="others")


def _tunnel_port(host: HostReader, expected: Tunnel | None) -> int | None:
    if expected is None:
        return None
    try:
        state = read_state(host, expected.interface)
    except CannotLookError:
        return None  # `tunnel` says so; here its port then counts as a stranger's
    return state.listen_port if state is not None else None


def described_host(context: CheckContext) -> NotApplicable | None:
    """A description to hold sockets against."""
    return NotApplicable("nothing is described") if context.site is None and context.machine is None else None


@check(
    "ports",
    looks=(
        "every listening socket: engines on loopback, the gateway where it should be, nothing else beyond loopback"
    ),
    means="An engine that others reach needs no key and can be stopped by anyone.",
    fix="remove `host` from the engine's options",
    requires=described_host,
    fault_domain="generation",
)
def check_ports(context: CheckContext, _: None) -> Iterator[Finding]:
    """Every listening socket."""
    of_engines = {replica.port: replica.name for replica in context.replicas}
    known = set(of_engines)
    yield from judge_engine_ports(of_engines, context.listeners)
    if context.site is not None and context.has_gateway:
        gateway = context.site.gateway
        known.add(gateway.port)
        yield from judge_gateway_port(gateway.host, gateway.port, context.listeners)
    if context.machine is not None:
        yield from judge_other_ports(
            context.machine, known, context.listeners, _tunnel_port(context.host, context.machine.tunnel)
        )
