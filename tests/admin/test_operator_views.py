"""The pure parts of the operator's page: sessions, rows, plots, sources of alerts."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest

from appliance.admin.operator.alerts import AlertSource
from appliance.admin.operator.sessions import IDLE_S, LONGEST_S, MOST_SESSIONS, OperatorSessions
from appliance.admin.operator.tables import alert_rows, demand_rows, last_swap, notice_rows, usage_plots, user_bars
from appliance.admin.operator.texts import TEXTS
from appliance.errors import AuthenticationError, RateLimitError
from appliance.notices.notice import Notice
from appliance.store.usage import UsageLine
from tests.admin.operated import EVIL, TOKEN
from tests.doctor.servers import start_server
from tests.ports import free_port


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


def test_the_newest_notice_of_each_subject_is_shown() -> None:
    notices = [
        Notice("card-hot", "card 1", "old", 10.0),
        Notice("backup", "", "late", 30.0),
        Notice("card-hot", "card 1", "new", 20.0),
        Notice("on-battery", "", "gone", 5.0),
        Notice("on-battery", "", "back", 6.0, ended=True),
    ]
    rows = [(row.name, row.severity, row.summary) for row in notice_rows(reversed(notices))]
    assert rows == [("card-hot card 1", "page", "new"), ("backup", "digest", "late")]


def test_alerts_without_a_source_are_not_configured() -> None:
    source = AlertSource.of_environment({"APPLIANCE_ALERTMANAGER_URL": ""})
    assert (source.read().rows, source.read().text) == ([], "no_alertmanager")


def test_alertmanager_that_does_not_respond(tmp_path: Path) -> None:
    source = AlertSource(f"http://127.0.0.1:{free_port()}", tmp_path)
    assert source.read().error == "Alertmanager: Connection refused"
    for status, body in ((503, b"[]"), (200, b"{"), (200, b'["x"]'), (200, b"7")):
        server = start_server(body, status)
        found = AlertSource(f"http://127.0.0.1:{server.server_address[1]}", None).read()
        server.shutdown()
        server.server_close()
        assert (found.rows, found.text) == ([], "")
        assert found.error.startswith("Alertmanager: ")


def test_an_outbox_that_cannot_be_read(tmp_path: Path) -> None:
    assert AlertSource(None, tmp_path / "none").read().text == "no_notices"
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in AlertSource(None, tmp_path / "file").read().error


def line_of(name: str, prompt: int, completion: int) -> UsageLine:
    return UsageLine(name, 1, 0, prompt, 0, completion, 0, 0.0, None, None)


def test_bars_of_users_are_bounded_and_escaped() -> None:
    lines = [line_of(f"user{number:03}", number, 0) for number in range(200)]
    bars = user_bars([*lines, line_of(EVIL, 900, 100)], TEXTS["en"])
    assert bars.count("<rect") == 2 * 15
    assert EVIL not in bars
    assert "user199" in bars
    assert "user001" not in bars
    assert user_bars([line_of("idle", 0, 0)], TEXTS["en"]) == ""


def test_the_views_of_a_swap() -> None:
    swapped = {"engine": "ea", "unloaded": ["eb", "ec"], "ok": False, "seconds": 3.2, "error": "x", "ago_s": 60}
    row = last_swap({"last_swap": swapped}, 120.0)
    assert row is not None
    assert (row.unloaded, row.seconds, row.ok, row.ended) == ("eb, ec", 3.2, False, "1970-01-01 00:01")
    assert last_swap({"last_swap": None}, 0.0) is None
    states = ("stopped", "asleep", "loading", "ready", "draining", "failed")
    status = {
        "on_demand": {s: {"model": s, "state": s, "for_s": 0, "waiting": 0, "error": ""} for s in states},
    }
    assert [row.state for row in demand_rows(status) if not row.swappable] == ["loading", "ready"]
