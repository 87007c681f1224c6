"""The engine is killed, the service recovers; the service is stopped, nothing is left. Last, as it ends ``up``."""

from __future__ import annotations

import os
import signal

import openai
import pytest
from openai import OpenAI

from tests.conftest import http, wait_until
from tests.engine.conftest import Up, alive, descendants, running_stream

pytestmark = pytest.mark.vllm


@pytest.mark.timeout(240)
def test_a_killed_engine_is_an_error_event_and_comes_back(client: OpenAI, up: Up, model: str) -> None:
    before = up.engine_pids()
    assert set(before) == {"VLLM::EngineCore", "api_server"}
    stream = running_stream(client, up, model)
    os.kill(before["api_server"], signal.SIGKILL)
    with pytest.raises(openai.APIError, match="the engine closed the connection") as caught:
        list(stream)
    assert caught.value.code == "engine_failed"
    with pytest.raises(openai.InternalServerError) as refused:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])
    # The engine's workers may hold its port open for a moment longer than it lives.
    assert refused.value.code in ("engine_unavailable", "engine_failed")
    assert http(f"{up.url}/ready").status == 503
    cut = (1, "engine_failed")
    wait_until(lambda: any((r["stream"], r["outcome"]) == cut for r in up.rows()), "the row of the cut stream", 3)
    wait_until(lambda: http(f"{up.url}/ready").status == 200, "/ready recovers by itself", 200)
    assert client.completions.create(model=model, prompt="x", max_tokens=2).choices[0].text
    assert "engine-chat ended with code -9; starting it again" in " ".join(up.output.split())
    assert not alive(set(before.values())), "nothing of the killed engine is left"


@pytest.mark.timeout(120)
def test_ctrl_c_leaves_nothing_running(up: Up) -> None:
    children = descendants(up.process.pid)
    assert len(children) >= 3
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    assert "stopped; nothing is left running" in up.output
    assert not alive(children)
