"""What stands around the decisions: entries found by what they boot, places, the login screen, alerts, reasons."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.cli.upgrade import build_command, failure_reason
from appliance.errors import LoaderError, StartError
from appliance.smoketest.report import Proof, SmokeStep
from appliance.upgrade.apply import apply
from appliance.upgrade.bootloader import Loader
from appliance.upgrade.nixos import Nixos, RunningSystem
from appliance.upgrade.notify import send_alerts, write_motd
from appliance.upgrade.state import Generation, Keep, SetDefault, SmokeVerdict, SwitchBack, Trial, TrialState
from appliance.upgrade.state_file import UNSENT, StateFile
from tests.upgrade.model import MemoryStateFile, PowerCut
from tests.upgrade.test_decide import NEW, OLD


def entry(boot: Path, name: str, system: str) -> None:
    folder = boot / "loader" / "entries"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"title NixOS\noptions init={system}/init panic=10\n")


def test_an_entry_is_found_by_what_it_boots(tmp_path: Path) -> None:
    entry(tmp_path, "nixos-proven-generation-3.conf", "/nix/store/a")
    entry(tmp_path, "nixos-generation-9.conf", "/nix/store/a")
    entry(tmp_path, "nixos-generation-12.conf", "/nix/store/a")
    entry(tmp_path, "nixos-generation-13.conf", "/nix/store/ab")
    loader = Loader(boot=tmp_path, variables=tmp_path)
    assert loader.entry(Path("/nix/store/a")) == "nixos-generation-12.conf"
    assert loader.entry(Path("/nix/store/ab")) == "nixos-generation-13.conf"
    with pytest.raises(LoaderError, match=r"no boot entry starts /nix/store/b; `nixos-rebuild boot`"):
        loader.entry(Path("/nix/store/b"))


def test_an_entry_that_the_limit_dropped_is_found_under_its_other_name(tmp_path: Path) -> None:
    entry(tmp_path, "nixos-proven-generation-3.conf", "/nix/store/a")
    assert Loader(boot=tmp_path).entry(Path("/nix/store/a")) == "nixos-proven-generation-3.conf"


@pytest.fixture
def nixos(tmp_path: Path) -> Nixos:
    """Two generations of one profile; the second brings a rescue system."""
    profiles, store, run = tmp_path / "profiles", tmp_path / "store", tmp_path / "run"
    for folder in (profiles, run, store / "a", store / "b" / "specialisation", store / "r"):
        folder.mkdir(parents=True)
    (store / "b" / "specialisation" / "rescue").symlink_to(store / "r")
    (profiles / "system-4-link").symlink_to(store / "a")
    (profiles / "system-5-link").symlink_to(store / "b")
    return Nixos(Loader(boot=tmp_path, variables=tmp_path), rescue="rescue", profiles=profiles, run=run)


def test_where_the_machine_is(nixos: Nixos, tmp_path: Path) -> None:
    (nixos.run / "booted-system").symlink_to(tmp_path / "store" / "a")
    (nixos.run / "current-system").symlink_to(tmp_path / "store" / "r")
    assert nixos.booted() == RunningSystem(Generation(str(tmp_path / "store" / "a"), 4))
    assert nixos.running() == RunningSystem(Generation(str(tmp_path / "store" / "b"), 5), rescue=True)


def test_a_machine_that_is_not_nixos_says_so(nixos: Nixos) -> None:
    with pytest.raises(LoaderError, match="booted-system does not exist; is this NixOS"):
        nixos.booted()


def test_the_login_screen_shows_the_decision_the_verdict_and_what_waits(tmp_path: Path) -> None:
    motd = tmp_path / "motd.d" / "appliance"
    state = TrialState(last="generation 8 was rolled back: no token", unsent=("an older alert",))
    write_motd(state, "smoke test: FAIL", file=motd)
    assert motd.read_text().splitlines() == [
        "appliance: generation 8 was rolled back: no token",
        "appliance: smoke test: FAIL",
        "appliance: waiting to be sent: an older alert",
    ]
    assert list(motd.parent.iterdir()) == [motd], "a draft was left"


def hook(folder: Path, text: str) -> str:
    program = folder / "hook"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


def test_alerts_are_sent_oldest_first_and_forgotten(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    state_file.save(TrialState(unsent=("one", "two")))
    assert send_alerts(state_file, hook(tmp_path, f"cat >> {tmp_path}/got")) == 2
    assert (tmp_path / "got").read_text() == "one\ntwo\n"
    assert state_file.load().unsent == ()
    assert not (tmp_path / UNSENT).exists(), "the sender would be started for ever"


def test_an_alert_that_is_not_taken_waits(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    state_file.save(TrialState(unsent=("one", "two", "three")))
    takes_one = hook(tmp_path, f'read line; echo "$line" >> {tmp_path}/got; [ "$line" = one ]')
    with pytest.raises(StartError, match="ended with 1; it is retried later"):
        send_alerts(state_file, takes_one)
    assert state_file.load().unsent == ("two", "three")
    assert (tmp_path / UNSENT).exists(), "nobody would start the sender again"
    assert (tmp_path / "got").read_text() == "one\ntwo\n", "the third was tried before the second was taken"
    with pytest.raises(StartError, match="cannot be run"):
        send_alerts(state_file, str(tmp_path / "absent"))


def test_a_mark_that_a_power_cut_left_does_not_start_the_sender_for_ever(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    state_file.save(TrialState())
    (tmp_path / UNSENT).touch()
    assert send_alerts(state_file, hook(tmp_path, "exit 1")) == 0
    assert not (tmp_path / UNSENT).exists()


def test_an_alert_is_marked_before_it_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power goes in between: a mark without an alert goes away by itself, an alert without a mark waits."""

    def cut(*_: object) -> None:
        raise PowerCut

    monkeypatch.setattr("appliance.upgrade.state_file.replace_file", cut)
    with pytest.raises(PowerCut):
        StateFile(tmp_path).save(TrialState(unsent=("one",)))
    assert (tmp_path / UNSENT).exists()


