"""A peer of the tunnel is silent: is it this generation's fault, or that of the other end?

WireGuard says nothing to whom it does not know, so a wrong key, a wrong port and a VPS without power look the same
from here. What tells them apart is on this side: with which keys, endpoint and port the peer last shook hands on
this machine, under whatever generation, and whether this host still reaches the first hop towards it. A generation
that changed neither can do nothing about a silence beyond that hop. Where there is no such evidence the generation
is taken to be at fault: one that cuts a distant machine off must not become its default.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from appliance.contract.machine import Tunnel
from appliance.doctor.checks.tunnel import DEAD_AFTER_S, TunnelState, read_state
from appliance.doctor.finding import FaultDomain, Finding
from appliance.doctor.host import CannotLookError, HostReader
from appliance.errors import StoreError
from appliance.upgrade.state_file import replace_file

NAME = "handshakes.json"
"""In the folder of the reports: with what each peer last shook hands, by its public key."""

WAIT_S = 30.0
"""Six attempts: WireGuard begins a handshake anew every 5 s (REKEY_TIMEOUT of its paper)."""
BETWEEN_LOOKS_S = 1.0

SILENT = frozenset({"wireguard-no-handshake", "wireguard-stale"})
"""Causes of the doctor's ``tunnel`` that leave open whose fault it is."""

ANSWERED = frozenset({"REACHABLE", "STALE", "DELAY", "PROBE", "PERMANENT"})
"""States of a neighbour that has answered; one that no longer does is FAILED or INCOMPLETE within seconds, for
WireGuard keeps sending (ip-neighbour(8))."""

IFF_NOARP = 0x80
"""A link without neighbours, such as PPP (netdevice(7))."""


@dataclass(frozen=True, slots=True)
class LocalPeer:
    """What this side brings to a handshake: its own public key, the peer's, where it dials, where it listens."""

    own: str | None
    peer: str
    endpoint: str | None
    listen_port: int | None


@dataclass(frozen=True, slots=True)
class Hop:
    """The first hop towards an endpoint: device and neighbour of the route there, and whether that one answers."""

    device: str
    address: str
    answers: bool


def fault_domain(line: LocalPeer, last: LocalPeer | None, hop: Hop | None) -> tuple[FaultDomain, str]:
    """Whose fault the silence of ``line``'s peer is, and the evidence in words.

    ``last`` is the line with which it last shook hands on this machine, ``hop`` the first one towards it now;
    either is ``None`` where nothing is known.
    """
    if last is None:
        return "generation", "it has never shaken hands on this machine"
    parts = {"own": "key of this host", "peer": "key of the peer", "endpoint": "endpoint", "listen_port": "port"}
    changed = [f"another {what}" for name, what in parts.items() if getattr(line, name) != getattr(last, name)]
    if changed:
        return "generation", f"the last handshake was with {' and '.join(changed)}"
    if hop is None:
        return "generation", f"this host has no way to {line.endpoint or 'it'}"
    if not hop.answers:
        return "generation", f"{hop.address} on {hop.device}, the first hop towards it, does not answer"
    return (
        "external",
        f"keys, endpoint and port are those of the last handshake, and the first hop {hop.address} answers",
    )


def lines(tunnel: Tunnel, state: TunnelState) -> dict[str, LocalPeer]:
    """Each peer's line by its name; the own key as WireGuard has loaded it, the rest as the machine says."""
    return {
        name: LocalPeer(state.public_key, peer.public_key, peer.endpoint, tunnel.listen_port)
        for name, peer in tunnel.peers.items()
    }


def alive(tunnel: Tunnel, state: TunnelState, now: float) -> frozenset[str]:
    """The names of peers whose session lives."""
    at = {peer.public_key: peer.handshake for peer in state.peers}
    shaken = {name: at.get(peer.public_key) for name, peer in tunnel.peers.items()}
    return frozenset(name for name, when in shaken.items() if when is not None and now - when <= DEAD_AFTER_S)


def wait(host: HostReader, tunnel: Tunnel, wait_s: float = WAIT_S) -> None:
    """Give every peer time for its first handshake after a boot or a switch; returns once all have had it."""
    clock = time.monotonic()
    while time.monotonic() < clock + wait_s:
        try:
            state = read_state(host, tunnel.interface)
        except CannotLookError:
            return  # `tunnel` says so
        if state is None or len(alive(tunnel, state, time.time())) == len(tunnel.peers):
            return
        time.sleep(BETWEEN_LOOKS_S)


def weigh(
    host: HostReader, tunnel: Tunnel, results: Iterable[Finding], known: Path, now: float
) -> Iterator[Finding]:
    """``results`` with the fault domain of each silent peer; what shakes hands now is remembered in ``known``.

    Raises :class:`StoreError` where that cannot be written.
    """
    try:
        state = read_state(host, tunnel.interface)
    except CannotLookError:
        state = None
    if state is None:
        yield from results
        return
    here, last = lines(tunnel, state), _load(known)
    shaken = {here[name].peer: here[name] for name in alive(tunnel, state, now)}
    if {**last, **shaken} != last:
        _save(known, {**last, **shaken})
    for result in results:
        name = result.subject.removeprefix("peer ")
        if result.name == "tunnel" and result.cause in SILENT and name in here:
            domain, why = fault_domain(here[name], last.get(here[name].peer), _first_hop(host, here[name]))
            yield replace(result, fault_domain=domain, seen=f"{result.seen}; {why}")
        else:
            yield result


def _first_hop(host: HostReader, line: LocalPeer) -> Hop | None:
    if line.endpoint is None:
        return None
    try:
        return read_hop(host, line.endpoint.rpartition(":")[0].strip("[]"))
    except CannotLookError:
        return None


def read_hop(host: HostReader, address: str) -> Hop | None:
    """The first hop of the route to ``address``; ``None`` where there is no route.

    Raises :class:`CannotLookError` where ``ip`` is missing or answers something else.
    """
    done = host.run("ip", "-json", "route", "get", address)
    if done.code != 0:
        return None
    try:
        route = json.loads(done.out)[0]
        device = str(route["dev"])
        hop = str(route.get("gateway") or route.get("via", {}).get("host") or address)
        near = host.run("ip", "-json", "neigh", "show", "to", hop, "dev", device)
        states = {state for row in json.loads(near.out or "[]") for state in row["state"]}
        flags = int(host.text(f"/sys/class/net/{device}/flags") or "0", 16)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise CannotLookError("ip answers what is no route", f"run `ip route get {address}` by hand") from None
    return Hop(device, hop, bool(states & ANSWERED) or bool(flags & IFF_NOARP))


def _load(known: Path) -> dict[str, LocalPeer]:
    try:
        return msgspec.json.decode(known.read_bytes(), type=dict[str, LocalPeer])
    except (OSError, msgspec.DecodeError):
        # Nothing is known then, which speaks for nobody.
        return {}


def _save(known: Path, by_peer: Mapping[str, LocalPeer]) -> None:
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        replace_file(known, known.with_name(f".{known.name}.new"), msgspec.json.encode(by_peer))
    except OSError as error:
        raise StoreError.unwritable(known, error) from None
