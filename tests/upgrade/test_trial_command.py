"""The commands `appliance trial` and `appliance upgrade`.

Verdict, deadline and live switch at the same time: each is applied to the generation that it is about.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import main, upgrade
from appliance.cli.upgrade import build_command, failure_reason
from appliance.smoketest import report
from appliance.smoketest.report import Proof, SmokeStep
from appliance.upgrade import nixos
from appliance.upgrade.bootloader import VENDOR, Loader
from appliance.upgrade.nixos import SMOKE_UNIT, Nixos
from appliance.upgrade.state import Generation, Phase, SetDefault, Trial, TrialState
from appliance.upgrade.state_file import StateFile
from tests.conftest import ROOT
from tests.upgrade.model import systemctl_show


class VerdictHost:
    """A NixOS made of folders, with scripts in place of the programs that change it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, monkeypatch
        self.nixos = Nixos(
            Loader(boot=folder / "boot", variables=folder / "efi"),
            profiles=folder / "profiles",
            run=folder / "run",
        )
        for name in ("boot/loader/entries", "efi", "profiles", "run", "bin", "reports", "store/old", "store/new"):
            (folder / name).mkdir(parents=True)
        for number, name in ((7, "old"), (8, "new")):
            system = folder / "store" / name
            (folder / "profiles" / f"system-{number}-link").symlink_to(system)
            entry = folder / "boot/loader/entries" / f"nixos-generation-{number}.conf"
            entry.write_text(f"options init={system}/init\n")
        (folder / "profiles" / "system").symlink_to("system-8-link")
        (folder / "boot/loader/loader.conf").write_text("default nixos-generation-7.conf\n")
        default = "nixos-generation-7.conf\0".encode("utf-16-le")
        (folder / "efi" / f"LoaderEntryDefault-{VENDOR}").write_bytes(b"\7\0\0\0" + default)
        self.program("systemctl", "")
        self.program("nix-env", "")
        monkeypatch.setenv("PATH", f"{folder}/bin:/usr/bin:/bin")
        monkeypatch.setattr(upgrade, "this_machine", lambda _: self.nixos)
        monkeypatch.setattr(upgrade, "REPORTS", folder / "reports")
        monkeypatch.setattr(upgrade, "MOTD", folder / "motd")
        self.state_file = StateFile(folder / "record")

    @property
    def old(self) -> Generation:
        return Generation(str(self.folder / "store/old"), 7)

    @property
    def new(self) -> Generation:
        return Generation(str(self.folder / "store/new"), 8)

    def program(self, name: str, does: str) -> None:
        """Write a program that logs its arguments, then runs the shell commands ``does``."""
        file = self.folder / "bin" / name
        file.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.folder}/called\n{does}\n')
        file.chmod(0o755)

    @property
    def called(self) -> list[str]:
        log = self.folder / "called"
        return log.read_text().splitlines() if log.exists() else []

    def is_at(self, *, booted: str, running: str) -> None:
        for link, name in (("booted-system", booted), ("current-system", running)):
            (self.folder / "run" / link).unlink(missing_ok=True)
            (self.folder / "run" / link).symlink_to(self.folder / "store" / name)

    def on_trial(self, phase: Phase) -> None:
        self.state_file.save(
            TrialState(known_good=self.old, held=SetDefault(self.old), trial=Trial(self.new, phase))
        )

    def reported(self, generation: Generation, *steps: SmokeStep, run: str) -> None:
        made = Proof(generation.system, generation.number, True, "2026-11-25", 1.0, steps, invocation=run)
        report.save(made, report.folder_of(self.folder / "reports", generation))

    def trial(self, *words: str, **environment: str) -> int:
        for name, value in environment.items():
            self.patch.setenv(name, value)
        return main(["trial", *words, "--enforce", "--record", str(self.state_file.folder)])


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VerdictHost:
    made = VerdictHost(tmp_path, monkeypatch)
    made.is_at(booted="new", running="new")
    return made


OK, NO_TOKEN = SmokeStep("x", "ok", "y"), SmokeStep("token a", "fail", "no token")


def test_a_pass_of_the_generation_before_a_switch_is_ignored(host: VerdictHost, capsys: Any) -> None:
    """A smoke test that ran during the switch must not make the new generation known good."""
    host.is_at(booted="old", running="new")
    host.on_trial(Phase.LIVE)
    host.reported(host.old, OK, run="run-of-the-old")
    assert host.trial("verdict", "passed", MONITOR_INVOCATION_ID="run-of-the-old") == 0
    assert host.state_file.load().trial == Trial(host.new, Phase.LIVE), (
        "the verdict of another generation was applied"
    )
    assert host.called == [f"systemctl start --no-block {SMOKE_UNIT}"]
    assert "generation 8 was switched to meanwhile and is tested now" in capsys.readouterr().out


def test_a_failure_of_the_generation_before_a_switch_is_ignored(host: VerdictHost) -> None:
    host.is_at(booted="old", running="new")
    host.on_trial(Phase.LIVE)
    host.reported(host.old, NO_TOKEN, run="run-of-the-old")
    assert host.trial("verdict", "failed", MONITOR_INVOCATION_ID="run-of-the-old") == 0
    assert not host.state_file.load().rolled_back
    assert host.called == [f"systemctl start --no-block {SMOKE_UNIT}"]


