"""The consistent copy: of a database in use, of a PostgreSQL server, of files behind links."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from appliance.errors import StoreError
from appliance.store.database import open_database
from appliance.store.keys import KeyStore
from appliance.store.models import PlanPayment
from appliance.store.usage import UsageReader
from appliance.store.users import UserStore
from appliance.system import lock_file
from appliance.watch.backup.stage import CURRENT, DRILL_USER, copy_usage, read_manifest, stage, usage_sums
from tests.postgres import Cluster
from tests.store.test_store import cluster
from tests.watch.backup.site import BackedUpMachine, add_usage

__all__ = ["cluster"]


def test_the_copy_of_a_database_in_use_is_whole_and_of_one_moment(machine: BackedUpMachine) -> None:
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        with closing(sqlite3.connect(machine.data / "appliance.sqlite", timeout=30)) as database:
            while not stop.is_set():
                # Both rows or none.
                with database:
                    for user in ("ada", "bob"):
                        database.execute(
                            "INSERT INTO usage SELECT NULL, started_at, request_id, ?, key_id, endpoint, name, "
                            "model, role, engine, stream, status, outcome, 1, 0, 0, estimated, queue_ms, ttft_ms, "
                            "duration_ms FROM usage LIMIT 1",
                            (user,),
                        )
                written += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(3):
            manifest = stage(machine.plan, now=time.time())
            assert manifest is not None
            counts = {line["name"]: line["requests"] for line in manifest.usage}
            assert counts["ada"] == counts["bob"]
    finally:
        stop.set()
        thread.join()
    assert written > 0
    folder = Path(machine.plan.stage) / CURRENT
    assert [line["requests"] for line in usage_sums(folder)] == [counts["ada"], counts["bob"]]


def test_the_copy_has_a_key_for_the_drill_that_the_machine_does_not_have(machine: BackedUpMachine) -> None:
    manifest = stage(machine.plan, now=time.time())
    assert manifest is not None
    assert manifest.keys == 2
    assert (manifest.drill_key or "none") not in repr(manifest)
    folder = Path(machine.plan.stage) / CURRENT
    store = KeyStore(folder)
    (drill,) = [key for key in store.all() if key.user == DRILL_USER]
    store.close()
    assert drill.models == frozenset({DRILL_USER})
    assert drill.expires_at is not None
    store = KeyStore(machine.data)
    assert sorted(key.user for key in store.all()) == ["ada", "bob"]
    store.close()


def test_files_behind_links_are_copied_and_the_next_copy_replaces_them(machine: BackedUpMachine) -> None:
    machine.folder.joinpath("store").chmod(0o555)
    for _ in range(2):
        assert stage(machine.plan, now=time.time()) is not None
    copied = Path(f"{machine.plan.stage}/{CURRENT}/files{machine.folder}/etc/appliance.json")
    assert not copied.is_symlink()
    assert json.loads(copied.read_text())["version"] == 1
    assert sorted(path.name for path in Path(machine.plan.stage).iterdir()) == [CURRENT, "lock"]


def test_a_copy_that_a_backup_reads_stays(machine: BackedUpMachine) -> None:
    first = stage(machine.plan, now=1000.0)
    number = lock_file.share(Path(machine.plan.stage) / "lock")
    assert number is not None
    assert stage(machine.plan, now=2000.0) is None
    assert read_manifest(Path(machine.plan.stage) / CURRENT) == first


def test_a_copy_that_fails_keeps_the_earlier_one(machine: BackedUpMachine) -> None:
    first = stage(machine.plan, now=1000.0)
    with (machine.data / "appliance.sqlite").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 4000)
    with pytest.raises(StoreError):
        stage(machine.plan, now=2000.0)
    assert read_manifest(Path(machine.plan.stage) / CURRENT) == first


def test_a_missing_folder_is_named(machine: BackedUpMachine) -> None:
    table = json.loads(machine.plan_file.read_text())
    machine.plan_file.write_text(json.dumps(table | {"copies": [str(machine.folder / "absent")]}))
    with pytest.raises(StoreError, match="absent cannot be copied"):
        stage(machine.plan, now=time.time())


def test_a_machine_without_a_gateway_has_a_copy_without_a_database(machine: BackedUpMachine) -> None:
    table = json.loads(machine.plan_file.read_text())
    machine.plan_file.write_text(json.dumps(table | {"site": None}))
    manifest = stage(machine.plan, now=time.time())
    assert manifest is not None
    assert (manifest.keys, manifest.usage, manifest.drill_key) == (0, (), None)


def test_a_copy_of_postgresql_can_be_loaded_into_postgresql(
    machine: BackedUpMachine, cluster: Cluster, tmp_path: Path
) -> None:
    first, second = cluster.database("first"), cluster.database("second")
    users = UserStore(machine.data)
    users.create("guest", plan="basic", note="a note")
    users.extend_plan(PlanPayment("pay-1", "guest", "basic", 30, 500, "XTR"))
    code = users.invite("root", plan="basic", days=1, expires_in_s=1e6)
    users.close()
    source, engine = open_database(machine.data), open_database(tmp_path / "a", first)
    assert copy_usage(source, engine) == (3, 300)
    site = json.loads((machine.folder / "store/site.json").read_text())
    site["gateway"]["database_url"] = first
    (machine.folder / "store/site.json").write_text(json.dumps(site))
    manifest = stage(machine.plan, now=time.time())
    assert manifest is not None
    assert manifest.keys == 3
    assert list(manifest.usage) == usage_sums(machine.data)
    copy, target = open_database(Path(machine.plan.stage) / CURRENT), open_database(tmp_path / "b", second)
    assert copy_usage(copy, target, without_user=DRILL_USER) == (3, 300)
    users = UserStore(tmp_path / "b", second)
    again = users.extend_plan(PlanPayment("pay-1", "guest", "basic", 30, 500, "XTR"))
    assert (users.get("guest").note, again[0]) == ("a note", False)
    assert users.redeem(code, "invited").account.plan == "basic"
    users.close()
    # Rows of the gateway follow: their numbers must not collide with the loaded ones.
    for one in (source, engine, copy, target):
        one.dispose()
    reader = UsageReader(tmp_path / "b", second)
    assert sum(line.requests for line in reader.sums("user", 0)) == 300
    reader.close()
    add_usage(tmp_path / "b", 10, url=second)
    reader = UsageReader(tmp_path / "b", second)
    assert sum(line.requests for line in reader.sums("user", 0)) == 310
    reader.close()
