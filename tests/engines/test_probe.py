"""The token probe: what proves a token, and the reason it returns otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.engines.probe import canary_passed, probe_token
from tests.conftest import start_mock
from tests.ports import free_port


@pytest.mark.parametrize(
    "body",
    [b'{"data": [1]}', b'{"data": [null]}', b'{"usage": {"completion_tokens": "1"}}', b'{"data": {}}', b"[]", b"1"],
)
def test_a_response_of_an_unknown_shape_does_not_prove_a_token(body: bytes) -> None:
    assert not canary_passed(200, body)


@pytest.mark.parametrize("task", ["generate", "embed", "rerank", "transcribe"])
def test_each_task_is_probed_by_its_own_endpoint(tmp_path: Path, task: str) -> None:
    engine = start_mock(tmp_path / "log", "--task", task, "--model", "m")
    try:
        assert probe_token(engine.url, "m", task) == ""
        assert "no token in its response with status 404" in probe_token(engine.url, "other", task)
    finally:
        engine.stop()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("status:503", "no token in its response with status 503: {"),
        ("error_body", "no token in its response with status 200: {"),
        ("reset", "no response (RemoteDisconnected)"),
        ("hang", "no response (TimeoutError)"),
    ],
)
def test_the_reason_names_the_response_that_had_no_token(tmp_path: Path, fault: str, reason: str) -> None:
    engine = start_mock(tmp_path / "log", "--fault", fault)
    try:
        assert probe_token(engine.url, "fake", "generate", timeout_s=0.5).startswith(reason)
    finally:
        engine.stop()


def test_a_closed_port_is_a_reason() -> None:
    assert probe_token(f"http://127.0.0.1:{free_port()}", "m", "generate") == "no response (ConnectionRefusedError)"
