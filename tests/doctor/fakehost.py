"""A host made of files and small programs, in place of hardware that this machine does not have."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.contract.load import validate
from appliance.contract.machine import Machine
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding
from appliance.doctor.host import HostReader
from appliance.doctor.runner import examine

KEYS = {
    "gpu": "Hh5pYxr2pDsHMRbmvMhTTsQqFwnYdIQKDCvKoLTkyG4=",
    "vps": "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
    "stranger": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
}
PRIVATE = "aSecretThatMustNeverBeSeenInAnyOutput000000="

CARD = {
    "index": "0", "name": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "pci.bus_id": "00000000:41:00.0",
    "memory.total": "97887", "power.limit": "450.00", "power.default_limit": "600.00", "temperature.gpu": "54",
    "persistence_mode": "Enabled", "pcie.link.width.current": "16", "pcie.link.width.max": "16",
    "clocks_event_reasons.active": "0x0000000000000004", "driver_version": "595.71.05",
}  # fmt: skip

SMI = """#!/bin/sh
case "$*" in
  *gpu_recovery_action*) cat "$FAKE/recovery" ;;
  *--query-compute-apps*) cat "$FAKE/compute" ;;
  *--query-gpu*) cat "$FAKE/cards"; exit "$(cat "$FAKE/smi.code")" ;;
esac
"""
PRINT = """#!/bin/sh
code=$(cat "$FAKE/{name}.code")
if [ "$code" = 0 ]; then cat "$FAKE/{name}"; else cat "$FAKE/{name}" >&2; fi
exit "$code"
"""


def hex_address(address: str, port: int) -> str:
    """Format ``127.0.0.1:80`` as in /proc/net/tcp."""
    parts = [int(part) for part in address.split(".")]
    return f"{''.join(f'{part:02X}' for part in reversed(parts))}:{port:04X}"


@dataclass
class FakeHost:
    """A healthy GPU host or VPS under a folder, into which a test puts one defect."""

    root: Path
    site: dict[str, Any]
    machine: dict[str, Any]
    sockets: list[tuple[str, str, int, int]] = field(default_factory=list)
    """Protocol, address, port, process."""
    card: dict[str, str] = field(default_factory=lambda: dict(CARD))
    rejecting_bot_api: int = 0
    """Port of a Bot API that rejects each token."""
    now: float = field(default_factory=time.time)
    assistant: dict[str, Any] = field(
        default_factory=lambda: {
            "embedder": "small",
            "stores_with_vectors": 3,
            "stores_of_another_embedder": 0,
            "passages": 900,
            "files_waiting": 1,
            "oldest_file_s": 4.0,
            "chats_waiting": 2,
            "qdrant": {"error": "", "open": False, "ready": 1, "incomplete": 0},
        }
    )
    """The state that the assistant reports."""

    @property
    def fake(self) -> Path:
        return self.root.parent / "fake"

    def write(self, name: str, text: str) -> Path:
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def backup(self, **record: Any) -> None:
        """Write the plan and the record of a backup that succeeded an hour ago, with these changes."""
        plan = {
            "version": 1,
            "host": "gpu",
            "repositories": {"vps": {"url": "/nowhere", "password_file": "/nowhere"}},
            "drill": "vps",
            "pool": "tank",
        }
        self.write("/etc/appliance/backup.json", json.dumps(plan))
        values = {"last_success": self.now - 3600} | record
        self.write("/var/lib/appliance-backup/vps.record.json", json.dumps(values))

    def drill(self, **record: Any) -> None:
        """Write the record of a drill that passed yesterday, with these changes."""
        values = {"last_success": self.now - 86400} | record
        self.write("/var/lib/appliance-restore-drill/drill.record.json", json.dumps(values))

    def set_output(self, name: str, text: str, code: int = 0) -> None:
        """Set the output of a program and its exit code."""
        (self.fake / name).write_text(text)
        (self.fake / f"{name}.code").write_text(str(code))

    def watch(self, *, act: bool = True, age_s: float = 3.0, **card: object) -> None:
        """Write the watchdog's status of a cool card, with these changes."""
        values = {"index": 0, "rung": 0, "temperature_c": 54.0, "margin_c": 38.0, "fan_ratio": 0.41} | card
        status = {"act": act, "at": self.now - age_s, "driver_hangs": False, "cards": [values]}
        self.write("/run/appliance-gpu-watch/status.json", json.dumps(status))

    def units(self, **states: str) -> None:
        """Set systemd's output: every unit is active except those in ``states`` (dashes as underscores)."""
        blocks = []
        for unit in [*self.machine["units"], "appliance-models-verify.service"]:
            state = states.get(unit.removesuffix(".service").replace("-", "_"), "active")
            result = "exit-code" if state == "failed" else "success"
            load = "not-found" if state == "not-found" else "loaded"
            blocks.append(
                f"Type=simple\nRemainAfterExit=no\nResult={result}\nExecMainExitTimestamp=\nId={unit}\n"
                f"LoadState={load}\nConditionResult=yes\n"
                f"ActiveState={'inactive' if load == 'not-found' else state}\n"
            )
        self.set_output("systemctl", "\n".join(blocks))

    def write_files(self) -> None:
        """Write the files of sockets and cards."""
        rows: dict[str, list[str]] = {"tcp": [], "udp": []}
        for inode, (protocol, address, port, pid) in enumerate(self.sockets, 1000):
            state = "0A" if protocol == "tcp" else "07"
            rows[protocol].append(
                f"   0: {hex_address(address, port)} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 "
                f"    0        0 {inode} 1 0000000000000000 100 0 0 10 0"
            )
            handle = self.root / f"proc/{pid}/fd/{inode}"
            handle.parent.mkdir(parents=True, exist_ok=True)
            handle.unlink(missing_ok=True)
            handle.symlink_to(f"socket:[{inode}]")
        for protocol, lines in rows.items():
            self.write(f"/proc/net/{protocol}", "\n".join(["  sl  local_address …", *lines]) + "\n")
        row = ", ".join(self.card.values())
        (self.fake / "cards").write_text(row + "\n" if self.card else "")

    def process(self, pid: int, name: str, unit: str, program: str = "") -> None:
        self.write(f"/proc/{pid}/comm", name + "\n")
        self.write(f"/proc/{pid}/cgroup", f"0::/system.slice/{unit}\n")
        self.write(
            f"/proc/{pid}/limits", "Max locked memory         unlimited            unlimited            bytes\n"
        )
        self.write(f"/proc/{pid}/status", f"Name:\t{name}\nCpus_allowed_list:\t0-7\n")
        if program:
            (self.root / f"proc/{pid}/exe").symlink_to(program)

    def context(self, *, hashes: bool = False) -> CheckContext:
        self.write_files()
        site = validate("site", self.site) if self.site else None
        machine = Machine.model_validate_json(json.dumps(self.machine))
        return CheckContext(
            host=HostReader(self.root, timeout_s=5),
            site=site,
            machine=machine,
            base=self.root,
            now=self.now,
            hashes=hashes,
        )

    def findings(self, *only: str, hashes: bool = False) -> list[Finding]:
        """Run the checks ``only``, or all, and return their findings."""
        return list(examine(self.context(hashes=hashes), only).results)

    def levels(self, check: str) -> set[str]:
        return {one.level for one in self.findings(check)}


