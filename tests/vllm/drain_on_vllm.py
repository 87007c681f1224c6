"""The drain of a real replica while it generates."""

from __future__ import annotations

import openai
import pytest
from openai import OpenAI

from appliance.gateway import control_client
from tests.conftest import http
from tests.up_process import Up
from tests.vllm.conftest import STREAM_TOKENS, running_stream

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]


def test_a_stream_of_a_drained_replica_ends_whole(client: OpenAI, up: Up, model: str) -> None:
    stream = running_stream(client, up, model)
    try:
        found = control_client.drain(up.data, "chat", "new fans")
        assert (found["draining"], found["saved"]) == ("new fans", True)
        with pytest.raises(openai.InternalServerError) as refused:
            client.completions.create(model=model, prompt="x", max_tokens=2)
        assert (refused.value.status_code, refused.value.code) == (503, "draining")
        assert "new fans" in refused.value.message
        ready = http(f"{up.url}/ready")
        assert (ready.status, ready.json["unserved"]) == (503, [model])
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        # The first chunk was read when the stream began.
        assert len(chunks) > STREAM_TOKENS // 2
    finally:
        control_client.undrain(up.data, "chat")
    assert client.completions.create(model=model, prompt="x", max_tokens=2).choices[0].text
    assert http(f"{up.url}/ready").status == 200
