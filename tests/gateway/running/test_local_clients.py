"""The socket of the Telegram bot: the APIs of clients with a key named by its id, for one account."""

from __future__ import annotations

import signal
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from appliance.gateway import control_client
from appliance.store.keys import KeyStore
from tests import otheruser
from tests.conftest import Response, RunningService, chat, http, serving, wait_until
from tests.gateway.running.conftest import create_key, running
from tests.gateway.running.stand_in import StandIn, unix_request
from tests.gateway.running.test_passing import last_data, with_assistant

SHORT = "fake: tokens=1"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningService, StandIn, Path]]:
    folder = tmp_path_factory.mktemp("local")
    socket = folder / "bot.sock"
    with with_assistant(folder, telegram={"acting_socket": str(socket)}) as (service, assistant):
        yield service, assistant, socket


@pytest.fixture
def service(both: tuple[RunningService, StandIn, Path]) -> RunningService:
    return both[0]


@pytest.fixture
def assistant(both: tuple[RunningService, StandIn, Path]) -> StandIn:
    both[1].forget()
    return both[1]


def act(
    both: tuple[RunningService, StandIn, Path],
    path: str,
    body: object = None,
    method: str = "POST",
    key: str | None = None,
    **more: str,
) -> Response:
    """Send a request as the bot does for the owner of ``key``."""
    headers = {"x-appliance-key": (key or both[0].key).split("-")[1], "x-appliance-user": "ada"}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    return unix_request(both[2], path, body, headers, method)


def test_paths_with_state_reach_the_assistant_in_the_name_of_the_user(both: Any, assistant: StandIn) -> None:
    for path, body in (("/v1/conversations", {}), ("/v1/responses", {"model": "fake", "input": "x"})):
        assert act(both, path, body).status == 200
    seen = assistant.seen()
    assert [one["path"] for one in seen] == ["/v1/conversations", "/v1/responses"]
    assert {one["headers"]["x-appliance-user"] for one in seen} == {"ada"}
    assert {one["headers"]["x-appliance-key"] for one in seen} == {both[0].key.split("-")[1]}


def test_inference_is_billed_and_models_are_those_of_the_key(both: Any, service: RunningService) -> None:
    row = service.row(act(both, CHAT, chat(SHORT)))
    assert (row["user"], row["outcome"]) == ("ada", "ok")
    assert [one["id"] for one in act(both, "/v1/models", None, "GET").json["data"]] == ["fake"]
    none = create_key(service, "ada", models=[])
    assert act(both, "/v1/models", None, "GET", key=none).json["data"] == []


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/conversations", {"x_appliance_key": "000000000000"}, 401),
        ("/v1/models", {"x_appliance_key": "000000000000"}, 401),
        (CHAT, {"x_appliance_key": ""}, 401),
        ("/v1/conversations", {"x_appliance_user": "bob"}, 403),
        ("/v1/conversations", {"x_appliance_user": "ada/person"}, 403),
    ],
)
def test_an_unknown_key_or_another_user_is_rejected(
    both: Any, assistant: StandIn, path: str, headers: dict[str, str], status: int
) -> None:
    method = "GET" if path == "/v1/models" else "POST"
    body = None if method == "GET" else chat(SHORT)
    assert act(both, path, body, method, **headers).status == status
    assert assistant.seen() == []


def test_a_credential_of_a_client_does_not_replace_the_id(both: Any, service: RunningService) -> None:
    headers = {"authorization": f"Bearer {service.key}"}
    assert unix_request(both[2], "/v1/models", None, headers, "GET").status == 401
    assert unix_request(both[2], CHAT, chat(SHORT), headers).status == 401


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/metrics", 404), ("POST", "/swap", 404), ("GET", CHAT, 405)]
)
def test_only_the_apis_of_clients_are_served(both: Any, method: str, path: str, status: int) -> None:
    assert act(both, path, None if method == "GET" else {}, method).status == status


