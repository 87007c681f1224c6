"""End users of one key at a real gateway: each has a share, limits, responses and usage of its own."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from string import ascii_letters
from typing import Any

import pytest

from appliance.gateway.hash_ring import Ring
from appliance.store.keys import KeyStore
from appliance.store.usage import UsageReader
from tests.conftest import Response, RunningService, chat, exchange, serving, start_mock, wait_until
from tests.gateway.running.conftest import create_key, narrow, one_engine, running, send, waiting

CHAT = "/v1/chat/completions"


def ask(service: RunningService, key: str, body: object, **headers: str) -> Response:
    """Send one chat request with further headers, ``_`` for ``-``."""
    request = urllib.request.Request(service.url + CHAT, data=json.dumps(body).encode())
    for name, value in {"authorization": f"Bearer {key}", **headers}.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return Response(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Response(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    limits = {"app/ada@example.org": {"requests_per_minute": 2}}
    with serving(tmp_path_factory.mktemp("end-users"), users=limits, gateway={"idempotency_s": 600}) as service:
        yield service


@pytest.fixture(scope="module")
def marked(site: RunningService) -> str:
    """A key of user ``app`` that is marked ``end_users``."""
    return create_key(site, "app", end_users=True)


@pytest.mark.parametrize(
    ("more", "headers", "user"),
    [
        ({}, {}, "app"),
        ({"user": "bob"}, {}, "app/bob"),
        ({"user": "bob"}, {"X_OpenWebUI_User_Id": "eve"}, "app/eve"),
        ({"safety_identifier": "joe", "user": "bob"}, {}, "app/joe"),
        ({"metadata": {"user_id": "user_aa_account__session_1"}}, {}, "app/aa"),
        ({"metadata": {"user_id": "user_aa_account__session_2"}}, {}, "app/aa"),
        ({"user": 7, "safety_identifier": None, "metadata": []}, {}, "app"),
        ({"user": "Ada Lovelace"}, {}, "app/~541d4deafbdf69e8a615fdea"),
    ],
)
def test_a_row_has_its_end_user_if_the_key_is_marked(
    site: RunningService, marked: str, more: dict[str, Any], headers: dict[str, str], user: str
) -> None:
    response = ask(site, marked, chat("fake: tokens=1", **more), **headers)
    assert response.status == 200
    assert site.row(response)["user"] == user
    plain = ask(site, site.key, chat("fake: tokens=1", **more), **headers)
    assert plain.status == 200
    assert site.row(plain)["user"] == "ada", "the user of any other key does not depend on the request"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (chat(user="bob", n=1000), 400),
        (chat(user="bob") | {"model": "absent"}, 404),
        (chat(user="bob", messages=[]), 400),
        ({"user": "bob"}, 400),
    ],
)
def test_a_rejected_request_is_recorded_for_its_end_user(
    site: RunningService, marked: str, body: dict[str, Any], status: int
) -> None:
    before = len(site.rows())
    assert ask(site, marked, body).status == status
    wait_until(lambda: len(site.rows()) > before, "its row", 5)
    assert site.rows()[-1]["user"] == "app/bob"


def test_an_aborted_request_is_recorded_for_the_end_user_of_its_header(site: RunningService, marked: str) -> None:
    before = len(site.rows())
    lines = [f"POST {CHAT} HTTP/1.1", "host: x", f"authorization: Bearer {marked}", "x-openwebui-user-id: bob"]
    received = exchange(site, "\r\n".join([*lines, "transfer-encoding: chunked", "", "zz\r\n"]).encode())
    assert received.startswith(b"HTTP/1.1 400 ")
    wait_until(lambda: len(site.rows()) > before, "its row", 5)
    assert site.rows()[-1]["user"] == "app/bob"


def test_a_mark_takes_effect_on_a_running_gateway_and_can_be_removed(site: RunningService) -> None:
    key = create_key(site, "app")
    store = KeyStore(site.data)
    for end_users, user in ((True, "app/bob"), (False, "app")):
        store.change(key, end_users=end_users)

        def it_is(wanted: str = user) -> bool:
            return bool(site.row(ask(site, key, chat("fake: tokens=1", user="bob")))["user"] == wanted)

        wait_until(it_is, "the change takes effect", 10)
    store.close()


def test_an_end_user_that_the_site_names_has_limits_of_its_own(site: RunningService, marked: str) -> None:
    def statuses(name: str) -> list[int]:
        return [ask(site, marked, chat("fake: tokens=1", user=name)).status for _ in range(3)]

    assert statuses("ada@example.org") == [200, 200, 429]
    assert statuses("bob@example.org") == [200, 200, 200]
    over = ask(site, marked, chat(user="ada@example.org"))
    assert over.json["error"]["message"].startswith("You have used up 2 requests per minute")
    assert ask(site, site.key, chat("fake: tokens=1", user="ada@example.org")).status == 200


@pytest.mark.parametrize("by", ["header", "field"])
def test_one_idempotency_key_of_two_end_users_gets_two_responses(
    site: RunningService, marked: str, by: str
) -> None:
    def send_as(name: str) -> Response:
        body = chat("fake: tokens=3", **({"user": name} if by == "field" else {}))
        return ask(
            site,
            marked,
            body,
            idempotency_key=f"of {by}",
            **({"x_openwebui_user_id": name} if by == "header" else {}),
        )

    ada, bob, again = send_as("ada"), send_as("bob"), send_as("ada")
    assert [one.status for one in (ada, bob, again)] == [200, 200, 200]
    assert ada.headers["x-request-id"] == again.headers["x-request-id"]
    assert ada.headers["x-request-id"] != bob.headers["x-request-id"]
    assert [site.row(one)["user"] for one in (ada, bob)] == ["app/ada", "app/bob"]


@contextmanager
def queue(folder: Path, **more: Any) -> Iterator[tuple[RunningService, ThreadPoolExecutor, Callable[[], None]]]:
    """A gateway before an engine of one slot; another user's stream occupies it until the last value is called."""
    with narrow(folder, slots=1, headroom=0.0, **more) as (service, other), ThreadPoolExecutor(8) as pool:
        blocks = send(pool, service, "fake: tokens=100000 itl_ms=10", other, stream=True)
        wait_until(lambda: running(service) == 1, "the slot is in use", 10)
        store = KeyStore(service.data)

        def release() -> None:
            store.revoke(other)
            assert b'"invalid_api_key"' in blocks.result(30).body

        try:
            yield service, pool, release
        finally:
            store.revoke(other)
            store.close()


