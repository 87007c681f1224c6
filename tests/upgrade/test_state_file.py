"""The state file: damaged, on a full disk, during a power cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.errors import StoreError
from appliance.upgrade.state import (
    Phase,
    TrialState,
)
from appliance.upgrade.state_file import UNSENT, StateFile
from tests.smalldisk import SmallDisk
from tests.upgrade.model import HELD, OLD, PowerCut, on_trial


@pytest.mark.parametrize("content", ["", "{", '{"proven": 7}', "\0" * 200])
def test_a_damaged_state_file_is_renamed_and_reported(content: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(content)
    state = StateFile(tmp_path).load()
    assert (state.known_good, state.held) == (None, None)
    assert "damaged" in state.unsent[0]
    assert (tmp_path / "record.broken").read_text() == content
    assert StateFile(tmp_path).load() == state, "the first reader removed the alert"
    assert (tmp_path / UNSENT).exists(), "the sender would not start"


def test_a_damaged_state_file_on_a_full_disk_is_reported_by_each_read(small_disk: SmallDisk) -> None:
    state_file = StateFile(small_disk.folder / "trial")
    state_file.save(HELD)
    (state_file.folder / "record.json").write_text("{")
    small_disk.fill()
    for _ in range(2):
        assert "damaged" in state_file.load().unsent[0]
    small_disk.free()
    assert "is now record.broken" in state_file.load().unsent[0]


def test_the_error_of_a_state_file_that_cannot_be_written_names_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written \(File exists\); .*: move it away"):
        StateFile(tmp_path / "file").save(HELD)


def test_the_state_file_on_a_full_or_read_only_disk_is_unchanged(small_disk: SmallDisk) -> None:
    state_file = StateFile(small_disk.folder / "trial")
    state_file.save(HELD)
    small_disk.fill()
    with pytest.raises(StoreError, match=r"No space left on device.*free space on its disk"):
        state_file.save(on_trial(Phase.BOOTED))
    assert state_file.load() == HELD
    small_disk.read_only()
    with pytest.raises(StoreError, match=r"Read-only file system.*mount -o remount,rw"):
        state_file.save(on_trial(Phase.BOOTED))
    assert state_file.load() == HELD


def test_an_alert_is_marked_before_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power fails in between: a mark without an alert is removed later, an alert without a mark would wait."""

    def cut(*_: object) -> None:
        raise PowerCut

    monkeypatch.setattr("appliance.upgrade.state_file.replace_file", cut)
    with pytest.raises(PowerCut):
        StateFile(tmp_path).save(TrialState(unsent=("one",)))
    assert (tmp_path / UNSENT).exists()


def test_the_keys_of_the_state_file_are_those_of_installed_hosts(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    state_file.save(HELD)
    table = json.loads((tmp_path / "record.json").read_text())
    assert set(table) == {"proven", "trial", "rolled_back", "held", "last", "unsent", "handover"}
    assert table["proven"] == {"system": OLD.system, "number": 7}
    assert state_file.load() == HELD
