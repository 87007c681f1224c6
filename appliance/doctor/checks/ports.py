"""Listening sockets. An engine beyond loopback is a failure, regardless of the firewall."""

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
"""Ports on which an ordinary host listens by itself; the firewall decides what reaches them."""


def judge_engine_ports(ports: dict[int, str], listeners: Sequence[Listener]) -> Iterator[Finding]:
    """Judge whether engines listen on loopback only: their control paths need no key (`/pause`, `/sleep`, …)."""
    for port, name in ports.items():
        mine = [one for one in listeners if one.protocol == "tcp" and one.port == port]
        open_ones = [one for one in mine if one.beyond_loopback]
        subject = f"engine {name}"
        if open_ones:
            yield fail(
                f"listens on {', '.join(map(str, open_ones))}",
                meaning=(
                    "Every client that reaches it can stop it without a key: "
                    "/pause, /sleep and /invocations need none."
                ),
                fix=f"remove `host` from its options; systemctl restart appliance-engine-{name}",
                subject=subject,
                cause="engine-exposed",
            )
        elif mine:
            yield ok(", ".join(map(str, mine)), subject=subject)
    yield from _judge_worker_ports(
        set(ports), {one.process.pid for one in _engine_sockets(ports, listeners) if one.process}, listeners
    )


def _engine_sockets(ports: dict[int, str], listeners: Sequence[Listener]) -> Iterator[Listener]:
    yield from (one for one in listeners if one.protocol == "tcp" and one.port in ports)


def _judge_worker_ports(ports: set[int], pids: set[int], listeners: Sequence[Listener]) -> Iterator[Finding]:
    """Judge further ports of engines: torch's TCPStore listens on every address, whatever the engine's options."""
    units = {one.process.unit for one in listeners if one.process and one.process.pid in pids and one.process.unit}
    for one in listeners:
        process = one.process
        if process is None or one.port in ports or not one.beyond_loopback:
            continue
        if process.pid in pids or process.unit in units:
            yield warn(
                f"{one} of {process.name} ({process.unit or process.pid})",
                meaning="Workers of an engine connect to it (TCPStore), and only the firewall blocks others.",
                fix="appliance doctor --only firewall",
                subject="engine's workers",
            )


def judge_gateway_port(address: str, port: int, listeners: Sequence[Listener]) -> Iterator[Finding]:
    """Judge whether the gateway listens on the site's address: loopback or the tunnel's."""
    mine = [one for one in listeners if one.protocol == "tcp" and one.port == port]
    others = [one for one in mine if str(one.address) != address]
    if not mine:
        yield fail(
            f"no process listens on {address}:{port}",
            meaning="No request gets a response.",
            fix="systemctl status appliance-gateway; journalctl -u appliance-gateway",
            subject="gateway",
            cause="gateway-not-listening",
        )
    elif others:
        yield fail(
            f"listens on {', '.join(map(str, others))}; the site has {address}",
            meaning="Keys and prompts would cross a network without TLS.",
            fix="systemctl restart appliance-gateway",
            subject="gateway",
        )
    else:
        yield ok(str(mine[0]), subject="gateway")


def judge_other_ports(
    machine: Machine, known: set[int], listeners: Sequence[Listener], tunnel_port: int | None
) -> Iterator[Finding]:
    """Judge whether a process listens on each opening of the machine, and on no other port beyond loopback.

    ``tunnel_port`` is WireGuard's current port, which is any free port on a host that only dials out.
    """
    openings = machine.firewall.openings if machine.firewall else ()
    for opening in openings:
        if opening.port in known:
            continue
        if not any((one.protocol, one.port) == (opening.protocol, opening.port) for one in listeners):
            yield fail(
                f"no process listens on {opening.port}/{opening.protocol}",
                meaning=f"{opening.by} does not run, or listens on another port.",
                fix="systemctl --failed",
                subject=opening.by,
                cause=f"{opening.by}-not-listening" if opening.by in {"edge", "tunnel"} else "",
            )
    wanted = {(o.protocol, o.port) for o in openings} | set(OWN_PORTS) | {("udp", tunnel_port)}
    unexpected = []
    for one in listeners:
        if not one.beyond_loopback or (one.protocol, one.port) in wanted or one.port in known:
            continue
        if one.process is not None and one.process.unit.startswith("appliance-engine-"):
            continue  # reported with its engine
        unexpected.append(one)
    for one in unexpected:
        yield warn(
            f"{one} of {one.process.name if one.process else 'a process that is not visible'}",
            meaning="The machine's description does not name it; only the firewall blocks others.",
            fix=(f"ss -lnp 'sport = :{one.port}'; disable it, or name it in appliance.network.firewall.extraInput"),
            subject=f"port {one.port}",
        )
    if not unexpected:
        yield ok("no other process listens beyond loopback", subject="others")


def _tunnel_port(host: HostReader, expected: Tunnel | None) -> int | None:
    if expected is None:
        return None
    try:
        state = read_state(host, expected.interface)
    except CannotLookError:
        return None  # `tunnel` reports it; the port then counts as unexpected
    return state.listen_port if state is not None else None


def described_host(context: CheckContext) -> NotApplicable | None:
    """Require a description with which to compare sockets."""
    return NotApplicable("nothing is described") if context.site is None and context.machine is None else None


@check(
    "ports",
    looks=("every listening socket: engines on loopback, the gateway on its address, no other beyond loopback"),
    means="An engine beyond loopback needs no key, and every client can stop it.",
    fix="remove `host` from the engine's options",
    requires=described_host,
    fault_domain="generation",
)
def check_ports(context: CheckContext, _: None) -> Iterator[Finding]:
    """Check every listening socket."""
    of_engines = {replica.port: replica.name for replica in context.replicas}
    known = set(of_engines)
    yield from judge_engine_ports(of_engines, context.listeners)
    if context.site is not None and context.has_gateway:
        gateway = context.site.gateway
        known.add(gateway.port)
        yield from judge_gateway_port(gateway.host, gateway.port, context.listeners)
    if context.machine is not None:
        yield from judge_other_ports(
            machine=context.machine,
            known=known,
            listeners=context.listeners,
            tunnel_port=_tunnel_port(context.host, context.machine.tunnel),
        )
