"""The switch on a VPS that reaches home through a real WireGuard tunnel (case 13: the line of home is cut)."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from appliance.notices.notice import Notice
from tests.conftest import wait_until
from tests.network.internet import Internet
from tests.network.machine import NetworkMachine
from tests.network.site import keypair
from tests.nix import checker

PROGRAMS = ("ip", "nft", "wg", "wireguard-go", "unshare", "nsenter", "setpriv", "sysctl")
PUBLIC = {"vps": ("203.0.113.5", 5), "gpu": ("203.0.113.50", 50)}
TUNNEL = {"vps": "10.77.0.2", "gpu": "10.77.0.1"}
GO = {"LOG_LEVEL": "error", "WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1"}
LONG = 60.0
FOLDER = "/var/lib/appliance-deadman"


@dataclass
class WatchedHome:
    """Both machines, with a gateway at home and the switch on the VPS."""

    internet: Internet
    vps: NetworkMachine
    gpu: NetworkMachine

    def notices(self) -> list[Notice]:
        files = sorted(self.vps.path(f"{FOLDER}/notices").glob("[0-9]*.json"))
        return [msgspec.json.decode(file.read_bytes(), type=Notice) for file in files]

    def metric(self, name: str) -> float:
        """Return a metric of the switch, read from home through the tunnel, as Prometheus does."""
        script = (
            f"import urllib.request as r; print(r.urlopen('http://{TUNNEL['vps']}:9097/metrics').read().decode())"
        )
        text = self.gpu.run(sys.executable, "-c", script)
        found = (line.split() for line in text.splitlines() if line.startswith("appliance_deadman_"))
        return {key: float(value) for key, value in found}[f"appliance_deadman_{name}"]

    def announce(self, kind: str) -> None:
        argv = [
            sys.executable,
            "-m",
            "appliance",
            "deadman",
            "announce",
            kind,
            "--url",
            f"http://{TUNNEL['vps']}:9097",
        ]
        self.gpu.run("env", f"PYTHONPATH={Path.cwd()}", *argv)


@pytest.fixture
def tunnel(tmp_path: Path) -> Iterator[WatchedHome]:
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        pytest.skip("NOT CHECKED: network namespaces and wireguard-go need root and /dev/net/tun")
    for program in PROGRAMS:
        checker.require(program)
    internet = Internet(tmp_path)
    machines = {name: NetworkMachine(name, tmp_path) for name in PUBLIC}
    try:
        keys = {name: keypair(tmp_path, name) for name in PUBLIC}
        for name, machine in machines.items():
            internet.plug(machine, PUBLIC[name][1])
            connect(machine, name, keys)
        gpu, vps = machines["gpu"], machines["vps"]
        # A gateway whose response to GET /ready is a file.
        site = tmp_path / "site"
        site.mkdir()
        (site / "ready").write_text(json.dumps({"status": "ready", "engines": {}}))
        argv = [sys.executable, "-m", "http.server", "8000", "--bind", TUNNEL["gpu"], "--directory", str(site)]
        gpu.start("gateway", argv)
        wait_until(lambda: gpu.listens(8000), "the gateway listens", LONG)
        argv = [sys.executable, "-m", "appliance", "deadman", "serve", "--home", "gpu", "--address", TUNNEL["gpu"]]
        argv += ["--listen", TUNNEL["vps"], "--peer", keys["gpu"], "--folder", FOLDER, "--no-beat"]
        vps.start("switch", [*argv, "--interval", "0.2s", "--silent", "2s", "--timeout", "1s"])
        wait_until(lambda: vps.listens(9097), "the switch listens", LONG)
        yield WatchedHome(internet, vps, gpu)
        log = vps.log("switch").read_text()
        assert "Traceback" not in log, log
    finally:
        for machine in machines.values():
            machine.close()
        internet.close()


def connect(machine: NetworkMachine, name: str, keys: dict[str, str]) -> None:
    """Connect a machine to the other one."""
    other = next(one for one in PUBLIC if one != name)
    machine.run("mkdir", "-p", "/run/wireguard")
    machine.start("wireguard", [shutil.which("wireguard-go") or "wireguard-go", "-f", "wg0"], GO)
    wait_until(machine.path("/run/wireguard/wg0.sock").exists, "the device", LONG)
    key = machine.write("/run/wg0.key", (machine.logs / f"{name}.key").read_text())
    peer = ["peer", keys[other], "allowed-ips", f"{TUNNEL[other]}/32"]
    # Home connects, as behind a router.
    line = ["endpoint", f"{PUBLIC[other][0]}:51820", "persistent-keepalive", "1"] if name == "gpu" else []
    port = [] if name == "gpu" else ["listen-port", "51820"]
    machine.run("wg", "set", "wg0", "private-key", key, *port, *peer, *line)
    machine.run("ip", "address", "add", f"{TUNNEL[name]}/24", "dev", "wg0")
    machine.run("ip", "link", "set", "wg0", "up")


def test_a_cut_line_is_one_alarm_and_one_return(tunnel: WatchedHome) -> None:
    wait_until(lambda: tunnel.metric("ready") == 1, "a look through the tunnel", LONG)
    wait_until(lambda: 0 <= tunnel.metric("handshake_age_seconds") < LONG, "a handshake", LONG)
    assert tunnel.notices() == []
    tunnel.internet.cut(tunnel.gpu)
    cut_at = time.time()
    wait_until(lambda: len(tunnel.notices()) == 1, "the alarm", LONG)
    (alarm,) = tunnel.notices()
    assert alarm.at - cut_at < LONG
    assert alarm.text.startswith("gpu is unreachable for")
    assert "/ready: no connection within 1 s; last handshake" in alarm.text
    tunnel.internet.restore(tunnel.gpu)
    wait_until(lambda: len(tunnel.notices()) == 2, "the return", LONG)
    assert tunnel.notices()[1].ended
    assert tunnel.notices()[1].text.startswith("gpu is back after")
    wait_until(lambda: tunnel.metric("ready") == 1, "a look through the tunnel", LONG)
    assert tunnel.metric("home_alive") == 1
    # After an announcement, the same cut is quiet.
    tunnel.announce("going-down")
    tunnel.internet.cut(tunnel.gpu)
    wait_until(lambda: has_left(tunnel), "looks at a cut line", LONG)
    tunnel.internet.restore(tunnel.gpu)
    state = tunnel.vps.path(f"{FOLDER}/state.json")
    wait_until(lambda: json.loads(state.read_text())["announcement"] is None, "the end of the announcement", LONG)
    assert len(tunnel.notices()) == 2


def has_left(tunnel: WatchedHome) -> bool:
    """Return whether the switch noticed that the host left: its file has that after two looks."""
    announcement = json.loads(tunnel.vps.path(f"{FOLDER}/state.json").read_text())["announcement"]
    return bool(announcement and announcement["left"])