def test_one_end_user_does_not_wait_for_all_requests_of_another(tmp_path: Path) -> None:
    with queue(tmp_path / "fair") as (service, pool, release):
        key = create_key(service, "app", end_users=True)
        responses = [send(pool, service, "fake: tokens=40 itl_ms=1", key, user="ada") for _ in range(4)]
        wait_until(lambda: waiting(service) == 4, "ada's wait", 10)
        responses.append(send(pool, service, "fake: tokens=1", key, user="bob"))
        wait_until(lambda: waiting(service) == 5, "bob's waits", 10)
        release()
        assert {response.result(30).status for response in responses} == {200}
        order = [row["user"] for row in service.wait_rows(6)[1:]]
        assert order.index("app/bob") <= 1, order


def test_a_key_without_a_mark_has_one_queue(tmp_path: Path) -> None:
    with queue(tmp_path / "line") as (service, pool, release):
        key = create_key(service, "app")
        responses = [send(pool, service, "fake: tokens=40 itl_ms=1", key, user="ada") for _ in range(4)]
        wait_until(lambda: waiting(service) == 4, "four wait", 10)
        responses.append(send(pool, service, "fake: tokens=1", key, user="bob"))
        wait_until(lambda: waiting(service) == 5, "all wait", 10)
        release()
        assert {response.result(30).status for response in responses} == {200}
        assert [row["completion_tokens"] for row in service.wait_rows(6)[1:]] == [40, 40, 40, 40, 1]


def test_each_end_user_has_a_bound_on_waiting_requests(tmp_path: Path) -> None:
    with queue(tmp_path / "bounds", max_waiting=3, max_waiting_per_user=2) as (service, pool, release):
        key = create_key(service, "app", end_users=True)
        responses = [send(pool, service, "fake: tokens=1", key, user="ada") for _ in range(2)]
        wait_until(lambda: waiting(service) == 2, "ada's wait", 10)
        over = ask(service, key, chat(user="ada"))
        assert (over.status, over.json["error"]["code"]) == (429, "queue_full")
        responses.append(send(pool, service, "fake: tokens=1", key, user="bob"))
        wait_until(lambda: waiting(service) == 3, "bob's waits", 10)
        full = ask(service, key, chat(user="eve"))
        assert (full.status, full.json["error"]["code"]) == (503, "queue_full"), "the bound over all users applies"
        release()
        assert {response.result(30).status for response in responses} == {200}


