"""Users, invites, payments and bills in both databases."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from appliance.errors import UsageError
from appliance.gateway.usage_writer import UsageWriter
from appliance.store.bills import BillReader, bill_csv
from appliance.store.calendar import DAY_S, day_name, day_of, moment_of, month_named, month_of
from appliance.store.database import open_database
from appliance.store.keys import KeyStore
from appliance.store.models import PlanPayment, UsageRow
from appliance.store.schema import INVITES
from appliance.store.usage import UsageReader
from appliance.store.users import UserStore
from tests.conftest import ROOT, chat, serving, wait_until
from tests.postgres import Cluster, running_cluster

NOW = 1_795_867_200.0
"""2026-11-28 12:00 UTC."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str | None:
    if request.param == "sqlite":
        return None
    cluster: Cluster = request.getfixturevalue("cluster")
    return cluster.database(f"u{time.monotonic_ns()}")


@pytest.fixture
def users(tmp_path: Path, url: str | None) -> Iterator[UserStore]:
    store = UserStore(tmp_path, url, clock=lambda: NOW)
    yield store
    store.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[UserStore]:
    """The users in SQLite, for values that no database sees."""
    store = UserStore(tmp_path, clock=lambda: NOW)
    yield store
    store.close()


@pytest.fixture
def keys(tmp_path: Path, url: str | None) -> Iterator[KeyStore]:
    store = KeyStore(tmp_path, url)
    yield store
    store.close()


def test_a_user_is_created_with_its_first_key(users: UserStore, keys: KeyStore) -> None:
    key = users.create("ada", plan="basic", plan_until=NOW + 5, note="Ada L.", language="en")
    assert keys.get(key).user == "ada"
    ada = users.get("ada")
    assert (ada.plan, ada.note, ada.language, ada.created_at, ada.disabled_at) == (
        "basic", "Ada L.", "en", NOW, None,
    )  # fmt: skip
    assert (ada.plan_at(NOW + 4.9), ada.plan_at(NOW + 5)) == ("basic", None)


def test_a_user_exists_for_a_key_made_before_and_gets_a_row_with_its_plan(users: UserStore, keys: KeyStore) -> None:
    keys.create("old")
    assert [(account.name, account.plan) for account in users.all()] == [("old", None)]
    before = users.snapshot(-1)
    assert before is not None
    assert before[1] == []
    assert users.change("old", plan="basic").plan == "basic"
    assert users.get("old").created_at == pytest.approx(time.time(), abs=100)
    after = users.snapshot(before[0])
    assert after is not None
    assert [account.name for account in after[1]] == ["old"]
    assert users.snapshot(after[0]) is None


