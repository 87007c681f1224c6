"""What the gateway offers, to whom, and how it refuses: real gateway process, fake engine."""

from __future__ import annotations

import json
import re
import time

import pytest

from appliance.store.keys import KeyStore
from tests.conftest import Service, chat, exchange, http, serving, wait_until


def test_health_needs_no_key_and_ready_is_a_generated_token(service: Service) -> None:
    assert service.get("/health").json == {"status": "ok"}
    before = service.stats()["requests"]
    time.sleep(0.25)  # let the cached readiness (0.2 s in this site) grow old
    answer = service.get("/ready")
    assert (answer.status, answer.json) == (200, {"status": "ready", "engines": {"chat": "ready"}})
    assert service.stats()["requests"] >= before + 1
    assert '"max_tokens": 1' in service.last()["body"]


def test_ready_is_cached(service: Service) -> None:
    service.get("/ready")
    before = service.stats()["requests"]
    for _ in range(5):
        service.get("/ready")
    assert service.stats()["requests"] <= before + 1


def test_models_lists_models_and_roles(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("roles"), roles={"writer": {"model": "fake"}}) as service:
        answer = service.get("/v1/models", key=service.key)
        assert [card["id"] for card in answer.json["data"]] == ["fake", "writer"]
        assert service.get("/v1/models/writer", key=service.key).json["root"] == "fake"
        missing = service.get("/v1/models/nobody", key=service.key)
        assert (missing.status, missing.json["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/fake"])
def test_models_need_a_key(service: Service, path: str) -> None:
    assert service.get(path).status == 401