def test_a_failure_of_the_running_generation_rolls_back(host: VerdictHost) -> None:
    host.on_trial(Phase.BOOTED)
    host.reported(host.old, OK, run="an-earlier-run")
    host.reported(host.new, NO_TOKEN, run="run")
    assert host.trial("verdict", "failed", MONITOR_INVOCATION_ID="run") == 0
    assert host.called[-1] == "systemctl reboot"
    assert host.state_file.load().rolled_back[0].reason == "token a: no token"


def test_a_report_with_a_pass_is_ignored_if_the_unit_failed(host: VerdictHost, capsys: Any) -> None:
    """The unit wrote its report and was then stopped by its time limit."""
    host.on_trial(Phase.BOOTED)
    host.reported(host.new, OK, run="run")
    code = host.trial("verdict", "failed", MONITOR_INVOCATION_ID="run", MONITOR_SERVICE_RESULT="timeout")
    assert code == 0
    output = capsys.readouterr().out
    assert "smoke test: FAIL: it did not end in time" in output
    assert "PASS" not in output
    assert "PASS" not in (host.folder / "motd").read_text()


@pytest.mark.parametrize("pending", [True, False])
def test_the_deadline_does_not_end_a_smoke_test_that_runs(host: VerdictHost, pending: bool) -> None:
    host.on_trial(Phase.BOOTED)
    (host.folder / "shown").write_text(systemctl_show("activating" if pending else "inactive"))
    host.program("systemctl", f'[ "$1" != show ] || cat {host.folder}/shown')
    assert host.trial("deadline") == 0
    assert (host.state_file.load().trial is None, host.called[-1] == "systemctl reboot") == (
        not pending,
        not pending,
    )


def test_the_deadline_applies_if_systemd_does_not_respond(host: VerdictHost) -> None:
    host.on_trial(Phase.BOOTED)
    host.program("systemctl", '[ "$1" != show ] || exit 1')
    assert host.trial("deadline") == 0
    assert host.called[-1] == "systemctl reboot"


@pytest.mark.parametrize(
    ("does", "reboots"),
    [
        ("exec sleep 600", True),
        ("exit 1", True),
        ('ln -sfn "$STORE/old" "$RUN/current-system"; exit 4', False),
        ('ln -sfn "$STORE/old" "$RUN/current-system"; exec sleep 600', False),
    ],
)
def test_a_switch_back_that_fails_reboots(host: VerdictHost, does: str, reboots: bool) -> None:
    """A switch that hangs ends within the start timeout of the unit."""
    host.is_at(booted="old", running="new")
    host.on_trial(Phase.LIVE)
    host.reported(host.new, NO_TOKEN, run="run")
    host.program("systemd-run", does)
    host.patch.setattr(nixos, "SWITCH_S", 1.0)
    code = host.trial(
        "verdict",
        "failed",
        MONITOR_INVOCATION_ID="run",
        STORE=str(host.folder / "store"),
        RUN=str(host.folder / "run"),
    )
    assert code == 0
    assert (host.called[-1] == "systemctl reboot") is reboots


def test_the_unit_has_time_to_reboot_after_a_switch_that_hangs() -> None:
    """The start timeout of the unit exceeds the limits of lock and switch."""
    limit = re.search(r"TimeoutStartSec = (\d+)", (ROOT / "modules/trial.nix").read_text())
    assert limit is not None
    assert int(limit[1]) >= nixos.LOCK_WAIT_S + nixos.SWITCH_S + 60


def proof(*steps: SmokeStep, invocation: str = "i") -> Proof:
    return Proof("/nix/store/new", 8, True, "2026-11-25", 1.0, steps, invocation=invocation)


def test_the_reason_is_the_first_failed_step() -> None:
    steps = (
        SmokeStep("cards", "ok", "2"),
        SmokeStep("token a", "fail", "no token"),
        SmokeStep("load", "fail", "slow"),
    )
    assert failure_reason(proof(*steps), {}) == "token a: no token"


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"MONITOR_SERVICE_RESULT": "timeout"}, "it did not end in time"),
        (
            {"MONITOR_SERVICE_RESULT": "exit-code", "MONITOR_EXIT_STATUS": "2"},
            "without a report (exit-code, 2): journalctl -u appliance-smoke",
        ),
        ({"MONITOR_SERVICE_RESULT": "resources"}, "it could not be started"),
        ({}, "without a report (unknown)"),
    ],
)
def test_without_a_report_the_reason_is_the_result_of_the_unit(environment: dict[str, str], reason: str) -> None:
    assert reason in failure_reason(None, environment)


def test_the_build_command_names_the_host() -> None:
    assert build_command("/etc/nixos", "gpu")[-1] == (
        '/etc/nixos#nixosConfigurations."gpu".config.system.build.toplevel'
    )
    assert '"other"' in build_command("github:me/site#other", "gpu")[-1]
