"""An empty machine and the escrow sheet: the restore, the drill, and each defect that must fail the drill."""

from __future__ import annotations

import json
import os
import pty
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from appliance.contract.backup import DrillRecord, drill_record_file, read_drill_record
from appliance.errors import ConfigError, StartError, StoreError
from appliance.store.keys import KeyStore
from appliance.system.stopping import Stop
from appliance.watch.backup.drill import boot_gateway, drill
from appliance.watch.backup.escrow import read_escrow
from appliance.watch.backup.restore import verify
from appliance.watch.backup.stage import MANIFEST, usage_sums
from tests.conftest import ROOT, a_site, chat, http, start, start_mock
from tests.ports import free_port
from tests.watch.backup.site import AGE_KEY, PASSWORD, BackedUpMachine, make_machine


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory: pytest.TempPathFactory) -> BackedUpMachine:
    machine = make_machine(tmp_path_factory.mktemp("backed-up") / "machine")
    assert machine.back_up().failed == {}
    machine.run("escrow", "--plan", machine.plan_file, "--output", machine.folder / "sheet.toml")
    return machine


def run_drill(machine: BackedUpMachine, work: Path, sheet: Path | None = None) -> DrillRecord:
    escrow = read_escrow(sheet or machine.folder / "sheet.toml")
    return drill(machine.plan, escrow, work, stop=Stop(), timeout_s=100)


@pytest.fixture
def copied(backed_up: BackedUpMachine, tmp_path: Path) -> Path:
    """A sheet for a copy of the repository, which a test may damage."""
    repository = tmp_path / "repository"
    shutil.copytree(backed_up.repository, repository)
    text = (backed_up.folder / "sheet.toml").read_text()
    sheet = tmp_path / "sheet.toml"
    sheet.write_text(text.replace(str(backed_up.repository), str(repository)))
    return sheet


def test_an_empty_machine_and_the_sheet_give_a_gateway_that_accepts_an_old_key(
    backed_up: BackedUpMachine, tmp_path: Path
) -> None:
    sums = usage_sums(backed_up.data)
    assert [line["requests"] for line in sums] == [150, 150]
    # Only the sheet and the server's folder: no plan, no data of the old machine.
    sheet = shutil.copy(backed_up.folder / "sheet.toml", tmp_path / "sheet.toml")
    target, data = tmp_path / "restored", tmp_path / "data"
    output = backed_up.run("restore", "--escrow", sheet, "--target", target, "--cache", tmp_path / "cache")
    assert "verified" in output
    key_file = target / str(backed_up.folder / "wg0.key").lstrip("/")
    assert key_file.read_text() == "the private key of the tunnel\n"
    engine = start_mock(tmp_path / "engine.log")
    port = free_port()
    config = tmp_path / "site.json"
    config.write_text(json.dumps(a_site(port, engine.port, data)))
    assert "loaded 2 keys and 300 usage records of gpu" in backed_up.run(
        "load", "--from", target, "--config", config
    )
    assert usage_sums(data) == sums
    gateway = start([sys.executable, "-m", "appliance", "gateway", "--config", str(config)], port, tmp_path / "log")
    try:
        assert http(f"{gateway.url}/v1/chat/completions", body=chat(), key=backed_up.key).status == 200
        changed = backed_up.key[:-1] + ("A" if backed_up.key[-1] != "A" else "B")
        assert http(f"{gateway.url}/v1/chat/completions", body=chat(), key=changed).status == 401
    finally:
        gateway.stop()
        engine.stop()
    # The drill's key is not loaded, and a second load must not mix two histories.
    store = KeyStore(data)
    assert sorted(key.user for key in store.all()) == ["ada", "bob"]
    store.close()
    assert "the database already has keys" in backed_up.run("load", "--from", target, "--config", config, code=1)


def test_a_drill_passes_from_the_sheet_alone_and_leaves_nothing(backed_up: BackedUpMachine, tmp_path: Path) -> None:
    record = run_drill(backed_up, tmp_path / "work")
    assert record.failed is None
    assert record.last_success is not None
    assert list((tmp_path / "work").iterdir()) == []
    assert read_drill_record(drill_record_file(backed_up.plan)) == record


def test_flipped_bytes_in_the_repository_fail_the_drill(
    backed_up: BackedUpMachine, copied: Path, tmp_path: Path
) -> None:
    before = run_drill(backed_up, tmp_path / "work", copied).last_success
    for pack in (tmp_path / "repository/data").rglob("*"):
        if pack.is_file():
            pack.chmod(0o600)
            content = bytearray(pack.read_bytes())
            content[len(content) // 2] ^= 0xFF
            pack.write_bytes(bytes(content))
    record = run_drill(backed_up, tmp_path / "work", copied)
    assert "cannot be restored" in (record.failed or "")
    assert record.last_success == before


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (PASSWORD, "another-password", "password or no key found"),
        (AGE_KEY, "AGE-SECRET-KEY-OTHER", "does not hold the age key"),
        ('host = "gpu"', 'host = "other"', "cannot be restored"),
        ("/repository", "/nowhere", "cannot be restored"),
    ],
    ids=["password", "age-key", "host", "address"],
)
def test_a_sheet_that_does_not_fit_fails_the_drill(
    backed_up: BackedUpMachine, copied: Path, tmp_path: Path, old: str, new: str, reason: str
) -> None:
    copied.write_text(copied.read_text().replace(old, new))
    assert reason in (run_drill(backed_up, tmp_path / "work", copied).failed or "")


