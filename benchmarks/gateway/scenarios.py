"""Measurements of the gateway alone: memory over a million requests, fairness, swaps.

Load and engines are those of the repository (:class:`loadtests.client.LoadClient`, the mock engine), except for the
million requests, which need the fast ones of this benchmark.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from appliance.system.http_request import NO_RESPONSE, send_request
from benchmarks.gateway.processes import HERE, LOAD_CORE, SUBJECT_CORE, free_port, pss_mb, running
from benchmarks.gateway.subjects import engines, make_keys, subject
from loadtests.client import LoadClient, RequestSpec, Target
from loadtests.estimates import percentile
from loadtests.sample import Sample

MILLION = 1_000_000


def client(port: int, key: str) -> LoadClient:
    """Return a client with one connection to the gateway at ``port``."""
    return LoadClient(Target(f"http://127.0.0.1:{port}", key, timeout_s=240, stall_s=240))


def chat(text: str, model: str, *, stream: bool = True) -> RequestSpec:
    """Return a chat of one message."""
    return RequestSpec(model, {"messages": [{"role": "user", "content": text}]}, stream=stream)


@contextmanager
def gateway(folder: Path, table: dict[str, Any], users: int) -> Iterator[tuple[int, list[str], int]]:
    """Start a gateway for the site ``table``; yields its port, the users' keys and its pid."""
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
    """Return the text at ``path``; ``None`` without a response 200."""
    with suppress(*NO_RESPONSE):
        response = send_request(f"http://127.0.0.1:{port}", path, timeout_s=30)
        return response.body.decode() if response.status == 200 else None
    return None


def until(condition: Callable[[], bool], what: str, within_s: float) -> None:
    """Wait for ``condition``; raises :class:`RuntimeError` after ``within_s`` seconds."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} was not ready within {within_s:.0f} s")
        time.sleep(0.1)


# Memory over a million requests.


def memory(folder: Path) -> dict[str, Any]:
    """Measure the PSS at the start and after each 100,000 requests.

    The slope is that of the second half, in MB per 100,000.
    """
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


# A quiet user during a flood.


def fairness(folder: Path) -> dict[str, Any]:
    """Measure the TTFT of a quiet user alone, and during 64 long requests of another; the engine has 16 slots."""
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
    ended = threading.Event()

    def quiet(port: int, key: str, count: int) -> list[float]:
        user, found = client(port, key), []
        try:
            for _ in range(count):
                sample = user.send(chat("fake: tokens=10 itl_ms=10 ttft_ms=50", "bench"))
                if not sample.good or sample.ttft is None:
                    raise RuntimeError(f"a request of the quiet user failed: {sample.cause}")
                found.append(1000 * sample.ttft)
        finally:
            user.close()
        return found

    def flooder(port: int, key: str) -> None:
        user = client(port, key)
        while not ended.is_set():
            user.send(chat("fake: tokens=200 itl_ms=10 ttft_ms=50", "bench"))
        user.close()

    with (
        running(mock, LOAD_CORE, folder / "mock.log"),
        gateway(folder, site, 2) as (port, keys, _),
        ThreadPoolExecutor(flood) as threads,
    ):
        alone = quiet(port, keys[0], 60)
        flooders = [threads.submit(flooder, port, keys[1]) for _ in range(flood)]
        try:
            time.sleep(2)
            during = quiet(port, keys[0], 60)
        finally:
            ended.set()
        for one in flooders:
            one.result()
    before, after = round(percentile(alone, 0.95), 2), round(percentile(during, 0.95), 2)
    return {
        "alone_p95_ms": before,
        "beside_p95_ms": after,
        "ratio": round(after / before, 3),
        "flood": flood,
        "slots": slots,
    }


# Swaps under load.


def swaps(folder: Path) -> dict[str, Any]:
    """Count lost requests of eight users and two models of which one fits at a time, until 20 swaps are done."""
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

    def swapped(port: int) -> int:
        match = re.search(r"^appliance_gateway_swaps_total (\S+)", get(port, "/metrics") or "", re.MULTILINE)
        return int(float(match.group(1))) if match else 0

    def user(port: int, key: str, number: int) -> list[Sample]:
        one, found = client(port, key), []
        deadline = time.monotonic() + 180
        while (number := number + 1) and swapped(port) < wanted and time.monotonic() < deadline:
            text = "fake: tokens=20 itl_ms=5 ttft_ms=10"
            found.append(one.send(chat(text, "ab"[number % 2], stream=number % 3 > 0)))
        one.close()
        return found

    with gateway(folder, site, users) as (port, keys, _), ThreadPoolExecutor(users) as threads:
        started = [threads.submit(user, port, key, number) for number, key in enumerate(keys)]
        samples = [sample for one in started for sample in one.result()]
        done = swapped(port)
    return {"swaps": done, "requests": len(samples), "lost": sum(not sample.good for sample in samples)}
