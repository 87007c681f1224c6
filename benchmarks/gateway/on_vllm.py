"""Measured on real vLLM (CPU, a tiny random Qwen3): the prefix cache behind two replicas, a killed replica."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gateway.processes import ROOT, stop
from benchmarks.gateway.scenarios import MeasuredResponse, ask, chat, gateway, get, until
from benchmarks.gateway.subjects import neighbours

ENGINE_PYTHON = ROOT / ".venv-engine" / "bin" / "python"


@contextmanager
def vllm(folder: Path, replicas: int) -> Iterator[tuple[dict[str, Any], list[subprocess.Popen[bytes]]]]:
    """Replicas of the tiny random Qwen3 on the CPU: the site for them, and their processes."""
    if not ENGINE_PYTHON.exists():
        raise RuntimeError("there is no .venv-engine; `make up ONCE=1` makes it")
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
            until(lambda at=port: get(at, "/health") is not None, f"engine {name}", 240)
        yield site, started
    finally:
        for process in started:
            stop(process)


def hits(port: int) -> tuple[float, float]:
    """Tokens looked up in the prefix cache, and found there."""
    text = get(port, "/metrics") or ""
    found = [
        sum(float(v) for v in re.findall(rf"^vllm:prefix_cache_{name}_total{{[^}}]*}} (\S+)", text, re.MULTILINE))
        for name in ("queries", "hits")
    ]
    return found[0], found[1]


async def talk(at: int, key: str, chats: int, turns: int) -> int:
    """``chats`` chats of ``turns`` turns at once; how many answers were not whole."""

    async def one(number: int) -> int:
        messages = [
            {"role": "system", "content": f"You are assistant number {number}. " + "Be kind and brief. " * 20}
        ]
        failed = 0
        for turn in range(turns):
            messages.append({"role": "user", "content": f"Chat {number}, turn {turn}: tell me something new. " * 4})
            body = {"model": "tiny", "messages": messages, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
            answer = await ask(at, key, body)
            if not answer.whole:
                failed += 1
                continue
            said = json.loads(answer.body.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"]
            messages.append({"role": "assistant", "content": said or "-"})
        return failed

    return sum(await asyncio.gather(*(one(i) for i in range(chats))))


def prefix(folder: Path) -> dict[str, Any]:
    """Hit rate of 20 chats of 5 turns over two replicas behind the gateway, over the rate on one replica."""
    rates = {}
    failed = 0
    for replicas in (1, 2):
        with (
            vllm(folder / str(replicas), replicas) as (site, _),
            gateway(folder / f"g{replicas}", site, 1) as found,
        ):
            at, keys, _pid = found
            ports = [site["engines"]["tiny"]["port"] + index for index in range(replicas)]
            before = [hits(port) for port in ports]
            failed += asyncio.run(asyncio.wait_for(talk(at, keys[0], 20, 5), 240))
            after = [hits(port) for port in ports]
            asked = sum(b[0] - a[0] for a, b in zip(before, after, strict=True))
            found_there = sum(b[1] - a[1] for a, b in zip(before, after, strict=True))
            rates[replicas] = round(found_there / asked, 4) if asked else 0.0
    ratio = round(rates[2] / rates[1], 3) if rates[1] else 0.0
    return {"one_replica": rates[1], "two_replicas": rates[2], "ratio": ratio, "failed": failed}


def killed(folder: Path) -> dict[str, Any]:
    """:func:`kill`, at most three times: a tiny model on a busy machine may be done before the signal comes."""
    result: dict[str, Any] = {}
    for attempt in range(1, 4):
        result = kill(folder / str(attempt)) | {"attempt": attempt}
        if result["broken"] >= 5:
            break
    return result


def kill(folder: Path) -> dict[str, Any]:
    """50 streams over two replicas, one of which is killed: what became of those begun on it, and of the others.

    40 have begun when the signal comes (with bounded loads no replica has more than 1.25 of its share, so at least
    a quarter of them are on the one that dies), 10 are sent in the same moment and have not.
    """
    streams, early = 50, 40
    with vllm(folder, 2) as (site, processes), gateway(folder / "g", site, 1) as (at, keys, _):

        async def run() -> tuple[int, list[MeasuredResponse]]:
            begun = [asyncio.Event() for _ in range(streams)]

            async def one(number: int) -> MeasuredResponse:
                body = chat(f"Chat {number}: a long story, please.", "tiny", stream=True, max_tokens=3500)
                return await ask(at, keys[0], body | {"ignore_eos": True}, begun[number])

            tasks = [asyncio.create_task(one(i)) for i in range(early)]
            await asyncio.gather(*(event.wait() for event in begun[:early]))
            running = sum(not task.done() for task in tasks)
            tasks += [asyncio.create_task(one(i)) for i in range(early, streams)]
            await asyncio.sleep(0)  # each connects now; none has an answer before the signal
            os.killpg(processes[0].pid, signal.SIGKILL)
            return running, await asyncio.gather(*tasks)

        running, answers = asyncio.run(asyncio.wait_for(run(), 400))
        until(lambda: len(usage(folder / "g" / "data")) >= streams, "a row for each stream", 10)
        rows = usage(folder / "g" / "data")
    broken = [answer for answer in answers if not answer.whole]
    told = [answer for answer in broken if b'"error"' in answer.body and b"[DONE]" not in answer.body]
    on_dead = [answer for answer in broken if rows.get(request_id(answer), {}).get("engine") == "tiny.0"]
    return {
        "streams": streams,
        "running_when_killed": running,
        "sent_when_killed": streams - early,
        "completed": streams - len(broken),
        "broken": len(broken),
        "broken_with_error_event": len(told),
        "broken_that_had_begun": sum(b'"choices"' in answer.body for answer in broken),
        "broken_elsewhere": len(broken) - len(on_dead),
    }


def request_id(answer: MeasuredResponse) -> str:
    found = re.search(rb"x-request-id: (\w+)", answer.body)
    return found.group(1).decode() if found else ""


def usage(data: Path) -> dict[str, dict[str, Any]]:
    """Usage rows by request id."""
    db = sqlite3.connect(data / "appliance.sqlite")
    db.row_factory = sqlite3.Row
    try:
        return {row["request_id"]: dict(row) for row in db.execute("SELECT * FROM usage")}
    finally:
        db.close()
