"""Bodies that are not usable JSON: every endpoint with a JSON body responds with 400 in OpenAI's form."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.assistant.api.json_body import MAX_DEPTH
from tests.assistant.api.conftest import RunningAssistant, headers

ENDPOINTS = (
    "/conversations",
    "/conversations/conv_1/items",
    "/responses",
    "/responses/input_tokens",
    "/responses/compact",
    "/chat/completions",
    "/vector_stores",
    "/vector_stores/vs_1",
    "/vector_stores/vs_1/search",
    "/vector_stores/vs_1/files",
    "/vector_stores/vs_1/file_batches",
)
FIELDS = {
    "model": "fake",
    "input": "x",
    "messages": [{"role": "user", "content": "x"}],
    "items": [{"role": "user", "content": "x"}],
    "query": "x",
    "file_id": "file-1",
    "file_ids": ["file-1"],
}
"""A body that each endpoint could understand, apart from fields of the others."""

endpoints = st.sampled_from(ENDPOINTS)
depths = st.sampled_from([MAX_DEPTH, MAX_DEPTH + 1, 1_000, 60_000])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def client(assistant: RunningAssistant) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=f"{assistant.url}/v1", headers=headers("ada"), timeout=60, trust_env=False
    ) as opened:
        yield opened


def expect_400(client: httpx.Client, endpoint: str, body: bytes) -> None:
    response = client.post(endpoint, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, (endpoint, body[:200], response.text)
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def nested(depth: int, *, lists: bool, value: bytes = b"1") -> bytes:
    first, last = (b"[", b"]") if lists else (b'{"a":', b"}")
    return first * depth + value + last * depth


@FEW
@given(endpoint=endpoints, depth=depths, lists=st.booleans(), field=st.sampled_from(sorted([*FIELDS, "metadata"])))
def test_deep_json_is_a_400(client: httpx.Client, endpoint: str, depth: int, lists: bool, field: str) -> None:
    body = json.dumps({**FIELDS, field: "DEEP"}).encode()
    expect_400(client, endpoint, body.replace(b'"DEEP"', nested(depth, lists=lists)))


@FEW
@given(
    endpoint=endpoints,
    before=st.lists(json_values, max_size=2),
    after=json_values,
    name=st.booleans(),
    field=st.sampled_from(sorted([*FIELDS, "metadata"])),
)
def test_a_nul_character_is_a_400(
    client: httpx.Client, endpoint: str, before: list[object], after: object, name: bool, field: str
) -> None:
    inner: object = {"a\0": after} if name else ["x", {"deep": "a\0b"}, after]
    expect_400(client, endpoint, json.dumps({**FIELDS, field: [*before, inner]}).encode())
    if field in ("input", "query", "file_id", "model"):
        expect_400(client, endpoint, json.dumps({**FIELDS, field: "a\0b"}).encode())


@FEW
@given(endpoint=endpoints, body=st.binary(min_size=1, max_size=40).filter(lambda one: not is_json(one)))
def test_bytes_that_are_not_json_are_a_400(client: httpx.Client, endpoint: str, body: bytes) -> None:
    expect_400(client, endpoint, body)


@FEW
@given(endpoint=endpoints, value=json_values.filter(lambda one: not isinstance(one, dict)))
def test_json_that_is_not_an_object_is_a_400(client: httpx.Client, endpoint: str, value: object) -> None:
    if value is not None:
        expect_400(client, endpoint, json.dumps(value).encode())


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", '"\\ud800"', "01"])
def test_numbers_and_texts_that_json_cannot_have_are_a_400(client: httpx.Client, text: str) -> None:
    body = json.dumps({**FIELDS, "metadata": {"k": "HERE"}}).replace('"HERE"', text)
    for endpoint in ENDPOINTS:
        expect_400(client, endpoint, body.encode())


def test_a_body_above_the_limit_is_a_413(client: httpx.Client) -> None:
    for endpoint in ("/responses", "/responses/compact", "/chat/completions", "/conversations"):
        response = client.post(endpoint, content=b'{"model": "' + b"x" * 1_000_000 + b'"}')
        assert response.status_code == 413, endpoint


@pytest.mark.parametrize(
    "endpoint", ["/responses", "/chat/completions", "/conversations", "/vector_stores", "/files"]
)
def test_a_client_that_disconnects_within_its_body_leaves_no_error_in_the_log(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, endpoint: str
) -> None:
    sent = "".join(f"{name}: {value}\r\n" for name, value in headers("ada").items())
    kind = "multipart/form-data; boundary=b" if endpoint == "/files" else "application/json"
    head = f"POST /v1{endpoint} HTTP/1.1\r\nhost: x\r\n{sent}content-type: {kind}\r\ncontent-length: 99\r\n\r\n"
    for body in ("", '{"model":'):
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as connection:
            connection.sendall((head + body).encode())
    # The same loop serves this one after it has noticed that the others closed.
    for _ in range(3):
        assert client.get("/conversations").status_code == 200
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True
