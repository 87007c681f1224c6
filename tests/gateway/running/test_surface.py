"""Endpoints, authentication and rejections: a real gateway process before a mock engine."""

from __future__ import annotations

import json
import re
import time

import pytest

from appliance.store.keys import KeyStore
from tests.conftest import RunningService, chat, exchange, http, serving, wait_until
from tests.ports import free_port


def test_health_needs_no_key_and_ready_is_a_generated_token(service: RunningService) -> None:
    assert service.get("/health").json == {"status": "ok"}
    before = service.stats()["requests"]

    def generated() -> bool:
        response = service.get("/ready")
        assert (response.status, response.json) == (200, {"status": "ready", "engines": {"chat": "ready"}})
        return service.stats()["requests"] >= before + 1

    wait_until(generated, "the cached readiness expires", 5)
    assert '"max_tokens": 1' in service.last()["body"]


def test_ready_is_cached(service: RunningService) -> None:
    service.get("/ready")
    before = service.stats()["requests"]
    for _ in range(5):
        service.get("/ready")
    assert service.stats()["requests"] <= before + 1


def test_models_lists_models_and_roles(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("roles"), roles={"writer": {"model": "fake"}}) as service:
        response = service.get("/v1/models", key=service.key)
        assert [card["id"] for card in response.json["data"]] == ["fake", "writer"]
        assert service.get("/v1/models/writer", key=service.key).json["root"] == "fake"
        missing = service.get("/v1/models/nobody", key=service.key)
        assert (missing.status, missing.json["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/fake"])
def test_models_need_a_key(service: RunningService, path: str) -> None:
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
def test_everything_else_is_404_and_never_reaches_the_engine(service: RunningService, path: str) -> None:
    before = service.stats()["requests"]
    response = service.post(path, chat())
    assert response.status == 404
    assert response.json["error"]["type"] == "invalid_request_error"
    assert service.stats()["requests"] == before


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/chat/completions"), ("POST", "/health"), ("PUT", "/ready")]
)
def test_other_methods_are_405(service: RunningService, method: str, path: str) -> None:
    response = http(service.url + path, method=method, body={}, key=service.key)
    assert (response.status, response.json["error"]["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    "header",
    [
        "", "authorization: Bearer sk-000000000000-" + "A" * 43, "authorization: Bearer",
        "authorization: Basic YTpi",
        "authorization: Bearer sk-nonsense", "authorization: Bearer " + "x" * 30_000,
    ],
)  # fmt: skip
def test_a_missing_or_invalid_key_is_401(service: RunningService, header: str) -> None:
    body = json.dumps(chat()).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{header}{header and chr(13) + chr(10)}"
    response = exchange(service, f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    assert response.startswith(b"HTTP/1.1 401 ")
    assert b"www-authenticate: Bearer" in response
    assert b'"code": "invalid_api_key"' in response


def test_two_authorization_headers_are_400(service: RunningService) -> None:
    key = f"authorization: Bearer {service.key}\r\n"
    assert exchange(service, f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{key}\r\n".encode()).startswith(
        b"HTTP/1.1 200 "
    )
    assert exchange(service, f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{key * 2}\r\n".encode()).startswith(
        b"HTTP/1.1 400 "
    )


def test_a_revoked_key_stops_working_within_a_second(service: RunningService) -> None:
    store = KeyStore(service.data)
    key = store.create("eve")
    wait_until(lambda: service.get("/v1/models", key=key).status == 200, "the new key works", 1)
    store.revoke(key)
    wait_until(lambda: service.get("/v1/models", key=key).status == 401, "the revocation takes effect", 1)
    expired = store.create("eve", expires_at=time.time() - 1)
    later = store.create("eve")
    store.close()
    assert service.get("/v1/models", key=service.key).status == 200
    wait_until(lambda: service.get("/v1/models", key=later).status == 200, "both keys are read", 1)
    assert service.get("/v1/models", key=expired).status == 401


def test_the_clients_key_never_reaches_the_engine(service: RunningService) -> None:
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
        (b'{"model":"fake","x":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", "nested too deeply"),
    ],
)
def test_bad_bodies_are_400_in_openais_shape(service: RunningService, body: bytes, words: str) -> None:
    response = service.post("/v1/chat/completions", body)
    assert response.status == 400
    assert set(response.json["error"]) == {"message", "type", "param", "code"}
    assert words in response.json["error"]["message"]


def test_unknown_model_is_404_with_a_hint(service: RunningService) -> None:
    response = service.post("/v1/chat/completions", chat() | {"model": "fakee"})
    assert (response.status, response.json["error"]["code"]) == (404, "model_not_found")
    assert "did you mean 'fake'?" in response.json["error"]["message"]


def test_a_generating_model_does_not_serve_embeddings(service: RunningService) -> None:
    response = service.post("/v1/embeddings", {"model": "fake", "input": "x"})
    assert response.status == 404
    assert "use it with /v1/chat/completions" in response.json["error"]["message"]


def test_a_body_over_the_limit_is_413_by_length_and_by_chunks(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("limit"), gateway={"max_body_bytes": 1000}) as service:
        assert service.post("/v1/chat/completions", chat("x" * 900)).status == 200
        response = service.post("/v1/chat/completions", chat("x" * 1000))
        assert (response.status, response.json["error"]["code"]) == (413, "request_too_large")
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.key}\r\n".encode()
        assert exchange(service, head + b"content-length: 99999999\r\n\r\n").startswith(b"HTTP/1.1 413 ")
        chunks = (
            b"transfer-encoding: chunked\r\n\r\n" + b"200\r\n" + b" " * 512 + b"\r\n200\r\n" + b" " * 512 + b"\r\n"
        )
        assert exchange(service, head + chunks).startswith(b"HTTP/1.1 413 ")
        assert [row["status"] for row in service.wait_rows(4)] == [200, 413, 413, 413]