def test_a_snapshot_without_a_new_copy_fails_the_drill(backed_up: BackedUpMachine, tmp_path: Path) -> None:
    escrow = read_escrow(backed_up.folder / "sheet.toml")
    now = float(json.loads((backed_up.folder / "stage/current" / MANIFEST).read_text())["made_at"])
    later = drill(backed_up.plan, escrow, tmp_path, stop=Stop(), timeout_s=100, clock=lambda: now + 50 * 3600)
    assert "the newest snapshot has a copy of 50 h ago" in (later.failed or "")


@pytest.fixture
def restored(backed_up: BackedUpMachine, tmp_path: Path) -> Path:
    """A folder like a restored one: the present copy."""
    target = tmp_path / "restored"
    shutil.copytree(backed_up.folder / "stage/current", target / "current")
    return target


def manifest(target: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((target / "current" / MANIFEST).read_text())
    return table


def test_a_copy_is_verified(restored: Path, tmp_path: Path) -> None:
    assert verify(restored, tmp_path / "work").manifest.keys == 2


def test_a_changed_file_is_found(restored: Path, tmp_path: Path) -> None:
    with (restored / "current/appliance.sqlite").open("ab") as file:
        file.write(b"x")
    with pytest.raises(StoreError, match="differs from its hash"):
        verify(restored, tmp_path / "work")


def test_a_missing_file_is_found(restored: Path, tmp_path: Path) -> None:
    (restored / "current/appliance.sqlite").unlink()
    with pytest.raises(StoreError, match="is missing in the snapshot"):
        verify(restored, tmp_path / "work")


def test_other_sums_of_usage_are_found(restored: Path, tmp_path: Path) -> None:
    table = manifest(restored)
    table["usage"][0]["prompt_tokens"] += 1
    (restored / "current" / MANIFEST).write_text(json.dumps(table))
    with pytest.raises(StoreError, match="the sums of usage differ"):
        verify(restored, tmp_path / "work")


def test_a_snapshot_of_another_program_is_found(tmp_path: Path) -> None:
    (tmp_path / "restored").mkdir()
    with pytest.raises(StoreError, match="has 0 files"):
        verify(tmp_path / "restored", tmp_path / "work")


def test_a_database_whose_keys_are_gone_fails_the_drill(backed_up: BackedUpMachine, restored: Path) -> None:
    copy = verify(restored, restored.parent / "verified")
    with closing(sqlite3.connect(copy.folder / "appliance.sqlite")) as database:
        database.execute("DELETE FROM keys")
        database.commit()
    (restored.parent / "work").mkdir()
    with pytest.raises(StoreError, match="rejects the key of the backup with 401"):
        boot_gateway(copy, restored.parent / "work", stop=Stop())


def test_a_gateway_that_cannot_start_fails_the_drill(backed_up: BackedUpMachine, restored: Path) -> None:
    copy = verify(restored, restored.parent / "verified")
    with closing(sqlite3.connect(copy.folder / "appliance.sqlite")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()
    (restored.parent / "work").mkdir()
    with pytest.raises(StartError, match=r"no gateway starts on the restored data: .*newer version"):
        boot_gateway(copy, restored.parent / "work", stop=Stop())


def test_a_restore_into_a_folder_with_files_is_rejected(backed_up: BackedUpMachine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sheet = backed_up.folder / "sheet.toml"
    output = backed_up.run("restore", "--escrow", sheet, "--target", tmp_path, code=1)
    assert f"{tmp_path} is not empty" in output


def test_the_sheet_is_a_file_of_its_owner(backed_up: BackedUpMachine) -> None:
    sheet = backed_up.folder / "sheet.toml"
    assert sheet.stat().st_mode & 0o777 == 0o600
    escrow = read_escrow(sheet)
    assert escrow.age_key == AGE_KEY
    assert PASSWORD not in repr(escrow)
    output = backed_up.run("escrow", "--plan", backed_up.plan_file, "--output", sheet, code=1)
    assert f"{sheet} exists" in output


def test_the_sheet_is_not_printed_into_a_log(backed_up: BackedUpMachine) -> None:
    output = backed_up.run("escrow", "--plan", backed_up.plan_file, code=2)
    assert "this is not a terminal" in output
    assert PASSWORD not in output


def test_the_sheet_is_printed_to_a_terminal(backed_up: BackedUpMachine) -> None:
    own, terminal = pty.openpty()
    argv = backed_up.argv("escrow", "--plan", backed_up.plan_file)
    done = subprocess.run(argv, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal, check=False, timeout=60)
    text = os.read(own, 65536).decode()
    os.close(own)
    os.close(terminal)
    assert done.returncode == 0
    assert PASSWORD in text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("version = [", "is not TOML"),
        ("version = 1", "missing or not valid"),
        ("version = 2\nhost='gpu'\n[repositories.x]\nurl='a'\npassword='topsecret'", "version"),
    ],
)
def test_a_damaged_sheet_is_rejected_without_its_content(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "sheet.toml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_escrow(tmp_path / "sheet.toml")
    assert reason in str(raised.value)
    assert "topsecret" not in str(raised.value)


def test_a_sheet_has_only_its_repositories(backed_up: BackedUpMachine) -> None:
    with pytest.raises(ConfigError, match="has no repository 'bucket'; it has vps"):
        read_escrow(backed_up.folder / "sheet.toml").access("bucket")
