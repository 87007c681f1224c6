"""A NixOS machine: its systems, its profiles, its pending verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import LoaderError
from appliance.upgrade.bootloader import Loader
from appliance.upgrade.nixos import SMOKE_UNIT, Nixos, RunningSystem, is_verdict_pending
from appliance.upgrade.state import (
    Generation,
    Keep,
)
from tests.upgrade.model import FAILED, PASSED, systemctl_show


@pytest.fixture
def nixos(tmp_path: Path) -> Nixos:
    """Two generations of one profile; the second has a rescue system."""
    profiles, store, run = tmp_path / "profiles", tmp_path / "store", tmp_path / "run"
    for folder in (profiles, run, store / "a", store / "b" / "specialisation", store / "r"):
        folder.mkdir(parents=True)
    (store / "b" / "specialisation" / "rescue").symlink_to(store / "r")
    (profiles / "system-4-link").symlink_to(store / "a")
    (profiles / "system-5-link").symlink_to(store / "b")
    return Nixos(Loader(boot=tmp_path, variables=tmp_path), rescue="rescue", profiles=profiles, run=run)


def test_the_booted_and_the_running_system(nixos: Nixos, tmp_path: Path) -> None:
    (nixos.run / "booted-system").symlink_to(tmp_path / "store" / "a")
    (nixos.run / "current-system").symlink_to(tmp_path / "store" / "r")
    assert nixos.booted() == RunningSystem(Generation(str(tmp_path / "store" / "a"), 4))
    assert nixos.running() == RunningSystem(Generation(str(tmp_path / "store" / "b"), 5), rescue=True)


def test_a_machine_without_nixos_is_an_error(nixos: Nixos) -> None:
    with pytest.raises(LoaderError, match="booted-system does not exist; is this NixOS"):
        nixos.booted()


def test_a_profile_folder_that_cannot_be_created_is_named(nixos: Nixos, tmp_path: Path) -> None:
    (nixos.profiles / "system-profiles").write_text("")
    with pytest.raises(LoaderError, match=r"system-profiles cannot be created \(File exists\)"):
        nixos.act(Keep(Generation(str(tmp_path / "store" / "a"), 4)))


@pytest.mark.parametrize(
    ("shown", "pending"),
    [
        (systemctl_show("inactive"), False),
        (systemctl_show("failed", failed="failed"), False),
        (systemctl_show("activating"), True),
        (systemctl_show("deactivating"), True),  # out of time, and being stopped
        (systemctl_show("inactive", jobs=(SMOKE_UNIT,)), False),  # waits for a job that may never end
        (systemctl_show("inactive", passed="activating"), True),
        (systemctl_show("inactive", jobs=(PASSED,)), True),
        (systemctl_show("failed", jobs=(FAILED,)), True),
        ("", False),
    ],
)
def test_whether_a_verdict_is_pending(shown: str, pending: bool) -> None:
    assert is_verdict_pending(shown) is pending