def test_a_boot_partition_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "loader" / "entries" / "nixos-generation-1.conf").mkdir(parents=True)
    with pytest.raises(LoaderError, match=r"generation-1\.conf cannot be read \(Is a directory\); check that"):
        Loader(boot=tmp_path).entry(Path("/nix/store/a"))


def test_a_loader_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    conf = tmp_path / "loader" / "loader.conf"
    loader = Loader(boot=tmp_path, variables=tmp_path)
    with pytest.raises(LoaderError, match=r"cannot be changed .*is .* mounted"):
        loader.release_default("nixos-generation-1.conf")
    conf.parent.mkdir()
    conf.write_bytes(b"default \xff\xfe\n")
    with pytest.raises(LoaderError, match=r"loader\.conf is damaged; check"):
        loader.release_default("nixos-generation-1.conf")


def test_a_profile_folder_that_cannot_be_made_is_named(nixos: Nixos, tmp_path: Path) -> None:
    (nixos.profiles / "system-profiles").write_text("")
    with pytest.raises(LoaderError, match=r"system-profiles cannot be created \(File exists\)"):
        nixos.act(Keep(Generation(str(tmp_path / "store" / "a"), 4)))


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
def test_without_a_report_the_reason_is_how_it_ended(environment: dict[str, str], reason: str) -> None:
    assert reason in failure_reason(None, environment)


def test_a_login_screen_that_cannot_be_written_keeps_nobody_in_a_failed_system(tmp_path: Path) -> None:
    """The disk is full, /run is full: it still goes back."""
    from appliance.errors import StoreError  # noqa: PLC0415
    from tests.upgrade.model import ModelDisk  # noqa: PLC0415

    done: list[object] = []

    class FailingTarget:
        def act(self, action: object) -> None:
            done.append(action)

    def notify(_: TrialState) -> None:
        raise StoreError("/run/motd.d/appliance cannot be written")

    live = TrialState(known_good=OLD, held=SetDefault(OLD), trial=Trial(NEW, phase="live"))  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="motd"):
        apply(
            SmokeVerdict(NEW, passed=False, reason="slow", booted=False),
            state_file=MemoryStateFile(disk=ModelDisk(live)),
            machine=FailingTarget(),
            enforce=True,
            notify=notify,
        )
    assert done[-1] == SwitchBack(OLD)


def test_what_upgrade_builds() -> None:
    assert build_command("/etc/nixos", "gpu")[-1] == (
        '/etc/nixos#nixosConfigurations."gpu".config.system.build.toplevel'
    )
    assert '"other"' in build_command("github:me/site#other", "gpu")[-1]
