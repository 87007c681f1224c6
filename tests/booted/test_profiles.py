"""The units of the trial change a profile of Nix under their sandbox, with a real nix-env on a real store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.booted.machine import BootedMachine, require
from tests.booted.programs import nix_program
from tests.booted.site import GPU, BootedHost
from tests.conftest import wait_until
from tests.nix import rendered

pytestmark = pytest.mark.timeout(900)
PROVEN = "/nix/var/nix/profiles/system-profiles/proven"


def system() -> Path:
    """Return a path of the store, in place of a system."""
    return rendered.source("sops-nix")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    require()
    rendered.require()
    host = BootedHost(rendered.host("gpu", GPU), BootedMachine(tmp_path_factory.mktemp("profiles") / "gpu"))
    made = host.machine
    trial = host.text("appliance-trial-passed.service")
    (command,) = re.findall(r"^ExecStart=.*$", trial, re.MULTILINE)
    program = next((made.root / "opt/store").glob("*-nix-*/bin/nix-env"))
    keep = f"ExecStart=/{program.relative_to(made.root)} --profile {PROVEN} --set {system()}"
    made.write("etc/systemd/system/keep.service", trial.replace(command, keep))
    without = trial.replace(command, keep.replace("proven", "control"))
    made.write("etc/systemd/system/keep-control.service", without.replace('"NIX_REMOTE=daemon"', '"NIX_REMOTE="'))
    made.write("usr/local/bin/nix-daemon", nix_program("nix-daemon"), executable=True)
    made.write(
        "etc/systemd/system/nix-daemon.service",
        # The daemon has a mount namespace of its own, in which it makes the store writable, as on NixOS.
        "[Service]\nExecStart=/usr/local/bin/nix-daemon\nPrivateMounts=true\n",
    )
    made.boot()
    try:
        yield made
    finally:
        made.stop()


def test_a_trial_changes_a_profile(machine: BootedMachine) -> None:
    machine.start("nix-daemon")
    wait_until(
        lambda: machine.run("ls", "/nix/var/nix/daemon-socket/", check=False) != "", "the daemon listens", 200
    )
    machine.run("mkdir", "-p", str(Path(PROVEN).parent))
    machine.start("keep")
    assert machine.show("keep", "Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}
    assert machine.run("readlink", "-f", PROVEN).strip() == str(system())


def test_control_without_the_daemon_a_trial_cannot_change_a_profile(machine: BootedMachine) -> None:
    machine.run("systemctl", "start", "keep-control", check=False)
    assert machine.show("keep-control", "Result")["Result"] == "exit-code"
    assert "Operation not permitted" in machine.journal("keep-control")