@pytest.mark.parametrize(
    "path",
    [
        "/", "/docs", "/openapi.json", "/v1", "/v1/", "/v1/chat/completions/", "//v1/chat/completions",
        "/v1//chat/completions", "/v1/chat%252fcompletions", "/v1/../v1/chat/completions",
        "/invocations", "/pause", "/sleep", "/%73leep", "/wake_up", "/is_sleeping", "/collective_rpc",
        "/load", "/score", "/pooling", "/v1/load_lora_adapter", "/v1/audio/transcriptions",
        "/server_info", "/version",
    ],
)  # fmt: skip
def test_everything_else_is_404_and_never_reaches_the_engine(service: Service, path: str) -> None:
    before = service.stats()["requests"]
    answer = service.post(path, chat())
    assert answer.status == 404
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert service.stats()["requests"] == before


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/chat/completions"), ("POST", "/health"), ("PUT", "/ready")]
)
def test_other_methods_are_405(service: Service, method: str, path: str) -> None:
    answer = http(service.url + path, method=method, body={}, key=service.key)
    assert (answer.status, answer.json["error"]["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    "header",
    [
        "", "authorization: Bearer sk-000000000000-" + "A" * 43, "authorization: Bearer",
        "authorization: Basic YTpi",
        "authorization: Bearer sk-nonsense", "authorization: Bearer " + "x" * 30_000,
    ],
)  # fmt: skip
def test_no_or_wrong_key_is_401(service: Service, header: str) -> None:
    body = json.dumps(chat()).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{header}{header and chr(13) + chr(10)}"
    answer = exchange(service, f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"www-authenticate: Bearer" in answer
    assert b'"code": "invalid_api_key"' in answer


def test_two_authorization_headers_are_400(service: Service) -> None:
    key = f"authorization: Bearer {service.key}\r\n"
    assert exchange(service, f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{key}\r\n".encode()).startswith(
        b"HTTP/1.1 200 "
    )
    assert exchange(service, f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{key * 2}\r\n".encode()).startswith(
        b"HTTP/1.1 400 "
    )


def test_a_revoked_key_stops_working_within_a_second(service: Service) -> None:
    store = KeyStore(service.data)
    key = store.create("eve")
    wait_until(lambda: service.get("/v1/models", key=key).status == 200, "the new key works", 1)
    store.revoke(key)
    wait_until(lambda: service.get("/v1/models", key=key).status == 401, "the revocation bites", 1)
    expired = store.create("eve", expires_at=time.time() - 1)
    store.close()
    live = service.get("/v1/models", key=service.key)
    assert live.status == 200
    time.sleep(0.5)  # longer than the poll: the gateway has seen the expired key, and refuses it
    assert service.get("/v1/models", key=expired).status == 401


def test_the_clients_key_never_reaches_the_engine(service: Service) -> None:
    assert service.post("/v1/chat/completions", chat()).status == 200
    assert "authorization" not in service.last()["head"]
    assert service.key not in json.dumps(service.last())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"7", "not a JSON object"),
        (b'{"messages":[]}', "names no model"),
        (b'{"model":7}', "field model"),
        (b'{"model":"fake","temperature":Nan}', "not JSON"),
        (b'{"model":"fake" "n":1}', "not JSON"),
        (b'{"model":"fa\xffke"}', "not JSON"),
        (b'{"model":"fake","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_bad_bodies_are_400_in_openais_shape(service: Service, body: bytes, words: str) -> None:
    answer = service.post("/v1/chat/completions", body)
    assert answer.status == 400
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert words in answer.json["error"]["message"]


def test_unknown_model_is_404_with_a_hint(service: Service) -> None:
    answer = service.post("/v1/chat/completions", chat() | {"model": "fakee"})
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
    assert "did you mean 'fake'?" in answer.json["error"]["message"]


def test_a_generating_model_is_not_for_embeddings(service: Service) -> None:
    answer = service.post("/v1/embeddings", {"model": "fake", "input": "x"})
    assert answer.status == 404
    assert "use it with /v1/chat/completions" in answer.json["error"]["message"]


def test_a_body_over_the_limit_is_413_by_length_and_by_chunks(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("limit"), gateway={"max_body_bytes": 1000}) as service:
        assert service.post("/v1/chat/completions", chat("x" * 900)).status == 200
        answer = service.post("/v1/chat/completions", chat("x" * 1000))
        assert (answer.status, answer.json["error"]["code"]) == (413, "request_too_large")
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.key}\r\n".encode()
        assert exchange(service, head + b"content-length: 99999999\r\n\r\n").startswith(b"HTTP/1.1 413 ")
        chunks = (
            b"transfer-encoding: chunked\r\n\r\n" + b"200\r\n" + b" " * 512 + b"\r\n200\r\n" + b" " * 512 + b"\r\n"
        )
        assert exchange(service, head + chunks).startswith(b"HTTP/1.1 413 ")
        assert [row["status"] for row in service.wait_rows(4)] == [200, 413, 413, 413]


def test_clients_cannot_make_new_labels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Names, paths, methods and keys that clients choose: however many, the metrics stay as long as they were."""
    with serving(tmp_path_factory.mktemp("labels")) as service:
        store = KeyStore(service.data)
        keys = [store.create(f"user-{number}") for number in range(5)]
        store.close()
        wait_until(lambda: service.get("/v1/models", key=keys[-1]).status == 200, "the keys are known", 2)

        def some(number: int) -> None:
            service.post("/v1/chat/completions", chat("fake: tokens=1"), keys[number])
            service.post("/v1/chat/completions", chat() | {"model": f"model-{number}"}, keys[number])
            service.post("/v1/chat/completions", b"{" + str(number).encode(), keys[number])
            service.post(f"/v1/path-{number}", chat(), keys[number])
            service.post(f"/v1/chat/completions?q={number}", chat("fake: tokens=1"))
            http(f"{service.url}/v1/models", method=f"M{number}")
            service.get("/v1/models", key=f"sk-{number}")

        def series() -> set[str]:
            lines = service.get("/metrics").body.decode().splitlines()
            return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

        some(0)
        before = series()
        for number in range(1, 5):
            some(number)
        assert series() == before
        values = {
            value for one in before for value in re.findall(r'(?:endpoint|model|outcome|engine)="([^"]*)"', one)
        }
        assert values == {"", "/v1/chat/completions", "fake", "chat", "ok", "rejected"}


def test_metrics_count_requests_without_naming_users(service: Service) -> None:
    service.post("/v1/chat/completions", chat(stream=True))
    text = service.get("/metrics").body.decode()
    assert 'appliance_gateway_requests_total{endpoint="/v1/chat/completions",model="fake",outcome="ok"}' in text
    assert "appliance_gateway_time_to_first_token_seconds_bucket" in text
    assert "ada" not in text
    assert service.key not in text
