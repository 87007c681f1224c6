"""The WireGuard tunnel: key, interface, peers, and the last handshake of each."""

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
"""REJECT_AFTER_TIME of the WireGuard paper: an older session transports nothing. A live one is renewed every 120 s
(REKEY_AFTER_TIME), because the GPU host sends a keepalive packet every 5 s by default."""


CLOCK_TOLERANCE_S = 5


@dataclass(frozen=True, slots=True)
class PeerState:
    """A peer in WireGuard. ``handshake`` is in seconds since the epoch, ``None`` if there was none."""

    public_key: str
    endpoint: str | None
    handshake: int | None
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class TunnelState:
    """The interface in WireGuard, without private and preshared keys."""

    public_key: str | None
    peers: tuple[PeerState, ...]
    mtu: int | None
    listen_port: int | None = None


@dataclass(frozen=True, slots=True)
class KeyFile:
    """The private key's file, without its content."""

    exists: bool
    size: int = 0
    open_to_others: bool = False


def read_key_file(host: HostReader, name: str) -> KeyFile:
    """Read whether the key exists, and whether others can read it.

    Raises :class:`CannotLookError` if its folder may not be read.
    """
    try:
        found = host.path(name).stat()
    except (FileNotFoundError, NotADirectoryError):
        return KeyFile(exists=False)
    except OSError as error:
        raise CannotLookError(f"{name}: {error.strerror}", "run `appliance doctor` as root") from error
    others = found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return KeyFile(exists=True, size=found.st_size, open_to_others=bool(others))


def read_state(host: HostReader, interface: str) -> TunnelState | None:
    """Read the interface, ``None`` if it does not exist; raises :class:`CannotLookError` if forbidden."""
    if not host.path(Path("/sys/class/net") / interface).exists():
        return None
    done = host.run("wg", "show", interface, "dump")
    if done.code != 0:
        # The output may contain keys in addition to the error, so keys are replaced.
        error = re.sub(r"[A-Za-z0-9+/]{43}=", "(a key)", Output(done.code, "", done.err).first_error)
        raise CannotLookError(f"wg: {error}", "run `appliance doctor` as root")
    return parse_dump(done.out, host.number(Path("/sys/class/net") / interface / "mtu"))


def parse_dump(text: str, mtu: int | None = None) -> TunnelState:
    """Parse the output of ``wg show … dump``.

    The first line begins with the private key, and each peer's second column is the preshared key. Neither is
    copied, not even into an error message.
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
        raise CannotLookError("the output of wg is not a dump of an interface", "run `wg show` by hand") from None
    return TunnelState(
        public_key=None if public == "(none)" else public, peers=peers, mtu=mtu, listen_port=port or None
    )


def judge_tunnel(expected: Tunnel, state: TunnelState | None, now: float) -> Iterator[Finding]:
    """Judge the interface, then each peer; without an interface no peer."""
    name = expected.interface
    if state is None:
        yield fail(
            f"the interface {name} does not exist",
            meaning="There is no connection between the VPS and the GPU host.",
            fix=f"systemctl restart wireguard-{name}; journalctl -u wireguard-{name}",
            subject=name,
            cause="wireguard-interface-missing",
        )
        return
    if state.mtu is not None and state.mtu != expected.mtu:
        yield warn(
            f"MTU {state.mtu}; the machine's description has {expected.mtu}",
            meaning="Large responses may stall if the line itself is a tunnel.",
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
                f"{name} does not have {label}'s key {peer.public_key}{instead}",
                meaning="Another peer key is loaded: every packet of the expected peer is dropped silently.",
                fix=f"systemctl restart wireguard-{name}",
                subject=f"peer {label}",
                cause="wireguard-wrong-peer-key",
            )
        else:
            yield _judge_handshake(label=label, peer=peer, seen=seen, state=state, now=now)
    for stranger in strangers:
        yield fail(
            f"{name} accepts {stranger.public_key}, which the machine's description does not name",
            meaning="The owner of that key reaches this host through the tunnel.",
            fix=f"wg set {name} peer {stranger.public_key} remove",
            subject="stranger",
        )


def judge_key(expected: Tunnel, key: KeyFile, state: TunnelState | None) -> Iterator[Finding]:
    """Judge whether the private key exists, is loaded, and is readable by its owner only."""
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
            meaning=("The tunnel stays down. After a new key the other host needs its public half."),
            fix=f"restore the file, or systemctl restart "
            f"wireguard-{expected.interface} to make a new one; then put "
            f"`wg show {expected.interface} public-key` into the other host's peers",
            subject="private key",
            cause="wireguard-key-missing",
        )
    elif key.open_to_others:
        yield fail(
            f"{expected.private_key_file} can be read by others",
            meaning="A process that copies it can impersonate this host.",
            fix=f"chmod 600 {expected.private_key_file}",
            subject="private key",
        )
    else:
        yield ok("exists, readable by its owner only", subject="private key")


def _judge_handshake(label: str, peer: Peer, seen: PeerState, state: TunnelState, now: float) -> Finding:
    subject = f"peer {label}"
    if seen.handshake is None:
        own = state.public_key or "missing"
        traffic = (
            f"{seen.sent} bytes sent, none received"
            if seen.sent and not seen.received
            else "none was ever received"
        )
        return fail(
            f"no handshake, ever ({traffic})",
            meaning="Another peer key on either host, or the VPS's UDP port is not reachable.",
            fix=f"wg show, on the other host: its peer must be {own}, its own key {peer.public_key}",
            subject=subject,
            cause="wireguard-no-handshake",
        )
    age = now - seen.handshake
    if age < -CLOCK_TOLERANCE_S:
        return warn(
            f"last handshake {-age:.0f} s in the future",
            meaning="This host's clock was set back; the other end rejects handshakes older than the last one.",
            fix="appliance doctor --only clock",
            subject=subject,
        )
    if age > DEAD_AFTER_S:
        return fail(
            f"last handshake {_time(age)} ago; a session ends after {DEAD_AFTER_S} s",
            meaning="The line or the other host is down, or an address changed.",
            fix=f"ping {peer.address}; journalctl -u wireguard-*; check the other host",
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
    means="There is no connection between VPS and GPU host. WireGuard does not reply to an unknown key.",
    fix="`systemctl restart wireguard-wg0`; compare both hosts' `wg show`",
    requires=machine_part(lambda machine: machine.tunnel, "no tunnel is described"),
    fault_domain="generation",
    exceptions="a silent other end, if the smoke test has evidence for it",
)
def check_tunnel(context: CheckContext, expected: Tunnel) -> Iterator[Finding]:
    """Check key, interface and peers."""
    state = read_state(context.host, expected.interface)
    try:
        key = read_key_file(context.host, expected.private_key_file)
    except CannotLookError as error:
        # The smoke test may not read the key's folder, but the handshake.
        yield unknown(str(error), fix=error.fix, subject="private key")
    else:
        yield from judge_key(expected, key, state)
    yield from judge_tunnel(expected, state, context.now)
