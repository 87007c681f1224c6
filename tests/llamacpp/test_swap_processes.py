"""Two real llama.cpp servers that take turns in the RAM: stop, start, return to the default model."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import wait_until
from tests.gateway.running.conftest import metric
from tests.gateway.running.test_swap import state
from tests.llamacpp.conftest import real_engine, real_service, request_chat
from tests.llamacpp.server_command import program
from tests.llamacpp.tiny_gguf import write_tiny
from tests.process_tree import descendants


def test_real_servers_take_turns_and_the_default_one_returns(tmp_path: Path) -> None:
    command = program(tmp_path)
    files = {"small": write_tiny(tmp_path / "small.gguf"), "moe": write_tiny(tmp_path / "moe.gguf", "moe")}
    models = {name: {"source": str(path), "weights_gib": 6} for name, path in files.items()}
    engines = {name: real_engine(name, command) for name in files}
    swap = {"max_wait_s": 0.2, "min_residency_s": 0, "default": "small", "return_s": 0.5}
    with real_service(tmp_path / "gateway", models, engines, {"swap": swap}) as service:
        first = request_chat(service, "small")
        assert first.status == 200
        other = request_chat(service, "moe")
        assert other.status == 200
        assert other.json["choices"] != first.json["choices"]
        wait_until(lambda: state(service, "small") == "ready", "the default model returns", 60)
        assert state(service, "moe") == "stopped"
        assert len(descendants(service.gateway.process.pid)) == 1
        assert request_chat(service, "small").json["choices"] == first.json["choices"]
        assert metric(service, "swaps_total") == 3
        assert metric(service, "swap_failures_total") == 0
