"""The acting socket: inference for the assistant in the name of a user, over a real Unix socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import StartError
from appliance.gateway import control_client
from appliance.gateway.acting_socket import allowed_users
from appliance.store.keys import KeyStore
from tests import otheruser
from tests.conftest import Response, RunningService, chat, http, serving, start_mock, wait_until
from tests.gateway.running.conftest import create_key, metric, one_engine, running, waiting
from tests.gateway.running.stand_in import StandIn, unix_request
from tests.gateway.running.test_passing import begin_stream, do, last_data, until, with_assistant
from tests.ports import free_port

SHORT = "fake: tokens=1"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningService, StandIn]]:
    roles = {"writer": {"model": "fake", "memory": ["chats"]}}
    with with_assistant(tmp_path_factory.mktemp("acting"), roles=roles) as found:
        yield found


@pytest.fixture
def service(both: tuple[RunningService, StandIn]) -> RunningService:
    return both[0]


@pytest.fixture
def assistant(both: tuple[RunningService, StandIn]) -> StandIn:
    both[1].forget()
    return both[1]


def identifier(key: str) -> str:
    return key.split("-")[1]


def act(assistant: StandIn, key: str, body: object = None, path: str = CHAT, **more: str) -> Response:
    """Send a request as the assistant does for the owner of ``key``."""
    headers = {"x-appliance-key": identifier(key)} | {name.replace("_", "-"): more[name] for name in more}
    return unix_request(assistant.acting, path, chat(SHORT) if body is None else body, headers)


def test_a_request_is_billed_to_the_user_of_its_key(service: RunningService, assistant: StandIn) -> None:
    response = act(assistant, service.key, x_appliance_user="ada", x_request_id="0123456789abcdef01234567")
    assert response.status == 200
    assert response.headers["x-request-id"].startswith("0123456789abcdef01234567.")
    row = service.row(response)
    assert (row["user"], row["key_id"], row["outcome"]) == ("ada", identifier(service.key), "ok")
    assert row["prompt_tokens"] > 0
    assert not {"x-appliance-key", "authorization"} & {*service.last()["head"].lower().split()}


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "invalid_api_key"),
        ({"x-appliance-key": "000000000000"}, 401, "invalid_api_key"),
        ({"x-appliance-key": ""}, 401, "invalid_api_key"),
        ({"x-appliance-key": "ADA", "x-appliance-user": "eve"}, 403, "permission_denied"),
        ({"x-appliance-key": "ADA", "x-appliance-user": "ada/person"}, 403, "permission_denied"),
        ({"x-appliance-key": "ADA", "x-appliance-user": ""}, 403, "permission_denied"),
    ],
)
def test_an_unknown_key_or_another_user_is_rejected(
    service: RunningService, assistant: StandIn, headers: dict[str, str], status: int, code: str
) -> None:
    before = service.stats()["requests"]
    named = {name: value.replace("ADA", identifier(service.key)) for name, value in headers.items()}
    response = unix_request(assistant.acting, CHAT, chat(SHORT), named)
    assert (response.status, response.json["error"]["code"]) == (status, code)
    assert service.stats()["requests"] == before


def test_memory_has_its_embedder_also_if_the_plan_does_not_list_it(tmp_path: Path) -> None:
    mock = start_mock(tmp_path / "embed.log", "--task", "embed", "--model", "embed")
    embed = one_engine(8) | {"model": "embed", "port": mock.port}
    try:
        with with_assistant(
            tmp_path,
            assistant={"embedder": "embed"},
            models={"fake": {"source": "./fake"}, "embed": {"source": "./embed", "task": "embed"}},
            engines={"embed": embed, "chat": one_engine(8) | {"port": free_port()}},
            plans={"chat": {"models": ["fake"]}},
            default_plan="chat",
        ) as (service, assistant):
            body = {"model": "embed", "input": ["a file"]}
            response = act(assistant, service.key, body, "/v1/embeddings")
            assert response.status == 200, response.body
            assert service.row(response)["model"] == "embed"
            refused = service.post("/v1/embeddings", body)
            assert (refused.status, refused.json["error"]["code"]) == (403, "model_not_allowed")
            assert "embed" not in {card["id"] for card in service.get("/v1/models", service.key).json["data"]}
    finally:
        mock.stop()


def test_the_key_of_a_client_is_not_a_credential_here(service: RunningService, assistant: StandIn) -> None:
    credentials = {"authorization": f"Bearer {service.key}", "x-api-key": service.key}
    assert unix_request(assistant.acting, CHAT, chat(SHORT), credentials).status == 401


def test_an_end_user_is_billed_if_its_key_is_marked(service: RunningService, assistant: StandIn) -> None:
    shared = create_key(service, "openwebui", end_users=True)
    response = act(assistant, shared, x_appliance_user="openwebui/bob@example.org")
    assert service.row(response)["user"] == "openwebui/bob@example.org"
    assert act(assistant, shared, x_appliance_user="openwebui/a b").status == 403
    assert act(assistant, shared, x_appliance_user="ada/bob").status == 403


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/conversations", 404), ("GET", "/v1/models", 404), ("GET", "/metrics", 404),
        ("POST", "/v1/responses/resp_1/cancel", 404), ("GET", CHAT, 405), ("POST", "/swap", 404),
    ],
)  # fmt: skip
def test_only_inference_is_served(
    service: RunningService, assistant: StandIn, method: str, path: str, status: int
) -> None:
    headers = {"x-appliance-key": identifier(service.key)}
    response = unix_request(assistant.acting, path, {}, headers, method)
    assert (response.status, response.json["error"]["type"]) == (status, "invalid_request_error")
    assert assistant.seen() == []


def test_a_request_is_never_passed_to_the_assistant_again(service: RunningService, assistant: StandIn) -> None:
    assert act(assistant, service.key, chat(SHORT) | {"model": "writer"}).status == 200
    assert act(assistant, service.key, {"model": "fake", "input": SHORT}, "/v1/responses").status == 200
    assert assistant.seen() == []
    turn = service.post("/v1/responses", do("act", count=2, model="writer"))
    assert [event["status"] for event in events(turn.body) if event["type"] == "acted"] == [200, 200]
    assert len(assistant.seen()) == 1


def rows_of(service: RunningService, user: str) -> list[dict[str, Any]]:
    return [row for row in service.rows() if row["user"] == user]


def events(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]


def test_a_turn_counts_by_its_requests_for_inference_only(service: RunningService, assistant: StandIn) -> None:
    carl = create_key(service, "carl", requests_per_minute=3)
    turn = service.post("/v1/responses", do("act", count=4), carl)
    assert [event["status"] for event in events(turn.body) if event["type"] == "acted"] == [200, 200, 200, 429]
    assert service.post("/v1/conversations", {}, carl).status == 200, "a passed request costs nothing itself"
    assert service.post(CHAT, chat(SHORT), carl).status == 429
    wait_until(lambda: len(rows_of(service, "carl")) == 5, "all rows of carl are written", 10)
    rows = rows_of(service, "carl")
    assert sorted(row["outcome"] for row in rows) == ["limited", "limited", "ok", "ok", "ok"]
    assert {row["endpoint"] for row in rows} == {CHAT}


def test_an_idempotency_key_runs_once(service: RunningService, assistant: StandIn) -> None:
    before = service.stats()["requests"]
    first, second = (act(assistant, service.key, idempotency_key="step-1") for _ in range(2))
    assert first.body == second.body
    assert service.stats()["requests"] == before + 1


def test_a_revoked_key_ends_its_running_request(service: RunningService, assistant: StandIn) -> None:
    mallory = create_key(service, "mallory")
    endless = chat("fake: tokens=3000 itl_ms=10", stream=True)
    with ThreadPoolExecutor(1) as pool:
        before = running(service)
        call = pool.submit(act, assistant, mallory, endless)
        wait_until(lambda: running(service) == before + 1, "it runs", 10)
        store = KeyStore(service.data)
        store.revoke(mallory)
        store.close()
        wait_until(call.done, "the revocation takes effect", 3)
    assert last_data(b"\n" + call.result().body)["error"]["code"] == "invalid_api_key"
    assert act(assistant, mallory).status == 401


def test_background_work_needs_its_header_and_rejects_a_pause(service: RunningService, assistant: StandIn) -> None:
    control_client.pause(service.data, "new fans", 7)
    try:
        work = act(assistant, service.key, x_appliance_background="1")
        assert (work.status, work.json["error"]["code"]) == (503, "paused")
        assert act(assistant, service.key).status == 200, "a turn that runs may finish"
        assert service.post(CHAT, chat(SHORT)).status == 503
    finally:
        control_client.resume(service.data)
    assert act(assistant, service.key, x_appliance_background="1").status == 200


def test_background_work_yields_to_chats_of_its_own_user_and_of_others(tmp_path: Path) -> None:
    """One slot: chats that begin to wait after much background work have their turn between it."""
    engine = start_mock(tmp_path / "engine.log")
    sections = {"chat": one_engine(1) | {"port": engine.port}}
    try:
        with with_assistant(tmp_path, engines=sections) as (service, assistant), ThreadPoolExecutor(12) as pool:
            bob = create_key(service, "bob")
            order: list[str] = []

            def begin(name: str, call: Callable[[], Response]) -> Future[None]:
                def run() -> None:
                    assert call().status == 200
                    order.append(name)

                position = waiting(service)
                future = pool.submit(run)
                wait_until(lambda: waiting(service) == position + 1, f"{name} waits", 60)
                return future

            def post(content: object, key: str) -> Response:
                return http(service.url + CHAT, body=content, key=key, timeout=100)

            first = pool.submit(post, chat("fake: tokens=2 hold=1", stream=True), service.key)
            wait_until(lambda: running(service) == 1, "the slot is in use", 60)
            body = chat("fake: tokens=40 itl_ms=1")

            def work() -> Response:
                return act(assistant, service.key, body, x_appliance_background="1")

            calls = [begin("work", work) for _ in range(3)]
            calls.append(begin("ada", lambda: act(assistant, service.key, body)))
            calls.append(begin("bob", lambda: post(body, bob)))
            http(engine.url + "/release", method="POST")
            for call in calls:
                call.result(90)
            assert first.result(90).status == 200
            # Of three units of work at a quarter of the weight, one may start before both chats.
            assert {*order[-2:]} == {"work"}, order
            wait_until(lambda: len(rows_of(service, "ada")) == 5, "work is billed to its user", 20)
    finally:
        engine.stop()


def test_a_turn_finishes_while_the_gateway_drains(tmp_path: Path) -> None:
    with with_assistant(tmp_path, gateway={"drain_timeout_s": 60}) as (service, assistant):
        with begin_stream(service, do("act", count=2, hold=1)) as turn, ThreadPoolExecutor(1) as pool:
            until(turn, b'"status": 200')
            service.gateway.process.send_signal(signal.SIGTERM)
            wait_until(
                lambda: service.post(CHAT, chat(SHORT)).status == 503, "the gateway rejects new requests", 10
            )
            new = http(service.url + "/v1/conversations", key=service.key)
            assert (new.status, new.json["error"]["code"]) == (503, "draining")
            work = act(assistant, service.key, x_appliance_background="1")
            assert (work.status, work.json["error"]["code"]) == (503, "draining")
            rest = pool.submit(turn.read)
            assistant.release()
            found = events(rest.result(30))
        assert [event.get("status") for event in found] == [200, None], "the second call was served"
        assert service.gateway.process.wait(20) == 0
        assert not assistant.acting.exists()


def test_the_deadline_of_a_drain_ends_a_turn(tmp_path: Path) -> None:
    with (
        with_assistant(tmp_path, gateway={"drain_timeout_s": 0}) as (service, _),
        begin_stream(service, do("stream", count=1, hold=1)) as turn,
    ):
        until(turn, b"word 1")
        service.gateway.process.send_signal(signal.SIGTERM)
        event = last_data(b"\n" + turn.read())
        assert (event["type"], event["error"]["code"]) == ("response.failed", "draining")
        assert service.gateway.process.wait(20) == 0


def test_the_socket_has_its_mode_at_a_path_of_any_length(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    with with_assistant(folder) as (service, assistant):
        assert len(str(assistant.acting)) > 107
        assert stat.S_IMODE(assistant.acting.stat().st_mode) == 0o660
        assert act(assistant, service.key).status == 200
        assert service.get("/v1/conversations", key=service.key).status == 200
        assert service.gateway.stop() == 0
        assert not assistant.acting.exists()


def test_the_named_account_must_exist() -> None:
    assert allowed_users(otheruser.NAME) == {os.geteuid(), 0, otheruser.NOBODY}
    assert allowed_users(None) == {os.geteuid(), 0}
    with pytest.raises(StartError, match="account 'no-such-account' does not exist on this machine; create it"):
        allowed_users("no-such-account")


def test_another_account_is_disconnected_counted_and_logged_once() -> None:
    program = """
        import socket, sys
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(sys.argv[1])
            try:
                connection.sendall(b"POST /v1/chat/completions HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n")
                print(connection.recv(100))
            except ConnectionError:
                print(b"")
    """
    with otheruser.shared_folder() as folder:
        data = folder / "data"
        section = {"socket": str(data / "assistant.sock"), "acting_socket": str(folder / "acting.sock")}
        with serving(data, assistant=section) as service:
            # The mode alone would keep the account out; the gateway must not rely on it.
            (folder / "acting.sock").chmod(0o666)
            for _ in range(3):
                found = otheruser.run("-c", textwrap.dedent(program), folder / "acting.sock")
                assert found.stdout.strip() == "b''", found.stderr
            assert metric(service, "acting_refused_total") == 3
            assert service.gateway.log.read_text().count("may not use") == 1
            headers = {"x-appliance-key": identifier(service.key)}
            assert unix_request(folder / "acting.sock", CHAT, chat(SHORT), headers).status == 200


def test_the_named_account_is_admitted() -> None:
    program = """
        import json, socket, sys
        body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "fake: tokens=1"}]})
        head = f"POST /v1/chat/completions HTTP/1.1\\r\\nhost: x\\r\\nx-appliance-key: {sys.argv[2]}\\r\\n"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(sys.argv[1])
            connection.sendall(f"{head}content-length: {len(body)}\\r\\n\\r\\n{body}".encode())
            print(connection.recv(100).split(b"\\r\\n")[0])
    """
    with otheruser.shared_folder() as folder:
        data = folder / "data"
        section = {"acting_socket": str(folder / "acting.sock"), "user": otheruser.NAME}
        with serving(data, assistant=section) as service:
            (folder / "acting.sock").chmod(0o666)
            words = (textwrap.dedent(program), folder / "acting.sock", identifier(service.key))
            found = otheruser.run("-c", *words)
            assert found.stdout.strip() == "b'HTTP/1.1 200 OK'", found.stderr


def test_bytes_that_are_not_http_end_their_connection_only(service: RunningService, assistant: StandIn) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(assistant.acting))
        connection.sendall(b"not http\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert act(assistant, service.key).status == 200