def test_clients_cannot_create_labels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Names, paths, methods and keys that clients choose add no series to the metrics."""
    with serving(tmp_path_factory.mktemp("labels")) as service:
        store = KeyStore(service.data)
        keys = [store.create(f"user-{number}") for number in range(5)]
        store.close()
        wait_until(lambda: service.get("/v1/models", key=keys[-1]).status == 200, "the keys are valid", 2)

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


def test_metrics_count_requests_without_naming_users(service: RunningService) -> None:
    service.post("/v1/chat/completions", chat(stream=True))
    text = service.get("/metrics").body.decode()
    assert 'appliance_gateway_requests_total{endpoint="/v1/chat/completions",model="fake",outcome="ok"}' in text
    assert "appliance_gateway_time_to_first_token_seconds_bucket" in text
    assert "ada" not in text
    assert service.key not in text


def test_a_model_is_found_in_every_encoding_of_its_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Current SDKs send ``%2F``; a proxy sends the absolute form."""
    name = "Qwen/Qwen3-30B"
    engine = {"kind": "mock", "host": "here", "model": name, "device": "cpu", "context": 4096, "concurrency": 8}
    site = {"models": {name: {"source": "./fake"}}, "engines": {"chat": engine | {"port": free_port()}}}
    with serving(tmp_path_factory.mktemp("slash"), **site) as service:
        for path in ("Qwen/Qwen3-30B", "Qwen%2FQwen3-30B", "Qwen%2fQwen3%2d30B", "%51wen/Qwen3-30B"):
            response = service.get(f"/v1/models/{path}", key=service.key)
            assert (response.status, response.json["id"]) == (200, name)
        absolute = "http://gateway.example/v1/models/Qwen%2FQwen3-30B"
        sent = f"GET {absolute} HTTP/1.1\r\nhost: x\r\nx-api-key: {service.key}\r\n\r\n"
        assert exchange(service, sent.encode()).startswith(b"HTTP/1.1 200 OK\r\n")
        missing = service.get("/v1/models/Qwen%2FOther", key=service.key)
        assert (missing.status, "`Qwen/Other`" in missing.json["error"]["message"]) == (404, True)


def test_a_model_entry_has_context_task_and_time(service: RunningService) -> None:
    card = service.get("/v1/models/fake", key=service.key).json
    assert (card["max_model_len"], card["task"], card["owned_by"]) == (4096, "generate", "appliance")
    assert abs(card["created"] - time.time()) < 3600