def test_the_socket_of_the_assistant_still_serves_inference_only(both: Any, assistant: StandIn) -> None:
    headers = {"x-appliance-key": both[0].key.split("-")[1]}
    assert unix_request(assistant.acting, "/v1/conversations", {}, headers).status == 404
    assert assistant.seen() == []


def test_a_pause_rejects_its_requests_as_those_of_clients(both: Any, service: RunningService) -> None:
    control_client.pause(service.data, "new fans", 7)
    try:
        response = act(both, CHAT, chat(SHORT))
        assert (response.status, response.json["error"]["code"]) == (503, "paused")
    finally:
        control_client.resume(service.data)
    assert act(both, CHAT, chat(SHORT)).status == 200


def test_limits_and_a_revocation_hold(both: Any, service: RunningService, assistant: StandIn) -> None:
    carl = create_key(service, "carl", requests_per_minute=1)
    named = {"x_appliance_user": "carl", "key": carl}
    assert act(both, CHAT, chat(SHORT), **named).status == 200
    assert act(both, CHAT, chat(SHORT), **named).status == 429
    mallory = create_key(service, "mallory")
    named = {"x_appliance_user": "mallory", "key": mallory}
    with ThreadPoolExecutor(1) as pool:
        before = running(service)
        endless = chat("fake: tokens=3000 itl_ms=10", stream=True)
        call = pool.submit(lambda: act(both, CHAT, endless, **named))
        wait_until(lambda: running(service) == before + 1, "it runs", 10)
        store = KeyStore(service.data)
        store.revoke(mallory)
        store.close()
        wait_until(call.done, "the revocation takes effect", 10)
    assert last_data(b"\n" + call.result().body)["error"]["code"] == "invalid_api_key"
    assert act(both, "/v1/conversations", {}, **named).status == 401


def test_a_drain_rejects_new_requests_and_finishes_running_ones(tmp_path: Path) -> None:
    socket = tmp_path / "bot.sock"
    site = {"telegram": {"acting_socket": str(socket)}, "gateway": {"drain_timeout_s": 60}}
    with with_assistant(tmp_path, **site) as (service, assistant), ThreadPoolExecutor(1) as pool:
        found = (service, assistant, socket)
        call = pool.submit(lambda: act(found, CHAT, chat("fake: tokens=3 hold=1", stream=True)))
        wait_until(lambda: running(service) == 1, "it runs", 10)
        service.gateway.process.send_signal(signal.SIGTERM)
        wait_until(lambda: act(found, CHAT, chat(SHORT)).status == 503, "the gateway rejects new requests", 10)
        http(service.engine.url + "/release", method="POST")
        assert call.result(30).status == 200
        assert service.gateway.process.wait(20) == 0
        assert not socket.exists()


PROGRAM = """
    import socket, sys
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(sys.argv[1])
        head = f"GET /v1/models HTTP/1.1\\r\\nhost: x\\r\\nx-appliance-key: {sys.argv[2]}\\r\\n\\r\\n"
        try:
            connection.sendall(head.encode())
            print(connection.recv(100).split(b"\\r\\n")[0])
        except ConnectionError:
            print(b"")
"""


@pytest.mark.parametrize(("section", "line"), [("telegram", "b'HTTP/1.1 200 OK'"), ("assistant", "b''")])
def test_the_account_of_the_bot_is_admitted_and_that_of_the_assistant_is_not(section: str, line: str) -> None:
    with otheruser.shared_folder() as folder:
        path = folder / "bot.sock"
        sections: dict[str, dict[str, str]] = {
            "telegram": {"acting_socket": str(path)},
            "assistant": {"acting_socket": str(folder / "acting.sock")},
        }
        sections[section]["user"] = otheruser.NAME
        with serving(folder / "data", **sections) as service:
            path.chmod(0o666)
            words = (textwrap.dedent(PROGRAM), path, service.key.split("-")[1])
            found = otheruser.run("-c", *words)
            assert found.stdout.strip() == line, found.stderr
