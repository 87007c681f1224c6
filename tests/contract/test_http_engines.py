"""Engines of kind http, and the tasks of audio and images, in a site's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.contract.load import validate
from appliance.contract.model import Site
from appliance.engines.argv import command, find, replicas, started_replicas
from appliance.engines.probe import canary_of
from appliance.errors import ConfigError, UsageError
from appliance.planner.fit import fit
from appliance.planner.from_site import hardware_of, model_demands_of

WHISPER: dict[str, Any] = {
    "kind": "http",
    "host": "gpu",
    "model": "whisper",
    "device": "cpu",
    "context": 448,
    "concurrency": 2,
    "address": "10.77.0.7",
    "port": 8080,
}


def a_table(
    engine: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A site with a chat on vLLM and one other server, changed by ``engine``, ``model`` and ``more``."""
    changed = {name: value for name, value in (WHISPER | (engine or {})).items() if value is not None}
    return {
        "version": 1,
        "hosts": {
            "gpu": {
                "memory_gib": 128,
                "gpus": [{"index": 0, "model": "RTX PRO 6000 Blackwell Workstation", "memory_mib": 97887}],
            },
            "side": {"memory_gib": 32},
        },
        "models": {
            "chat": {"source": "Qwen/Qwen3-8B", "revision": "0" * 40},
            "whisper": {"source": "./whisper", "task": "transcribe"} | (model or {}),
        },
        "engines": {
            "chat": {"host": "gpu", "model": "chat", "gpus": [0], "context": 8192, "concurrency": 8, "port": 8101},
            "ears": changed,
        },
        **more,
    }


def a_site(engine: dict[str, Any] | None = None, **more: Any) -> Site:
    return validate("site", a_table(engine, **more))


@pytest.mark.parametrize(
    "engine",
    [
        {},
        {"address": "127.0.0.1"},
        {"address": "::1"},
        {"address": "192.168.1.20", "served_name": "openai/whisper-1", "key_file": "/run/secrets/key"},
        {"address": "fd00::7", "health_path": "/health?full=1"},
        {"replicas": 2},
    ],
)
def test_a_server_at_a_private_address_is_valid(engine: dict[str, Any]) -> None:
    a_site(engine)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"address": "203.0.113.9"}, "203.0.113.9 is not a private address"),
        ({"address": "169.254.169.254"}, "is not a private address"),
        ({"address": "fe80::1"}, "is not a private address"),
        ({"address": "0.0.0.0"}, "is not a private address"),
        ({"address": "::ffff:8.8.8.8"}, "is not a private address"),
        ({"address": "whisper.example.org"}, "is not an IP address"),
        ({"address": "http://10.0.0.1:80"}, "is not an IP address"),
        ({"address": "10.0.0.1:80"}, "is not an IP address"),
        ({"address": None}, "engines.ears.address: is missing"),
        ({"device": "cuda"}, "engines.ears.device: an engine of kind http has no card"),
        ({"command": "/bin/whisper"}, "engines.ears.command: concerns a process"),
        ({"options": {"threads": 4}}, "engines.ears.options: concerns a process"),
        ({"environment": {"A": "b"}}, "engines.ears.environment: concerns a process"),
        ({"sleep": True}, "engines.ears.sleep: concerns a process"),
        ({"residency": "on-demand"}, "engines.ears.residency: is on-demand"),
        ({"served_name": "a b"}, "engines.ears.served_name"),
        ({"served_name": "a\r\nx: y"}, "engines.ears.served_name"),
        ({"health_path": "health"}, "engines.ears.health_path"),
        ({"health_path": "/a b"}, "engines.ears.health_path"),
        ({"address": "127.0.0.1", "port": 8000}, "is that of this gateway"),
        ({"kind": "vllm"}, "engines.ears.address: is set though kind is vllm"),
        ({"kind": "llamacpp", "address": None}, "llamacpp cannot serve whisper, whose task is transcribe"),
    ],
)
def test_a_server_that_cannot_work_has_a_reason(engine: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as found:
        a_site(engine)
    assert words in str(found.value)


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        ({"task": "speech"}, {}, ""),
        ({"task": "image"}, {}, ""),
        ({"task": "transcription"}, {}, "models.whisper.task"),
        ({"recipe": "qwen3-embedding"}, {}, "models.whisper.recipe"),
        ({"matryoshka": True}, {}, "models.whisper.matryoshka"),
        ({}, {"roles": {"r": {"model": "whisper", "system_prompt": "Be kind."}}}, "holds no conversation"),
        ({}, {"roles": {"r": {"model": "whisper", "sampling": {"language": "ru"}}}}, ""),
        (
            {"task": "generate", "adapters": {"a": {"source": "/a"}}},
            {"roles": {"r": {"model": "whisper", "adapter": "a"}}},
            "has no adapters by name",
        ),
        ({}, {"assistant": {"embedder": "whisper"}}, "has the task transcribe, not embed"),
    ],
)
def test_the_tasks_of_audio_and_images(model: dict[str, Any], more: dict[str, Any], words: str) -> None:
    table = a_table(model=model, **more)
    if not words:
        validate("site", table)
        return
    with pytest.raises(ConfigError) as found:
        validate("site", table)
    assert words in str(found.value)


def test_vllm_transcribes_and_does_not_speak() -> None:
    on_vllm = {"kind": "vllm", "address": None, "port": 8102}
    site = a_site(on_vllm)
    argv = command(site, find(site, "ears"), Path("/srv")).argv
    assert "--runner" not in argv
    # Whisper's audio has 1500 tokens, more than three sequences of its context.
    assert argv[argv.index("--max-num-batched-tokens") + 1] == "4096"
    own = a_site(on_vllm | {"options": {"max-num-batched-tokens": 8192}})
    assert command(own, find(own, "ears"), Path("/srv")).argv.count("--max-num-batched-tokens") == 1
    assert argv[argv.index("--served-model-name") + 1] == "whisper"
    with pytest.raises(ConfigError, match="vllm cannot serve whisper, whose task is speech"):
        validate("site", a_table(on_vllm, model={"task": "speech"}))


def test_nothing_is_started_for_another_server() -> None:
    site = a_site()
    assert [one.name for one in replicas(site)] == ["chat", "ears"]
    assert [one.name for one in started_replicas(site)] == ["chat"]
    assert find(site, "ears").url == "http://10.77.0.7:8080"
    with pytest.raises(UsageError, match="it runs by itself at http://10"):
        command(site, find(site, "ears"), Path("/srv"))
    assert find(a_site({"address": "fd00::7"}), "ears").url == "http://[fd00::7]:8080"


def test_health_is_a_get_without_a_model() -> None:
    engines = a_site({"health_path": "/health"}).engines
    found = canary_of(engines["ears"], "transcribe")
    assert (found.method, found.path, found.body, found.status_only) == ("GET", "/health", b"", True)
    assert canary_of(engines["chat"], "generate").method == "POST"


def test_the_planner_places_only_what_runs_here() -> None:
    site = a_site({"host": "side"})
    assert fit(site) == []
    assert [one.name for one in model_demands_of(site, {})] == ["chat"]
    assert [one.name for one in hardware_of(site)] == ["gpu"]
    with pytest.raises(UsageError, match="does not place 'whisper'"):
        model_demands_of(site, {"whisper": 0.5})
