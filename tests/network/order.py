"""The order in which systemd starts the units of a host that change its network or serve on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tests.network import settings
from tests.nix.rendered import RenderedHost
from tests.nix.unitfile import UnitFile

RUN = re.compile(r"(nftables|wireguard-.+|nginx|appliance-(admin|gateway|engine-.+|tunnel-watch-.+))\.service")
"""Units that run in a machine of these tests."""

NOT_RUN: Mapping[str, str] = {
    r"acme-.*|nginx-config-reload\.service": "the tests write the certificates and run the unit's lego themselves",
    r"appliance-(smoke|gpu-power|trial-.*)\..*": "they open no port; tests/boot runs them",
    r"appliance-assistant(-copy)?\.service": "it listens on a Unix socket only; tests/booted runs it",
    r"appliance-gpu-watch\.service": "it opens no port; tests/booted runs it",
    r"(alertmanager|prometheus|prometheus-(node|blackbox)-exporter)\.service": "on loopback by tests/nix/cases",
    r"(dhcpcd|resolvconf|network-local-commands|nscd)\.service": "the bridge has no DHCP and no DNS",
    r"sshd(-keygen)?\.service": "test_reach.py listens on its port",
    r"systemd-sysctl\.service": "each boot applies the settings of the network",
    r"systemd-(modules-load|journald-audit|oomd|pstore|timesyncd|tmpfiles-resetup)\..*": "for a whole machine",
    r"(nix-daemon|logrotate|logrotate-checkconf|fstrim|lastlog2-import|post-boot|linger-users)\..*": "no network",
    r"(suid-sgid-wrappers|reload-systemd-vconsole-setup|acpid|nvidia-persistenced)\.service": "no network",
    r"(sleep-actions|prepare-kexec|generate-shutdown-ramfs)\.service": "not at boot",
    r".+\.target": "no process",
}
"""Units with a start of their own that do not run here, and the reason. A unit without a row stops the tests, since
it could open a port or change the network."""

UPSTREAM = Path("/usr/lib/systemd/system")
TARGETS = ("network-pre.target", "network.target", "network-online.target")


class UnknownUnitError(Exception):
    """A unit of the boot that these tests neither run nor skip with a reason."""

    def __init__(self, host: str, unit: str) -> None:
        super().__init__(
            f"host {host} starts {unit}, which tests/network/order.py does not name: add it to RUN, or to NOT_RUN "
            "with the reason"
        )


@cache
def _targets() -> dict[str, UnitFile]:
    """Return the targets of systemd itself that order the network."""
    return {name: UnitFile(name, (UPSTREAM / name).read_text()) for name in TARGETS}


class UnitOrder:
    """The units of a host that run here, and their relations."""

    def __init__(self, host: RenderedHost) -> None:
        self.units: dict[str, UnitFile] = {}
        for name, unit in sorted(host.units.items()):
            if not unit.enabled:
                continue
            if RUN.fullmatch(name):
                settings.check(unit)
                self.units[name.removesuffix(".service")] = unit
            elif (unit.wanted_by or unit.required_by) and not any(re.fullmatch(row, name) for row in NOT_RUN):
                raise UnknownUnitError(host.name, name)
        self._all = {**_targets(), **host.units}
        self._before: dict[str, set[str]] = {}
        for name, unit in self._all.items():
            for other in unit.words("Before"):
                self._before.setdefault(other, set()).add(name)

    def requires(self, name: str) -> set[str]:
        """Return the units that must be active before ``name`` starts."""
        full = f"{name}.service"
        found = set(self.units[name].words("Requires", "BindsTo"))
        found |= {other for other, unit in self._all.items() if full in unit.required_by}
        return self._run(found)

    def wants(self, name: str) -> set[str]:
        """Return the units that a start of ``name`` also starts."""
        full = f"{name}.service"
        found = set(self.units[name].words("Wants"))
        found |= {other for other, unit in self._all.items() if full in unit.wanted_by}
        return self._run(found) | self.requires(name)

    def required_by(self, name: str) -> set[str]:
        """Return the units that stop with ``name``."""
        return {other for other in self.units if name in self.requires(other)}

    def after(self, name: str) -> set[str]:
        """Return the units that start before ``name``, also by way of a target."""
        found: set[str] = set()
        waiting = [f"{name}.service"]
        seen = set(waiting)
        while waiting:
            current = waiting.pop()
            earlier = set(self._all[current].words("After")) if current in self._all else set()
            for other in (earlier | self._before.get(current, set())) - seen:
                seen.add(other)
                if RUN.fullmatch(other):
                    found.add(other)
                elif other in self._all and other.endswith(".target"):
                    waiting.append(other)
        return self._run(found)

    def _run(self, names: set[str]) -> set[str]:
        return {name.removesuffix(".service") for name in names} & self.units.keys()