def test_a_keys_limit_applies_to_all_its_end_users_and_is_released(tmp_path: Path) -> None:
    with queue(tmp_path / "total") as (service, pool, release):
        key = create_key(service, "app", end_users=True, requests_in_flight=2)
        two = [send(pool, service, "fake: tokens=1", key, user=name) for name in ("ada", "bob")]
        wait_until(lambda: waiting(service) == 2, "both wait", 10)
        over = ask(service, key, chat(user="eve"))
        assert (over.status, over.headers["retry-after"]) == (429, "1")
        assert "This key has 2 requests running" in over.json["error"]["message"]
        assert service.row(over)["user"] == "app/eve"
        release()
        assert {response.result(30).status for response in two} == {200}
        wait_until(lambda: ask(service, key, chat(user="eve")).status == 200, "the key has free requests again", 10)


def test_revoking_the_key_ends_the_requests_of_all_its_end_users(tmp_path: Path) -> None:
    """One runs and two wait: all end. A request of another user continues."""
    with narrow(tmp_path / "revoked", slots=1, headroom=0.0) as (service, bob), ThreadPoolExecutor(4) as pool:
        key = create_key(service, "app", end_users=True)
        ends: list[Future[Response]] = []
        ends.append(send(pool, service, "fake: tokens=100000 itl_ms=10", key, user="ada", stream=True))
        wait_until(lambda: running(service) == 1, "it runs", 10)
        ends += [send(pool, service, "fake: tokens=1", key, user=name) for name in ("ada", "eve")]
        other = send(pool, service, "fake: tokens=1", bob)
        wait_until(lambda: waiting(service) == 3, "the others wait", 10)
        store = KeyStore(service.data)
        store.revoke(key)
        store.close()
        runs, *wait = (end.result(20) for end in ends)
        assert b'"invalid_api_key"' in runs.body
        assert b"[DONE]" not in runs.body
        assert [(one.status, one.json["error"]["code"]) for one in wait] == [(401, "invalid_api_key")] * 2
        assert other.result(20).status == 200
        ended = sorted((row["user"], row["outcome"]) for row in service.wait_rows(4))
        assert ended == [("app/ada", "revoked"), ("app/ada", "revoked"), ("app/eve", "revoked"), ("bob", "ok")]


def test_a_chat_id_is_valid_within_its_end_user(tmp_path: Path) -> None:
    second = start_mock(tmp_path / "second.log")
    try:
        folder = tmp_path / "chats"
        first = start_mock(tmp_path / "first.log")
        try:
            engines = {f"e{i}": one_engine(8) | {"port": one.port} for i, one in enumerate((first, second))}
            with serving(folder, engines=engines) as service:
                key = create_key(service, "app", end_users=True)
                ring = Ring(["e0", "e1"])
                # One person per engine whose chat 7 belongs to it; by the key's user, both chats would be one.
                own = {ring.order(f"app/{name}\0007".encode())[0]: name for name in ascii_letters}
                assert own.keys() == {"e0", "e1"}
                for engine, name in own.items():
                    response = ask(service, key, chat("fake: tokens=1", user=name), x_chat_id="7")
                    assert service.row(response)["engine"] == engine
        finally:
            first.stop()
    finally:
        second.stop()


def test_usage_of_a_user_includes_its_end_users(site: RunningService) -> None:
    key = create_key(site, "web_ui", end_users=True)
    plain, alike = create_key(site, "web_ui"), create_key(site, "webXui", end_users=True)
    upper = create_key(site, "WEB_UI", end_users=True)
    for sender, name in ((key, "bob"), (key, "bob"), (key, "eve"), (plain, "x"), (alike, "bob"), (upper, "bob")):
        assert site.row(ask(site, sender, chat("fake: tokens=2", user=name)))["status"] == 200

    reader = UsageReader(site.data)

    def usage(user: str | None = None, by: str = "user") -> dict[str, int]:
        return {line.name: line.requests for line in reader.sums(by, 0, user=user)}

    assert usage("web_ui") == {"web_ui/bob": 2, "web_ui/eve": 1, "web_ui": 1}
    assert usage("web_ui/bob") == {"web_ui/bob": 2}
    assert usage("web_ui", "model") == {"fake": 4}
    assert usage("web") == usage("web_ui/b") == usage("%") == {}
    assert usage().items() >= {"web_ui/bob": 2, "webXui/bob": 1, "WEB_UI/bob": 1}.items()
    reader.close()
    argv = [sys.executable, "-m", "appliance", "usage", "--user", "web_ui", "--format", "csv"]
    argv += ["--config", str(site.config)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    lines = {row["name"]: int(row["requests"]) for row in csv.DictReader(done.stdout.splitlines())}
    assert lines == {"web_ui/bob": 2, "web_ui/eve": 1, "web_ui": 1}
