"""Case 1 with the engine that users run: vLLM on the CPU, behind the same gateway, tunnel and edge."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator

import pytest

from appliance.models.prepare import prepare
from tests.conftest import ROOT
from tests.network.client import PATH, Stream
from tests.network.probes import knocks
from tests.network.site import NetworkSite, address, require_parts, running

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(500)]
Saw = Callable[[str, str, str], None]
PYTHON = ROOT / ".venv-engine" / "bin" / "python"
TOKENS = 48


@pytest.fixture
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkSite]:
    """One VPS and a GPU host whose engine is vLLM with a tiny Qwen3 of random weights."""
    require_parts()
    if not PYTHON.exists():
        pytest.fail("there is no .venv-engine; run `make test`, or leave these tests out with -m 'not vllm'")
    folder = tmp_path_factory.mktemp("real")
    model = asyncio.run(prepare("tiny", PYTHON, folder / "model", print))
    engine = {
        "kind": "vllm", "device": "cpu", "gpus": [], "replicas": 1, "context": 1024, "concurrency": 16,
        "command": str(PYTHON), "options": {"enforce-eager": True},
    }  # fmt: skip
    qwen = {"source": str(model.folder), "revision": None, "weights_gib": 0.1, "max_context": model.context}
    settings = {"engines": {"agents": engine}, "models": {"qwen3-30b": qwen}}
    with running(folder / "site", more={"gpu": {"settings": settings}}) as made:
        yield made


async def test_vllm_through_everything(real: NetworkSite, saw: Saw) -> None:
    asked = {
        "model": "qwen3-30b",
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    whole = real.client.post(PATH, asked, timeout=120)
    assert whole.status == 200, whole.body
    assert whole.json["usage"]["completion_tokens"] == TOKENS
    streams: list[Stream] = await real.client.streams([asked] * 10)
    assert all(stream.done for stream in streams), streams[0]
    # The shipped host's reasoning parser is on: what random weights say may be thought, and not content.
    assert min(len({when for when, _ in stream.events}) for stream in streams) > 3, "all tokens came in one piece"
    gpu = real.hosts["gpu"].machine
    listening = {int(port) for port in re.findall(r"\S+:(\d+)\s", gpu.do("ss", "-Hltn"))}
    assert {8000, 8101} < listening, "vLLM has ports of its own, besides its HTTP"
    met = knocks(real.attacker, [(address("gpu"), port) for port in sorted(listening)])
    assert set(met.values()) == {"silence"}, met
    saw("1 real vLLM (CPU) behind the edge", "chat and 10 streams whole; its ports not reachable",
        f"10 of 10; {len(listening)} ports listen, 0 reachable")  # fmt: skip
