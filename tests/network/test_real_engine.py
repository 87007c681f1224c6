"""Case 1 with a real engine: vLLM on the CPU, behind the same gateway, tunnel and edge."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator

import pytest

from appliance.models.prepare import prepare
from tests.conftest import ROOT
from tests.network.client import PATH, Stream
from tests.network.probes import probe_all
from tests.network.site import NetworkSite, address, require_parts, running

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(500)]
RecordRow = Callable[[str, str, str], None]
PYTHON = ROOT / ".venv-engine" / "bin" / "python"
TOKENS = 48


@pytest.fixture
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkSite]:
    """Run one VPS and a GPU host whose engine is vLLM with a tiny Qwen3 of random weights."""
    require_parts()
    if not PYTHON.exists():
        pytest.fail(".venv-engine is missing; run `make test`, or skip these tests with -m 'not vllm'")
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


async def test_vllm_serves_through_the_whole_site(real: NetworkSite, record_row: RecordRow) -> None:
    body = {
        "model": "qwen3-30b",
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    whole = real.client.post(PATH, body, timeout=120)
    assert whole.status == 200, whole.body
    assert whole.json["usage"]["completion_tokens"] == TOKENS
    streams: list[Stream] = await real.client.streams([body] * 10)
    assert all(stream.done for stream in streams), streams[0]
    # The reasoning parser of the shipped host is on: random weights may generate reasoning instead of content. The
    # arrival times depend on the load of the machine; test_path.py shows that nothing collects the tokens.
    assert all(len(stream.events) > 3 for stream in streams)
    gpu = real.hosts["gpu"].machine
    listening = {int(port) for port in re.findall(r"\S+:(\d+)\s", gpu.run("ss", "-Hltn"))}
    assert {8000, 8101} < listening, "vLLM has more ports than that of HTTP"
    results = probe_all(real.attacker, [(address("gpu"), port) for port in sorted(listening)])
    assert set(results.values()) == {"silence"}, results
    record_row("1 real vLLM (CPU) behind the edge", "chat and 10 streams whole; its ports not reachable",
        f"10 of 10; {len(listening)} ports listen, 0 reachable")  # fmt: skip
