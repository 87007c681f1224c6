"""The admin API and the command line with a running gateway: real processes, real database."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Response, RunningService, StartedProcess, chat, http, serving, start, wait_until
from tests.ports import free_port

TOKEN = "a-token-of-enough-characters"


@dataclass
class RunningAdmin:
    """A gateway and its admin API."""

    service: RunningService
    process: StartedProcess

    def call(
        self, path: str, body: object = None, method: str | None = None, token: str | None = TOKEN
    ) -> Response:
        return http(self.process.url + path, body=body, key=token, method=method)


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAdmin]:
    folder = tmp_path_factory.mktemp("admin")
    token = folder / "token"
    token.write_text(TOKEN + "\n")
    port = free_port()
    with serving(folder, admin={"port": port}, roles={"writer": {"model": "fake"}}) as service:
        argv = [sys.executable, "-m", "appliance", "admin", "--config", str(service.config)]
        process = start(argv, port, folder / "admin.log", APPLIANCE_ADMIN_TOKEN_FILE=str(token))
        try:
            yield RunningAdmin(service, process)
        finally:
            process.stop()
            assert "Traceback" not in (folder / "admin.log").read_text()


def cli(service: RunningService, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "appliance", *words, "--config", str(service.config)]
    environment = {**os.environ, "COLUMNS": "160"}
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=environment)


def ask(service: RunningService, key: str, model: str = "fake") -> Response:
    return service.post("/v1/chat/completions", chat("fake: tokens=3") | {"model": model}, key=key)


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", "é" * 20])
def test_all_paths_except_health_need_the_token(admin: RunningAdmin, token: str | None) -> None:
    assert admin.call("/health", token=token).status == 200
    for path in ("/admin/keys", "/admin/usage", "/admin/models"):
        answer = admin.call(path, token=None if token is None else token.encode().decode("latin1"))
        assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")


def test_the_api_creates_changes_and_revokes_a_key(admin: RunningAdmin) -> None:
    made = admin.call("/admin/keys", {"user": "bob", "name": "n8n", "models": ["writer"], "requests_in_flight": 3})
    assert made.status == 201
    key, key_id = made.json["key"], made.json["id"]
    wait_until(lambda: ask(admin.service, key, "writer").status == 200, "the gateway accepts it", 1)
    refused = ask(admin.service, key, "fake")
    assert (refused.status, refused.json["error"]["code"]) == (403, "model_not_allowed")
    offered = admin.service.get("/v1/models", key=key).json["data"]
    assert [card["id"] for card in offered] == ["writer"]
    changed = admin.call(f"/admin/keys/{key_id}", {"models": ["fake"]}, "PATCH")
    assert (changed.json["models"], changed.json["name"], changed.json["requests_in_flight"]) == (
        ["fake"],
        "n8n",
        3,
    )
    wait_until(lambda: ask(admin.service, key, "fake").status == 200, "the change takes effect", 1)
    assert "key" not in admin.call(f"/admin/keys/{key_id}").json
    assert admin.call(f"/admin/keys/{key_id}", method="DELETE").json["state"] == "revoked"
    wait_until(lambda: ask(admin.service, key, "fake").status == 401, "the revocation takes effect", 1)
    assert key.split("-", 2)[2] not in admin.call("/admin/keys").body.decode()


def test_end_users_are_set_by_the_api_and_by_the_command_line(admin: RunningAdmin) -> None:
    made = admin.call("/admin/keys", {"user": "web", "end_users": True}).json
    key_id = made["id"]
    assert (made["end_users"], admin.call("/admin/keys", {"user": "web"}).json["end_users"]) == (True, False)
    assert admin.call(f"/admin/keys/{key_id}", {"name": "x"}, "PATCH").json["end_users"] is True
    assert admin.call(f"/admin/keys/{key_id}", {"end_users": False}, "PATCH").json["end_users"] is False
    changed = cli(admin.service, "keys", "change", key_id, "--end-users")
    assert changed.stdout == f"key {key_id} of web is changed: end_users\n"
    assert {key["id"]: key["end_users"] for key in admin.call("/admin/keys").json}[key_id] is True
    wait_until(lambda: ask(admin.service, made["key"]).status == 200, "the gateway accepts it", 5)
    body = chat("fake: tokens=3", user="joe")

    def counted() -> list[str]:
        assert admin.service.post("/v1/chat/completions", body, key=made["key"]).status == 200
        return [line["name"] for line in admin.call("/admin/usage?user=web").json]

    wait_until(lambda: "web/joe" in counted(), "the record of web/joe", 10)
    assert [line["name"] for line in admin.call("/admin/usage?user=web/joe").json] == ["web/joe"]
    for wrong in ("web/", "a%20b", "web/joe/x", "/joe", ""):
        refused = admin.call(f"/admin/usage?user={wrong}")
        assert (refused.status, refused.json["error"]["param"]) == (400, "user")
    created = cli(admin.service, "keys", "create", "web2", "--end-users")
    listed = {
        key["user"]: key["end_users"] for key in json.loads(cli(admin.service, "keys", "list", "--json").stdout)
    }
    assert (listed["web2"], listed["ada"]) == (True, False)
    assert "each a user" in cli(admin.service, "keys", "list").stdout
    assert cli(admin.service, "keys", "change", created.stdout.split("-")[1], "--no-end-users").returncode == 0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "user"),
        ({"user": "a b"}, "user"),
        ({"user": "a", "requests_per_minute": 0}, "requests_per_minute"),
        ({"user": "a", "weight": -1}, "weight"),
        ({"user": "a", "wieght": 1}, "wieght"),
        ({"user": "a/b"}, "user"),
        ({"user": "a", "end_users": "yes"}, "end_users"),
        ({"user": "a", "end_users": None}, "end_users"),
        (b"{", "JSON"),
    ],
)
def test_an_invalid_key_is_400_and_is_not_created(admin: RunningAdmin, body: Any, says: str) -> None:
    before = len(admin.call("/admin/keys").json)
    answer = admin.call("/admin/keys", body)
    assert answer.status == 400
    assert says in answer.json["error"]["message"]
    assert len(admin.call("/admin/keys").json) == before


def test_a_key_for_an_unknown_model_is_404(admin: RunningAdmin) -> None:
    answer = admin.call("/admin/keys", {"user": "a", "models": ["missing"]})
    assert (answer.status, answer.json["error"]["param"]) == (404, "models")
    assert answer.json["error"]["message"] == "model or role 'missing' does not exist; known: fake, writer"


def test_usage_is_shown_by_the_api_and_by_the_command_line(admin: RunningAdmin) -> None:
    for _ in range(3):
        assert ask(admin.service, admin.service.key).status == 200
    mine = admin.service.rows
    wait_until(lambda: sum(row["user"] == "ada" for row in mine()) >= 3, "the records of ada", 5)
    by_user = {line["name"]: line for line in admin.call("/admin/usage?by=user").json}
    assert by_user["ada"]["completion_tokens"] >= 9
    text = admin.call("/admin/usage?by=outcome&format=csv").body.decode()
    assert {row["name"] for row in csv.DictReader(text.splitlines())} >= {"ok"}
    done = cli(admin.service, "usage", "--by", "day", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["requests"] >= 3
    sheet = cli(admin.service, "usage", "--by", "user", "--format", "csv").stdout
    assert {row["name"]: int(row["requests"]) for row in csv.DictReader(sheet.splitlines())}["ada"] >= 3
    table = cli(admin.service, "usage", "--by", "model").stdout
    assert "Usage by model, last 24h" in table
    assert "fake" in table
    assert cli(admin.service, "usage", "--since", "yesterday").returncode == 2
    assert "before --since" in cli(admin.service, "usage", "--since", "1h", "--until", "2h").stderr


def test_models_have_a_status_and_an_invalid_swap_is_rejected(admin: RunningAdmin) -> None:
    status = admin.call("/admin/models").json
    assert status["models"]["fake"]["loaded"] is True
    assert status["engines"]["chat"]["state"] == "up"
    refused = admin.call("/admin/models/swap", {"model": "fake"})
    assert (refused.status, refused.json["error"]["code"]) == (409, "always_loaded")
    shown = cli(admin.service, "models", "status")
    assert shown.returncode == 0
    assert "chat" in shown.stdout
    said = cli(admin.service, "models", "swap", "fake")
    assert (said.returncode, said.stderr) == (
        1,
        "error: No engine of this site is loaded on demand; there is nothing to swap\n",
    )
    unknown = admin.call("/admin/models/swap", {"model": "fakee"})
    assert (unknown.status, unknown.json["error"]["code"]) == (404, "model_not_found")
    assert "did you mean 'fake'?" in unknown.json["error"]["message"]
    role = admin.call("/admin/models/swap", {"model": "writer"})
    assert (role.status, role.json["error"]["code"]) == (409, "always_loaded")


def test_only_its_owner_may_use_the_control_socket(admin: RunningAdmin) -> None:
    assert (admin.service.data / "control.sock").stat().st_mode & 0o777 == 0o600


def test_an_unreachable_gateway_is_one_line_without_a_traceback(admin: RunningAdmin, tmp_path: Path) -> None:
    site = json.loads(admin.service.config.read_text())
    site["gateway"]["data_dir"] = str(tmp_path)
    config = tmp_path / "site.json"
    config.write_text(json.dumps(site))
    argv = [sys.executable, "-m", "appliance", "models", "status", "--config", str(config)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: no gateway responds on {tmp_path}/control.sock")


def test_the_command_line_makes_changes_and_lists_keys(admin: RunningAdmin) -> None:
    made = cli(admin.service, "keys", "create", "eve", "--models", "fake", "--weight", "2", "--expires-in", "1h")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    wait_until(lambda: ask(admin.service, key).status == 200, "the gateway accepts it", 2)
    key_id = key.split("-")[1]
    assert (
        cli(admin.service, "keys", "change", key_id, "--models", "none", "--requests-per-minute", "1").returncode
        == 0
    )
    listed = next(k for k in json.loads(cli(admin.service, "keys", "list", "--json").stdout) if k["id"] == key_id)
    assert (listed["models"], listed["requests_per_minute"], listed["weight"]) == (None, 1, 2.0)
    assert "1 req/min, 2 weight" in cli(admin.service, "keys", "list").stdout
    for words, says in (
        (["create", "eve", "--models", "fakke"], "model or role 'fakke' does not exist; did you mean 'fake'?"),
        (["create", "eve", "--weight", "heavy"], "'heavy' is not a number"),
        (["create", "eve", "--tokens-per-minute", "0"], "must be more than 0"),
        (["create", "eve", "--weight", "5000"], "weight is 5000; it must be from 0.001 to 1000"),
        (["change", key_id, "--weight", "nan"], "weight is nan"),
        (["change", key_id], "nothing to change"),
        (["change", "000000000000", "--name", "x"], "a key with that id does not exist"),
    ):
        done = cli(admin.service, "keys", *words)
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    assert admin.call("/admin/keys").status == 200, "what one of the two makes, the other one can show"


@pytest.mark.parametrize(("token", "says"), [(None, "there is no admin token"), ("short", "16 to 512 printable")])
def test_without_a_token_it_does_not_start(
    admin: RunningAdmin, tmp_path: Path, token: str | None, says: str
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "CREDENTIALS_DIRECTORY"}
    if token is not None:
        (tmp_path / "admin-token").write_text(token)
        environment["CREDENTIALS_DIRECTORY"] = str(tmp_path)
    argv = [sys.executable, "-m", "appliance", "admin", "--config", str(admin.service.config)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 2
    assert says in done.stderr


def test_the_api_follows_its_own_openapi_document(admin: RunningAdmin, tmp_path: Path) -> None:
    """schemathesis: every operation, valid and invalid input, without authorisation, against the served schema."""
    argv = [sys.executable, "-m", "schemathesis.cli", "run", admin.process.url + "/openapi.json"]
    argv += ["--header", f"Authorization: Bearer {TOKEN}", "--checks", "all", "--max-examples", "12"]
    argv += ["--phases", "examples,coverage,fuzzing", "--seed", "1", "--generation-deterministic", "--no-color"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
