"""Clients' mistakes as real vLLM reports them, in the gateway's responses; unusual numbers and sizes."""

from __future__ import annotations

import json
import re
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import http, usage_row
from tests.up_process import Up

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

CHAT, TEXT, RESPONSES, CLAUDE = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
ENUM = {"type": "json_schema", "name": "a", "schema": {"enum": []}}

MISTAKES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"logit_bias": {"99999999": 1}}),
    (CHAT, {"logprobs": True, "top_logprobs": 30}),
    (CHAT, {"structured_outputs": {"regex": "("}}),
    (CHAT, {"structured_outputs": {"choice": []}}),
    (CHAT, {"structured_outputs": {"grammar": "nonsense ::="}}),
    (CHAT, {"thinking_token_budget": 5}),
    (CHAT, {"stop_token_ids": [99999999]}),
    (CHAT, {"allowed_token_ids": [99999999]}),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": []}}}}),
    (CHAT, {"min_tokens": 50, "max_tokens": 4}),
    (CHAT, {"temperature": 9}),
    (TEXT, {"prompt": [""]}),
    (TEXT, {"prompt": ["a", ""]}),
    (TEXT, {"prompt": [[99999999]]}),
    (TEXT, {"prompt": "a", "logit_bias": {"99999999": 1}}),
    (RESPONSES, {"text": {"format": ENUM}}),
    (RESPONSES, {"logit_bias": {"99999999": 1}}),
    (RESPONSES, {"structured_outputs": {"regex": "("}}),
    (RESPONSES, {"temperature": 9}),
    (CLAUDE, {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}}),
    (CLAUDE, {"output_config": {"format": {"type": "json_schema", "schema": {"enum": []}}}}),
    (CLAUDE, {"top_k": -5}),
]
"""Mistakes that vLLM 0.32 finds after a stream has begun, except the last ones of each endpoint."""


TOOL = (
    '"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":'
    '{"url":{"type":"string"},"n":{"type":"number","maximum":1.79769313486232e+308}}}}}]'
)
"""A schema from a program that prints the largest double with 15 digits: the text is larger than any double."""


def request_body(path: str, model: str, **more: Any) -> dict[str, Any]:
    if path == TEXT:
        return {"model": model, "prompt": "Hi", "max_tokens": 4, **more}
    if path == RESPONSES:
        return {"model": model, "input": "Hi", "max_output_tokens": 16, **more}
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, **more}


@pytest.mark.parametrize(("path", "mistake"), MISTAKES, ids=lambda value: str(value)[:60])
def test_a_clients_mistake_is_400_in_every_form_of_vllms_report(
    up: Up, model: str, path: str, mistake: dict[str, Any]
) -> None:
    """More often in a row than the breaker allows failures; the reason is that of a response without a stream."""
    body = request_body(path, model, **mistake)
    whole = http(up.url + path, body=body, key=up.key, timeout=60)
    assert whole.status == 400, whole.body
    reason = whole.json["error"]["message"]
    for _ in range(6):
        streamed = http(up.url + path, body=body | {"stream": True}, key=up.key, timeout=60)
        assert streamed.status == 400, streamed.body
        assert streamed.json["error"]["message"] == reason
        assert ("type" in streamed.json) == (path == CLAUDE)
    good = http(up.url + CHAT, body=request_body(CHAT, model), key=up.key, timeout=60)
    assert good.status == 200, good.body
    row = usage_row(up.data, streamed.headers["x-request-id"], 10)
    assert (row["outcome"], row["completion_tokens"]) == ("rejected", 0)


@pytest.mark.parametrize(
    "field",
    [
        '"metadata":{"n":1e400}', '"x":1.79769313486232e+308', '"x":NaN', '"x":-Infinity', '"n":1.0', '"n":"1"',
        '"max_tokens":3.0', '"max_tokens":"3"', '"stream":0', '"prompt_cache_key":5', '"user":"a\\ud800"',
        '"messages":[{"role":"ipython","content":"caf\\u00e9"}]',
        TOOL,
    ],
)  # fmt: skip
def test_the_gateway_accepts_what_vllm_accepts(up: Up, model: str, field: str) -> None:
    body = f'{{"model":"{model}","messages":[{{"role":"user","content":"Hi"}}],"max_tokens":2,{field}}}'
    response = http(up.url + CHAT, body=body.encode(), key=up.key, timeout=60)
    assert response.status == 200, response.body


def test_a_limit_over_the_context_is_reduced_and_announced(up: Up, model: str) -> None:
    """Claude Code requests 32,000 tokens from every model."""
    body = request_body(CLAUDE, model, max_tokens=32_000, stop_sequences=["e"])
    response = http(up.url + CLAUDE, body=body, key=up.key, timeout=120)
    assert response.status == 200, response.body
    assert int(response.headers["x-max-tokens-capped"]) < 32_000


def test_tokens_are_counted_and_read_back(up: Up, model: str) -> None:
    counted = http(up.url + "/tokenize", body={"model": model, "prompt": "Hello"}, key=up.key)
    assert counted.status == 200
    back = http(up.url + "/detokenize", body={"model": model, "tokens": counted.json["tokens"]}, key=up.key)
    assert (back.status, back.json["prompt"]) == (200, "Hello")


def test_the_request_after_a_large_last_event_gets_a_response(up: Up, model: str) -> None:
    """The last event of /v1/responses repeats the whole output: with logprobs it has megabytes.

    The client reads slowly, so the engine's connection is paused at its last byte.
    """
    body = json.dumps(
        request_body(RESPONSES, model, stream=True, ignore_eos=True, top_logprobs=20, max_output_tokens=1200)
        | {"include": ["message.output_text.logprobs"]}
    ).encode()
    at = urlsplit(up.url)
    head = f"POST {RESPONSES} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {up.key}\r\nconnection: close\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(120)
        connection.connect((at.hostname or "", at.port or 0))
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        seen = b""
        while piece := connection.recv(65536):
            seen += piece
    assert max(map(len, re.split(rb"\n\n", seen))) > 2**20
    for _ in range(3):
        response = http(up.url + CHAT, body=request_body(CHAT, model), key=up.key, timeout=30)
        assert response.status == 200
