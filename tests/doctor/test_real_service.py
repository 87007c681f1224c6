"""The command on a gateway of this machine: real sockets, SQLite, a killed engine, without NixOS."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from appliance.doctor.checks import database, disk, weights
from appliance.doctor.checks.clock import read_clock
from appliance.doctor.host import HostReader
from appliance.store.keys import KeyStore
from appliance.store.revision import FILE, REVISION
from tests.conftest import ROOT, RunningService, serving


def doctor(config: Path, *words: str) -> tuple[int, dict[str, Any]]:
    argv = [sys.executable, "-m", "appliance", "doctor", "--json", "--config", str(config), *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def by_name(report: dict[str, Any]) -> dict[str, str]:
    return {f"{c['name']} {c['subject']}".strip(): c["level"] for c in report["checks"]}


def test_a_healthy_service(service: RunningService) -> None:
    words = [f"--only={name}" for name in ("ports", "database", "fit", "gateway", "engines")]
    code, report = doctor(service.config, *words)
    assert code == 0, report
    assert by_name(report) == {
        "ports engine chat": "ok", "ports gateway": "ok", "database": "ok", "fit": "ok", "gateway": "ok",
        "engines engine chat": "ok",
    }  # fmt: skip
    assert next(c for c in report["checks"] if c["name"] == "engines")["seen"] == "generated a token"


def test_without_nixos_the_checks_of_a_machine_are_listed_as_skipped(service: RunningService) -> None:
    """A gateway of `make up` has no machine's description."""
    _, report = doctor(service.config)
    skipped = {one["name"]: one["why"] for one in report["left_out"]}
    assert skipped["tunnel"] == skipped["firewall"] == "no machine is described (--machine)"
    assert skipped["cards"] == "there are no cards on this host"
    assert {"clock", "disk", "gateway"} <= {one["name"] for one in report["checks"]}
    assert report["host"] == "here"


def test_a_dead_engine_and_a_dead_gateway(tmp_path: Path) -> None:
    with serving(tmp_path / "x") as service:
        service.engine.stop()
        code, report = doctor(service.config, "--only", "engines", "--only", "gateway")
        assert (code, by_name(report)) == (1, {"gateway": "ok", "engines engine chat": "fail"})
        engine = report["checks"][-1]
        assert engine["seen"].startswith("the engine is not up")
        assert engine["fix"] == "systemctl status appliance-engine-chat; journalctl -u appliance-engine-chat"
        assert [cause["code"] for cause in report["causes"]] == ["engine-down"]
    code, report = doctor(service.config, "--only", "engines", "--only", "gateway", "--only", "ports")
    assert by_name(report) == {"gateway": "fail", "engines": "unknown", "ports gateway": "fail"}
    assert [cause["code"] for cause in report["causes"]] == ["gateway-down", "gateway-not-listening"]
    assert code == 1


def test_no_file_is_created_next_to_the_database_of_a_running_gateway(service: RunningService) -> None:
    """The gateway, which runs as its own user, could not open a file that root creates."""
    names = sorted(path.name for path in service.data.iterdir())
    facts = database.read_database(service.data, 0.0)
    assert (facts.error, facts.integrity, facts.keys) == ("", "ok", 1)
    assert sorted(path.name for path in service.data.iterdir()) == names


