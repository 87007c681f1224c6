"""The settings of a unit that the machines of these tests apply, and those that they do not, with the reason."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.nix.unitfile import UnitFile

APPLIED = frozenset(
    {
        "After", "Before", "BindReadOnlyPaths", "BindsTo", "CacheDirectory", "Environment", "ExecReload",
        "ExecStart", "ExecStartPost", "ExecStartPre", "ExecStop", "ExecStopPost", "LogsDirectory",
        "RemainAfterExit", "Requires", "RuntimeDirectory", "StateDirectory", "Type", "WantedBy", "Wants",
        "WorkingDirectory", "X-ReloadIfChanged",
    }
)  # fmt: skip

NOT_APPLIED: Mapping[str, str] = {
    r"AmbientCapabilities|CapabilityBoundingSet|Device.*|IPAddress.*|KeyringMode|LockPersonality": "the sandbox",
    r"MemoryDenyWriteExecute|NoNewPrivileges|Private.*|ProcSubset|Protect.*|ReadOnlyPaths|RemoveIPC": "the sandbox",
    r"Restrict.*|SystemCall.*|UMask": "the sandbox",
    r"User|Group|DynamicUser|.*DirectoryMode": "the accounts of NixOS do not exist here; each unit runs as root",
    r"SupplementaryGroups": "the accounts of NixOS do not exist here",
    r"Limit(NOFILE|MEMLOCK)": "those of the test machine are enough",
    r"Restart|RestartSec|StartLimit.*|KillMode|TimeoutStopSec": "the tests decide when a unit ends and starts",
    r"Conflicts|DefaultDependencies|RequiresMountsFor": "of the boot and the end of a whole machine",
    r"X-.*": "a live switch reads them",
    r"OOMScoreAdjust": "the tests do not fill the memory of the machine",
    r"Description": "no effect",
}
"""Settings without an effect here."""


class UnknownSettingError(Exception):
    """A setting that the machines neither apply nor skip with a reason."""

    def __init__(self, unit: str, key: str, value: str) -> None:
        super().__init__(
            f"{unit} has {key}={value}, which tests/network/settings.py does not name: apply it in "
            "tests/network/host.py, or add it to NOT_APPLIED with the reason"
        )


def check(unit: UnitFile) -> None:
    """Raise :class:`UnknownSettingError` for the first setting that no table has."""
    for _, key, value in unit.settings:
        if key not in APPLIED and not any(re.fullmatch(row, key) for row in NOT_APPLIED):
            raise UnknownSettingError(unit.name, key, value)