@pytest.mark.parametrize("name", ["ada", "old"])
def test_a_taken_name_is_refused_and_creates_no_key(users: UserStore, keys: KeyStore, name: str) -> None:
    users.create("ada")
    keys.create("old")
    with pytest.raises(UsageError, match=f"the name {name} is taken"):
        users.create(name, plan="basic")
    assert len(keys.all()) == 2
    assert users.get("old").plan is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"plan_until": 5.0}, "plan_until needs a plan"),
        ({"plan": "p", "plan_until": -1.0}, "plan_until is -1"),
        ({"plan": "p", "plan_until": 1e15}, "plan_until is 1e"),
        ({"plan": None, "plan_until": 5.0}, "plan_until needs a plan"),
        ({"note": "x" * 201}, "at most 200"),
        ({"note": "a\nb"}, "printable"),
        ({"language": "english"}, "not a language"),
        ({"colour": "red"}, "a user has no 'colour'"),
    ],
)
def test_an_invalid_value_is_refused(local: UserStore, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        local.create("ada", **values)
    assert local.all() == []


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../x", "x" * 64, "-a", "é"])
def test_an_invalid_name_is_refused(local: UserStore, name: str) -> None:
    code = local.invite("root", plan=None, days=None, expires_in_s=60)
    for attempt in (lambda: local.create(name), lambda: local.redeem(code, name)):
        with pytest.raises(UsageError, match="is not a user name"):
            attempt()
    assert local.redeem(code, "good").account.name == "good", "the code is still valid"


def test_the_default_plan_has_no_end(local: UserStore) -> None:
    local.create("ada")
    with pytest.raises(UsageError, match="plan_until needs a plan"):
        local.change("ada", plan_until=NOW)
    local.change("ada", plan="basic")
    assert local.change("ada", plan_until=NOW).plan_until == NOW
    assert local.change("ada", plan="large").plan_until is None, "a new plan has no end unless one is named"


def test_unknown_users_are_refused(local: UserStore) -> None:
    for attempt in (
        lambda: local.get("joe"),
        lambda: local.change("joe", plan="p"),
        lambda: local.set_disabled("joe", disabled=True),
        lambda: local.extend_plan(paid("pay-1", user="joe")),
    ):
        with pytest.raises(UsageError, match="user 'joe' does not exist"):
            attempt()


def test_a_disabled_user_has_revoked_keys_until_it_is_enabled(users: UserStore, keys: KeyStore) -> None:
    users.create("ada")
    keys.create("bob")

    def states(since: int) -> tuple[int, dict[str, str]]:
        found = keys.snapshot(since)
        assert found is not None, "the change is counted for keys, too"
        return found[0], {key.user: key.state(NOW) for key in found[1]}

    number, before = states(-1)
    assert before == {"ada": "active", "bob": "active"}
    users.set_disabled("ada", disabled=True)
    number, disabled = states(number)
    assert disabled == {"ada": "revoked", "bob": "active"}
    users.set_disabled("ada", disabled=False)
    assert states(number)[1] == before


def test_an_invite_creates_one_user_with_its_plan(users: UserStore, keys: KeyStore) -> None:
    code = users.invite("root", plan="basic", days=30, expires_in_s=60)
    redeemed = users.redeem(code, "ada")
    assert (redeemed.account.plan, redeemed.account.plan_until) == ("basic", NOW + 30 * 86400)
    assert keys.get(redeemed.key).user == "ada"
    with pytest.raises(UsageError, match="the code is not valid, was used, or has expired"):
        users.redeem(code, "bob")
    assert [account.name for account in users.all()] == ["ada"]


def test_a_code_is_not_stored_and_does_not_outlive_its_time(
    tmp_path: Path, url: str | None, users: UserStore
) -> None:
    code = users.invite("root", plan=None, days=None, expires_in_s=60)
    engine = open_database(tmp_path, url)
    with engine.connect() as connection:
        (row,) = connection.execute(INVITES.select())
    engine.dispose()
    assert code.encode() not in repr(tuple(row)).encode()
    later = UserStore(tmp_path, url, clock=lambda: NOW + 60)
    for wrong in (code, code[:-1], "", "invite-" + "x" * 32, "\ud800"):
        with pytest.raises(UsageError, match="the code is not valid"):
            later.redeem(wrong, "ada")
    later.close()


def test_a_taken_name_leaves_the_code_unused(users: UserStore) -> None:
    users.create("ada")
    code = users.invite("root", plan=None, days=None, expires_in_s=60)
    with pytest.raises(UsageError, match="the name ada is taken"):
        users.redeem(code, "ada")
    assert users.redeem(code, "bob").account.plan is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"days": 0}, "days is 0"),
        ({"days": -3}, "days is -3"),
        ({"days": 40_000}, "days is 40000"),
        ({"plan": None}, "days needs a plan"),
        ({"expires_in_s": 0.0}, "must expire after now"),
        ({"expires_in_s": 1e15}, "must expire after now"),
    ],
)
def test_an_invalid_invite_is_refused(local: UserStore, values: dict[str, Any], message: str) -> None:
    whole: dict[str, Any] = {"plan": "basic", "days": 30, "expires_in_s": 60.0} | values
    with pytest.raises(UsageError, match=message):
        local.invite("root", **whole)


PROCESS = """
import sys
from pathlib import Path
from appliance.errors import UsageError
from appliance.store.models import PlanPayment
from appliance.store.users import UserStore
folder, url, what, *words = sys.argv[1:]
store = UserStore(Path(folder), url or None)
sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
try:
    if what == "redeem":
        print(store.redeem(*words).account.name)
    else:
        print(store.extend_plan(PlanPayment(words[1], words[0], "basic", 30, 500, "XTR"))[0])
except UsageError as error:
    print("refused", error)
"""