def test_no_file_is_created_next_to_a_closed_database(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    key = store.create("ada")
    store.create("bob", expires_at=10.0)
    store.close()
    assert key
    names = sorted(path.name for path in tmp_path.iterdir())
    facts = database.read_database(tmp_path, 100.0)
    assert (facts.keys, facts.revision) == (1, REVISION)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    ("statement", "level", "seen"),
    [
        ("UPDATE alembic_version SET version_num = '9999'", "fail", "its schema is 9999"),
        ("DELETE FROM alembic_version", "fail", "its schema is None"),
        ("UPDATE keys SET revoked_at = 1", "warn", "without an active key"),
        ("DROP TABLE keys", "fail", "no such table: keys"),
    ],
)
def test_databases(statement: str, level: str, seen: str, tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    store.create("ada")
    store.close()
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute(statement)
        db.commit()
    finding = database.judge_database(database.read_database(tmp_path, 2.0))
    assert (finding.level, seen in finding.seen) == (level, True), finding


def test_a_damaged_database(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    for number in range(300):
        store.create(f"user{number}")
    store.close()
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'keys'").fetchone()[0]
    raw = bytearray((tmp_path / FILE).read_bytes())
    raw[(page - 1) * 4096 + 8 : (page - 1) * 4096 + 400] = b"\xff" * 392
    (tmp_path / FILE).write_bytes(raw)
    finding = database.judge_database(database.read_database(tmp_path, 2.0))
    assert finding.level == "fail", finding
    assert finding.cause == "database"


def test_a_full_disk(tmp_path: Path) -> None:
    """On a real, small file system."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "doctor", tmp_path], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("NOT CHECKED: no disk can be mounted here; run as root")
    try:
        assert [one.level for one in disk.judge_disks([disk.read_disk(tmp_path / "not" / "yet")])] == ["ok"]
        (tmp_path / "rows").write_bytes(b"x" * 1000 * 960)
        assert [one.level for one in disk.judge_disks([disk.read_disk(tmp_path)])] == ["warn"]
        (tmp_path / "more").write_bytes(b"x" * 4096 * 16)
        found = list(disk.judge_disks([disk.read_disk(tmp_path), disk.read_disk(tmp_path)]))
        assert [one.level for one in found] == ["fail"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_hashes_are_verified_only_on_request(tmp_path: Path) -> None:
    name = "hub/models--Qwen--Q/snapshots/" + "a" * 40
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "w").write_bytes(b"weights")
    digest = subprocess.run(["sha256sum", tmp_path / name / "w"], capture_output=True, text=True, check=True).stdout
    lock = tmp_path / "models.lock"
    lock.write_text(f"{digest.split()[0]}  7  Qwen/Q@{'a' * 40}  w\n")

    def judged(*, hashes: bool) -> tuple[str, str]:
        facts = weights.read_weights(
            host=HostReader(), store=str(tmp_path), lock_file=str(lock), boot_check="active", hashes=hashes
        )
        found = weights.judge_weights(facts)
        return found.level, found.seen

    assert judged(hashes=True) == ("ok", "1 files, every SHA-256 matches the lock")
    (tmp_path / name / "w").write_bytes(b"weighty")
    assert judged(hashes=False) == ("ok", "1 files of the correct size; hashes matched at boot")
    level, seen = judged(hashes=True)
    assert (level, "its SHA-256 is not the lock's" in seen) == ("fail", True)


def test_this_machines_own_clock_can_be_read() -> None:
    facts = read_clock(HostReader())
    assert 0 <= facts.error_s < 3600
    if shutil.which("timedatectl") and Path("/run/systemd/system").exists():
        done = subprocess.run(
            ["timedatectl", "show", "-p", "NTPSynchronized", "--value"], capture_output=True, text=True, check=False
        )
        assert facts.synchronised is (done.stdout.strip() == "yes")


def test_units_are_unknown_without_systemd(tmp_path: Path) -> None:
    if Path("/run/systemd/system").exists():
        pytest.skip("NOT CHECKED: systemd runs here, so its absence cannot be seen")
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps({"version": 1, "host": "here", "units": ["nftables.service"]}))
    site = tmp_path / "site.json"
    site.write_text(
        json.dumps(
            {
                "version": 1,
                "hosts": {"here": {"memory_gib": 1}},
                "models": {"m": {"source": "./m"}},
                "engines": {
                    "e": {
                        "kind": "mock",
                        "host": "here",
                        "model": "m",
                        "device": "cpu",
                        "context": 1,
                        "concurrency": 1,
                        "port": 9,
                    }
                },
            }
        )
    )
    code, report = doctor(site, "--machine", str(machine), "--only", "units")
    assert (code, report["checks"][0]["level"]) == (4, "unknown")
    assert report["checks"][0]["seen"].startswith("systemctl: ")
