"""Forwarding: requests and responses are unchanged, except for the documented edits."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningService, chat, http, open_stream, serving, start_mock, wait_until
from tests.gateway.running.conftest import one_engine


def frames(body: bytes) -> list[str]:
    assert body.endswith(b"\n\n"), body[-80:]
    return [frame.removeprefix("data: ") for frame in body.decode().split("\n\n")[:-1]]


def test_a_plain_chat_is_forwarded(service: RunningService) -> None:
    response = service.post("/v1/chat/completions", chat("fake: tokens=3"))
    assert response.status == 200
    assert response.json["choices"][0]["message"]["content"] == "the quick brown"
    assert response.headers["x-request-id"]


def test_unknown_fields_tools_and_numbers_survive_byte_for_byte(service: RunningService) -> None:
    odd = '{"temperature":1.0e-0,"tools":[{"type":"function","x":1.10}],"top_k":-1,"w":[1,2,  3],"u":"\\u00e9"'
    body = odd + ',"model":"fake","messages":[{"role":"user","content":"hi"}]}'
    assert service.post("/v1/chat/completions", body.encode()).status == 200
    assert service.last()["body"] == body


def test_usage_is_requested_and_its_frame_removed(service: RunningService) -> None:
    body = '{"model":"fake","stream":true,"seed":7,"messages":[{"role":"user","content":"fake: tokens=4"}]}'
    response = service.post("/v1/chat/completions", body.encode())
    assert response.headers["content-type"].startswith("text/event-stream")
    seen = frames(response.body)
    assert seen[-1] == "[DONE]"
    assert not any('"usage"' in frame for frame in seen)
    assert service.last()["body"] == '{"stream_options":{"include_usage":true},' + body[1:]
    assert len(seen) == 1 + 4 + 1 + 1  # role, tokens, finish_reason, [DONE]


@pytest.mark.parametrize(
    ("options", "sent", "kept"),
    [
        ({"include_usage": True}, '"stream_options": {"include_usage": true}', True),
        ({"include_usage": False, "x": 1}, '"stream_options":{"include_usage":true,"x":1}', False),
        ({"continuous_usage_stats": False}, '{"continuous_usage_stats":false,"include_usage":true}', False),
        (
            {"continuous_usage_stats": True, "y": [1, {}]},
            '{"continuous_usage_stats":false,"y":[1, {}],"include_usage":true}',
            False,
        ),
        ({"include_usage": True, "continuous_usage_stats": True}, '"continuous_usage_stats": true', True),
        (None, '"stream_options":{"include_usage":true}', False),
    ],
)
def test_stream_options_are_merged(service: RunningService, options: object, sent: str, kept: bool) -> None:
    response = service.post("/v1/chat/completions", chat(stream=True, stream_options=options))
    assert sent in service.last()["body"]
    assert any('"usage"' in frame for frame in frames(response.body)) is kept


def test_text_that_resembles_a_mark_is_unchanged(service: RunningService) -> None:
    text = 'write "choices":[] and "usage":{} and data: [DONE]'
    assert service.post("/v1/chat/completions", chat(text, stream=True)).status == 200
    assert json.loads(service.last()["body"])["messages"][0]["content"] == text


def test_frames_written_byte_by_byte_arrive_whole(service: RunningService) -> None:
    response = service.post("/v1/chat/completions", chat("fake: tokens=13 fault=split", stream=True))
    words = [json.loads(frame)["choices"][0]["delta"].get("content", "") for frame in frames(response.body)[:-1]]
    assert "".join(words).endswith("rests in grün")


def test_completions_and_responses_stream(service: RunningService) -> None:
    response = service.post("/v1/completions", {"model": "fake", "prompt": "fake: tokens=2", "stream": True})
    assert [json.loads(f)["choices"][0]["text"] for f in frames(response.body)[:-1]] == ["the", " quick", ""]
    rows = [service.row(response)]
    response = service.post("/v1/responses", {"model": "fake", "input": "fake: tokens=2", "stream": True})
    assert json.loads(frames(response.body)[-1].rpartition("data: ")[2])["type"] == "response.completed"
    rows.append(service.row(response))
    assert [(r["endpoint"], r["completion_tokens"], r["estimated"], r["outcome"]) for r in rows] == [
        ("/v1/completions", 2, 0, "ok"),
        ("/v1/responses", 2, 0, "ok"),
    ]
    assert all(row["ttft_ms"] > 0 for row in rows)


def anthropic(text: str, **more: object) -> dict[str, object]:
    return {"model": "fake", "max_tokens": 99, "messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize("stream", [True, False])
def test_messages_are_forwarded_and_counted(service: RunningService, stream: bool) -> None:
    response = service.post("/v1/messages", anthropic("fake: tokens=4", stream=stream))
    if stream:
        kinds = [f.partition("\n")[0] for f in response.body.decode().split("\n\n")[:-1]]
        assert kinds == ["event: message_start", "event: content_block_start",
                         *["event: content_block_delta"] * 4, "event: content_block_stop",
                         "event: message_delta", "event: message_stop"]  # fmt: skip
        assert "stream_options" not in service.last()["body"], "this API always reports usage"
    else:
        assert response.json["content"][0]["text"] == "the quick brown fox"
    row = service.row(response)
    assert (row["outcome"], row["completion_tokens"], row["estimated"]) == ("ok", 4, 0)
    assert row["prompt_tokens"] > 0


@pytest.mark.parametrize(
    ("fault", "outcome", "tokens"),
    [("cut:3", "engine_failed", 3), ("error:3", "engine_error", 3), ("no_usage", "truncated", 6)],
)
def test_aborted_messages_end_in_anthropics_error_event(
    service: RunningService, fault: str, outcome: str, tokens: int
) -> None:
    response = service.post("/v1/messages", anthropic(f"fake: tokens=6 fault={fault}", stream=True))
    last = response.body.rstrip().rsplit(b"\n\n", 1)[-1]
    if fault == "no_usage":
        assert last.startswith(b"event: message_stop\n")
    else:
        assert last.startswith(b"event: error\ndata: ")
        assert json.loads(last.partition(b"data: ")[2])["type"] == "error"
    row = service.row(response)
    assert (row["outcome"], row["estimated"]) == (outcome, 1)
    # A frame counts as a token, and the message and its block begin and end with a frame each.
    assert tokens <= row["completion_tokens"] <= tokens + 4
    assert row["prompt_tokens"] > 0, "reported when the stream began"


def test_aborted_responses_end_in_an_error_event(service: RunningService) -> None:
    response = service.post(
        "/v1/responses", {"model": "fake", "input": "fake: tokens=6 fault=cut:3", "stream": True}
    )
    last = response.body.rstrip().rsplit(b"\n\n", 1)[-1]
    assert last.startswith(b"event: response.failed\ndata: ")
    event = json.loads(last.partition(b"data: ")[2])
    assert (event["error"]["code"], event["response"]["error"]["code"]) == ("engine_failed", "engine_failed")
    assert (event["response"]["id"], event["response"]["status"]) == ("resp_fake", "failed"), "the same response"
    row = service.row(response)
    assert (row["outcome"], row["estimated"]) == ("engine_failed", 1)


def test_tokens_are_counted_without_being_charged(service: RunningService) -> None:
    body = anthropic("how long am I?")
    response = service.post("/v1/messages/count_tokens", body)
    assert (response.status, set(response.json)) == (200, {"input_tokens"})
    assert (service.last()["path"], json.loads(service.last()["body"])) == ("/v1/messages/count_tokens", body)
    row = service.row(response)
    assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == ("ok", 0, 0, 0)
    for bad, status, kind in (
        (body | {"messages": []}, 400, "invalid_request_error"),
        (body | {"model": "nobody"}, 404, "not_found_error"),
    ):
        refused = service.post("/v1/messages/count_tokens", bad)
        assert (refused.status, refused.json["type"], refused.json["error"]["type"]) == (status, "error", kind)


def test_errors_of_the_engine_are_forwarded(service: RunningService) -> None:
    response = service.post("/v1/chat/completions", chat("fake: fault=status:400"))
    assert (response.status, response.json["error"]["message"]) == (400, "as requested")
    assert service.row(response)["outcome"] == "rejected"
    response = service.post("/v1/chat/completions", chat("fake: fault=status:500"))
    assert response.status == 500
    assert service.row(response)["outcome"] == "engine_error"
    response = service.post("/v1/chat/completions", chat("fake: fault=error_body"))
    assert response.status == 500, "an error with status 200 gets the status that it names"
    assert service.row(response)["outcome"] == "engine_error"


def test_roles_bring_model_prompt_and_sampling(tmp_path_factory: pytest.TempPathFactory) -> None:
    role = {"model": "fake", "system_prompt": "Be brief.", "sampling": {"temperature": 0.5, "top_k": 20}}
    with serving(tmp_path_factory.mktemp("role"), roles={"writer": role}) as service:
        own = {"role": "system", "content": "Use verse.", "name": "x"}
        user = {"role": "user", "content": "hi"}
        service.post("/v1/chat/completions", {"model": "writer", "temperature": 1, "messages": [user]})
        sent = json.loads(service.last()["body"])
        assert sent["messages"] == [{"role": "system", "content": "Be brief."}, user]
        assert (sent["model"], sent["temperature"], sent["top_k"]) == ("fake", 1, 20)
        service.post("/v1/chat/completions", {"model": "writer", "messages": [own, user]})
        sent = json.loads(service.last()["body"])
        assert sent["messages"] == [own | {"content": "Be brief.\n\nUse verse."}, user]
        service.post("/v1/responses", {"model": "writer", "input": "x", "instructions": "Use verse."})
        assert json.loads(service.last()["body"])["instructions"] == "Be brief.\n\nUse verse."
        bad = service.post("/v1/chat/completions", {"model": "writer", "messages": "hi"})
        assert (bad.status, bad.json["error"]["param"]) == (400, "messages")
        assert {row["role"] for row in service.wait_rows(4)} == {"writer", ""}


def test_embeddings(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("embed")
    engine = start_mock(folder / "embed.log", "--task", "embed", "--model", "vectors")
    try:
        one = {
            "kind": "mock",
            "host": "here",
            "model": "vectors",
            "device": "cpu",
            "context": 512,
            "concurrency": 1,
        }
        models = {"vectors": {"source": "./v", "task": "embed"}}
        more = {"models": models, "engines": {"embed": one | {"port": engine.port}}}
        with serving(folder / "gateway", **more) as service:
            assert service.get("/ready").status == 200
            response = service.post("/v1/embeddings", {"model": "vectors", "input": ["a", "bb"]})
            assert [len(row["embedding"]) for row in response.json["data"]] == [4, 4]
            row = service.wait_rows(1)[0]
            assert (row["completion_tokens"], row["outcome"]) == (0, "ok")
            assert row["prompt_tokens"] > 0
    finally:
        engine.stop()


def test_tokens_count_while_they_are_generated(tmp_path: Path) -> None:
    """The tokens of a minute are used up long before the first response has ended: the next request is rejected."""
    users = {"ada": {"tokens_per_minute": 60}}
    with serving(tmp_path / "tokens", users=users) as service, ThreadPoolExecutor(1) as pool:
        body = chat("fake: tokens=400 itl_ms=15", stream=True)
        long = pool.submit(service.post, "/v1/chat/completions", body)
        wait_until(lambda: service.stats()["tokens"] > 200, "tokens are generated", 20)
        refused = service.post("/v1/chat/completions", chat())
        assert not long.done()
        assert refused.status == 429
        assert "60 tokens per minute" in refused.json["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 60
        assert long.result(20).body.endswith(b"data: [DONE]\n\n"), "the running request continues"


async def test_a_client_that_disconnects_early_is_charged_its_prompt(tmp_path: Path) -> None:
    """Otherwise long prompts would be free for clients that disconnect at the first token."""
    with serving(tmp_path / "early", users={"ada": {"tokens_per_minute": 500}}) as service:
        reader, writer = await open_stream(service, chat("x" * 8000 + " fake: tokens=2000 itl_ms=20", stream=True))
        await reader.readuntil(b"quick")
        writer.transport.abort()
        row = (await asyncio.to_thread(service.wait_rows, 1))[-1]
        assert (row["outcome"], row["estimated"]) == ("aborted", 1)
        assert 2000 <= row["prompt_tokens"] < 2100
        refused = await asyncio.to_thread(service.post, "/v1/chat/completions", chat())
        assert refused.status == 429
        assert 180 <= int(refused.headers["retry-after"]) <= 200


def test_limits_are_the_users_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    users = {"ada": {"requests_per_minute": 2}}
    with serving(tmp_path_factory.mktemp("limits"), users=users) as service:
        assert [service.post("/v1/chat/completions", chat()).status for _ in range(3)] == [200, 200, 429]
        refused = service.post("/v1/chat/completions", chat())
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize(("task", "path", "body"), [
    ("rerank", "/v1/rerank", {"query": "q", "documents": ["a", "b"]}),
    ("rerank", "/v1/score", {"text_1": "q", "text_2": "a"}),
    ("embed", "/v1/embeddings", {"input": ["a"]}),
])  # fmt: skip
def test_pooling_models_have_their_own_paths(tmp_path: Path, task: str, path: str, body: dict[str, Any]) -> None:
    engine = start_mock(tmp_path / "pool.log", "--task", task)
    try:
        models = {"fake": {"source": "./fake", "task": task}}
        engines = {"chat": one_engine(4) | {"port": engine.port}}
        with serving(tmp_path / "pool", models=models, engines=engines) as service:
            assert service.get("/ready").status == 200
            response = service.post(path, {"model": "fake", **body})
            assert response.status == 200
            assert service.row(response)["prompt_tokens"] > 0
            other = service.post("/v1/chat/completions", chat())
            assert (other.status, other.json["error"]["code"]) == (404, "model_not_found")
            instead = path.replace("score", "rerank")
            assert f"use it with {instead}" in other.json["error"]["message"]
    finally:
        engine.stop()


def test_anthropics_clients_get_errors_of_their_api(service: RunningService) -> None:
    body = {"model": "nobody", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    response = http(service.url + "/v1/messages", body=body, key=service.key)
    assert (response.status, response.json["type"], response.json["error"]["type"]) == (
        404,
        "error",
        "not_found_error",
    )


def test_an_engine_gets_no_control_fields_and_one_system_message(service: RunningService) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "fake: tokens=1"},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
    ]
    controls = {"request_id": "mine", "priority": -9, "cache_salt": "x", "kv_transfer_params": {"a": 1}}
    for path in ("/v1/chat/completions", "/tokenize"):
        body = {"model": "fake", "messages": messages, "seed": 7} | controls
        assert service.post(path, body).status == 200
        sent = json.loads(service.last()["body"])
        assert not sent.keys() & controls.keys()
        assert sent["seed"] == 7
        assert [message["role"] for message in sent["messages"]] == ["system", "user"]
        assert [part["text"] for part in sent["messages"][0]["content"]] == ["Be brief.", "\n\n", "Be kind."]
    for path, more in (("/v1/completions", {"prompt": "hi"}), ("/v1/responses", {"input": "fake: tokens=1"})):
        assert service.post(path, {"model": "fake"} | more | controls).status == 200
        assert not json.loads(service.last()["body"]).keys() & controls.keys()
