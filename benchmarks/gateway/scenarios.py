"""What only the gateway is measured for: memory over a million requests, fairness, swaps."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.system.proxy import opener
from benchmarks.gateway.processes import HERE, LOAD_CORE, SUBJECT_CORE, free_port, pss_mb, running
from benchmarks.gateway.subjects import engines, make_keys, subject

MILLION = 1_000_000


@dataclass
class MeasuredResponse:
    """One answer as a client saw it."""

    status: int
    ttft_ms: float | None
    body: bytes

    @property
    def whole(self) -> bool:
        return (
            self.status == 200
            and (b"[DONE]" in self.body or b'"usage"' in self.body)
            and b'"error"' not in self.body
        )


async def ask(port: int, key: str, body: dict[str, Any], began: asyncio.Event | None = None) -> MeasuredResponse:
    """One request on a connection of its own; status 0 where the connection broke."""
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
    start = time.monotonic()
    status, first, seen = 0, None, b""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        while piece := await reader.read(65536):
            seen += piece
            status = status or int(seen[9:12])
            if first is None and re.search(rb'"content": ?"[^"]', seen):
                first = (time.monotonic() - start) * 1000
                if began is not None:
                    began.set()
        writer.close()
    except OSError:
        status = 0
    return MeasuredResponse(status, first, seen)


def chat(text: str, model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


@contextmanager
def gateway(folder: Path, table: dict[str, Any], users: int) -> Iterator[tuple[int, list[str], int]]:
    """A gateway for the site ``table``: its port, keys and pid."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    table["gateway"] = {"port": port, "data_dir": str(folder / "data"), **table.get("gateway", {})}
    config = folder / "site.json"
    config.write_text(json.dumps(table))
    keys = make_keys(config, users)
    argv = [sys.executable, "-m", "appliance", "gateway", "--config", str(config)]
    with running(argv, SUBJECT_CORE, folder / "gateway.log") as process:
        until(lambda: get(port, "/health") is not None, "the gateway", 30)
        yield port, keys, process.pid


def get(port: int, path: str) -> str | None:
    url = f"http://127.0.0.1:{port}{path}"
    with contextlib.suppress(OSError), opener(url).open(url, timeout=30) as answer:
        return str(answer.read().decode())
    return None


def until(condition: Any, what: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come within {within_s:.0f} s")
        time.sleep(0.1)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 2)


# Memory over a million requests.


def memory(folder: Path) -> dict[str, Any]:
    """PSS before, after each 100,000 requests, and its slope over the second half, in MB per 100,000."""
    with engines(folder / "engines") as ports, subject("gateway", ports, folder) as one:
        assert one.pid is not None
        samples = [pss_mb(one.pid)]
        errors = 0
        for _ in range(10):
            argv = ["taskset", "-c", LOAD_CORE, sys.executable, str(HERE / "client.py"), "--port", str(one.port)]
            argv += ["--keys", *one.keys, "--plain", "--connections", "64", "--seconds", "120"]
            done = subprocess.run(
                [*argv, "--rounds", str(-(-MILLION // 10 // 64))], capture_output=True, text=True, check=True
            )
            errors += sum(json.loads(done.stdout)["errors"].values())
            samples.append(pss_mb(one.pid))
        return {
            "requests": MILLION,
            "errors": errors,
            "pss_mb": samples,
            "last_mb": samples[-1],
            "slope_mb_per_100k": round((samples[-1] - samples[5]) / 5, 3),
        }


# A quiet user beside a flood.


def fairness(folder: Path) -> dict[str, Any]:
    """TTFT of a quiet user alone, and beside one with 64 long requests; the engine decodes 16 sequences at once."""
    slots, flood = 16, 64
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    mock = [sys.executable, "-m", "appliance.engines.mock", "--port", str(port), "--model", "bench"]
    mock += ["--capacity", str(slots)]
    site: dict[str, Any] = {
        "version": 1,
        "hosts": {"here": {"memory_gib": 8}},
        "models": {"bench": {"source": "./bench"}},
        "engines": {
            "bench": {
                "kind": "mock", "host": "here", "model": "bench", "device": "cpu",
                "context": 4096, "concurrency": slots, "port": port,
            }
        },
    }  # fmt: skip

    async def quiet(at: int, key: str, count: int) -> list[float]:
        found = []
        for _ in range(count):
            answer = await ask(at, key, chat("fake: tokens=10 itl_ms=10 ttft_ms=50", "bench", stream=True))
            if not answer.whole or answer.ttft_ms is None:
                raise RuntimeError(f"the quiet user got {answer.status}")
            found.append(answer.ttft_ms)
        return found

    async def measure(at: int, keys: list[str]) -> tuple[list[float], list[float]]:
        alone = await quiet(at, keys[0], 60)
        stopping = False

        async def flooder() -> None:
            while not stopping:
                await ask(at, keys[1], chat("fake: tokens=200 itl_ms=10 ttft_ms=50", "bench", stream=True))

        tasks = [asyncio.create_task(flooder()) for _ in range(flood)]
        await asyncio.sleep(2)
        beside = await quiet(at, keys[0], 60)
        stopping = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return alone, beside

    with running(mock, LOAD_CORE, folder / "mock.log"), gateway(folder, site, 2) as (at, keys, _):
        alone, beside = asyncio.run(measure(at, keys))
    one, other = percentile(alone, 0.95), percentile(beside, 0.95)
    return {
        "alone_p95_ms": one,
        "beside_p95_ms": other,
        "ratio": round(other / one, 3),
        "flood": flood,
        "slots": slots,
    }


# Swaps under load.


def swaps(folder: Path) -> dict[str, Any]:
    """Eight users who ask for two models that do not fit beside each other, until 20 swaps have happened."""
    wanted, users = 20, 8
    card = {"index": 0, "model": "pretended", "memory_mib": 97887}

    def engine(model: str) -> dict[str, Any]:
        return {
            "kind": "mock", "host": "here", "model": model, "gpus": [0], "context": 4096, "concurrency": 16,
            "port": free_port(), "residency": "on-demand", "options": {"load-delay-s": 0.3},
        }  # fmt: skip

    site: dict[str, Any] = {
        "version": 1,
        "hosts": {"here": {"memory_gib": 8, "gpus": [card]}},
        "models": {"a": {"source": "./a"}, "b": {"source": "./b"}},
        "engines": {"ea": engine("a"), "eb": engine("b")},
        "gateway": {
            "engine_control": "child",
            "swap": {"max_wait_s": 0.5, "min_residency_s": 0.2, "batch": 16},
        },
    }

    async def user(at: int, key: str, number: int) -> list[bool]:
        found = []
        while (number := number + 1) and swapped(at) < wanted:
            text = "fake: tokens=20 itl_ms=5 ttft_ms=10"
            answer = await ask(at, key, chat(text, "ab"[number % 2], stream=number % 3 > 0))
            found.append(answer.whole)
        return found

    async def all_users(at: int, keys: list[str]) -> list[bool]:
        return [
            ok for found in await asyncio.gather(*(user(at, key, i) for i, key in enumerate(keys))) for ok in found
        ]

    def swapped(at: int) -> int:
        match = re.search(r"^appliance_gateway_swaps_total (\S+)", get(at, "/metrics") or "", re.MULTILINE)
        return int(float(match.group(1))) if match else 0

    with gateway(folder, site, users) as (at, keys, _):
        answers = asyncio.run(asyncio.wait_for(all_users(at, keys), 180))
        done = swapped(at)
    return {"swaps": done, "requests": len(answers), "lost": answers.count(False)}
