"""Time that a stateful turn adds to the first token: ``python -m benchmarks.assistant.ttft``.

Both paths pass the same gateway and mock engine: ``store: false`` reaches the engine raw, a stored turn of a
conversation passes the assistant as well. Requests alternate, so that both have the same load of the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx

from tests.assistant.running import assistant_process
from tests.conftest import serving

DIRECTIVE = "fake: tokens=2 itl_ms=0 ttft_ms=5"
DELTA = b"response.output_text.delta"


def first_token_ms(client: httpx.Client, body: dict[str, Any]) -> float:
    began = time.perf_counter()
    found = 0.0
    with client.stream("POST", "/v1/responses", json=body) as response:
        assert response.status_code == 200, response.read()
        for piece in response.iter_raw():
            if not found and DELTA in piece:
                found = (time.perf_counter() - began) * 1000
    assert found
    return found


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sections = {"data_dir": "data", "socket": "assistant.sock", "acting_socket": "acting.sock"}
        site: Any = {"assistant": {key: str(folder / value) for key, value in sections.items()}}
        with (
            serving(folder, **site) as service,
            assistant_process(folder, service.config, service.engine),
            httpx.Client(base_url=service.url, headers={"authorization": f"Bearer {service.key}"}) as client,
        ):
            times: dict[str, list[float]] = {"raw": [], "stored": [], "conversation": []}
            base = {"model": "fake", "input": f"hello {DIRECTIVE}", "stream": True}
            talk = ""
            for number in range(options.turns + 20):
                if number % 20 == 0:
                    talk = client.post("/v1/conversations", json={}).json()["id"]
                for path, more in (
                    ("raw", {"store": False}),
                    ("stored", {}),
                    ("conversation", {"conversation": talk}),
                ):
                    value = first_token_ms(client, {**base, **more})
                    if number >= 20:
                        times[path].append(value)
    result = {
        path: {"p50_ms": round(statistics.median(one), 2), "p95_ms": round(percentile(one, 0.95), 2)}
        for path, one in times.items()
    }
    raw = statistics.median(times["raw"])
    for path in ("stored", "conversation"):
        result[path]["added_p50_ms"] = round(statistics.median(times[path]) - raw, 2)
    print(json.dumps({"turns": options.turns, **result}, indent=1))


if __name__ == "__main__":
    main()
