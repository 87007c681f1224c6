"""Attributes the silence of a tunnel's peer to this generation or to the other end.

WireGuard does not reply to unknown peers, so an incorrect key or port and a VPS without power look the same from
here. The evidence is on this side: the last handshake on this machine, under any generation, and the first hop
towards the peer. The smoke test records keys, endpoint and port of each handshake, and checks whether the first hop
responds. A generation that changed neither cannot cause or fix a silence beyond that hop. Without such evidence the
generation is taken as the cause: one that disconnects a distant machine must not become its default.

The doctor only reports the silence, because it writes nothing.
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
"""File in the folder of the reports: keys, endpoint and port of each peer's last handshake, by its public key."""

WAIT_S = 30.0
"""Six attempts: WireGuard retries a handshake every 5 s (REKEY_TIMEOUT in its paper)."""
BETWEEN_LOOKS_S = 1.0

SILENT = frozenset({"wireguard-no-handshake", "wireguard-stale"})
"""Causes of the doctor's ``tunnel`` that do not show which side causes the failure."""

RESPONDING = frozenset({"REACHABLE", "STALE", "DELAY", "PROBE", "PERMANENT"})
"""States of a neighbour that has responded (ip-neighbour(8)).

A neighbour that stops responding is FAILED or INCOMPLETE within seconds, because WireGuard keeps sending.
"""

IFF_NOARP = 0x80
"""A link without neighbours, such as PPP (netdevice(7))."""


@dataclass(frozen=True, slots=True)
class LocalPeer:
    """This side of a handshake: own public key, public key of the peer, endpoint of the peer, own port."""

    own: str | None
    peer: str
    endpoint: str | None
    listen_port: int | None


@dataclass(frozen=True, slots=True)
class Hop:
    """The first hop towards an endpoint: device and neighbour of the route, and whether the neighbour responds."""

    device: str
    address: str
    responds: bool


def fault_domain(peer: LocalPeer, last: LocalPeer | None, hop: Hop | None) -> tuple[FaultDomain, str]:
    """Return the fault domain of a silent ``peer`` and the evidence as a clause.

    ``last`` is the peer at its last handshake on this machine, ``hop`` the first hop towards it now; ``None`` if
    unknown.
    """
    if last is None:
        return "generation", "it has never completed a handshake on this machine"
    parts = {"own": "key of this host", "peer": "key of the peer", "endpoint": "endpoint", "listen_port": "port"}
    changed = [f"another {what}" for name, what in parts.items() if getattr(peer, name) != getattr(last, name)]
    if changed:
        return "generation", f"the last handshake was with {' and '.join(changed)}"
    if hop is None:
        return "generation", f"this host has no route to {peer.endpoint or 'it'}"
    if not hop.responds:
        return "generation", f"{hop.address} on {hop.device}, the first hop towards it, does not respond"
    return (
        "external",
        f"keys, endpoint and port are those of the last handshake, and the first hop {hop.address} responds",
    )


def local_peers(tunnel: Tunnel, state: TunnelState) -> dict[str, LocalPeer]:
    """Return each peer by its name: the own key as loaded by WireGuard, the rest from the machine's description."""
    return {
        name: LocalPeer(state.public_key, peer.public_key, endpoint=peer.endpoint, listen_port=tunnel.listen_port)
        for name, peer in tunnel.peers.items()
    }


def alive(tunnel: Tunnel, state: TunnelState, now: float) -> frozenset[str]:
    """Return the names of peers with a session at ``now`` (seconds since the epoch)."""
    at = {peer.public_key: peer.handshake for peer in state.peers}
    handshakes = {name: at.get(peer.public_key) for name, peer in tunnel.peers.items()}
    return frozenset(name for name, when in handshakes.items() if when is not None and now - when <= DEAD_AFTER_S)


def wait_for_handshakes(host: HostReader, tunnel: Tunnel, wait_s: float = WAIT_S) -> None:
    """Wait up to ``wait_s`` seconds for the first handshake of every peer after a boot or a switch."""
    clock = time.monotonic()
    while time.monotonic() < clock + wait_s:
        try:
            state = read_state(host, tunnel.interface)
        except CannotLookError:
            return  # The doctor's `tunnel` reports it.
        if state is None or len(alive(tunnel, state, time.time())) == len(tunnel.peers):
            return
        time.sleep(BETWEEN_LOOKS_S)


def attribute_fault(
    host: HostReader, tunnel: Tunnel, findings: Iterable[Finding], *, known: Path, now: float
) -> Iterator[Finding]:
    """Yield ``findings`` with the fault domain of each silent peer; record the current handshakes in ``known``.

    ``now`` is in seconds since the epoch. Raises :class:`StoreError` if ``known`` cannot be written.
    """
    try:
        state = read_state(host, tunnel.interface)
    except CannotLookError:
        state = None
    if state is None:
        yield from findings
        return
    peers, last = local_peers(tunnel, state), _load(known)
    current = {peers[name].peer: peers[name] for name in alive(tunnel, state, now)}
    if {**last, **current} != last:
        _save(known, {**last, **current})
    for finding in findings:
        name = finding.subject.removeprefix("peer ")
        if finding.name == "tunnel" and finding.cause in SILENT and name in peers:
            domain, evidence = fault_domain(peers[name], last.get(peers[name].peer), _first_hop(host, peers[name]))
            yield replace(finding, fault_domain=domain, seen=f"{finding.seen}; {evidence}")
        else:
            yield finding


def _first_hop(host: HostReader, peer: LocalPeer) -> Hop | None:
    if peer.endpoint is None:
        return None
    try:
        return read_hop(host, peer.endpoint.rpartition(":")[0].strip("[]"))
    except CannotLookError:
        return None


def read_hop(host: HostReader, address: str) -> Hop | None:
    """Return the first hop of the route to ``address``; ``None`` if there is no route.

    Raises :class:`CannotLookError` if ``ip`` is missing or prints no route.
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
        raise CannotLookError("the output of ip is not a route", f"run `ip route get {address}` by hand") from None
    return Hop(device, hop, bool(states & RESPONDING) or bool(flags & IFF_NOARP))


def _load(known: Path) -> dict[str, LocalPeer]:
    try:
        return msgspec.json.decode(known.read_bytes(), type=dict[str, LocalPeer])
    except (OSError, msgspec.DecodeError):
        # Without a record there is no evidence.
        return {}


def _save(known: Path, by_peer: Mapping[str, LocalPeer]) -> None:
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        replace_file(known, known.with_name(f".{known.name}.new"), msgspec.json.encode(by_peer))
    except OSError as error:
        raise StoreError.unwritable(known, error) from None
