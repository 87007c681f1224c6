"""Units under their real sandbox, as NixOS renders them, on a machine with systemd as process 1."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.booted.machine import BootedMachine, appliance_program, nix_program, require
from tests.conftest import wait_until
from tests.nix import rendered
from tests.nix.storepaths import StoreFolder

STORE = "/opt/store"
MOCK = "tests/boot/guest.nix"
"""The host without cards, with the mock engine."""
SERVICE = ("appliance-engine-agents.service", "appliance-gateway.service")
NARROWER = {
    "watch-address": "RestrictAddressFamilies=AF_NETLINK",
    "watch-call": "SystemCallFilter=capset",
    "watch-user": "SystemCallFilter=setuid",
}
"""Units of the keepalives without one line that the sandbox allows."""
PROVEN = "/nix/var/nix/profiles/system-profiles/proven"


def unit_text(name: str, machine: BootedMachine, *modules: str) -> str:
    """Return the text of a rendered unit of the GPU host, with the programs of the machine."""
    host = rendered.host("gpu", *modules)
    scripts = {"nix-env": nix_program("nix-env"), "appliance": appliance_program()}
    store = StoreFolder(host, machine.root / STORE.lstrip("/"), prefix=STORE, scripts=scripts)
    return store.unit_text(host.unit(name))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    require()
    rendered.require()
    made = BootedMachine(tmp_path_factory.mktemp("booted"))
    watch = unit_text("appliance-tunnel-watch-vps.service", made)
    made.write("etc/systemd/system/watch.service", watch)
    for control, line in NARROWER.items():
        assert line in watch
        made.write(f"etc/systemd/system/{control}.service", watch.replace(f"{line}\n", ""))
    trial = unit_text("appliance-trial-passed.service", made)
    (system,) = re.findall(r"^ExecStart=.*$", trial, re.MULTILINE)
    store = rendered.inputs()
    assert store is not None
    program = next((made.root / STORE.lstrip("/")).glob("*-nix-*/bin/nix-env"))
    keep = f"ExecStart=/{program.relative_to(made.root)} --profile {PROVEN} --set {store['sops-nix']}"
    made.write("etc/systemd/system/keep.service", trial.replace(system, keep))
    without = trial.replace(system, keep.replace("proven", "control")).replace(
        '"NIX_REMOTE=daemon"', '"NIX_REMOTE="'
    )
    made.write("etc/systemd/system/keep-control.service", without)
    made.write("usr/local/bin/nix-daemon", nix_program("nix-daemon"), executable=True)
    made.write(
        "etc/systemd/system/nix-daemon.service",
        # The daemon has a mount namespace of its own, in which it makes the store writable, as on NixOS.
        "[Service]\nExecStart=/usr/local/bin/nix-daemon\nPrivateMounts=true\n",
    )
    for name in SERVICE:
        made.write(f"etc/systemd/system/{name}", unit_text(name, made, MOCK))
    made.write("etc/appliance/appliance.json", rendered.host("gpu", MOCK).etc_text("appliance/appliance.json"))
    made.write("etc/sysusers.d/gateway.conf", "u appliance-gateway - - -\n")
    made.boot()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def tunnel(machine: BootedMachine) -> Iterator[BootedMachine]:
    """Make an interface wg0 with the peer behind it."""
    # NixOS has this line of systemd's own sysctl.d/50-default.conf, Debian does not.
    machine.run("sysctl", "net.ipv4.ping_group_range=0 2147483647")
    machine.run("ip", "netns", "add", "peer")
    machine.run("ip", "link", "add", "wg0", "type", "veth", "peer", "name", "far", "netns", "peer")
    machine.run("ip", "address", "add", "10.77.0.1/24", "dev", "wg0")
    machine.run("ip", "link", "set", "wg0", "up")
    machine.run("ip", "-n", "peer", "address", "add", "10.77.0.2/24", "dev", "far")
    machine.run("ip", "-n", "peer", "link", "set", "far", "up")
    yield machine
    machine.run("ip", "netns", "delete", "peer")


def replies(machine: BootedMachine) -> int:
    """Return the number of echo replies that the machine has received."""
    names, values = (
        line.split() for line in machine.run("cat", "/proc/1/net/snmp").splitlines() if line.startswith("Icmp:")
    )
    return int(values[names.index("InEchoReps")])


def test_the_keepalives_go_through_the_tunnel(tunnel: BootedMachine) -> None:
    before = replies(tunnel)
    tunnel.start("watch")
    wait_until(lambda: replies(tunnel) > before, "the peer responds", 20)
    tunnel.run("systemctl", "stop", "watch")


@pytest.mark.parametrize(
    ("unit", "error"),
    [
        ("watch-address", "Address family not supported"),
        ("watch-call", "cap_set_proc: Operation not permitted"),
        ("watch-user", "setuid: Operation not permitted"),
    ],
)
def test_control_in_a_narrower_sandbox_ping_ends(tunnel: BootedMachine, unit: str, error: str) -> None:
    tunnel.run("systemctl", "start", unit, check=False)
    wait_until(lambda: error in tunnel.journal(unit), "ping fails", 20)
    tunnel.run("systemctl", "stop", unit)


def test_a_trial_changes_a_profile(machine: BootedMachine) -> None:
    machine.start("nix-daemon")
    wait_until(
        lambda: machine.run("ls", "/nix/var/nix/daemon-socket/", check=False) != "", "the daemon listens", 20
    )
    machine.run("mkdir", "-p", str(Path(PROVEN).parent))
    machine.start("keep")
    assert machine.show("keep", "Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}
    found = rendered.inputs()
    assert found is not None
    assert machine.run("readlink", "-f", PROVEN).strip() == found["sops-nix"]


def test_control_without_the_daemon_a_trial_cannot_change_a_profile(machine: BootedMachine) -> None:
    machine.run("systemctl", "start", "keep-control", check=False)
    assert machine.show("keep-control", "Result")["Result"] == "exit-code"
    assert "Operation not permitted" in machine.journal("keep-control")


def test_the_engine_and_the_gateway_serve(machine: BootedMachine) -> None:
    for name in SERVICE:
        machine.start(name)

    def status(url: str) -> str:
        return machine.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url, check=False)

    wait_until(lambda: status("http://127.0.0.1:8101/health") == "200", "the engine serves", 60)
    wait_until(lambda: status("http://127.0.0.1:8000/v1/models") == "401", "the gateway serves", 60)
    shown = machine.show(SERVICE[0], "NRestarts", "ActiveState")
    assert shown == {"NRestarts": "0", "ActiveState": "active"}
