"""A host of the site: a machine that runs the rendered units of its configuration."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import wait_until
from tests.network.machine import CommandError, NetworkMachine
from tests.network.order import UnitOrder
from tests.nix.rendered import RenderedHost
from tests.nix.storepaths import StoreFolder
from tests.nix.unitfile import UnitCommand, UnitFile

ETC = "/var/lib/etc"
"""Replacement for /etc, which the machines share with the test machine."""

GO = {"LOG_LEVEL": "error", "WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1"}

EDITED = {"nftables": "nftables-rules", "nginx": "nginx.conf"}
"""The text that an edit of a unit changes."""

SCRIPTS = {
    # The kernel of the test machine has no WireGuard: wireguard-go makes the device before the unit's script.
    "ip": """#!/bin/sh
case "$*" in "link add dev "*" type wireguard") exec /sbin/ip link show dev "$4" ;; esac
exec /sbin/ip "$@"
""",
    # The accounts of NixOS do not exist here, so the workers of nginx are root's. Debian's package has a folder.
    "nginx": """#!/bin/sh
/bin/mkdir -p /var/lib/nginx
exec /usr/sbin/nginx -e /run/nginx/error.log -g "user root;" "$@"
""",
}
"""Programs of Debian that need other arguments."""

FOLDERS = {
    "RuntimeDirectory": "/run",
    "StateDirectory": "/var/lib",
    "CacheDirectory": "/var/cache",
    "LogsDirectory": "/var/log",
}
SPECIFIERS = {"C": "/var/cache", "S": "/var/lib", "L": "/var/log", "t": "/run", "%": "%"}


BIND = 'mkdir -p "$2" && mount --bind "$1" "$2" && shift 2 && exec "$@"'
"""Runs a command that sees the folder $1 at $2, as no other process does."""


class UnitFailed(Exception):  # noqa: N818 - the term of systemd
    """A unit did not start."""


class NetworkHost:
    """A machine with a configuration. :meth:`boot` starts its units in their order, as far as possible."""

    def __init__(self, machine: NetworkMachine, rendered: RenderedHost) -> None:
        self.machine = machine
        self.edits: dict[str, Callable[[str], str]] = {}
        self.configure(rendered)
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.state: dict[str, str] = {}
        """State of each unit: ``active``, or the reason for another state."""

    def configure(self, rendered: RenderedHost) -> None:
        """Set another configuration for the next start of a unit."""
        self.rendered = rendered
        self.order = UnitOrder(rendered)
        self._write()

    def _write(self) -> None:
        """Write the texts of the host, with the edits of the tests."""
        edits = {EDITED[name]: edit for name, edit in self.edits.items()}

        def edited(name: str, text: str) -> str:
            changed = edits[name](text) if name in edits else text
            assert name not in edits or changed != text, f"the edit of {name} changes nothing"
            return changed

        host = self.rendered.edited(edited)
        folder = self.machine.disk.with_name(f"store-{self.machine.name}")
        self.store = StoreFolder(host, folder, scripts=SCRIPTS, replaced={"/etc/appliance/": f"{ETC}/appliance/"})
        for name in host.etc:
            if name.startswith("appliance/"):
                self.machine.write(f"{ETC}/{name}", self.store.relocate(host.etc_text(name), name))

    @property
    def site(self) -> Any:
        """Return the site of the host, its appliance.json."""
        return json.loads(self.rendered.etc_text("appliance/appliance.json"))

    @property
    def description(self) -> Any:
        """Return the description of the host, its machine.json."""
        return json.loads(self.rendered.etc_text("appliance/machine.json"))

    @property
    def tunnel_address(self) -> str:
        """Return the address of the host inside the tunnel."""
        return str(self.description["tunnel"]["address"])

    def boot(self) -> None:
        """Start all units in their order, as far as possible."""
        for line in self.rendered.etc_text("sysctl.d/60-nixos.conf").splitlines():
            name, found, value = line.partition("=")
            if found and name.startswith("net."):
                self.machine.run("sysctl", "-qw", f"{name.strip()}={value.strip()}")
        self.state = {}
        self._write()
        self._start_all(set(self.order.units))

    def start(self, name: str) -> None:
        """Start a unit, and the units that it pulls in."""
        pulled, waiting = {name}, [name]
        while waiting:
            new = {one for one in self.order.wants(waiting.pop()) - pulled if self.state.get(one) != "active"}
            pulled |= new
            waiting += new
        self._write()
        self._start_all(pulled)

    def _start_all(self, names: set[str]) -> None:
        while names:
            ready = [name for name in names if not self.order.after(name) & names - {name}]
            if not ready:
                raise UnitFailed(f"{self.machine.name}: {sorted(names)} have a circular order")
            for name in sorted(ready):
                self._start(name)
                names.remove(name)

    def _start(self, name: str) -> None:
        missing = [one for one in sorted(self.order.requires(name)) if self.state.get(one, "active") != "active"]
        if missing:
            self.state[name] = f"dependency failed: {missing[0]}"
            return
        try:
            self._run_unit(name, self.order.units[name])
        except (UnitFailed, CommandError) as error:
            self._end(name)
            self.state[name] = f"failed: {error}"
        else:
            self.state[name] = "active"

    def _run_unit(self, name: str, unit: UnitFile) -> None:
        for setting, top in FOLDERS.items():
            for folder in unit.words(setting):
                self.machine.run("mkdir", "-p", f"{top}/{folder}")
        if device := _device(unit):
            self.machine.run("mkdir", "-p", "/run/wireguard")
            socket = self.machine.path(f"/run/wireguard/{device}.sock")
            argv = ["env", *(f"{key}={value}" for key, value in GO.items()), "wireguard-go", "-f", device]
            self._daemon(name, argv, socket.exists)
        for key in ("ExecStartPre", *(["ExecStart"] if unit.value("Type") == "oneshot" else [])):
            self._run_commands(unit, key)
        if unit.value("Type") != "oneshot":
            (command,) = unit.commands("ExecStart")
            self._daemon(name, self._argv(unit, command), self._readiness(name, command), timeout_s=400)
        self._run_commands(unit, "ExecStartPost")

    def _run_commands(self, unit: UnitFile, key: str) -> None:
        for command in unit.commands(key):
            done = self.machine.try_run(*self._argv(unit, command))
            if done.returncode and not command.may_fail:
                program, output = Path(command.argv[0]).name, (done.stderr or done.stdout).strip()
                raise UnitFailed(f"{key} {program} of {unit.name} ended with {done.returncode}: {output}")

    def _argv(self, unit: UnitFile, command: UnitCommand) -> list[str]:
        """Return the command with the environment that systemd would give it, and no other variable."""
        variables = [f"{key}={self._own(unit, value)}" for key, value in unit.environment.items()]
        folder = [f"--chdir={value}"] if (value := unit.value("WorkingDirectory")) else []
        argv = ["env", "-i", *folder, *variables, *(self._own(unit, word) for word in command.argv)]
        for bind in unit.words("BindReadOnlyPaths"):
            source, _, target = self._own(unit, bind).partition(":")
            argv = ["unshare", "--mount", "sh", "-c", BIND, "sh", source, target, *argv]
        return argv

    def _own(self, unit: UnitFile, text: str) -> str:
        """Return ``text`` of a unit with the paths of this machine."""

        def expanded(found: re.Match[str]) -> str:
            if found[1] not in SPECIFIERS:
                raise UnitFailed(
                    f"{unit.name} has the specifier {found[0]}, which tests/network/host.py does not expand"
                )
            return SPECIFIERS[found[1]]

        return re.sub("%(.)", expanded, self.store.relocate(text, unit.name))

    def _readiness(self, name: str, command: UnitCommand) -> Callable[[], bool]:
        """Return the condition that a started daemon serves."""
        program = Path(command.argv[0]).name
        if program == "ping":
            return lambda: True
        if program == "nginx":
            port = 443
        elif name == "appliance-gateway":
            port = self.site["gateway"]["port"]
        else:
            engine, _, replica = name.removeprefix("appliance-engine-").partition(".")
            port = self.site["engines"][engine]["port"] + int(replica or 0)
        return lambda: self.machine.listens(port)

    def _daemon(self, name: str, argv: list[str], ready: Callable[[], bool], timeout_s: float = 30) -> None:
        process = self.machine.start(name, argv)
        self.daemons[name] = process

        def up() -> bool:
            if process.poll() is not None:
                lines = self.machine.log(name).read_text(errors="replace").strip().splitlines()
                raise UnitFailed(f"{name} ended with {process.returncode}: {lines[-1:] or 'without output'}")
            return ready()

        wait_until(up, f"{name} of {self.machine.name} is up", timeout_s)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop a unit after those that require it; return the exit code of its daemon, 0 if it has none."""
        for other in sorted(self.order.required_by(name)):
            if self.state.get(other) == "active":
                self.stop(other)
        if self.state.get(name) == "active":
            self._run_commands(self.order.units[name], "ExecStop")
        self.state[name] = "stopped"
        return self._end(name, number)

    def _end(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """End the daemon of a unit, then run what the unit runs after its end."""
        unit, process, code = self.order.units[name], self.daemons.pop(name, None), 0
        if process is not None and _device(unit) is None:
            code = self.machine.stop(process, number)
        for command in unit.commands("ExecStopPost"):
            self.machine.try_run(*self._argv(unit, command))
        if process is not None and _device(unit) is not None:
            # In place of the kernel: it ends after its device.
            self.machine.stop(process, number)
        return code

    def restart(self, name: str) -> None:
        """Restart a unit and those that require it, or reload it as NixOS does; fail if a unit is not active."""
        unit = self.order.units[name]
        if unit.value("X-ReloadIfChanged") == "true" and self.state.get(name) == "active":
            self._write()
            self._run_commands(unit, "ExecReload")
        else:
            active = {one for one, state in self.state.items() if state == "active"}
            self.stop(name)
            self._write()
            self._start_all({name} | {one for one in active if self.state[one] != "active"})
        self.require()

    @contextmanager
    def edited(self, name: str, edit: Callable[[str], str]) -> Iterator[None]:
        """Run the unit ``name`` with its file changed by ``edit``, for the control of a test."""
        self.edits[name] = edit
        try:
            self.restart(name)
            yield
        finally:
            del self.edits[name]
            self.restart(name)

    def close(self) -> None:
        """Close the current machine."""
        self.machine.close()

    def require(self) -> None:
        """Raise an assertion unless every unit is active."""
        failed = {name: state for name, state in self.state.items() if state != "active"}
        assert not failed, f"{self.machine.name}: {failed}"

    def handshake_age_s(self, public_key: str) -> float | None:
        """Return the seconds since the last handshake with a peer; ``None`` before the first."""
        for line in self.machine.run("wg", "show", "wg0", "latest-handshakes").splitlines():
            peer, when = line.split()
            if peer == public_key and when != "0":
                return float(self.machine.run("date", "+%s.%N")) - float(when)
        return None


def _device(unit: UnitFile) -> str | None:
    """Return the WireGuard device that a unit adds; ``None`` for any other unit."""
    device = unit.environment.get("DEVICE")
    return device if unit.name == f"wireguard-{device}.service" else None
