"""The WireGuard tunnel: key, interface, peers, and when each last shook hands."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.contract.machine import Peer, Tunnel
from appliance.doctor.check import (
    check,
    machine_part,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, unknown, warn
from appliance.doctor.host import CannotLookError, HostReader, Output

DEAD_AFTER_S = 180
"""REJECT_AFTER_TIME of the WireGuard paper: an older session carries nothing. A live one renews every 120 s
(REKEY_AFTER_TIME), since the GPU host keeps it alive every 25 s."""


CLOCK_TOLERANCE_S = 5


@dataclass(frozen=True, slots=True)
class PeerState:
    """A peer as WireGuard has it. ``handshake`` is in seconds since the epoch, ``None`` for never."""

    public_key: str
    endpoint: str | None
    handshake: int | None
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class TunnelState:
    """The interface as it is. No private or preshared key ever gets in here."""

    public_key: str | None
    peers: tuple[PeerState, ...]
    mtu: int | None
    listen_port: int | None = None


@dataclass(frozen=True, slots=True)
class KeyFile:
    """The private key's file; its content is not read."""

    exists: bool
    size: int = 0
    open_to_others: bool = False


def read_key_file(host: HostReader, name: str) -> KeyFile:
    """Whether the key is there and is nobody else's to read."""
    try:
        found = host.path(name).stat()
    except (FileNotFoundError, NotADirectoryError):
        return KeyFile(exists=False)
    except OSError as error:
        raise CannotLookError(f"{name}: {error.strerror}", "run `appliance doctor` as root") from error
    others = found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return KeyFile(exists=True, size=found.st_size, open_to_others=bool(others))


def read_state(host: HostReader, interface: str) -> TunnelState | None:
    """The interface; ``None`` where there is none. Raises :class:`CannotLookError` where one may not look."""
    if not host.path(Path("/sys/class/net") / interface).exists():
        return None
    done = host.run("wg", "show", interface, "dump")
    if done.code != 0:
        # What it prints beside an error may hold keys, so its words are taken without them.
        said = re.sub(r"[A-Za-z0-9+/]{43}=", "(a key)", Output(done.code, "", done.err).first_error)
        raise CannotLookError(f"wg: {said}", "run `appliance doctor` as root")
    return parse_dump(done.out, host.number(Path("/sys/class/net") / interface / "mtu"))


def parse_dump(text: str, mtu: int | None = None) -> TunnelState:
    """The interface, from ``wg show … dump``.

    The first line begins with the private key and each peer's second column is the preshared key: neither is
    taken over, not even into an error's message.
    """
    lines = [line.split("\t") for line in text.splitlines() if line]
    try:
        public, port = lines[0][1], int(lines[0][2])
        peers = tuple(
            PeerState(
                public_key=words[0],
                endpoint=None if words[2] == "(none)" else words[2],
                handshake=int(words[4]) or None,
                received=int(words[5]),
                sent=int(words[6]),
            )
            for words in lines[1:]
        )
    except (IndexError, ValueError):
        raise CannotLookError("wg answers what is no dump of an interface", "run `wg show` by hand") from None
    return TunnelState(None if public == "(none)" else public, peers, mtu, port or None)


def judge_tunnel(expected: Tunnel, state: TunnelState | None, now: float) -> Iterator[Finding]:
    """The interface, then each peer; without the first nothing is said of the others."""
    name = expected.interface
    if state is None:
        yield fail(
            f"there is no interface {name}",
            meaning="Nothing passes between the VPS and the GPU host.",
            fix=f"systemctl restart wireguard-{name}; journalctl -u wireguard-{name}",
            subject=name,
            cause="wireguard-interface-missing",
        )
        return
    if state.mtu is not None and state.mtu != expected.mtu:
        yield warn(
            f"MTU {state.mtu}; the machine says {expected.mtu}",
            meaning="Large answers may stall where the line itself is a tunnel.",
            fix=f"ip link set {name} mtu {expected.mtu}",
            subject=name,
        )
    known = {peer.public_key: peer for peer in state.peers}
    wanted = {peer.public_key for peer in expected.peers.values()}
    strangers = [peer for peer in state.peers if peer.public_key not in wanted]
    for label, peer in expected.peers.items():
        seen = known.get(peer.public_key)
        if seen is None:
            instead = f"; instead it has {', '.join(p.public_key for p in strangers)}" if strangers else ""
            yield fail(
                f"{name} does not know {label}'s key {peer.public_key}{instead}",
                meaning="A wrong peer key is loaded: every packet of the right one is dropped without a word.",
                fix=f"systemctl restart wireguard-{name}",
                subject=f"peer {label}",
                cause="wireguard-wrong-peer-key",
            )
        else:
            yield _handshake(label, peer, seen, state, now)
    for stranger in strangers:
        yield fail(
            f"{name} lets in {stranger.public_key}, whom the machine does not name",
            meaning="Somebody with that key reaches this host through the tunnel.",
            fix=f"wg set {name} peer {stranger.public_key} remove",
            subject="stranger",
        )


