"""The recovery of the service from a killed engine, and its own end, which leaves nothing running."""

from __future__ import annotations

import os
import signal

import openai
import pytest
from openai import OpenAI

from tests.conftest import http, wait_until
from tests.process_tree import alive, descendants
from tests.up_process import Up
from tests.vllm.conftest import running_stream

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

START_S = 600
"""Seconds for a start of the engine: the default of `start_timeout_s`. Two busy cores took 246 s for one."""


def killed_mid_stream(client: OpenAI, up: Up, model: str) -> tuple[openai.APIError, dict[str, int]]:
    """Kill the engine during a stream; return the client's error and the engine's pids of before.

    vLLM's metrics are later than its core: the stream may have been complete at the signal. The finish reason shows
    that, and only then another stream is tried.
    """
    for _ in range(3):
        before = up.engine_pids()
        assert set(before) == {"VLLM::EngineCore", "api_server"}
        stream = running_stream(client, up, model)
        os.kill(before["api_server"], signal.SIGKILL)
        finish_reasons = set()
        try:
            for chunk in stream:
                finish_reasons |= {choice.finish_reason for choice in chunk.choices}
        except openai.APIError as error:
            return error, before
        assert "length" in finish_reasons, "an interrupted stream ended without an error"
        wait_until(lambda: http(f"{up.url}/ready").status == 503, "the gateway detects the end of the engine", 20)
        wait_until(lambda: http(f"{up.url}/ready").status == 200, "/ready recovers by itself", START_S)
    pytest.fail("three streams in a row were complete before the engine died")


def test_a_killed_engine_is_an_error_event_and_is_restarted(client: OpenAI, up: Up, model: str) -> None:
    cut, before = killed_mid_stream(client, up, model)
    assert "the engine closed the connection" in cut.message
    assert cut.code == "engine_failed"
    with pytest.raises(openai.InternalServerError) as refused:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])
    # The engine's workers may keep its port open for a moment after its end.
    assert refused.value.code in ("engine_unavailable", "engine_failed")
    wait_until(lambda: http(f"{up.url}/ready").status == 503, "the gateway detects the end of the engine", 20)
    outcome = (1, "engine_failed")
    wait_until(
        lambda: any((r["stream"], r["outcome"]) == outcome for r in up.rows()),
        "the row of the interrupted stream",
        3,
    )
    wait_until(lambda: http(f"{up.url}/ready").status == 200, "/ready recovers by itself", START_S)
    assert client.completions.create(model=model, prompt="x", max_tokens=2).choices[0].text
    assert "engine-chat ended with code -9; starting it again" in " ".join(up.output.split())
    assert not alive(set(before.values())), "no process of the killed engine is left"


def test_ctrl_c_leaves_nothing_running(up: Up) -> None:
    wait_until(lambda: http(f"{up.url}/ready").status == 200, "everything runs", START_S)
    children = descendants(up.process.pid)
    assert len(children) >= 3
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    assert "stopped; nothing is left running" in up.output
    assert not alive(children)