@pytest.mark.parametrize("path", ["/v1/chat%2fcompletions", "/v1/%63hat/completions", "/v1/chat/completions?a=%2F"])
def test_an_encoded_path_is_decoded(service: RunningService, path: str) -> None:
    assert service.post(path, chat()).status == 200
    assert service.last()["path"] == "/v1/chat/completions", "the engine gets one spelling"


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models", "/v1/models/fake"])
def test_head_is_get_without_its_body(service: RunningService, path: str) -> None:
    key = f"authorization: Bearer {service.key}\r\nconnection: close\r\n"
    responses = [
        exchange(service, f"{method} {path} HTTP/1.1\r\nhost: x\r\n{key}\r\n".encode(), to_the_end=True)
        for method in ("GET", "HEAD")
    ]
    got, bare = (response.partition(b"\r\n\r\n") for response in responses)
    assert got[0].startswith(b"HTTP/1.1 200 OK")
    assert bare[2] == b""
    same = [re.sub(rb"(request-id: |content-length: )\w+", rb"\1", head[0]) for head in (got, bare)]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST, OPTIONS"),
        ("DELETE", "/v1/models", "GET, HEAD, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
    ],
)
def test_405_and_options_name_the_methods(service: RunningService, method: str, path: str, allow: str) -> None:
    response = http(service.url + path, method=method, body={}, key=service.key)
    assert (response.status, response.headers["allow"]) == (405, allow)
    options = http(service.url + path, method="OPTIONS")
    assert (options.status, options.headers["allow"], options.body) == (204, allow, b"")


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/v1/audio/transcriptions", 404, "nothing at /v1/audio/transcriptions"),
        ("POST", "/v1/chat/completions/", 404, "write /v1/chat/completions"),
        ("POST", "/chat/completions", 404, "the base URL ends in /v1"),
        ("PUT", "/v1/chat/completions", 405, "requires POST"),
        ("POST", "/v1/models", 405, "requires GET"),
    ],
)
def test_a_large_upload_to_an_unknown_path_gets_the_error_of_the_path(
    service: RunningService, framing: str, method: str, path: str, status: int, words: str
) -> None:
    body = b"x" * 200_000
    lines = f"content-length: {len(body)}\r\n\r\n" if framing == "length" else "transfer-encoding: chunked\r\n\r\n"
    sent = f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.key}\r\n{lines}".encode()
    sent += body if framing == "length" else b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    response = exchange(service, sent, to_the_end=True)
    assert response.startswith(b"HTTP/1.1 %d " % status), response[:200]
    assert words.encode() in response


