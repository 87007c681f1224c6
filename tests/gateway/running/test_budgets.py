"""Budgets at a real gateway: parallel streams, refusals, caps, headers, restarts, plans that change."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from appliance.store.calendar import day_name, day_of
from appliance.store.usage import UsageReader
from appliance.store.users import UserStore
from tests.conftest import RunningService, chat, http, serving, start, wait_until
from tests.gateway.running.conftest import create_key, metric
from tests.gateway.running.media import IMAGES, TRANSCRIPTIONS, audio, field, form, media_service, send, sound

CHAT = "/v1/chat/completions"

PLANS = {
    "small": {"tokens_per_day": 3000, "price": "5 EUR"},
    "large": {"tokens_per_day": 10**6, "tokens_per_month": 10**7, "requests_per_minute": 1000},
    "narrow": {"models": ["writer"], "requests_per_minute": 2, "tokens_per_month": 10**6},
    "tiny": {"tokens_per_month": 500},
}


@contextmanager
def store_of(service: RunningService) -> Iterator[UserStore]:
    store = UserStore(service.data)
    try:
        yield store
    finally:
        store.close()


def create_user(service: RunningService, name: str, **values: Any) -> str:
    """Create a user; return its key once the gateway uses its plan."""
    with store_of(service) as store:
        key = store.create(name, **values)
    plan = values.get("plan")
    wait_until(lambda: usage(service, key).get("plan") == (plan or None), f"the plan of {name}", 20)
    return key


def usage(service: RunningService, key: str) -> dict[str, Any]:
    response = service.get("/v1/usage", key=key)
    found: dict[str, Any] = response.json
    return found if response.status == 200 else {}


def recorded(service: RunningService, user: str) -> int:
    """Return the tokens of all usage records of ``user``."""
    return sum(row["prompt_tokens"] + row["completion_tokens"] for row in service.rows() if row["user"] == user)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    roles = {"writer": {"model": "fake"}}
    with serving(tmp_path_factory.mktemp("budgets"), roles=roles, plans=PLANS) as service:
        yield service


def test_fifty_parallel_streams_do_not_exceed_a_nearly_empty_budget(site: RunningService) -> None:
    key = create_user(site, "parallel", plan="small")
    assert site.post(CHAT, chat("fake: tokens=1200", max_tokens=1300), key).status == 200
    wait_until(lambda: usage(site, key)["today"]["used"] >= 1200, "the first request counts", 10)
    body = chat("fake: tokens=300 itl_ms=2", max_tokens=300, stream=True)
    with ThreadPoolExecutor(50) as pool:
        responses = list(pool.map(lambda _: site.post(CHAT, body, key), range(50)))
    statuses = [one.status for one in responses]
    assert set(statuses) == {200, 429}
    rejected = next(one for one in responses if one.status == 429)
    assert rejected.json["error"]["code"] in ("rate_limit_exceeded", "insufficient_quota")
    report = usage(site, key)["today"]
    assert report["reserved"] == 0
    assert 1200 + 300 <= report["used"] <= 3000
    wait_until(lambda: recorded(site, "parallel") == report["used"], "the records agree", 10)


def test_a_used_up_budget_is_openais_insufficient_quota(site: RunningService) -> None:
    key = create_user(site, "empty", plan="tiny")
    assert site.post(CHAT, chat("fake: tokens=420", max_tokens=420), key).status == 200
    wait_until(lambda: usage(site, key)["month"]["used"] >= 380, "the request counts", 10)
    rejected = site.post(CHAT, chat("hi", max_tokens=100), key)
    error = rejected.json["error"]
    assert (rejected.status, error["code"], error["type"]) == (429, "insufficient_quota", "insufficient_quota")
    assert "the budget resets at" in error["message"]
    reset = usage(site, key)["month"]["reset_at"]
    assert abs(int(rejected.headers["retry-after"]) - (reset - time.time())) < 120
    assert rejected.headers["x-should-retry"] == "false"
    messages = {"model": "fake", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
    anthropic = site.post("/v1/messages", messages, key)
    assert (anthropic.status, anthropic.json["type"]) == (429, "error")
    assert anthropic.json["error"]["type"] == "rate_limit_error"
    assert site.get("/v1/models", key=key).status == 200
    row = site.row(rejected)
    assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("limited", 0, 0)


def test_a_larger_limit_is_reduced_to_the_rest(site: RunningService) -> None:
    key = create_user(site, "capped", plan="small")
    response = site.post(CHAT, chat("fake: tokens=5", max_tokens=4000), key)
    cap = int(response.headers["x-max-tokens-capped"])
    assert 2500 < cap < 3000
    assert json.loads(site.last()["body"])["max_tokens"] == cap
    free = site.post(CHAT, chat("fake: tokens=5"), key)
    assert 500 < int(free.headers["x-max-tokens-capped"]) <= 750
    assert "x-max-tokens-capped" not in site.post(CHAT, chat("fake: tokens=5", max_tokens=50), key).headers


def test_a_failure_and_a_disconnect_release_the_reservation(site: RunningService) -> None:
    key = create_user(site, "failing", plan="small")
    for fault in ("reset", "status:400"):
        assert site.post(CHAT, chat(f"fake: fault={fault}", max_tokens=2000), key).status >= 400
    assert usage(site, key)["today"]["reserved"] == 0
    body = chat("fake: tokens=20000 itl_ms=50", max_tokens=2000, stream=True)
    with urlopen(Request(site.url + CHAT, json.dumps(body).encode(), {"authorization": f"Bearer {key}"})) as stream:
        assert stream.readline().startswith(b"data: ")
        assert usage(site, key)["today"]["reserved"] > 2000
    wait_until(lambda: usage(site, key)["today"]["reserved"] == 0, "the disconnect is noticed", 20)
    assert site.post(CHAT, chat("fake: tokens=3", max_tokens=2000), key).status == 200


def test_each_response_has_the_used_percent(site: RunningService) -> None:
    key = create_user(site, "header", plan="large")
    assert (
        site.post(CHAT, chat("fake: tokens=9", max_tokens=20_000, stream=True), key)
        .headers["x-appliance-budget"]
        .startswith("day;used=0;reset=")
    )
    with store_of(site) as store:
        store.change("header", plan="small")
    wait_until(lambda: usage(site, key)["plan"] == "small", "the new plan", 20)
    assert site.post(CHAT, chat("fake: tokens=1500", max_tokens=1600), key).status == 200
    header = site.post(CHAT, chat("fake: tokens=1", max_tokens=9), key).headers["x-appliance-budget"]
    assert 50 <= int(header.removeprefix("day;used=").partition(";")[0]) < 60
    assert "x-appliance-budget" not in site.post(CHAT, chat("fake: tokens=1")).headers


def test_usage_shows_the_own_plan_and_no_other_user(site: RunningService) -> None:
    create_user(site, "secret", plan="large", note="a note")
    key = create_user(site, "shown", plan="small", plan_until=time.time() + 86400)
    site.post(CHAT, chat("fake: tokens=20", max_tokens=30), key)
    response = site.get("/v1/usage", key=key)
    report = response.json
    assert (report["user"], report["plan"], report["price"]) == ("shown", "small", "5 EUR")
    assert 0 < report["plan_until"] - time.time() <= 86400
    assert report["limits"] == {
        "requests_per_minute": None, "tokens_per_minute": None, "requests_in_flight": None,
    }  # fmt: skip
    assert (report["today"]["limit"], report["month"]["limit"]) == (3000, None)
    assert report["today"]["remaining"] == 3000 - report["today"]["used"]
    assert report["today"]["reset_at"] % 86400 == 0
    assert "secret" not in response.body.decode()
    assert response.headers["cache-control"] == "no-store"
    for wrong in (None, "sk-000000000000-" + "x" * 43):
        assert http(site.url + "/v1/usage", key=wrong).status == 401
    assert http(site.url + "/v1/usage", key=key, body={}).status == 405
    plain = usage(site, site.key)
    assert (plain["plan"], plain["today"]["limit"], plain["today"]["remaining"]) == (None, None, None)


def test_the_end_users_of_a_key_count_for_its_user(site: RunningService) -> None:
    with store_of(site) as store:
        store.create("app", plan="small")
    key = create_key(site, "app", end_users=True)
    for name in ("joe", "eve"):
        assert site.post(CHAT, chat("fake: tokens=900", max_tokens=1000, user=name), key).status == 200
    assert usage(site, key)["today"]["used"] >= 1800
    rest = site.post(CHAT, chat("fake: tokens=9", max_tokens=4000, user="max"), key)
    assert int(rest.headers["x-max-tokens-capped"]) < 1200


def test_a_plan_limits_models_and_requests_and_a_key_narrows_it(site: RunningService) -> None:
    key = create_user(site, "narrow", plan="narrow")
    offered = [card["id"] for card in site.get("/v1/models", key=key).json["data"]]
    assert offered == ["writer"]
    refused = site.post(CHAT, chat("fake: tokens=1"), key)
    assert (refused.status, refused.json["error"]["code"]) == (403, "model_not_allowed")
    body = chat("fake: tokens=1", max_tokens=9) | {"model": "writer"}
    assert [site.post(CHAT, body, key).status for _ in range(3)] == [200, 200, 429]
    own = create_key(site, "narrow", models=["fake"])
    assert site.get("/v1/models", key=own).json["data"] == [], "a key's models do not widen the plan"
    with store_of(site) as store:
        store.change("narrow", plan=None)
    wait_until(lambda: site.post(CHAT, chat("fake: tokens=1"), key).status == 200, "the plan is removed", 20)


def test_a_disabled_user_has_no_valid_key_until_it_is_enabled(site: RunningService) -> None:
    key = create_user(site, "away", plan="large")
    with store_of(site) as store, ThreadPoolExecutor(1) as pool:
        running = pool.submit(site.post, CHAT, chat("fake: tokens=20000 itl_ms=50", stream=True), key)
        wait_until(lambda: metric(site, 'engine_requests_in_flight{engine="chat"}') > 0, "it runs", 20)
        store.set_disabled("away", disabled=True)
        assert b"was revoked" in running.result(60).body
        wait_until(lambda: site.get("/v1/models", key=key).status == 401, "it is disabled", 20)
        store.set_disabled("away", disabled=False)
        wait_until(lambda: site.get("/v1/models", key=key).status == 200, "it is enabled", 20)


def test_a_plan_that_ends_falls_to_the_default_without_a_change_in_the_store(site: RunningService) -> None:
    key = create_user(site, "ending", plan="tiny", plan_until=time.time() + 4)
    wait_until(lambda: usage(site, key)["plan"] is None, "the plan has ended", 30)
    assert site.post(CHAT, chat("fake: tokens=400", max_tokens=500), key).status == 200
    assert usage(site, key)["month"]["limit"] is None


def test_shares_are_recorded_once_and_are_in_the_metrics(site: RunningService) -> None:
    key = create_user(site, "warned", plan="tiny")
    assert site.post(CHAT, chat("fake: tokens=420", max_tokens=420), key).status == 200
    month = day_name(day_of(time.time()))[:7]
    with store_of(site) as store:
        wait_until(lambda: store.notices((month,)).get(("warned", month)) == 80, "the notice", 20)
        assert store.record_notice("warned", month, 80) is False
    log = site.data / "gateway.log"
    # The store has the notice before the log has its line.
    wait_until(lambda: log.read_text().count('"user": "warned"') > 0, "the line of the log", 20)
    assert log.read_text().count('"user": "warned"') == 1
    assert 0.8 <= metric(site, 'budget_used_ratio{user="warned"}') < 1.0
    labels = f',period="{month}",user="warned"}}'
    wait_until(
        lambda: f'percent="80"{labels}' in site.get("/metrics").body.decode(), "the notice in the metrics", 20
    )
    made_at = metric(site, f'budget_notice_timestamp_seconds{{percent="80"{labels}')
    assert 0 <= time.time() - made_at < 120
    assert f'percent="100"{labels}' not in site.get("/metrics").body.decode()
    assert 'user="ada"' not in site.get("/metrics").body.decode()


def test_a_restart_in_mid_stream_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    plans = {"small": {"tokens_per_day": 10**6}}
    with serving(tmp_path / "restart", plans=plans, default_plan="small") as service:
        body = chat("fake: tokens=40 hold=5", stream=True, max_tokens=100)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(service.post, CHAT, body)
            wait_until(lambda: usage(service, service.key)["today"]["reserved"] > 0, "it runs", 20)
            os.kill(service.gateway.process.pid, signal.SIGTERM)
            http(service.engine.url + "/release", method="POST")
            assert running.result(60).status == 200
        service.gateway.process.wait(30)
        expected = recorded(service, "ada")
        assert expected > 40
        argv = [sys.executable, "-m", "appliance", "gateway", "--config", str(service.config)]
        service.gateway = start(argv, service.gateway.port, service.data / "gateway.log")
        today = usage(service, service.key)["today"]
        assert (today["used"], today["reserved"]) == (expected, 0)
        reader = UsageReader(service.data)
        assert reader.tokens(time.time() - 3600, time.time() + 60) == {"ada": expected}
        reader.close()


def test_an_unknown_default_plan_is_refused_at_the_start(tmp_path: Path) -> None:
    unknown = serving(tmp_path / "unknown", plans=PLANS, default_plan="smal")
    with pytest.raises(pytest.fail.Exception, match="plan 'smal' does not exist; did you mean 'small'"), unknown:
        pass


def test_a_plan_limits_audio_and_images(tmp_path: Path) -> None:
    plans = {"text": {"models": ["fake"]}, "small": {"tokens_per_day": 100}}
    with media_service(tmp_path, tasks=("fake", "painter"), plans=plans) as service:
        key = create_user(service, "reader", plan="text")
        assert [one["id"] for one in service.get("/v1/models", key=key).json["data"]] == ["fake"]
        voice = form(field("model", "whisper"), audio(sound()))
        picture = {"model": "painter", "prompt": "a cat", "n": 1}
        for refused in (send(service, TRANSCRIPTIONS, voice, key=key), service.post(IMAGES, picture, key)):
            assert (refused.status, refused.json["error"]["code"]) == (403, "model_not_allowed")
        key = create_user(service, "spent", plan="small")
        assert service.post(IMAGES, picture, key).status == 200
        with store_of(service) as store:
            store.change("spent", plan="text")
        wait_until(lambda: usage(service, key).get("plan") == "text", "the other plan", 20)
        # Chats use up the budget, which has 1 to 200 tokens of prompts and messages.
        assert service.post(CHAT, chat("fake: tokens=200", max_tokens=200), key).status == 200
        with store_of(service) as store:
            store.change("spent", plan="small")
        wait_until(lambda: usage(service, key).get("plan") == "small", "the first plan", 20)
        for refused in (send(service, TRANSCRIPTIONS, voice, key=key), service.post(IMAGES, picture, key)):
            assert (refused.status, refused.json["error"]["code"]) == (429, "insufficient_quota")
