"""200 chats at once on one real vLLM on the CPU: ``python -m tests.vllm.many_chats``.

The weights are random, so each text depends on every word of its prompt. Sampling is greedy and the numbers are
float32. After all turns, the engine gets each prompt again, alone, and its text must be the same. Another batch can
change the last bits of a sum and so a text: ``--tolerated`` limits how many. A text that the prompt of another chat
gives is never tolerated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx

from appliance.store.keys import KeyStore
from tests.assistant.many_chats import PATIENCE_S, StyledChat, chat_client, have_chats, lost_items, mix_ups
from tests.assistant.running import assistant_process
from tests.conftest import ROOT, StartedProcess, opens, start, usage_rows, wait_until
from tests.ports import free_port
from tests.up_process import ENGINE_PYTHON

WORDS = ("river", "stone", "cloud", "lamp", "forest", "engine", "garden", "window", "market", "silver", "paper")
TOKENS = 12


@dataclass(frozen=True)
class ServiceOnVllm:
    """The gateway and the assistant before a real engine."""

    url: str
    engine_url: str
    key: str
    data: Path


@contextmanager
def service_on_vllm(folder: Path) -> Iterator[ServiceOnVllm]:
    """Make the tiny model and serve it."""
    model = folder / "model"
    subprocess.run(
        [str(ENGINE_PYTHON), str(ROOT / "appliance/models/tiny_qwen3.py"), str(model)],
        check=True,
        capture_output=True,
    )
    port, engine_port = free_port(), free_port()
    sections = {"data_dir": "data", "socket": "assistant.sock", "acting_socket": "acting.sock"}
    engine = {
        "host": "here", "model": "tiny", "device": "cpu", "context": 1024, "concurrency": 32,
        "port": engine_port, "command": str(ENGINE_PYTHON), "kv_cache_gib": 0.5, "shutdown_timeout_s": 2,
        "options": {"enforce-eager": True, "dtype": "float32"},
    }  # fmt: skip
    site: dict[str, Any] = {
        "version": 1,
        "hosts": {"here": {"memory_gib": 16}},
        "models": {"tiny": {"source": str(model)}},
        "engines": {"chat": engine},
        "gateway": {
            "port": port,
            "data_dir": str(folder / "var"),
            "queue": {"max_waiting_per_user": 1000, "max_wait_s": PATIENCE_S},
        },
        "assistant": {key: str(folder / value) for key, value in sections.items()},
    }
    config = folder / "site.json"
    config.write_text(json.dumps(site))
    store = KeyStore(folder / "var")
    key = store.create("ada")
    store.close()
    own = [sys.executable, "-m", "appliance"]
    log = folder / "engine.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*own, "engine", "exec", "chat", "--config", str(config)], stdout=output, stderr=output, cwd=ROOT
        )
    try:

        def ready() -> bool:
            assert process.poll() is None, log.read_text()[-3000:]
            return opens(engine_port)

        wait_until(ready, "the engine listens", PATIENCE_S)
        gateway = start([*own, "gateway", "--config", str(config)], port, folder / "gateway.log")
        try:
            running = StartedProcess(engine_port, process, log)
            with assistant_process(folder, config, running):
                yield ServiceOnVllm(gateway.url, running.url, key, folder / "var")
        finally:
            gateway.stop()
    finally:
        process.terminate()
        process.wait(60)


def new_chats(count: int) -> list[StyledChat]:
    """Return chats whose styles differ in words, not only in a number."""
    size = len(WORDS)
    styles = [
        " ".join([WORDS[n % size], WORDS[n // size % size], WORDS[(n * 7 + 3) % size], f"style {n}"])
        for n in range(count)
    ]
    return [StyledChat(number, f"Write like this: {style}.") for number, style in enumerate(styles)]


class LoneEngine:
    """The engine, one request at a time; equal prompts are sent once."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client, self._url = client, url
        self.texts: dict[str, str] = {}

    async def text(self, messages: list[dict[str, str]]) -> str:
        """Return the text for ``messages``."""
        prompt = json.dumps(messages)
        if prompt not in self.texts:
            body = {"model": "tiny", "messages": messages, "max_tokens": TOKENS, "temperature": 0}
            response = await self._client.post(f"{self._url}/v1/chat/completions", json=body, timeout=PATIENCE_S)
            message = response.raise_for_status().json()["choices"][0]["message"]
            self.texts[prompt] = message["content"] or ""
        return self.texts[prompt]


async def run(service: ServiceOnVllm, count: int, turns: int, tolerated: int) -> None:
    """Have the chats, compare, and print the result. Raises :class:`AssertionError` for a mix-up or a loss."""
    async with chat_client(service.url, service.key) as client:
        chats = new_chats(count)
        began = time.monotonic()
        await have_chats(client, chats, turns, model="tiny", temperature=0, max_output_tokens=TOKENS)
        took = time.monotonic() - began
        lost = await lost_items(client, chats)
        lone = LoneEngine(client, service.engine_url)
        different = await mix_ups(chats, lone.text)
        swapped = [StyledChat(one.number, chats[one.number - 1].style, one.id, one.turns) for one in chats[:20]]
        found = await mix_ups(swapped, lone.text)
    texts = {text for chat in chats for _, text in chat.turns}
    print(f"{count} chats at once, {turns} turns each, {took:.0f} s; {len(texts)} different texts")
    print(f"{len(different)} texts differ from those of their prompts alone, {len(lost)} chats lost an item")
    print(f"control: {len(found)} of {len(swapped) * turns} texts differ with the style of another chat")
    assert not lost, lost
    assert len(different) <= tolerated, different
    _check_others(chats, different, lone.texts)
    assert len(found) > len(swapped) * turns * 0.9, "the style does not change the text: this shows nothing"
    rows = [row for row in usage_rows(service.data) if row["endpoint"] == "/v1/chat/completions"]
    assert len(rows) == count * turns, (len(rows), count * turns)


def _check_others(chats: Sequence[StyledChat], different: Sequence[tuple[int, int]], texts: dict[str, str]) -> None:
    """Check that no differing text is that of another chat's prompt."""
    by_text = {text: prompt for prompt, text in texts.items()}
    for number, turn in different:
        text = chats[number].turns[turn][1]
        assert text not in by_text, f"chat {number}, turn {turn} has the text of {by_text[text]}"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--chats", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tolerated", type=int, default=6, help="texts that another batch may change")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, service_on_vllm(Path(folder)) as service:
        asyncio.run(run(service, options.chats, options.turns, options.tolerated))
    return 0


if __name__ == "__main__":
    sys.exit(main())