def at_once(folder: Path, url: str | None, *calls: tuple[str, ...]) -> list[str]:
    """Run each call in a process of its own, all at the same time; return their outputs."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(folder), url or "", *call],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for call in calls
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    with ThreadPoolExecutor(len(processes)) as pool:
        outputs = list(pool.map(lambda process: process.communicate("go\n", timeout=60)[0], processes))
    assert all(process.returncode == 0 for process in processes)
    return [output.strip() for output in outputs]


def test_of_two_processes_with_one_code_exactly_one_wins(tmp_path: Path, url: str | None) -> None:
    users = UserStore(tmp_path, url)
    code = users.invite("root", plan="basic", days=1, expires_in_s=600)
    outputs = at_once(tmp_path, url, ("redeem", code, "ada"), ("redeem", code, "bob"))
    winners = [output for output in outputs if not output.startswith("refused")]
    assert len(winners) == 1
    assert [account.name for account in users.all()] == winners
    users.close()


def paid(identifier: str, *, user: str = "ada", plan: str = "basic", days: int = 30) -> PlanPayment:
    return PlanPayment(identifier, user, plan, days, 500, "XTR")


def test_a_payment_extends_a_plan_once_also_twice_at_once(tmp_path: Path, url: str | None) -> None:
    users = UserStore(tmp_path, url)
    begun = time.time()
    users.create("ada", plan="basic", plan_until=begun - 900)
    assert sorted(at_once(tmp_path, url, *[("extend", "ada", "pay-1")] * 2)) == ["False", "True"]
    until = users.get("ada").plan_until
    assert until is not None
    assert begun <= until - 30 * DAY_S <= time.time()
    assert users.extend_plan(paid("pay-1")) == (False, users.get("ada"))
    assert at_once(tmp_path, url, ("extend", "ada", "pay-2"), ("extend", "ada", "pay-3")) == ["True", "True"]
    assert users.get("ada").plan_until == until + 60 * DAY_S, "each payment adds its days"
    users.close()


def test_a_payment_for_another_plan_replaces_it_and_one_without_an_end_stays(local: UserStore) -> None:
    local.create("ada", plan="basic", plan_until=NOW + 900)
    assert local.extend_plan(paid("pay-1", plan="large"))[1].plan_until == NOW + 30 * DAY_S
    local.create("bob", plan="basic")
    assert local.extend_plan(paid("pay-2", user="bob"))[1].plan_until is None
    for wrong in (paid(""), paid("x" * 201), paid("pay-3", days=0), paid("pay-3", days=36501)):
        with pytest.raises(UsageError, match=r"the id of a payment|days is"):
            local.extend_plan(wrong)


def test_a_refund_takes_the_days_once(local: UserStore) -> None:
    local.create("ada")
    for number in (1, 2):
        local.extend_plan(paid(f"pay-{number}"))
    assert local.refund("pay-1") == (True, local.get("ada"))
    assert local.get("ada").plan_until == NOW + 30 * DAY_S
    assert local.refund("pay-1") == (False, local.get("ada"))
    assert local.extend_plan(paid("pay-1"))[0] is False, "a refunded payment does not count again"
    local.change("ada", plan="large", plan_until=NOW + 5)
    local.refund("pay-2")
    assert (local.get("ada").plan, local.get("ada").plan_until) == ("large", NOW + 5)
    with pytest.raises(UsageError, match="payment 'pay-9' does not exist"):
        local.refund("pay-9")


def test_a_notice_is_recorded_once(users: UserStore) -> None:
    assert [users.record_notice("ada", "2026-11", 80) for _ in range(2)] == [True, False]
    assert users.record_notice("ada", "2026-11", 100)
    assert users.record_notice("ada", "2026-11-28", 80)
    assert users.notices(("2026-11", "2026-11-28")) == {("ada", "2026-11"): 100, ("ada", "2026-11-28"): 80}
    assert users.notices(("2026-12",)) == {}


def a_request(user: str, at: float, **more: Any) -> UsageRow:
    values: dict[str, Any] = {"request_id": "r", "key_id": "0" * 12, "endpoint": "/v1/chat/completions"}
    values |= {
        "model": "m",
        "role": "",
        "status": 200,
        "outcome": "ok",
        "prompt_tokens": 10,
        "completion_tokens": 2,
    }
    return UsageRow(started_at=at, user=user, **(values | more))


def test_a_bill_agrees_with_usage_and_ends_with_its_month(tmp_path: Path, url: str | None) -> None:
    november = month_named("2026-11", "--month")
    writer = UsageWriter(tmp_path, url)
    for row in (
        a_request("ada", november.since),
        a_request("ada", november.until - 0.001, cached_tokens=4),
        a_request("ada", november.since - 0.001, prompt_tokens=1000),
        a_request("ada", november.until, prompt_tokens=1000),
        a_request("ada/joe", NOW, role="coder"),
        a_request("ada/eve", NOW, role="coder", status=502, outcome="engine_failed", completion_tokens=0),
        a_request("adam", NOW, model="=HYPERLINK(1)"),
    ):
        writer.put(row)
    writer.close()
    bills, reader = BillReader(tmp_path, url), UsageReader(tmp_path, url)
    lines = bills.lines(november, lambda user: ("basic", "+10 EUR") if user == "ada" else ("", ""))
    assert [(line.user, line.role, line.requests, line.failed) for line in lines] == [
        ("ada", "", 2, 0),
        ("ada", "coder", 2, 1),
        ("adam", "", 1, 0),
    ]
    assert (lines[0].month, lines[0].plan, lines[0].price, lines[0].cached_tokens) == (
        "2026-11", "basic", "+10 EUR", 4,
    )  # fmt: skip
    for user in ("ada", "adam"):
        of_user = bills.lines(november, lambda _: ("", ""), user)
        sums = reader.sums("user", november.since, november.until, user)
        for column in ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens"):
            total = sum(getattr(line, column) for line in of_user)
            assert total == sum(getattr(line, column) for line in sums), (user, column)
    tokens = reader.tokens(november.since, november.until)
    assert tokens == {"ada": 46, "adam": 12}
    sheet = list(csv.DictReader(bill_csv(lines).splitlines()))
    assert (sheet[0]["price"], sheet[2]["model"]) == ("'+10 EUR", "'=HYPERLINK(1)")
    assert bills.lines(month_named("2025-01", "--month"), lambda _: ("", "")) == []
    bills.close()
    reader.close()


def test_a_view_contains_exactly_the_rows_that_it_counts(tmp_path: Path, url: str | None) -> None:
    writer = UsageWriter(tmp_path, url)

    def count() -> tuple[int, int]:
        return writer.consistent(
            lambda connection: connection.execute(text("SELECT count(*) FROM usage")).scalar_one()
        )

    with ThreadPoolExecutor(1) as pool:
        views = pool.submit(lambda: [count() for _ in range(50)])
        for number in range(2000):
            writer.put(a_request("ada", NOW + number))
        assert all(number == rows for number, rows in views.result(60))
    wait_until(lambda: count() == (2000, 2000), "all rows are committed", 30)
    assert writer.accepted == 2000
    writer.close()


def test_the_usage_of_another_gateway_counts_for_a_budget(tmp_path: Path, cluster: Cluster) -> None:
    url = cluster.database("two_gateways")
    plans = {"basic": {"tokens_per_day": 2000}}
    with serving(tmp_path / "one", plans=plans, default_plan="basic", gateway={"database_url": url}) as service:
        users, other = UserStore(tmp_path, url), UsageWriter(tmp_path, url)
        key = users.create("bob")
        wait_until(lambda: service.get("/v1/models", key=key).status == 200, "the gateway accepts the key", 20)

        def used() -> int:
            return int(service.get("/v1/usage", key=key).json["today"]["used"])

        assert service.post("/v1/chat/completions", chat("fake: tokens=5", max_tokens=9), key).status == 200
        own = used()
        assert own > 5
        other.put(a_request("bob", time.time(), prompt_tokens=1990, completion_tokens=0))
        wait_until(lambda: used() == own + 1990, "the sums are read again", 60)
        refused = service.post("/v1/chat/completions", chat("hi", max_tokens=9), key)
        assert (refused.status, refused.json["error"]["code"]) == (429, "insufficient_quota")
        wait_until(lambda: users.notices((day_name(day_of(time.time())),)) != {}, "the notice", 20)
        other.close()
        users.close()


@pytest.mark.parametrize(
    ("name", "first", "after"),
    [("2026-02", "2026-02-01", "2026-03-01"), ("2024-02", "2024-02-01", "2024-03-01"),
     ("2026-12", "2026-12-01", "2027-01-01")],
)  # fmt: skip
def test_months_begin_and_end_at_midnight_utc(name: str, first: str, after: str) -> None:
    month = month_named(name, "--month")
    assert (day_name(month.first), day_name(month.after)) == (first, after)
    assert month_of(month.first) == month_of(month.after - 1) == month
    assert day_of(month.until) == month.after
    assert day_of(month.until - 0.001) == month.after - 1
    assert moment_of(after, "--until") == month.until


@pytest.mark.parametrize("wrong", ["", "2026", "2026-13", "2026-00", "26-11", "2026-11-01", "9999-12", "1969-12"])
def test_an_invalid_month_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"--month: .* is not a month"):
        month_named(wrong, "--month")


@pytest.mark.parametrize("wrong", ["", "tomorrow", "2026-02-30", "28.11.2026", "2026-11"])
def test_an_invalid_date_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"--until: .* is not a date"):
        moment_of(wrong, "--until")
