"""A host of the site: a machine that runs the units of its evaluated configuration."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import wait_until
from tests.network.machine import CommandError, NetworkMachine
from tests.nix import translate

ETC = "/var/lib/etc"
"""Replacement for /etc, which the machines share with the test machine."""

GO = {"LOG_LEVEL": "error", "WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1"}


class UnitFailed(Exception):  # noqa: N818 - the term of systemd
    """A unit did not start."""


class NetworkHost:
    """A machine with a configuration. :meth:`boot` starts its units in their order, as far as possible."""

    def __init__(self, machine: NetworkMachine, values: dict[str, Any]) -> None:
        self.machine = machine
        self.configure(values)
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.state: dict[str, str] = {}
        """State of each unit: ``active``, or the reason for another state."""
        self.edits: dict[str, Callable[[str], str]] = {}

    def configure(self, values: dict[str, Any]) -> None:
        """Set another configuration for the next boot."""
        translate.check(values)
        self.values = values
        self.units = translate.units(values)

    @property
    def tunnel_address(self) -> str:
        """Return the address of the host inside the tunnel."""
        return translate.tunnel(self.values).addresses[0].partition("/")[0]

    def boot(self) -> None:
        """Start all units: each waits for those in ``after`` and needs the success of those in ``requires``."""
        for name, value in translate.sysctls(self.values).items():
            self.machine.run("sysctl", "-qw", f"{name}={value}")
        self.state = {}
        waiting = dict(self.units)
        while waiting:
            ready = [name for name, unit in waiting.items() if not (unit.after | unit.requires) & waiting.keys()]
            if not ready:
                raise UnitFailed(f"{self.machine.name}: {sorted(waiting)} have a circular order")
            for name in sorted(ready):
                self.start(name)
                del waiting[name]

    def start(self, name: str) -> None:
        """Start a unit, unless a required unit is not active."""
        missing = [
            other for other in self.units[name].requires & self.units.keys() if self.state[other] != "active"
        ]
        if missing:
            self.state[name] = f"dependency failed: {missing[0]}"
            return
        try:
            self._starter(name)()
        except (UnitFailed, CommandError) as error:
            self.state[name] = f"failed: {error}"
        else:
            self.state[name] = "active"

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

    def restart(self, name: str) -> None:
        """Stop the daemon of a unit if it has one, and start the unit; fail if any unit is not active."""
        if name in self.daemons:
            self.stop(name)
        self.start(name)
        self.require()

    def _edited(self, name: str, text: str) -> str:
        if name not in self.edits:
            return text
        changed = self.edits[name](text)
        assert changed != text, f"the edit of {name} changes nothing"
        return changed

    def close(self) -> None:
        """Close the current machine."""
        self.machine.close()

    def require(self) -> None:
        """Raise an assertion unless every unit is active."""
        failed = {name: state for name, state in self.state.items() if state != "active"}
        assert not failed, f"{self.machine.name}: {failed}"

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the daemon of a unit; return its exit code."""
        self.state[name] = "stopped"
        return self.machine.stop(self.daemons.pop(name), number)

    def _starter(self, name: str) -> Callable[[], None]:
        known = {"nftables": self._nftables, "wireguard-wg0": self._wireguard, "nginx": self._nginx}
        if name in known:
            return known[name]
        if Path(self.units[name].command[0]).name == "ping":
            return lambda: self._daemon(name, ["ping", *self.units[name].command[1:]], {}, lambda: True)
        return lambda: self._appliance(name)

    def _nftables(self) -> None:
        self.machine.run("nft", "-f", "-", stdin=self._edited("nftables", translate.nftables(self.values)))

    def _wireguard(self) -> None:
        tunnel, machine = translate.tunnel(self.values), self.machine
        key = machine.path(tunnel.private_key_file)
        if not key.exists() and tunnel.generates_key:
            machine.write(tunnel.private_key_file, machine.run("wg", "genkey"))
        machine.run("mkdir", "-p", "/run/wireguard")
        self._daemon(
            "wireguard-wg0", ["wireguard-go", "-f", tunnel.name], GO, machine.path("/run/wireguard/wg0.sock").exists
        )
        for address in tunnel.addresses:
            machine.run("ip", "address", "add", address, "dev", tunnel.name)
        if tunnel.mtu is not None:
            machine.run("ip", "link", "set", tunnel.name, "mtu", str(tunnel.mtu))
        machine.run("wg", "set", tunnel.name, "private-key", tunnel.private_key_file, *tunnel.interface)
        machine.run("ip", "link", "set", tunnel.name, "up")
        for peer in tunnel.peers:
            machine.run("wg", "set", tunnel.name, *peer)
        for route in tunnel.routes:
            machine.run("ip", "route", "replace", route, "dev", tunnel.name)

    def _nginx(self) -> None:
        machine = self.machine
        machine.run("mkdir", "-p", "/run/nginx", "/var/lib/acme/acme-challenge")
        text = self._edited("nginx", translate.nginx(self.values, translate.NginxPaths()))
        text = "user root;\n" + text
        conf = machine.write("/run/nginx/nginx.conf", text)
        argv = ["nginx", "-c", conf, "-e", "/run/nginx/error.log"]
        self._daemon("nginx", argv, {}, lambda: machine.listens(443))

    def _appliance(self, name: str) -> None:
        machine, unit = self.machine, self.units[name]
        site = json.loads(self.values["environment.etc"]["appliance/appliance.json"]["source"]["text"])
        machine.write(f"{ETC}/appliance/appliance.json", json.dumps(site))
        machine.run("mkdir", "-p", site["gateway"]["data_dir"])
        arguments = [word.replace("/etc/", f"{ETC}/") for word in unit.command[1:]]
        if name == "appliance-gateway":
            port = site["gateway"]["port"]
        else:
            engine, _, replica = name.removeprefix("appliance-engine-").partition(".")
            port = site["engines"][engine]["port"] + int(replica or 0)
        argv = [sys.executable, "-m", "appliance", *arguments]
        self._daemon(name, argv, unit.environment, lambda: machine.listens(port), timeout_s=400)

    def _daemon(
        self, name: str, argv: list[str], environment: Any, ready: Callable[[], bool], timeout_s: float = 30
    ) -> None:
        process = self.machine.start(name, argv, environment)

        def up() -> bool:
            if process.poll() is not None:
                lines = self.machine.log(name).read_text(errors="replace").strip().splitlines()
                raise UnitFailed(f"{name} ended with {process.returncode}: {lines[-1:] or 'without output'}")
            return ready()

        wait_until(up, f"{name} of {self.machine.name} is up", timeout_s)
        self.daemons[name] = process

    def handshake_age_s(self, public_key: str) -> float | None:
        """Return the seconds since the last handshake with a peer; ``None`` before the first."""
        for line in self.machine.run("wg", "show", "wg0", "latest-handshakes").splitlines():
            peer, when = line.split()
            if peer == public_key and when != "0":
                return float(self.machine.run("date", "+%s.%N")) - float(when)
        return None
