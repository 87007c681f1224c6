"""Measurements on real vLLM (CPU, a tiny random Qwen3): prefix cache hits of two replicas, a killed replica."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gateway.processes import ROOT, stop
from benchmarks.gateway.scenarios import client, gateway, get, until
from benchmarks.gateway.subjects import neighbours
from loadtests.client import RequestSpec

ENGINE_PYTHON = ROOT / ".venv-engine" / "bin" / "python"


@contextmanager
def vllm(folder: Path, replicas: int) -> Iterator[tuple[dict[str, Any], list[subprocess.Popen[bytes]]]]:
    """Start replicas of the tiny random Qwen3 on the CPU; yields the site for them and their processes."""
    if not ENGINE_PYTHON.exists():
        raise RuntimeError(".venv-engine is missing; `make up ONCE=1` creates it")
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    maker = ROOT / "appliance" / "models" / "tiny_qwen3.py"
    subprocess.run([str(ENGINE_PYTHON), str(maker), str(model)], check=True, capture_output=True)
    site: dict[str, Any] = {
        "version": 1,
        "hosts": {"here": {"memory_gib": 16}},
        "models": {"tiny": {"source": str(model)}},
        "engines": {
            "tiny": {
                "host": "here", "model": "tiny", "device": "cpu", "context": 4096, "concurrency": 32,
                "replicas": replicas, "port": neighbours()[0], "command": str(ENGINE_PYTHON),
                "options": {"enforce-eager": True}, "shutdown_timeout_s": 2,
            }
        },
    }  # fmt: skip
    config = folder / "engines.json"
    config.write_text(json.dumps(site))
    started = []
    try:
        for index in range(replicas):
            name = "tiny" if replicas == 1 else f"tiny.{index}"
            argv = [sys.executable, "-m", "appliance", "engine", "exec", name, "--config", str(config)]
            log = (folder / f"{name}.log").open("wb")
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            started.append(
                subprocess.Popen(argv, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True)
            )
            port = site["engines"]["tiny"]["port"] + index
            until(partial(_healthy, port), f"engine {name}", 240)
        yield site, started
    finally:
        for process in started:
            stop(process)


def _healthy(port: int) -> bool:
    return get(port, "/health") is not None


def hits(port: int) -> tuple[float, float]:
    """Return the tokens looked up in the prefix cache and those found there."""
    text = get(port, "/metrics") or ""
    found = [
        sum(float(v) for v in re.findall(rf"^vllm:prefix_cache_{name}_total{{[^}}]*}} (\S+)", text, re.MULTILINE))
        for name in ("queries", "hits")
    ]
    return found[0], found[1]


def talk(port: int, key: str, *, chats: int, turns: int) -> int:
    """Run ``chats`` chats of ``turns`` turns at once; return the number of failed requests."""

    def one(number: int) -> int:
        user = client(port, key)
        system = f"You are assistant number {number}. " + "Be kind and brief. " * 20
        messages = [{"role": "system", "content": system}]
        failed = 0
        for turn in range(turns):
            messages.append(
                {"role": "user", "content": f"Chat {number}, turn {turn}: describe something new. " * 4}
            )
            body = {"messages": messages, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
            sample = user.send(RequestSpec("tiny", body, stream=False))
            if sample.good:
                messages.append({"role": "assistant", "content": user.text})
            else:
                failed += 1
        user.close()
        return failed

    with ThreadPoolExecutor(chats) as threads:
        return sum(threads.map(one, range(chats)))


def prefix(folder: Path) -> dict[str, Any]:
    """Measure the hit rate of 20 chats of 5 turns over two replicas behind the gateway, and over one replica."""
    rates = {}
    failed = 0
    for replicas in (1, 2):
        with (
            vllm(folder / str(replicas), replicas) as (site, _),
            gateway(folder / f"g{replicas}", site, 1) as (at, keys, _),
        ):
            ports = [site["engines"]["tiny"]["port"] + index for index in range(replicas)]
            before = [hits(port) for port in ports]
            failed += talk(at, keys[0], chats=20, turns=5)
            after = [hits(port) for port in ports]
            looked_up = sum(b[0] - a[0] for a, b in zip(before, after, strict=True))
            found = sum(b[1] - a[1] for a, b in zip(before, after, strict=True))
            rates[replicas] = round(found / looked_up, 4) if looked_up else 0.0
    ratio = round(rates[2] / rates[1], 3) if rates[1] else 0.0
    return {"one_replica": rates[1], "two_replicas": rates[2], "ratio": ratio, "failed": failed}


@dataclass
class MeasuredResponse:
    """A response with its header and body, which the load test's client does not keep."""

    status: int
    body: bytes

    @property
    def whole(self) -> bool:
        return self.status == 200 and b"[DONE]" in self.body and b'"error"' not in self.body


