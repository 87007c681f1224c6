"""The sandbox of a rendered unit: its departures from that of modules/lib.nix, and its text without one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.nix import checker, rendered
from tests.nix.unitfile import UnitFile

Hardened = Mapping[str, Any]
ADDED = (
    "CacheDirectory", "DeviceAllow", "IPAddressAllow", "LimitMEMLOCK", "LimitNOFILE", "LogsDirectory",
    "ReadWritePaths", "StateDirectory",
)  # fmt: skip
"""Settings that only allow more. A RuntimeDirectory does not: no sandbox of systemd makes /run read-only."""
LISTS = ("AmbientCapabilities", "CapabilityBoundingSet", "RestrictAddressFamilies")
NOT_KEPT = re.compile(
    r"(Exec\w+|Restart\w*|Type|RemainAfterExit|KillMode|Timeout\w+|StandardOutput|On\w+|Requires\w*|Wants"
    r"|After|Before|WantedBy|StartLimit\w+|LoadCredential|NUMA\w+|CPUAffinity|\[Install\]"
    r"|X-\w+)(=|$)"
)
"""Lines of a unit without effect on its sandbox."""


def hardened() -> Hardened:
    """Return the common sandbox of modules/lib.nix."""
    lib = 'import (builtins.storePath inputs.nixpkgs + "/lib")'
    found: Hardened = rendered.evaluated(f"(import {checker.ROOT}/modules/lib.nix {{ lib = {lib}; }}).hardened")
    return found


def departures(unit: UnitFile, common: Hardened) -> set[str]:
    """Return the lines of ``unit`` that allow more than ``common``, one word each."""
    found = set()
    for key, value in common.items():
        if key == "SystemCallFilter":
            continue
        if key in LISTS:
            found |= {f"{key}={word}" for word in set(unit.words(key)) - set(value)}
        elif unit.value(key) != _text(value):
            found.add(f"{key}={unit.value(key)}")
    for key in ADDED:
        values = unit.values(key) if key == "DeviceAllow" else unit.words(key)
        found |= {f"{key}={value}" for value in values}
    allowed, denied = _calls(unit.values("SystemCallFilter"))
    common_allowed, common_denied = _calls(common["SystemCallFilter"])
    found |= {f"SystemCallFilter={call}" for call in (common_denied - denied) | (allowed - common_allowed)}
    if not unit.value("User") and unit.value("DynamicUser") != "true":
        found.add("User=root")
    return found


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _calls(values: Sequence[str]) -> tuple[set[str], set[str]]:
    """Return the allowed and the denied calls of the values of ``SystemCallFilter``."""
    allowed = {word for value in values if not value.startswith("~") for word in value.split()}
    denied = {word for value in values if value.startswith("~") for word in value[1:].split()}
    return allowed, denied


def without(text: str, departure: str, common: Hardened) -> str:
    """Return the text of a unit without a departure; raise :class:`ValueError` if the text does not have it."""
    key, _, word = departure.partition("=")
    if departure == "User=root":
        return _last(text, "User=nobody")
    if key == "SystemCallFilter" and word in _calls(common[key])[1]:
        return _last(text, f"{key}=~{word}")
    lines, changed = [], False
    for line in text.splitlines():
        name, found, value = line.partition("=")
        if not found or name != key or (value != word and word not in value.split()):
            lines.append(line)
            continue
        changed = True
        rest = " ".join(one for one in value.split() if one != word) if value != word else ""
        if key in common and not isinstance(common[key], list):
            lines.append(f"{key}={rest or _text(common[key])}")
        elif rest:
            lines.append(f"{key}={rest}")
    if not changed:
        raise ValueError(f"no line of the unit has {departure}")
    return "\n".join([*lines, ""])


def _last(text: str, line: str) -> str:
    """Return ``text`` with ``line`` at the end of its section [Service]."""
    head, section, rest = text.partition("[Service]\n")
    body, install, tail = rest.partition("[Install]\n")
    return f"{head}{section}{body.rstrip()}\n{line}\n{install}{tail}"


def with_command(text: str, command: str) -> str:
    """Return the text of a unit that runs ``command`` once in the same sandbox."""
    lines = [line for line in text.splitlines() if not NOT_KEPT.match(line)]
    if "ProtectKernelTunables=true" in lines:
        # systemd 257 leaves /sys writable in a container. On a machine, this setting makes it read-only.
        command += "\nReadOnlyPaths=/sys /sys/firmware"
    return _last("\n".join([*lines, ""]), f"Type=oneshot\nExecStart={command}")
