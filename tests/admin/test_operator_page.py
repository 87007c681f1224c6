"""The operator's page with a running gateway: a log-in, forms, and all that is not allowed, over real HTTP."""

from __future__ import annotations

import http.client
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from urllib.parse import urlencode

import pytest

from appliance.admin.operator.sessions import IDLE_S, LONGEST_S, MOST_SESSIONS, OperatorSessions
from appliance.admin.operator.tables import alert_rows, usage_plots
from appliance.admin.operator.texts import TEXTS, language_of
from appliance.errors import AuthenticationError, RateLimitError
from appliance.store.usage import UsageLine
from tests.conftest import RunningService, StartedProcess, chat, serving, start, wait_until
from tests.doctor.servers import start_server
from tests.ports import free_port

TOKEN = "a-token-of-enough-characters"
EVIL = '<script>alert("x")</script>'


@dataclass
class PageResponse:
    status: int
    headers: dict[str, str]
    text: str


@dataclass
class OperatorBrowser:
    """A browser without scripts: it keeps the cookie and sends the origin with each form."""

    port: int
    cookie: str = ""
    log: list[str] = field(default_factory=list)

    def send(self, method: str, path: str, form: dict[str, str] | None = None, **headers: str) -> PageResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {"Host": f"127.0.0.1:{self.port}"}
        if self.cookie:
            sent["Cookie"] = self.cookie
        body = None
        if form is not None:
            body = urlencode(form)
            sent |= {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://127.0.0.1:{self.port}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value:
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body or "")))
        connection.endheaders((body or "").encode())
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        if "set-cookie" in found:
            self.cookie = found["set-cookie"].partition(";")[0]
        return PageResponse(response.status, found, text)

    def get(self, path: str, **headers: str) -> PageResponse:
        return self.send("GET", path, None, **headers)

    def post(self, path: str, form: dict[str, str], **headers: str) -> PageResponse:
        return self.send("POST", path, form, **headers)

    def log_in(self) -> None:
        done = self.post("/login", {"token": TOKEN})
        assert (done.status, done.headers["location"]) == (303, "/")


@dataclass
class OperatedService:
    service: RunningService
    process: StartedProcess
    port: int
    alerts: list[bytes]


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatedService]:
    folder = tmp_path_factory.mktemp("operator")
    token = folder / "token"
    token.write_text(TOKEN + "\n")
    port = free_port()
    fired = [
        {"labels": {"alertname": "GatewayDown", "severity": "page"}, "startsAt": "2026-11-28T04:00:00Z",
         "annotations": {"summary": EVIL, "fix": "appliance doctor --only gateway"}},
        {"labels": {"alertname": "Watchdog", "severity": "beat"}, "annotations": {}},
    ]  # fmt: skip
    alertmanager = start_server(json.dumps(fired).encode(), 200)
    plans = {"basic": {"tokens_per_day": 1000, "price": EVIL}}
    with serving(folder, admin={"port": port}, roles={"writer": {"model": "fake"}}, plans=plans) as service:
        argv = [sys.executable, "-m", "appliance", "admin", "--config", str(service.config)]
        url = f"http://127.0.0.1:{alertmanager.server_address[1]}"
        process = start(
            argv, port, folder / "admin.log", APPLIANCE_ADMIN_TOKEN_FILE=str(token), APPLIANCE_ALERTMANAGER_URL=url
        )
        try:
            yield OperatedService(service, process, port, [])
        finally:
            process.stop()
            alertmanager.shutdown()
            alertmanager.server_close()
            log = (folder / "admin.log").read_text()
            assert "Traceback" not in log
            assert TOKEN not in log
            assert "sk-" not in log


@pytest.fixture
def browser(operated: OperatedService) -> OperatorBrowser:
    made = OperatorBrowser(operated.port)
    made.log_in()
    return made


PAGES = ("/", "/users", "/keys", "/plans", "/usage", "/models")


def secret_of(page: PageResponse) -> str:
    """Return the key or the code that a page shows once."""
    found = re.search(r'<code class="secret"[^>]*>([^<]+)</code>', page.text)
    assert found is not None, page.text
    return found[1]


def test_every_page_needs_a_log_in(operated: OperatedService) -> None:
    stranger = OperatorBrowser(operated.port)
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
        return "grace" in browser.get("/usage?days=7&user=grace").text.partition("<h2>")[2]

    wait_until(counted, "the usage is written", 60)
    usage = browser.get("/usage?days=7&user=grace")
    assert usage.text.count("<svg") == 2
    bill = browser.get("/bill?format=csv")
    assert bill.headers["content-type"].startswith("text/csv")
    assert bill.text.splitlines()[0].startswith("month,user")
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


