"""A real llama.cpp server behind the real gateway: chats, streams, tools, vectors, scores, slots and its death."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.gateway import control_client
from tests.conftest import RunningService, http, start, wait_until
from tests.gateway.running.test_swap import state
from tests.llamacpp.conftest import QWEN3_TOKENS, real_engine, real_service, request_chat
from tests.llamacpp.server_command import program
from tests.llamacpp.tiny_gguf import write_tiny
from tests.ports import free_port
from tests.process_tree import descendants

TOOL = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}},
}


def engine_url(service: RunningService, name: str) -> str:
    """The loopback address of an engine."""
    site = json.loads(service.config.read_text())
    return f"http://127.0.0.1:{site['engines'][name]['port']}"


def test_a_chat_is_generated_and_counted(llama: RunningService) -> None:
    first = request_chat(llama, "chat")
    assert first.status == 200, first.body
    assert first.json["usage"]["completion_tokens"] == 8
    assert first.json["choices"][0]["message"]["content"]
    again = request_chat(llama, "chat")
    assert again.json["choices"] == first.json["choices"]
    row = llama.row(first)
    assert (row["outcome"], row["completion_tokens"]) == ("ok", 8)


def test_a_stream_has_its_usage_and_its_end(llama: RunningService) -> None:
    whole = request_chat(llama, "chat").json["choices"][0]["message"]["content"]
    response = request_chat(llama, "chat", stream=True, stream_options={"include_usage": True})
    events = [line.removeprefix(b"data: ") for line in response.body.split(b"\n\n") if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text == whole
    assert chunks[-1]["usage"]["completion_tokens"] == 8


def test_tools_and_their_results_enter_the_prompt(llama: RunningService) -> None:
    plain = request_chat(llama, "chat").json["usage"]["prompt_tokens"]
    offered = request_chat(llama, "chat", tools=[TOOL])
    assert offered.status == 200, offered.body
    assert offered.json["usage"]["prompt_tokens"] > plain + 100
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    result = request_chat(llama, "chat", tools=[TOOL], messages=turns)
    assert result.status == 200, result.body
    assert result.json["usage"]["prompt_tokens"] > offered.json["usage"]["prompt_tokens"] + 50


def test_a_schema_constrains_the_response(llama: RunningService) -> None:
    schema = {"type": "object", "properties": {"zone": {"const": "UTC"}}, "required": ["zone"]}
    form = {
        "type": "json_schema",
        "json_schema": {"name": "zone", "schema": schema | {"additionalProperties": False}},
    }
    response = request_chat(llama, "chat", response_format=form, max_tokens=300)
    assert json.loads(response.json["choices"][0]["message"]["content"]) == {"zone": "UTC"}


def test_a_vector_is_the_hidden_state_of_the_last_token(llama: RunningService, tmp_path: Path) -> None:
    """A second server without pooling returns the hidden state of each token of the same text."""
    response = llama.post("/v1/embeddings", {"model": "embed", "input": "the last token decides"})
    assert response.status == 200, response.body
    vector = response.json["data"][0]["embedding"]
    gguf = write_tiny(tmp_path / "rows.gguf", "embed", vocabulary=QWEN3_TOKENS)
    port = free_port()
    words = ["--model", str(gguf), "--alias", "rows", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--ctx-size", "256", "--embedding", "--pooling", "none"]
    server = start([str(program(tmp_path)), *words], port, tmp_path / "rows.log")
    try:
        wait_until(lambda: http(server.url + "/health").status == 200, "the server loads", 60)
        rows = http(server.url + "/embeddings", body={"content": "the last token decides"}).json[0]["embedding"]
    finally:
        server.stop()
    size = math.sqrt(sum(value * value for value in rows[-1]))
    last = [value / size for value in rows[-1]]
    assert sum(a * b for a, b in zip(vector, last, strict=True)) > 0.999
    assert sum(a * b for a, b in zip(vector, rows[0], strict=True)) / size < 0.9
    # One token a byte, and the appended end token.
    assert response.json["usage"]["prompt_tokens"] == len("the last token decides") + 1


def test_documents_are_scored(llama: RunningService) -> None:
    body = {"model": "rerank", "query": "q", "documents": ["a", "bb", "ccc"]}
    response = llama.post("/v1/rerank", body)
    assert response.status == 200, response.body
    results = response.json["results"]
    assert sorted(row["index"] for row in results) == [0, 1, 2]
    assert len({row["relevance_score"] for row in results}) == 3


def test_a_prompt_that_exceeds_the_context_or_the_batch_is_a_400_and_the_engine_lives(
    llama: RunningService,
) -> None:
    long = "word " * 2000
    assert request_chat(llama, "chat", long).status == 400
    assert llama.post("/v1/embeddings", {"model": "embed", "input": long}).status == 400
    assert request_chat(llama, "chat").status == 200
    assert llama.post("/v1/embeddings", {"model": "embed", "input": "short"}).status == 200


def test_each_slot_has_the_whole_context_and_can_be_saved(llama: RunningService) -> None:
    assert request_chat(llama, "chat").status == 200
    url = engine_url(llama, "chat")
    slots = http(url + "/slots").json
    assert [slot["n_ctx"] for slot in slots] == [1024, 1024]
    saved = http(url + "/slots/0?action=save", body={"filename": "kept.bin"})
    assert saved.status == 200, saved.body


def test_clients_reach_none_of_the_servers_own_paths(llama: RunningService) -> None:
    assert request_chat(llama, "chat").status == 200
    for path in (
        "/slots",
        "/props",
        "/slots/0?action=save",
        "/tools",
        "/models/load",
        "/completion",
        "/lora-adapters",
    ):
        assert llama.post(path, {}).status in (404, 405), path


def test_a_killed_server_ends_its_stream_with_an_error_and_is_restarted(tmp_path: Path) -> None:
    gguf = write_tiny(tmp_path / "chat.gguf")
    models = {"chat": {"source": str(gguf), "cap_max_tokens": False}}
    engine = real_engine("chat", program(tmp_path), context=4096, concurrency=1)
    tuning = {"canary_interval_s": 0.2}
    with real_service(tmp_path / "gateway", models, {"chat": engine}, tuning) as service:
        assert request_chat(service, "chat").status == 200
        killed = threading.Event()

        def kill() -> None:
            wait_until(lambda: running(service), "the stream runs", 30)
            for pid in descendants(service.gateway.process.pid):
                os.kill(pid, signal.SIGKILL)
            killed.set()

        killer = threading.Thread(target=kill)
        killer.start()
        cut = request_chat(service, "chat", stream=True, max_tokens=4000, ignore_eos=True)
        killer.join()
        assert killed.is_set()
        last = json.loads(cut.body.rstrip().rsplit(b"\n\n", 1)[-1].removeprefix(b"data: "))
        assert "error" in last
        assert b"[DONE]" not in cut.body
        wait_until(lambda: request_chat(service, "chat").status == 200, "the engine is restarted", 60)


def running(service: RunningService) -> bool:
    return b'requests_in_flight{engine="chat"} 1.0' in service.get("/metrics").body


def test_a_file_that_fails_in_the_load_leaves_the_served_model_serving(tmp_path: Path) -> None:
    """The last tensor is incomplete, which the header does not show."""
    with good_and_bad(tmp_path) as (service, bad):
        bad.write_bytes(write_tiny(bad).read_bytes()[:-100])
        assert request_chat(service, "good").status == 200
        failed = request_chat(service, "bad")
        assert failed.status == 503
        assert "bad could not be loaded: bad ended while it was loading" in failed.json["error"]["message"]
        assert request_chat(service, "good").status == 200


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            "architecture",
            "has the architecture 'nonsuch', which llama.cpp b",
        ),
        ("truncated", "fetch it again"),
        ("text", "is not a GGUF file, it begins with b'not '"),
        ("missing", "does not exist; fetch the model"),
    ],
)
def test_a_foreign_file_is_refused_before_the_served_model_is_stopped(
    tmp_path: Path, damage: str, reason: str
) -> None:
    with good_and_bad(tmp_path) as (service, bad):
        good = write_tiny(bad)
        if damage == "architecture":
            write_tiny(bad, architecture="nonsuch")
        elif damage == "missing":
            bad.unlink()
        else:
            bad.write_bytes(good.read_bytes()[:100_000] if damage == "truncated" else b"not a model\n" * 100)
        assert request_chat(service, "good").status == 200
        server = descendants(service.gateway.process.pid)
        refused = request_chat(service, "bad")
        assert refused.status == 503
        message = refused.json["error"]["message"]
        assert message.startswith(f"bad could not be loaded: {bad}: ")
        assert reason in message
        assert descendants(service.gateway.process.pid) == server, "the served model was not stopped"
        assert request_chat(service, "good").status == 200
        last = control_client.status(service.data)["last_swap"]
        assert (last["ok"], last["unloaded"]) == (False, [])
        assert state(service, "bad") == "failed"


def test_an_architecture_that_the_site_adds_reaches_the_server(tmp_path: Path) -> None:
    """The control: the same file is loaded, and the server itself rejects it."""
    with good_and_bad(tmp_path, gguf_architectures=["nonsuch"]) as (service, bad):
        write_tiny(bad, architecture="nonsuch")
        assert request_chat(service, "good").status == 200
        failed = request_chat(service, "bad")
        assert "bad ended while it was loading" in failed.json["error"]["message"]
        assert request_chat(service, "good").status == 200


@contextmanager
def good_and_bad(folder: Path, **bad: Any) -> Iterator[tuple[RunningService, Path]]:
    """Two models that take turns in the RAM, and the file of the second, which the test writes."""
    files = {"good": write_tiny(folder / "good.gguf"), "bad": folder / "bad.gguf"}
    command = program(folder)
    models = {name: {"source": str(path), "weights_gib": 6} for name, path in files.items()}
    engines = {"good": real_engine("good", command), "bad": real_engine("bad", command, **bad)}
    swap = {"max_wait_s": 0.2, "min_residency_s": 0}
    with real_service(folder / "gateway", models, engines, {"swap": swap}) as service:
        yield service, files["bad"]