SENDER = "/run/appliance-notify/status.json"
"""State of the sender of notices."""


def sender_state(at: float, **changes: object) -> str:
    """Return the state that a healthy sender writes at ``at``."""
    state = {"at": at, "waiting": 0, "due_since": None, "refused": 0, "problem": "", "misconfigured": False}
    return json.dumps(state | changes)


def dump(own: str | None, peers: dict[str, int | None], *, private: str = PRIVATE) -> str:
    """Return the output of ``wg show wg0 dump``; ``peers`` has the age of each handshake in seconds by key."""
    lines = [f"{private if own else '(none)'}\t{own or '(none)'}\t51820\toff"]
    for key, age in peers.items():
        stamp = 0 if age is None else int(time.time()) - age
        lines.append(
            f"{key}\t{PRIVATE}\t203.0.113.5:51820\t10.77.0.2/32\t{stamp}\t{0 if age is None else 920}\t148\t25"
        )
    return "\n".join(lines) + "\n"


def nft_json(*rules: list[dict[str, Any]], policy: str = "drop", table: str = "appliance") -> str:
    """Return a ruleset in the format of ``nft --json list ruleset``."""
    at = {"family": "inet", "table": table}
    objects: list[dict[str, Any]] = [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "inet", "name": table}},
    ]
    objects += [
        {"chain": {**at, "name": hook, "type": "filter", "hook": hook, "prio": 0, "policy": policy}}
        for hook in ("input", "forward")
    ]
    objects += [{"rule": {**at, "chain": "input", "expr": rule}} for rule in rules]
    return json.dumps({"nftables": objects})


def accepts(protocol: str, *ports: int) -> list[dict[str, Any]]:
    """Return a rule that accepts ``ports``."""
    right: Any = ports[0] if len(ports) == 1 else {"set": list(ports)}
    payload = {"payload": {"protocol": protocol, "field": "dport"}}
    return [{"match": {"op": "==", "left": payload, "right": right}}, {"accept": None}]