def test_the_overview_has_engines_and_alerts(browser: OperatorBrowser) -> None:
    page = browser.get("/").text
    assert "GatewayDown" in page
    assert "Watchdog" not in page
    assert EVIL not in page
    assert "engines up" in page


@pytest.mark.parametrize(
    ("path", "form", "status", "text"),
    [
        ("/users", {"name": "-x"}, 400, "name:"),
        ("/users", {"name": EVIL}, 400, "name:"),
        ("/users", {"name": "carl", "plan": "gold"}, 404, "does not exist"),
        ("/users/change", {"name": "nobody", "do": "disable"}, 404, "nobody"),
        ("/users/change", {"name": "grace", "do": "plan", "plan": "basic", "days": "-1"}, 400, "days: write"),
        ("/invites", {"days": "9" * 11}, 400, "days"),
        ("/keys", {"user": "bob", "models": "other"}, 404, "does not exist"),
        ("/keys", {"user": "bob", "requests_per_minute": "0"}, 400, "requests_per_minute"),
        ("/keys/revoke", {"id": "0" * 12}, 404, "key"),
        ("/models/drain", {"replica": "other"}, 404, "other"),
        ("/models/swap", {"model": "other"}, 404, "other"),
    ],
)  # fmt: skip
def test_invalid_forms(browser: OperatorBrowser, path: str, form: dict[str, str], status: int, text: str) -> None:
    answer = browser.post(path, form)
    assert (answer.status, text in answer.text) == (status, True), answer.text
    assert EVIL not in answer.text


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


def test_a_log_out_ends_the_session(operated: OperatedService) -> None:
    browser = OperatorBrowser(operated.port)
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


class SetClock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_states_of_a_session() -> None:
    clock = SetClock()
    sessions = OperatorSessions(TOKEN, clock)
    secret = sessions.log_in(TOKEN)
    for _ in range(5):
        clock.now += IDLE_S - 1
        assert sessions.valid(secret)
    clock.now += IDLE_S
    assert not sessions.valid(secret)
    secret = sessions.log_in(TOKEN)
    opened = clock.now
    while clock.now + IDLE_S - 1 < opened + LONGEST_S:
        clock.now += IDLE_S - 1
        assert sessions.valid(secret)
    clock.now = opened + LONGEST_S
    assert not sessions.valid(secret)
    first, *others = [sessions.log_in(TOKEN) for _ in range(MOST_SESSIONS + 1)]
    assert not sessions.valid(first)
    assert all(sessions.valid(one) for one in others)


def test_failed_log_ins_are_limited() -> None:
    clock = SetClock()
    sessions = OperatorSessions(TOKEN, clock)
    for _ in range(5):
        with pytest.raises(AuthenticationError):
            sessions.log_in("é" * 20)
    with pytest.raises(RateLimitError, match="wait a minute"):
        sessions.log_in(TOKEN)
    clock.now += 60
    assert sessions.valid(sessions.log_in(TOKEN))


def test_days_without_requests_are_zero() -> None:
    line = UsageLine("2026-11-26", 4, 1, 1000, 0, 500, 0, 0.0, None, None)
    tokens, requests = usage_plots([line], 7, date(2026, 11, 28), TEXTS["en"])
    assert tokens.count("<polyline") == requests.count("<polyline") == 2
    assert len(re.findall(r"[\d.]+,[\d.]+", re.findall(r'points="([^"]+)"', tokens)[0])) == 8
    assert usage_plots([], 7, date(2026, 11, 28), TEXTS["en"]) == ("", "")


def test_alerts_that_page_are_first() -> None:
    rows = alert_rows(
        {"labels": {"alertname": name, "severity": severity}, "annotations": {}}
        for name, severity in (("B", "digest"), ("C", "page"), ("A", "digest"))
    )
    assert [row.name for row in rows] == ["C", "A", "B"]


def test_a_gateway_that_is_down(tmp_path: Path) -> None:
    """The page shows users and keys, and reports that the gateway does not respond."""
    token, port = tmp_path / "token", free_port()
    token.write_text(TOKEN)
    with serving(tmp_path, admin={"port": port}) as service:
        config = service.config
    argv = [sys.executable, "-m", "appliance", "admin", "--config", str(config)]
    process = start(argv, port, tmp_path / "admin.log", APPLIANCE_ADMIN_TOKEN_FILE=str(token))
    try:
        browser = OperatorBrowser(port)
        browser.log_in()
        for path in ("/", "/models"):
            answer = browser.get(path)
            assert (answer.status, "The gateway does not respond" in answer.text) == (200, True)
        assert browser.get("/users").status == 200
        assert browser.post("/models/swap", {"model": "fake"}).status == 503
        assert "Alertmanager does not run on this host" in browser.get("/").text
    finally:
        process.stop()
