"""The state that each rendered unit of ours must reach, or the reason why it is not started here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReachedState:
    """A state of systemd, and whether the main process of the unit has run and ended."""

    active: str
    sub: str
    result: str = "success"
    ran: bool = False


RUNNING = ReachedState("active", "running")
DONE = ReachedState("inactive", "dead", ran=True)
STAYS = ReachedState("active", "exited")
ACTIVE = ReachedState("active", "active")
WAITING = ReachedState("active", "waiting")

BOTH: Mapping[str, ReachedState] = {
    "nftables.service": STAYS,
    "sshd-keygen.service": DONE,
    "sshd.service": RUNNING,
    "wireguard-wg0-key.service": STAYS,
    "wireguard-wg0.service": STAYS,
    "wireguard-wg0.target": ACTIVE,
}
STATES: Mapping[str, Mapping[str, ReachedState]] = {
    "gpu": {
        **BOTH,
        "appliance-admin.service": RUNNING,
        "appliance-assistant.service": RUNNING,
        "appliance-engine-agents.0.service": RUNNING,
        "appliance-engine-agents.1.service": RUNNING,
        "appliance-engine-embed.service": RUNNING,
        "appliance-gateway.service": RUNNING,
        "appliance-gpu-power.service": STAYS,
        "appliance-gpu-watch.service": RUNNING,
        "appliance-models-verify-all.timer": WAITING,
        "appliance-models-verify.service": STAYS,
        "appliance-notify.service": RUNNING,
        "appliance-smoke.service": DONE,
        "appliance-trial-alerts.path": WAITING,
        "appliance-trial-arrived.service": DONE,
        "appliance-trial-deadline.timer": WAITING,
        "appliance-trial-passed.service": DONE,
        "appliance-tunnel-watch-vps.service": RUNNING,
        "nvidia-persistenced.service": RUNNING,
        "wireguard-wg0-peer-vps.service": STAYS,
    },
    "vps": {
        **BOTH,
        "acme-llm.example.org.service": STAYS,
        # No authority is reachable: lego has tried, and the host's own certificate is still in use.
        "acme-order-renew-llm.example.org.service": ReachedState("failed", "failed", "exit-code", ran=True),
        "acme-renew-llm.example.org.timer": WAITING,
        "acme-setup.service": STAYS,
        "nginx.service": RUNNING,
        "wireguard-wg0-peer-gpu.service": STAYS,
    },
}
"""States after a boot, by host and unit."""

LATER: Mapping[str, Mapping[str, ReachedState]] = {
    "gpu": {
        "appliance-engine-pair.service": RUNNING,
        "appliance-models-verify-all.service": DONE,
        "appliance-trial-alerts.service": DONE,
        "appliance-trial-deadline.service": DONE,
        "appliance-trial-failed.service": DONE,
    },
    # Its condition is a certificate, which the first start of multi-user.target does not wait for.
    "vps": {"nginx-config-reload.service": DONE},
}
"""States that the units reach after an event, which a test causes."""

POLKIT = "a drop-in for polkit 127; the rule of ours is read by Debian's polkitd, which a test runs"
SOCKET = "NixOS's own unit for a socket that starts one sshd a connection, which no module of ours uses"
SOCKETS = dict.fromkeys(("sshd-vsock.socket", "sshd-vsock@.service", "sshd@.service"), SOCKET)
NOT_STARTED: Mapping[str, Mapping[str, str]] = {
    "gpu": {
        **SOCKETS,
        **dict.fromkeys(("polkit-agent-helper.socket", "polkit-agent-helper@.service", "polkit.service"), POLKIT),
    },
    "vps": {
        **SOCKETS,
        "acme-account-d63a6091bbbba8445098.target": "it waits for a certificate of an authority; "
        "tests/network/test_certificates.py orders one",
    },
}
"""Reasons, by host and unit."""
