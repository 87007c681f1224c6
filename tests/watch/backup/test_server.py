"""A client of an append-only server, which is a real rclone: it can add snapshots, and can delete none.

The VPS runs restic's own rest-server, which Debian does not have. Both implement the REST protocol of restic with
``--append-only`` and private repositories.
"""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartedProcess, http, start
from tests.ports import free_port
from tests.watch.backup.site import BackedUpMachine, make_machine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedProcess]:
    if shutil.which("rclone") is None:
        pytest.skip("NOT CHECKED: rclone is missing; apt-get install $(cat tests/nix/apt.txt)")
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    argv = ["rclone", "--config", "", "serve", "restic", "--append-only", "--private-repos"]
    argv += ["--addr", f"127.0.0.1:{port}", "--user", "gpu", "--pass", "s3cret", str(folder / "data")]
    running = start(argv, port, folder / "rclone.log")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(server: StartedProcess, tmp_path_factory: pytest.TempPathFactory) -> BackedUpMachine:
    machine = make_machine(tmp_path_factory.mktemp("client") / "machine", initialised=False)
    machine.change_plan(url=f"rest:http://gpu:s3cret@127.0.0.1:{server.port}/gpu/")
    assert machine.back_up().failed == {}
    return machine


def delete(server: StartedProcess, path: str) -> int:
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, server.url, "gpu", "s3cret")
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
    try:
        with opener.open(urllib.request.Request(server.url + path, method="DELETE"), timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_client_adds_snapshots_and_deletes_none(server: StartedProcess, client: BackedUpMachine) -> None:
    before = client.snapshots()
    for kind, name in (("snapshots", before[0]["id"]), ("config", "")):
        assert delete(server, f"/gpu/{kind}/{name}".rstrip("/")) == 403
    # restic repeats a refused request for minutes.
    assert client.restic().run("forget", "latest", "--prune", timeout_s=4).code != 0
    assert client.back_up().failed == {}
    assert {one["id"] for one in before} < {one["id"] for one in client.snapshots()}


def test_another_account_is_refused(client: BackedUpMachine, server: StartedProcess) -> None:
    assert http(f"{server.url}/gpu/config").status == 401
    assert delete(server, "/other/config") in (401, 403)


def test_a_restore_needs_no_lock_on_the_server(client: BackedUpMachine, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.toml"
    client.run("escrow", "--plan", client.plan_file, "--output", sheet)
    client.run("drill", "--plan", client.plan_file, "--escrow", sheet, "--work", tmp_path / "work")
