"""Engines of kind http: a gateway before another gateway, which has keys of its own and other names of models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from appliance.contract.load import validate
from appliance.errors import ApplianceError
from appliance.gateway.engine_keys import read_engine_keys
from appliance.store.keys import KeyStore
from tests.conftest import RunningService, chat, http, serving, wait_until
from tests.gateway.running.media import media_service, open_speech, sound, text_of, transcribe
from tests.ports import free_port


def http_engine(model: str, port: int, key_file: Path, **more: Any) -> dict[str, Any]:
    """Return the settings of an engine of kind http."""
    return {
        "kind": "http",
        "host": "here",
        "model": model,
        "device": "cpu",
        "context": 4096,
        "concurrency": 8,
        "address": "127.0.0.1",
        "port": port,
        "key_file": str(key_file),
        **more,
    }


def site_before(other: RunningService, key_file: Path) -> dict[str, Any]:
    """Return the engines and models of a gateway before the gateway ``other``."""
    port = other.gateway.port
    return {
        "engines": {
            "text": http_engine("text", port, key_file, served_name="fake"),
            "whisper": http_engine("whisper", port, key_file, served_name="dictation"),
            "voice": http_engine("voice", port, key_file, health_path="/health"),
        },
        "models": {
            "text": {"source": "elsewhere/text", "revision": "0" * 40},
            "whisper": {"source": "elsewhere/whisper", "revision": "0" * 40, "task": "transcribe"},
            "voice": {"source": "elsewhere/voice", "revision": "0" * 40, "task": "speech"},
        },
        "roles": {"writer": {"model": "text", "sampling": {"temperature": 0.5}}},
    }


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with media_service(tmp_path_factory.mktemp("other"), tasks=("fake", "voice")) as running:
        yield running


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory, other: RunningService) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text(other.key + "\n")
    return path


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, other: RunningService, key_file: Path
) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("front")
    with serving(folder, **site_before(other, key_file)) as running:
        running.engine.stop()
        yield running
    assert other.key not in (folder / "gateway.log").read_text()


def test_the_other_server_gets_its_own_key_and_its_own_name_of_the_model(
    service: RunningService, other: RunningService
) -> None:
    client = openai.OpenAI(base_url=service.url + "/v1", api_key=service.key, max_retries=0)
    whole = client.chat.completions.create(model="text", messages=[{"role": "user", "content": "hi"}])
    assert whole.choices[0].message.content
    stream = client.chat.completions.create(
        model="writer", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in stream) == 16
    wait_until(lambda: len(other.rows()) >= 2, "the rows of the other server")
    assert {row["model"] for row in other.rows()} == {"fake"}
    ours = {row["model"]: row["completion_tokens"] for row in service.wait_rows(2)}
    assert ours == {"text": 16}


def test_audio_passes_two_gateways(service: RunningService) -> None:
    data = sound(2**21)
    assert transcribe(service, data).json["text"] == text_of(data)
    connection, response = open_speech(service, "hello")
    assert response.read().startswith(b"RIFF")
    assert response.getheader("content-type") == "audio/wav"
    connection.close()


def test_health_is_a_get_of_the_chosen_path(service: RunningService) -> None:
    ready = service.get("/ready")
    assert (ready.status, set(ready.json["engines"].values())) == (200, {"ready"})
    assert set(ready.json["engines"]) == {"text", "whisper", "voice"}


def test_a_refused_key_is_an_error_of_the_service_and_not_of_the_client(
    tmp_path: Path, other: RunningService
) -> None:
    (tmp_path / "key").write_text("sk-000000000000-" + "B" * 43)
    site = site_before(other, tmp_path / "key")
    del site["roles"], site["engines"]["voice"], site["models"]["voice"]
    with serving(tmp_path / "front", **site) as service:
        response = service.post("/v1/chat/completions", chat() | {"model": "text"})
        assert response.status == 502
        assert "does not accept the key of the gateway" in response.json["error"]["message"]
        assert "B" * 43 not in json.dumps(response.json)
        # The list of models needs the key as well, so the health check reports it.
        wait_until(lambda: service.get("/ready").status == 503, "the health check")
        assert service.get("/ready").json["engines"]["text"] == "HTTP 401 without a token"
    assert "B" * 43 not in (tmp_path / "front" / "gateway.log").read_text()


def test_a_server_that_does_not_run_is_503_until_it_does(tmp_path: Path, key_file: Path) -> None:
    engines = {"text": http_engine("text", free_port(), key_file)}
    models = {"text": {"source": "elsewhere/text", "revision": "0" * 40}}
    with serving(tmp_path, engines=engines, models=models) as service:
        response = service.post("/v1/chat/completions", chat() | {"model": "text"})
        assert (response.status, response.json["error"]["code"]) == (503, "engine_unavailable")
        assert http(service.url + "/ready").status == 503


def a_site_with_a_key(folder: Path) -> dict[str, Any]:
    return {
        "version": 1,
        "hosts": {"here": {"memory_gib": 8}},
        "models": {"text": {"source": "./text"}},
        "engines": {"text": http_engine("text", 9000, folder / "key")},
        "gateway": {"port": free_port(), "data_dir": str(folder)},
    }


@pytest.mark.parametrize(
    ("text", "words"), [("", "holds 0 keys"), ("sk-a sk-b", "holds 2 keys"), ("cl\u00e9", "U+00E9")]
)
def test_a_key_file_without_one_plain_key_is_an_error(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(ApplianceError, match=re.escape(words)) as found:
        read_engine_keys(validate("site", a_site_with_a_key(tmp_path)), tmp_path)
    assert "engines.text.key_file" in str(found.value)
    assert "sk-a" not in str(found.value)


def test_a_gateway_without_a_key_file_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "site.json").write_text(json.dumps(a_site_with_a_key(tmp_path)))
    KeyStore(tmp_path).close()
    argv = [sys.executable, "-m", "appliance", "gateway", "--config", str(tmp_path / "site.json")]
    found = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert found.returncode == 2
    assert "write one key a line into it" in found.stderr
    assert "Traceback" not in found.stderr