def judge_key(expected: Tunnel, key: KeyFile, state: TunnelState | None) -> Iterator[Finding]:
    """The private key is there, loaded, and nobody else's to read."""
    if not key.exists or key.size == 0 or (state is not None and state.public_key is None):
        what = (
            f"{expected.private_key_file} is missing"
            if not key.exists
            else f"{expected.private_key_file} is empty"
            if key.size == 0
            else f"{expected.interface} has no private key"
        )
        yield fail(
            f"the WireGuard key is missing: {what}",
            meaning=(
                "The tunnel stays dead. A new key is a new identity: the other host has to be told its public half."
            ),
            fix=f"restore the file, or systemctl restart "
            f"wireguard-{expected.interface} to make a new one; then put "
            f"`wg show {expected.interface} public-key` into the other host's peers",
            subject="private key",
            cause="wireguard-key-missing",
        )
    elif key.open_to_others:
        yield fail(
            f"{expected.private_key_file} can be read by others",
            meaning="Whoever copies it can stand in for this host.",
            fix=f"chmod 600 {expected.private_key_file}",
            subject="private key",
        )
    else:
        yield ok("there, and nobody else's to read", subject="private key")


def _handshake(label: str, peer: Peer, seen: PeerState, state: TunnelState, now: float) -> Finding:
    subject = f"peer {label}"
    if seen.handshake is None:
        own = state.public_key or "missing"
        answer = (
            f"{seen.sent} bytes sent, none received" if seen.sent and not seen.received else "none has ever come in"
        )
        return fail(
            f"no handshake, ever ({answer})",
            meaning="A wrong peer key on either host, or the VPS's UDP port is not reachable.",
            fix=f"wg show, on the other host: its peer must be {own}, its own key {peer.public_key}",
            subject=subject,
            cause="wireguard-no-handshake",
        )
    age = now - seen.handshake
    if age < -CLOCK_TOLERANCE_S:
        return warn(
            f"last handshake {-age:.0f} s in the future",
            meaning="This host's clock went back since; the other end refuses handshakes older than the last one.",
            fix="appliance doctor --only clock",
            subject=subject,
        )
    if age > DEAD_AFTER_S:
        return fail(
            f"last handshake {_time(age)} ago; a session ends after {DEAD_AFTER_S} s",
            meaning="The line or the other host is down, or an address changed.",
            fix=f"ping {peer.address}; journalctl -u wireguard-*; look at the other host",
            subject=subject,
            cause="wireguard-stale",
        )
    return ok(f"handshake {max(age, 0):.0f} s ago", subject=subject)


def _time(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


@check(
    "tunnel",
    looks="the WireGuard key's file, the interface, each peer's key, the age of its last handshake (180 s at most)",
    means="Nothing passes between VPS and GPU host. A wrong key looks like silence.",
    fix="`systemctl restart wireguard-wg0`; compare both hosts' `wg show`",
    requires=machine_part(lambda machine: machine.tunnel, "no tunnel is described"),
    fault_domain="generation",
    exceptions="a silent other end, where the smoke test has evidence for it",
)
def check_tunnel(context: CheckContext, expected: Tunnel) -> Iterator[Finding]:
    """Key, interface, peers."""
    state = read_state(context.host, expected.interface)
    try:
        key = read_key_file(context.host, expected.private_key_file)
    except CannotLookError as error:
        # The smoke test may not see the key's folder; the handshake it may.
        yield unknown(str(error), fix=error.fix, subject="private key")
    else:
        yield from judge_key(expected, key, state)
    yield from judge_tunnel(expected, state, context.now)