async def stream(port: int, key: str, text: str, begun: asyncio.Event) -> MeasuredResponse:
    """Read a long stream and set ``begun`` at its first token; status 0 if the connection failed."""
    messages = [{"role": "user", "content": text}]
    body = {"model": "tiny", "messages": messages, "stream": True, "max_tokens": 3500, "ignore_eos": True}
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
    status, received = 0, b""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        while piece := await reader.read(65536):
            received += piece
            status = status or int(received[9:12])
            if not begun.is_set() and re.search(rb'"content": ?"[^"]', received):
                begun.set()
        writer.close()
    except OSError:
        status = 0
    return MeasuredResponse(status, received)


def killed(folder: Path) -> dict[str, Any]:
    """Run :func:`kill` at most three times: on a busy machine the tiny model may finish before the signal."""
    result: dict[str, Any] = {}
    for attempt in range(1, 4):
        result = kill(folder / str(attempt)) | {"attempt": attempt}
        if result["broken"] >= 5:
            break
    return result


def kill(folder: Path) -> dict[str, Any]:
    """Kill one of two replicas under 50 streams; count the streams begun on it, and the others.

    40 streams have begun before the signal. Bounded loads limit each replica to 1.25 of its share. So at least a
    quarter of the 40 are on the killed replica. 10 are sent at the same moment and have not begun.
    """
    streams, early = 50, 40
    with vllm(folder, 2) as (site, processes), gateway(folder / "g", site, 1) as (at, keys, _):

        async def run() -> tuple[int, list[MeasuredResponse]]:
            begun = [asyncio.Event() for _ in range(streams)]

            async def one(number: int) -> MeasuredResponse:
                return await stream(at, keys[0], text=f"Chat {number}: a long story, please.", begun=begun[number])

            tasks = [asyncio.create_task(one(i)) for i in range(early)]
            await asyncio.gather(*(event.wait() for event in begun[:early]))
            running = sum(not task.done() for task in tasks)
            tasks += [asyncio.create_task(one(i)) for i in range(early, streams)]
            await asyncio.sleep(0)  # Each connects now; none has a response before the signal.
            os.killpg(processes[0].pid, signal.SIGKILL)
            return running, await asyncio.gather(*tasks)

        running, responses = asyncio.run(asyncio.wait_for(run(), 400))
        until(lambda: len(usage(folder / "g" / "data")) >= streams, "a usage record of each stream", 10)
        rows = usage(folder / "g" / "data")
    broken = [response for response in responses if not response.whole]
    reported = [one for one in broken if b'"error"' in one.body and b"[DONE]" not in one.body]
    on_killed = [one for one in broken if rows.get(request_id(one), {}).get("engine") == "tiny.0"]
    return {
        "streams": streams,
        "running_when_killed": running,
        "sent_when_killed": streams - early,
        "completed": streams - len(broken),
        "broken": len(broken),
        "broken_with_error_event": len(reported),
        "broken_that_had_begun": sum(b'"choices"' in one.body for one in broken),
        "broken_elsewhere": len(broken) - len(on_killed),
    }


def request_id(response: MeasuredResponse) -> str:
    """Return the gateway's id of a request."""
    found = re.search(rb"x-request-id: (\w+)", response.body)
    return found.group(1).decode() if found else ""


def usage(data: Path) -> dict[str, dict[str, Any]]:
    """Return the usage records by request id."""
    db = sqlite3.connect(data / "appliance.sqlite")
    db.row_factory = sqlite3.Row
    try:
        return {row["request_id"]: dict(row) for row in db.execute("SELECT * FROM usage")}
    finally:
        db.close()
