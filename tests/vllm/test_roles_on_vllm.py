"""Roles with LoRA adapters, and Anthropic's API, on real vLLM behind the gateway."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.store.keys import KeyStore
from tests.conftest import ROOT, StartedProcess, http, opens, start, usage_rows, wait_until
from tests.ports import free_port
from tests.up_process import ENGINE_PYTHON
from tests.vllm.conftest import require_engine

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]


class Roles:
    """A running engine and its gateway, and a key."""

    def __init__(self, gateway: StartedProcess, data: Path, key: str) -> None:
        self.url, self.data, self.key = gateway.url, data, key

    def chat(self, model: str, **more: Any) -> str:
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Describe rivers."}]}
        body |= {"max_tokens": 12, "temperature": 0, **more}
        response = http(f"{self.url}/v1/chat/completions", body=body, key=self.key, timeout=120)
        assert response.status == 200, response.body
        return str(response.json["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    require_engine()
    folder = tmp_path_factory.mktemp("roles")
    model, adapter = folder / "model", folder / "adapter"
    make_model, make_adapter = ROOT / "appliance/models/tiny_qwen3.py", ROOT / "tests/vllm/make_lora.py"
    for argv in ((make_model, model), (make_adapter, model, adapter)):
        subprocess.run([str(ENGINE_PYTHON), *map(str, argv)], check=True, capture_output=True)
    port, engine_port = free_port(), free_port()
    site: dict[str, Any] = {
        "version": 1,
        "hosts": {"here": {"memory_gib": 16}},
        "models": {"tiny": {"source": str(model), "adapters": {"odd": {"source": str(adapter), "rank": 8}}}},
        "engines": {
            "chat": {
                "host": "here", "model": "tiny", "device": "cpu", "context": 2048, "concurrency": 4,
                "port": engine_port, "command": str(ENGINE_PYTHON), "options": {"enforce-eager": True},
                "shutdown_timeout_s": 2,
            }
        },
        "roles": {"plain": {"model": "tiny"}, "odd": {"model": "tiny", "adapter": "odd"}},
        "gateway": {"port": port, "data_dir": str(folder / "var")},
    }  # fmt: skip
    config = folder / "site.json"
    config.write_text(json.dumps(site))
    store = KeyStore(folder / "var")
    key = store.create("ada")
    store.close()
    own = [sys.executable, "-m", "appliance"]
    with (folder / "engine.log").open("wb") as log:
        engine = subprocess.Popen(
            [*own, "engine", "exec", "chat", "--config", str(config)], stdout=log, stderr=log, cwd=ROOT
        )
    try:

        def ready() -> bool:
            assert engine.poll() is None, (folder / "engine.log").read_text()[-3000:]
            return opens(engine_port)

        wait_until(ready, "the engine listens", 300)
        gateway = start([*own, "gateway", "--config", str(config)], port, folder / "gateway.log")
        try:
            wait_until(lambda: http(f"{gateway.url}/ready", timeout=60).status == 200, "a token", 120)
            yield Roles(gateway, folder / "var", key)
        finally:
            gateway.stop()
    finally:
        engine.terminate()
        engine.wait(60)


def test_only_the_adapter_of_a_role_changes_the_output(roles: Roles) -> None:
    plain = roles.chat("plain")
    assert plain == roles.chat("tiny")
    assert roles.chat("odd") != plain
    wait_until(lambda: len(usage_rows(roles.data)) >= 3, "the rows", 5)
    assert [(row["role"], row["model"]) for row in usage_rows(roles.data)] == [
        ("plain", "tiny"), ("", "tiny"), ("odd", "tiny"),
    ]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_messages_pass_and_are_recorded(roles: Roles, stream: bool) -> None:
    before = len(usage_rows(roles.data))
    body = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}], "stream": stream}
    response = http(f"{roles.url}/v1/messages", body=body, key=roles.key, timeout=120)
    assert response.status == 200, response.body
    if stream:
        assert b"event: message_stop" in response.body
        assert b'"type":"message_start"' in response.body.replace(b" ", b"")
    else:
        assert response.json["type"] == "message"
    wait_until(lambda: len(usage_rows(roles.data)) > before, "the row", 5)
    row = usage_rows(roles.data)[-1]
    assert (row["outcome"], row["estimated"], row["completion_tokens"]) == ("ok", 0, 9), row
    assert row["prompt_tokens"] > 0


def test_anthropics_token_count_is_that_of_the_request(roles: Roles) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
    counted = http(f"{roles.url}/v1/messages/count_tokens", body=body, key=roles.key, timeout=120)
    assert counted.status == 200, counted.body
    sent = http(f"{roles.url}/v1/messages", body=body | {"max_tokens": 1}, key=roles.key, timeout=120)
    assert counted.json["input_tokens"] == sent.json["usage"]["input_tokens"] > 0


def test_an_invalid_grammar_is_400_and_the_engine_keeps_running(roles: Roles) -> None:
    body = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "x"}]}
    bad = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}}
    refused = http(f"{roles.url}/v1/chat/completions", body=body | bad, key=roles.key, timeout=120)
    assert refused.status == 400, refused.body
    assert "error" in refused.json
    assert roles.chat("plain")
