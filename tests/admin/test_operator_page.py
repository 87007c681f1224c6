"""The operator's page with a running gateway: a log-in, forms, and all that is not allowed, over real HTTP."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.admin.operator.rejections import rejection_in
from appliance.admin.operator.texts import TEXTS, language_of
from appliance.errors import StoreError
from appliance.notices.notice import Notice
from appliance.notices.outbox import Outbox
from tests.admin.operated import (
    EVIL,
    TOKEN,
    OperatedService,
    OperatorBrowser,
    PageResponse,
    admin_of,
    operated_site,
    secret_of,
)
from tests.conftest import Response, a_site, chat, http, wait_until
from tests.ports import free_port


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatedService]:
    with operated_site(tmp_path_factory.mktemp("operator"), roles={"writer": {"model": "fake"}}) as running:
        yield running


@pytest.fixture
def browser(operated: OperatedService) -> OperatorBrowser:
    return operated.log_in()


PAGES = ("/", "/users", "/keys", "/plans", "/usage", "/models")


def test_every_page_needs_a_log_in(operated: OperatedService) -> None:
    stranger = OperatorBrowser(operated.process.port)
    for path in PAGES:
        answer = stranger.get(path)
        assert (answer.status, answer.headers["location"]) == (303, "/login"), path
    answer = stranger.post("/users", {"name": "eve"})
    assert (answer.status, answer.headers["location"]) == (303, "/login")
    stranger.cookie = "appliance_operator=guessed"
    assert stranger.get("/users").status == 303
    # The token of the API opens no page, and a session no API.
    assert stranger.get("/users", Authorization=f"Bearer {TOKEN}").status == 303


def test_a_session_opens_no_api(browser: OperatorBrowser) -> None:
    assert browser.get("/admin/keys").status == 401


def test_all_pages_and_their_headers(browser: OperatorBrowser) -> None:
    for path in (*PAGES, "/operator.css", "/login"):
        answer = browser.get(path)
        assert answer.status == 200, (path, answer.text)
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "<script" not in answer.text
        assert "style=" not in answer.text
    cookie = browser.post("/login", {"token": TOKEN}).headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}


def test_both_languages(browser: OperatorBrowser) -> None:
    page = browser.get("/users", Accept_Language="ru-RU,ru;q=0.9,en;q=0.5").text
    assert '<html lang="ru">' in page
    assert "Новый пользователь" in page
    assert '<html lang="en">' in browser.get("/users", Accept_Language="de, en;q=0.1").text
    assert language_of("ru;q=x, en;q=0.2") == "en"
    assert language_of("") == "en"
    assert set(TEXTS["en"]) == set(TEXTS["ru"])


def test_a_user_is_created_limited_and_disabled(operated: OperatedService, browser: OperatorBrowser) -> None:
    made = browser.post("/users", {"name": "grace", "plan": "basic", "note": EVIL})
    key = secret_of(made)
    assert made.status == 200

    def status() -> int:
        return operated.service.post("/v1/chat/completions", chat("fake: tokens=3"), key=key).status

    wait_until(lambda: status() == 200, "the gateway accepts the key", 60)
    page = browser.get("/users").text
    assert key not in page
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert browser.post("/users/change", {"name": "grace", "do": "disable"}).status == 303
    wait_until(lambda: status() == 401, "the gateway rejects the key", 60)
    assert browser.post("/users/change", {"name": "grace", "do": "enable"}).status == 303
    wait_until(lambda: status() == 200, "the gateway accepts the key again", 60)
    assert (
        browser.post("/users/change", {"name": "grace", "do": "plan", "plan": "basic", "days": "7"}).status == 303
    )
    assert "until" in browser.get("/users").text

    def counted() -> bool:
        return "grace" in browser.get("/usage?days=7&user=grace").text.partition("<table>")[2]

    wait_until(counted, "the usage is written", 60)
    usage = browser.get("/usage?days=7&user=grace")
    assert usage.text.count("<svg") == 3
    bill = browser.get("/bill?format=csv")
    assert bill.headers["content-type"].startswith("text/csv")
    assert bill.text.splitlines()[0].startswith("month,user")
    assert browser.get("/bill?format=csv&month=2020-01").text.splitlines() == bill.text.splitlines()[:1]
    assert json.loads(browser.get("/bill?format=json").text)[0]["user"] == "grace"


def test_an_invite_code_is_shown_once_and_creates_a_user(browser: OperatorBrowser) -> None:
    code = secret_of(browser.post("/invites", {"plan": "basic", "days": "30", "valid_days": ""}))
    assert len(code) >= 12
    assert code not in browser.get("/users").text


def test_a_key_with_limits_is_created_and_revoked(operated: OperatedService, browser: OperatorBrowser) -> None:
    form = {"user": "bob", "name": "n8n", "models": "writer", "requests_per_minute": "5"}
    key = secret_of(browser.post("/keys", form))
    body = chat("fake: tokens=3") | {"model": "writer"}

    def status() -> int:
        return operated.service.post("/v1/chat/completions", body, key=key).status

    wait_until(lambda: status() == 200, "the gateway accepts the key", 60)
    key_id = key.split("-")[1]
    assert browser.post("/keys/revoke", {"id": key_id}).status == 303
    wait_until(lambda: status() == 401, "the gateway rejects the key", 60)


def test_a_replica_is_drained_and_undrained(browser: OperatorBrowser) -> None:
    page = browser.get("/models").text
    (replica,) = set(re.findall(r'name="replica" value="([^"]+)"', page))
    assert browser.post("/models/drain", {"replica": replica, "reason": EVIL}).status == 303
    page = browser.get("/models").text
    assert "&lt;script&gt;" in page
    assert 'action="/models/undrain"' in page
    assert browser.post("/models/undrain", {"replica": replica}).status == 303
    assert 'action="/models/drain"' in browser.get("/models").text


def test_the_api_drains_and_undrains_a_replica(operated: OperatedService) -> None:
    def call(action: str, body: object, key: str | None = TOKEN) -> Response:
        return http(f"{operated.url}/admin/models/{action}", body=body, key=key)

    drained = call("drain", {"replica": "chat", "reason": "new fans"})
    assert (drained.status, drained.json["draining"], drained.json["saved"]) == (200, "new fans", True)
    undrained = call("undrain", {"replica": "chat"})
    assert (undrained.status, undrained.json["draining"]) == (200, None)
    for body, status in (
        ({"replica": "other"}, 404),
        ({"replica": "chat", "reason": "two\nlines"}, 400),
        ({"replica": "chat", "reason": ""}, 400),
        ({"replica": "chat", "more": 1}, 400),
        ({}, 400),
    ):
        assert call("drain", body).status == status, body
    assert call("drain", {"replica": "chat"}, None).status == 401
    assert call("undrain", {"replica": "other"}).status == 404


def test_the_overview_has_engines_and_alerts(browser: OperatorBrowser) -> None:
    page = browser.get("/").text
    assert "GatewayDown" in page
    assert "Watchdog" not in page
    assert EVIL not in page
    assert "engines up" in page


INVALID_FORMS = [
        ("/users", {"name": "-x"}, 400, "name:"),
        ("/users", {"name": EVIL}, 400, "name:"),
        ("/users", {"name": "carl", "plan": "gold"}, 404, "does not exist"),
        ("/users/change", {"name": "unknown", "do": "disable"}, 404, "unknown"),
        ("/users/change", {"name": "grace", "do": "plan", "plan": "basic", "days": "-1"}, 400, "days: write"),
        ("/users/change", {"name": "ada", "do": "plan", "plan": "", "days": "7"}, 409, "needs a plan"),
        ("/users/change", {"name": "ada", "do": "remove"}, 400, "not an action"),
        ("/users", {"name": "ada"}, 409, "taken"),
        ("/users", {"name": "carl", "note": "a\nb"}, 400, "control characters"),
        ("/users", {"name": "a\0b"}, 400, "control characters"),
        ("/invites", {"days": "9" * 11}, 400, "days"),
        ("/invites", {"days": "7"}, 409, "needs a plan"),
        ("/invites", {"plan": "basic", "valid_days": "0"}, 400, "valid_days"),
        ("/keys", {"user": "bob", "days": "x"}, 400, "days: write"),
        ("/keys", {"user": "bob/../x"}, 400, "user"),
        ("/keys/revoke", {"id": "../users"}, 400, "twelve digits"),
        ("/keys", {"user": "bob", "models": "other"}, 404, "does not exist"),
        ("/keys", {"user": "bob", "requests_per_minute": "0"}, 400, "requests_per_minute"),
        ("/keys/revoke", {"id": "0" * 12}, 404, "key"),
        ("/models/drain", {"replica": "other"}, 404, "other"),
        ("/models/swap", {"model": "other"}, 404, "other"),
]  # fmt: skip


def alert_of(answer: PageResponse) -> str:
    """Return the text of the refusal on a page."""
    found = re.search(r'role="alert">(.*?)</p>', answer.text, re.DOTALL)
    assert found, answer.text
    return html.unescape(found[1]).removeprefix("The request was rejected: ").removeprefix("Запрос отклонён: ")


@pytest.mark.parametrize(("path", "form", "status", "text"), INVALID_FORMS)
def test_invalid_forms(browser: OperatorBrowser, path: str, form: dict[str, str], status: int, text: str) -> None:
    answer = browser.post(path, form)
    assert (answer.status, text in alert_of(answer)) == (status, True), answer.text
    assert EVIL not in answer.text
    russian = browser.post(path, form, Accept_Language="ru")
    assert russian.status == status
    assert re.search("[\u0430-\u044f]{2}", alert_of(russian)), "the refusal is in the language of the page"


def field_of(answer: PageResponse, action: str, name: str) -> str:
    """Return the value of the field ``name`` in the first form of ``action`` on a page."""
    form = answer.text.partition(f'action="{action}">')[2].partition("</form>")[0]
    found = re.search(rf'<input[^>]* name="{name}"[^>]* value="([^"]*)"', form) or re.search(
        rf'<select name="{name}".*?<option selected>(.*?)</option>', form, re.DOTALL
    )
    return html.unescape(found[1]) if found else ""


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/users", {"name": "ada", "plan": "basic", "note": EVIL}),
        ("/invites", {"plan": "basic", "days": "9" * 11, "valid_days": "12"}),
        ("/keys", {"user": "bob/../x", "name": 'n8n "a"', "models": "writer", "tokens_per_minute": "9"}),
    ],
)  # fmt: skip
def test_a_refused_form_keeps_its_fields(browser: OperatorBrowser, path: str, form: dict[str, str]) -> None:
    answer = browser.post(path, form)
    assert answer.status in (400, 409)
    assert {name: field_of(answer, path, name) for name in form} == form
    assert EVIL not in answer.text
    page = "/keys" if path == "/keys" else "/users"
    assert {field_of(browser.get(page), path, name) for name in form} <= {"", "30"}, "only the response has them"


def test_a_refused_change_keeps_the_row_of_its_user_only(browser: OperatorBrowser) -> None:
    for name in ("ida", "joe"):
        assert browser.post("/users", {"name": name}).status == 200
    answer = browser.post("/users/change", {"name": "joe", "do": "plan", "plan": "", "days": "77"})
    assert answer.status == 409
    assert answer.text.count('value="77"') == 1
    assert 'value="77"' in answer.text.partition('name="name" value="joe"')[2].partition("</form>")[0]


def test_a_form_of_another_site_fills_no_field_and_a_token_never_stays(operated: OperatedService) -> None:
    browser = operated.log_in()
    answer = browser.post("/users", {"name": "-chosen-by-mallory"}, Origin="https://evil.example")
    assert (answer.status, "mallory" in answer.text) == (403, False)
    stranger = OperatorBrowser(operated.process.port)
    assert "guessed-token" not in stranger.post("/login", {"token": "guessed-token"}).text


def test_an_error_of_the_store_is_in_the_language_of_the_page() -> None:
    refusal = "/var/lib/appliance/appliance.sqlite: the database refuses (database or disk is full); free space"
    assert rejection_in("en", refusal) == refusal
    assert rejection_in("ru", refusal).startswith("/var/lib/appliance/appliance.sqlite: база данных отказала")
    assert "database or disk is full" in rejection_in("ru", refusal)
    unreadable = str(StoreError.unreadable(Path("/x"), OSError(13, "Permission denied")))
    assert rejection_in("ru", unreadable) == "/x: нет доступа на чтение или запись (Permission denied)"
    assert rejection_in("ru", "a message of a later version") == "a message of a later version"


@pytest.mark.parametrize(
    "path",
    ["/usage?user=%00", "/usage?user=a%20b", "/usage?days=x", "/bill?month=2026-13", "/bill?month=%3Cscript%3E"],
)
def test_invalid_queries(browser: OperatorBrowser, path: str) -> None:
    answer = browser.get(path)
    assert answer.status == 400
    assert "<script" not in answer.text


def test_a_form_of_another_site_is_rejected(browser: OperatorBrowser) -> None:
    for origin in ("https://evil.example", "null", "", f"http://127.0.0.1.evil.example:{browser.port}"):
        answer = browser.post("/users", {"name": "mallory"}, Origin=origin)
        assert (answer.status, "not from this page" in answer.text) == (403, True), origin
    assert "mallory" not in browser.get("/users").text
    # A log-in by another site would put the operator into a session of an attacker.
    assert browser.post("/login", {"token": TOKEN}, Origin="https://evil.example").status == 403


def test_a_name_that_points_to_loopback_gets_nothing(browser: OperatorBrowser) -> None:
    for host in ("evil.example", f"evil.example:{browser.port}", "127.0.0.1.evil.example"):
        assert browser.get("/users", Host=host).status == 403, host
    for host in (f"localhost:{browser.port}", f"[::1]:{browser.port}"):
        assert browser.get("/users", Host=host).status == 200, host


def test_bodies_other_than_forms(browser: OperatorBrowser) -> None:
    assert browser.post("/users", {"name": "x"}, Content_Type="application/json").status == 400
    assert browser.post("/users", {"note": "x" * 70_000}).status == 413
    assert browser.post("/users", {f"f{number}": "" for number in range(300)}).status == 400


def test_a_token_that_is_not_valid(operated: OperatedService) -> None:
    browser = OperatorBrowser(operated.process.port)
    answer = browser.post("/login", {"token": "guess"}, Accept_Language="ru")
    assert (answer.status, "Токен администратора неверен" in answer.text) == (401, True)
    assert "set-cookie" not in answer.headers
    assert browser.post("/login", {}).status == 401


def test_a_log_out_ends_the_session(operated: OperatedService) -> None:
    browser = OperatorBrowser(operated.process.port)
    browser.log_in()
    kept = browser.cookie
    assert browser.post("/logout", {}).headers["location"] == "/login"
    browser.cookie = kept
    assert browser.get("/users").status == 303


def test_an_unknown_path_is_a_json_error(browser: OperatorBrowser) -> None:
    assert browser.get("/nothing").status == 404
    answer = browser.send("DELETE", "/users")
    assert answer.status == 405
    assert answer.headers["allow"]


def test_a_gateway_that_is_down(tmp_path: Path) -> None:
    """The page shows users and keys, and reports that the gateway does not respond."""
    port = free_port()
    config = tmp_path / "site.json"
    config.write_text(json.dumps(a_site(free_port(), free_port(), tmp_path, admin={"port": port})))
    outbox = tmp_path / "notices"
    Outbox(outbox).put(Notice("card-hot", "card 1", EVIL, 1_790_000_000.0))
    Outbox(outbox).put(Notice("power", "socket", "on battery", 1_790_000_000.0))
    Outbox(outbox).put(Notice("power", "socket", "on mains", 1_790_000_001.0, ended=True))
    (outbox / f"{1:020d}-0.json").write_text("{")
    with admin_of(config, port, APPLIANCE_NOTICES_DIR=str(outbox)) as process:
        browser = OperatorBrowser(process.port)
        browser.log_in()
        for path in ("/", "/models"):
            answer = browser.get(path)
            assert (answer.status, "The gateway does not respond" in answer.text) == (200, True)
        assert browser.get("/users").status == 200
        assert browser.post("/models/swap", {"model": "fake"}).status == 503
        page = browser.get("/").text
        assert "card-hot card 1" in page
        assert "&lt;script&gt;" in page
        assert "socket" not in page
        assert "The site has no plans" in browser.get("/plans").text