def test_unknown_paths_are_counted_and_logged_without_secrets(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with serving(tmp_path_factory.mktemp("unknown")) as service:
        for _ in range(200):
            service.post("/v1/audio/speech", {})
        service.get("/v1/files/file-s3cret?key=s3cret")
        text = service.get("/metrics").body.decode()
        assert 'appliance_gateway_not_found_total{path="/v1/audio"} 200.0' in text
        assert 'appliance_gateway_not_found_total{path="/v1/files"} 1.0' in text
        lines = [json.loads(line) for line in service.gateway.log.read_text().splitlines()]
        seen = [line["path"] for line in lines if "unknown path" in line["message"]]
        assert seen[0] == "/v1/audio/speech"
        assert 60 <= len(seen) <= 80, "a client that repeats a request for ever does not fill the log"
        assert "s3cret" not in service.gateway.log.read_text()


@pytest.mark.parametrize("sent", ["authorization: ", "authorization: Bearer ", "authorization: Basic dTpw", ""])
@pytest.mark.parametrize("name", ["x-api-key", "api-key"])
def test_an_authorization_without_a_key_does_not_hide_another_header(
    service: RunningService, sent: str, name: str
) -> None:
    lines = f"{sent}\r\n" if sent else ""
    request = f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{lines}{name}: {{}}\r\nconnection: close\r\n\r\n"
    assert exchange(service, request.format(service.key).encode()).startswith(b"HTTP/1.1 200 OK")
    refused = exchange(service, request.format("sk-bad").encode())
    assert refused.startswith(b"HTTP/1.1 401 ")


def test_the_error_for_a_key_without_bearer_shows_the_right_form(service: RunningService) -> None:
    request = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: {service.key}\r\nconnection: close\r\n\r\n"
    response = exchange(service, request.encode())
    assert response.startswith(b"HTTP/1.1 401 ")
    assert b"write `Authorization: Bearer sk-" in response


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/models"])
@pytest.mark.parametrize("fault", ["no key", "bad key", "too large", "not JSON", "other path"])
def test_anthropics_api_has_its_own_errors_and_request_id(service: RunningService, path: str, fault: str) -> None:
    """The request is rejected before its body, because of its body, or because of its path."""
    key = {"no key": "", "bad key": "x-api-key: sk-bad\r\n"}.get(fault, f"x-api-key: {service.key}\r\n")
    body = b"x" * (2 if fault == "not JSON" else 0)
    length = 10**9 if fault == "too large" else len(body)
    method = "GET" if path == "/v1/models" else "POST"
    target = path + ("/x/y" if fault == "other path" else "")
    if method == "GET" and fault == "not JSON":
        return
    lines = f"host: x\r\nanthropic-version: 2023-06-01\r\n{key}content-length: {length}\r\nconnection: close\r\n"
    sent = f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + body
    response = exchange(service, sent, to_the_end=True)
    head_bytes, _, text = response.partition(b"\r\n\r\n")
    value = json.loads(text)
    assert (value["type"], set(value["error"])) == ("error", {"type", "message"})
    ids = re.findall(rb"(x-request-id|request-id): (\w+)", head_bytes)
    assert len({found for _, found in ids}) == 1
    assert {name for name, _ in ids} == {b"x-request-id", b"request-id"}


def test_a_background_response_is_rejected(service: RunningService) -> None:
    for value in (True, "true", 1):
        before = service.stats()["requests"]
        response = service.post("/v1/responses", {"model": "fake", "input": "x", "background": value})
        assert (response.status, response.json["error"]["param"]) == (400, "background")
        assert service.stats()["requests"] == before
    assert service.post("/v1/responses", {"model": "fake", "input": "x", "background": False}).status == 200


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_tokens_are_counted_by_the_engine_for_a_key_and_cost_nothing(service: RunningService, path: str) -> None:
    response = service.post(path, {"model": "fake", "prompt": "one two three", "tokens": [1]})
    assert response.status == (200 if path == "/tokenize" else 404)
    row = service.row(response)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (0, 0)
    assert service.post(path, {"model": "fake"}, key="sk-bad").status == 401
    assert service.post(path, {"model": "nobody", "prompt": "x"}).status == 404


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/chat/completions", "max_tokens"), ("/v1/chat/completions", "max_completion_tokens"),
        ("/v1/completions", "max_tokens"), ("/v1/responses", "max_output_tokens"), ("/v1/messages", "max_tokens"),
    ],
)  # fmt: skip
def test_a_limit_over_the_context_is_reduced_and_announced(service: RunningService, path: str, field: str) -> None:
    body = {**chat("fake: tokens=3"), "prompt": "x", "input": "x", field: 32_000}
    response = service.post(path, body)
    assert (response.status, response.headers["x-max-tokens-capped"]) == (200, "4096")
    sent = json.loads(service.last()["body"])
    assert sent == {**body, field: 4096}, "nothing else changes"
    within = service.post(path, body | {field: 4096})
    assert "x-max-tokens-capped" not in within.headers
    streamed = service.post(path, body | {"stream": True, field: "32000"})
    assert (streamed.status, streamed.headers["x-max-tokens-capped"]) == (200, "4096")


def test_a_thinking_budget_stays_below_a_reduced_limit(service: RunningService) -> None:
    body = chat("hi", max_tokens=32_000, thinking={"type": "enabled", "budget_tokens": 31_999})
    assert service.post("/v1/messages", body).status == 200
    sent = json.loads(service.last()["body"])
    assert (sent["max_tokens"], sent["thinking"]["budget_tokens"]) == (4096, 4095)


def test_a_model_can_reject_a_limit_instead_of_reducing_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    models = {"fake": {"source": "./fake", "cap_max_tokens": False}}
    with serving(tmp_path_factory.mktemp("strict"), models=models) as service:
        response = service.post("/v1/chat/completions", chat(max_tokens=5000))
        assert (response.status, response.json["error"]["param"]) == (400, "max_tokens")


def test_paths_of_audio_and_images_need_a_model_of_their_task(service: RunningService) -> None:
    for path, task in (("/v1/audio/translations", "transcribe"), ("/v1/images/generations", "image")):
        response = service.post(path, b"x" * 200_000)
        assert response.status == 404
        assert f"has no model with the task {task}" in response.json["error"]["message"]
