"""Users, invites and bills over the admin API and on the command line, with a running gateway."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from appliance.cli import main
from tests.admin.test_admin import TOKEN, RunningAdmin, ask, cli
from tests.conftest import serving, start, wait_until
from tests.ports import free_port

PLANS = {
    "free": {"tokens_per_day": 10_000},
    "basic": {"tokens_per_month": 500_000, "price": "=10 EUR"},
}
MONTH = time.strftime("%Y-%m", time.gmtime())


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAdmin]:
    folder = tmp_path_factory.mktemp("users")
    token = folder / "token"
    token.write_text(TOKEN + "\n")
    port = free_port()
    roles = {"writer": {"model": "fake"}}
    with serving(folder, admin={"port": port}, roles=roles, plans=PLANS, default_plan="free") as service:
        argv = [sys.executable, "-m", "appliance", "admin", "--config", str(service.config)]
        process = start(argv, port, folder / "admin.log", APPLIANCE_ADMIN_TOKEN_FILE=str(token))
        try:
            yield RunningAdmin(service, process)
        finally:
            process.stop()
            assert "Traceback" not in (folder / "admin.log").read_text()


def test_the_api_creates_a_user_and_changes_its_plan(admin: RunningAdmin) -> None:
    until = time.time() + 86400
    made = admin.call("/admin/users", {"name": "grace", "plan": "basic", "plan_until": until, "note": "Grace H."})
    assert made.status == 201
    key = made.json["key"]
    shown = {"name": "grace", "plan": "basic", "note": "Grace H.", "tokens_per_month": 500_000, "tokens_today": 0}
    assert shown.items() <= made.json.items()
    wait_until(lambda: ask(admin.service, key).status == 200, "the gateway accepts the key", 20)
    assert admin.service.get("/v1/usage", key=key).json["plan"] == "basic"
    changed = admin.call("/admin/users/grace", {"plan": None}, "PATCH").json
    assert (changed["plan"], changed["plan_until"], changed["present_plan"], changed["note"]) == (
        None, None, "free", "Grace H.",
    )  # fmt: skip
    wait_until(lambda: admin.service.get("/v1/usage", key=key).json["plan"] == "free", "the change", 20)
    disabled = admin.call("/admin/users/grace", {"disabled": True}, "PATCH").json
    assert disabled["disabled_at"] == pytest.approx(time.time(), abs=100)
    wait_until(lambda: ask(admin.service, key).status == 401, "the user is disabled", 20)
    assert admin.call("/admin/users/grace", {"disabled": False}, "PATCH").json["disabled_at"] is None
    wait_until(lambda: ask(admin.service, key).status == 200, "the user is enabled", 20)
    assert key not in admin.call("/admin/users").body.decode()


def test_a_taken_name_is_409_and_an_unknown_user_404(admin: RunningAdmin) -> None:
    admin.call("/admin/keys", {"user": "keyed"})
    for name in ("keyed", "taken"):
        if name == "taken":
            assert admin.call("/admin/users", {"name": name}).status == 201
        refused = admin.call("/admin/users", {"name": name})
        assert (refused.status, refused.json["error"]["code"]) == (409, "name_taken")
    assert admin.call("/admin/users/absent").status == 404
    assert admin.call("/admin/users/absent", {"note": "x"}, "PATCH").json["error"]["code"] == "user_not_found"
    assert admin.call("/admin/users/keyed").json["present_plan"] == "free"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "name"),
        ({"name": "a b"}, 400, "name"),
        ({"name": "a/b"}, 400, "name"),
        ({"name": "new", "plan": "gold"}, 404, "plan 'gold' does not exist; known: basic, free"),
        ({"name": "new", "plan_until": 5}, 409, "plan_until needs a plan"),
        ({"name": "new", "plan": "basic", "plan_until": -5}, 400, "plan_until"),
        ({"name": "new", "language": "english"}, 400, "language"),
        ({"name": "new", "note": "a\nb"}, 400, "note"),
        ({"name": "new", "tokens": 5}, 400, "tokens"),
    ],
)
def test_an_invalid_user_is_not_created(admin: RunningAdmin, body: Any, status: int, words: str) -> None:
    answer = admin.call("/admin/users", body)
    assert answer.status == status
    assert words in answer.json["error"]["message"]
    assert admin.call("/admin/users/new").status == 404


def test_all_paths_need_the_token(admin: RunningAdmin) -> None:
    for path, body in (("/admin/users", None), ("/admin/invites", {}), ("/admin/bill", None)):
        assert admin.call(path, body, token=None).status == 401
        assert admin.call(path, body, token="x" * 32).status == 401


def test_an_invite_is_redeemed_once_also_twice_at_once(admin: RunningAdmin) -> None:
    code = admin.call("/admin/invites", {"plan": "basic", "days": 30}).json["code"]

    def redeem(name: str) -> int:
        return admin.call("/admin/invites/redeem", {"code": code, "name": name}).status

    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(redeem, [f"guest{number}" for number in range(6)]))
    assert sorted(statuses) == [201, 404, 404, 404, 404, 404]
    (guest,) = [user for user in admin.call("/admin/users").json if user["name"].startswith("guest")]
    assert guest["plan_until"] - time.time() == pytest.approx(30 * 86400, abs=200)
    bodies = ({"days": 0}, {"days": 5}, {"plan": "gold"}, {"valid_days": -1})
    assert [admin.call("/admin/invites", body).status for body in bodies] == [400, 409, 404, 400]


def test_the_bill_agrees_with_usage(admin: RunningAdmin) -> None:
    key = admin.call("/admin/users", {"name": "billed", "plan": "basic"}).json["key"]
    wait_until(lambda: ask(admin.service, key).status == 200, "the gateway accepts the key", 20)
    assert ask(admin.service, key, "writer").status == 200

    def lines() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = admin.call(f"/admin/bill?month={MONTH}&user=billed").json
        return found

    wait_until(lambda: len(lines()) == 2, "both records", 20)
    (usage,) = admin.call("/admin/usage?user=billed").json
    for column in ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens"):
        assert sum(line[column] for line in lines()) == usage[column]
    assert [line["role"] for line in lines()] == ["", "writer"]
    sheet = admin.call("/admin/bill?user=billed&format=csv").body.decode()
    assert [row["price"] for row in csv.DictReader(sheet.splitlines())] == ["'=10 EUR"] * 2
    assert admin.call("/admin/bill?month=1999-01").json == []
    for query in ("month=2026-13", "month=x", "month=9999-12", "user=a/b", "format=xml"):
        assert admin.call(f"/admin/bill?{query}").status == 400
    on_the_command_line = cli(admin.service, "users", "bill", "--user", "billed", "--format", "json")
    assert json.loads(on_the_command_line.stdout) == lines()
    assert cli(admin.service, "users", "bill", "--user", "billed", "--format", "csv").stdout == sheet
    assert f"Usage of {MONTH}" in cli(admin.service, "users", "bill").stdout


def test_the_command_line_creates_lists_and_changes_users(
    admin: RunningAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    made = cli(admin.service, "users", "create", "eve", "--plan", "basic", "--until", "2999-01-01", "--note", "Eve")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    wait_until(lambda: ask(admin.service, key).status == 200, "the gateway accepts the key", 20)
    listed = {user["name"]: user for user in json.loads(cli(admin.service, "users", "list", "--json").stdout)}
    assert (listed["eve"]["present_plan"], listed["eve"]["note"]) == ("basic", "Eve")
    table = cli(admin.service, "users", "list").stdout
    assert "basic until 2999-01-01" in table
    assert "free (default)" in table
    changed = cli(admin.service, "users", "plan", "eve", "default")
    assert changed.stdout == "eve has free (default)\n"
    assert cli(admin.service, "users", "disable", "eve").stdout == "eve is disabled\n"
    wait_until(lambda: ask(admin.service, key).status == 401, "the user is disabled", 20)
    assert cli(admin.service, "users", "enable", "eve").stdout == "eve is enabled\n"
    code = cli(admin.service, "users", "invite", "--plan", "basic", "--days", "30").stdout.strip()
    invited = cli(admin.service, "users", "redeem", code, "max")
    assert invited.stdout.startswith("sk-")
    assert admin.call("/admin/users/max").json["plan"] == "basic"
    for words, message in (
        (["create", "eve"], "the name eve is taken"),
        (["create", "x", "--plan", "basci"], "plan 'basci' does not exist; did you mean 'basic'?"),
        (["create", "x", "--until", "2999-01-01"], "plan_until needs a plan"),
        (["create", "x", "--plan", "basic", "--until", "2020-01-01"], "2020-01-01 is not after today"),
        (["create", "x", "--plan", "basic", "--until", "soon"], "'soon' is not a date"),
        (["plan", "absent", "basic"], "user 'absent' does not exist"),
        (["redeem", code, "joe"], "the code is not valid, was used, or has expired"),
        (["invite", "--days", "-1", "--plan", "basic"], "days is -1"),
        (["invite", "--plan", "basic", "--expires-in", "soon"], "--expires-in: 'soon' is not a duration"),
        (["bill", "--month", "2026-13"], "--month: '2026-13' is not a month"),
        (["bill", "--user", "evee"], "user 'evee' does not exist; did you mean 'eve'?"),
    ):
        code_of_exit = main(["users", *words, "--config", str(admin.service.config)])
        error = capsys.readouterr().err
        assert (code_of_exit, error.startswith("error: "), message in error) == (2, True, True), error


def test_a_used_budget_is_in_the_list(admin: RunningAdmin) -> None:
    key = admin.call("/admin/users", {"name": "eager"}).json["key"]
    wait_until(lambda: ask(admin.service, key).status == 200, "the gateway accepts the key", 20)
    body = {
        "model": "fake",
        "max_tokens": 3000,
        "messages": [{"role": "user", "content": "fake: tokens=3000 itl_ms=0"}],
    }
    for _ in range(3):
        assert admin.service.post("/v1/chat/completions", body, key=key).status == 200

    def row() -> str:
        return next(line for line in cli(admin.service, "users", "list").stdout.splitlines() if "eager" in line)

    wait_until(lambda: "warning" in row(), "the warning", 30)
    assert "of 10,000 (9" in row()


def test_two_processes_create_one_user_once(admin: RunningAdmin) -> None:
    argv = [sys.executable, "-m", "appliance", "users", "create", "twin", "--config", str(admin.service.config)]
    processes = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ))
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2], outputs
    keys = [key for key in admin.call("/admin/keys").json if key["user"] == "twin"]
    assert len(keys) == 1
