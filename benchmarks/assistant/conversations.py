"""Measures lists of many conversations: ``python -m benchmarks.assistant.conversations``.

One tenant has all conversations but a hundred, which belong to another one. Each request passes a real socket to an
assistant in a process of its own. Words have the frequencies of a natural language (Zipf), so a search meets terms
of every frequency. Times include the client. The CPU time is that of the assistant a request: other load on the
machine changes it less than the times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from sqlalchemy import event, func, select

from appliance.assistant.store.conversations import ConversationStore
from appliance.assistant.store.database import FILE, Database
from appliance.assistant.store.schema import CONVERSATION_TERMS, CONVERSATIONS, ITEMS

USER, OTHER, KEY = "ada", "bob", "0" * 12
WORDS = 60
"""Words of a message."""
VOCABULARY = 20_000
START_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure lists of conversations.")
    parser.add_argument("--conversations", type=int, default=10_000)
    parser.add_argument(
        "--turns", type=int, default=1, help="turns of a conversation, two messages each (%(default)s)"
    )
    parser.add_argument("--requests", type=int, default=500, help="requests of a row (%(default)s)")
    parser.add_argument("--folder", type=Path, help="use the database of this folder, and keep it")
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        if not (folder / FILE).exists():
            fill(folder, args.conversations, args.turns)
        describe(folder)
        with serving(folder) as (client, process):
            results = [
                measure(client, process, label=label, request=request, count=args.requests)
                for label, request in requests(client)
            ]
    table = Table("request", "p50 ms", "p95 ms", "p99 ms", "longest ms", "CPU ms")
    for row in results:
        table.add_row(row["request"], *(f"{row[name]:.1f}" for name in ("p50", "p95", "p99", "max", "cpu")))
    Console().print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def describe(folder: Path) -> None:
    """Print the number of conversations, items and terms in ``folder``, and the machine."""
    database = Database(folder, read_only=True)
    with database.reading() as connection:
        counts = [
            f"{connection.scalar(select(func.count()).select_from(table)):,} {table.name}"
            for table in (CONVERSATIONS, ITEMS, CONVERSATION_TERMS)
        ]
    database.close()
    size = (folder / FILE).stat().st_size / 1e6
    print(f"{', '.join(counts)}, {size:.0f} MB; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


def fill(folder: Path, conversations: int, turns: int) -> None:
    """Store the conversations of both users."""
    draw = random.Random(1)
    words = [f"w{number:x}" for number in range(VOCABULARY)]
    weights = [1 / (number + 1) for number in range(VOCABULARY)]
    database = Database(folder)
    # The time to fill is not measured, so no commit waits for the disk.
    database.close()
    event.listen(database.engine, "connect", lambda opened, _: opened.execute("PRAGMA synchronous = OFF"))
    store = ConversationStore(database)

    def text(length: int) -> str:
        return " ".join(draw.choices(words, weights, k=length))

    for number in range(conversations):
        store.create(
            OTHER if number % 100 == 99 else USER,
            key_id=KEY,
            now=1.7e9 + number,
            metadata={"title": text(4)},
            items=[
                {
                    "type": "message",
                    "role": role,
                    "status": "completed",
                    "content": [{"type": kind, "text": text(WORDS)}],
                }
                for _ in range(turns)
                for role, kind in (("user", "input_text"), ("assistant", "output_text"))
            ],
        )
    database.close()


@contextmanager
def serving(folder: Path) -> Iterator[tuple[httpx.Client, int]]:
    """Serve the database of ``folder`` on a Unix socket; yield a client of the user and the process id."""
    config = folder / "site.json"
    config.write_text(
        json.dumps(
            {
                "version": 1,
                "hosts": {"here": {"memory_gib": 8}},
                "models": {"fake": {"source": "./fake"}},
                "engines": {
                    "chat": {
                        "kind": "mock",
                        "host": "here",
                        "model": "fake",
                        "device": "cpu",
                        "context": 4096,
                        "concurrency": 64,
                        "port": 8100,
                    }
                },
                "gateway": {"port": 8000},
                "assistant": {"data_dir": str(folder), "socket": str(folder / "assistant.sock")},
            }
        )
    )
    process = subprocess.Popen([sys.executable, "-m", "appliance", "assistant", "--config", str(config)])
    transport = httpx.HTTPTransport(uds=str(folder / "assistant.sock"))
    headers = {"x-appliance-user": USER, "x-appliance-key": KEY}
    try:
        with httpx.Client(
            transport=transport, base_url="http://assistant", headers=headers, trust_env=False, timeout=60
        ) as client:
            deadline = time.monotonic() + START_S
            while not _healthy(client):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the assistant did not start")
                time.sleep(0.05)
            yield client, process.pid
    finally:
        process.terminate()
        process.wait()


def _healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def requests(client: httpx.Client) -> Iterator[tuple[str, Callable[[int], dict[str, Any]]]]:
    """Yield the rows: a label, and the parameters of the request with a number."""
    cursors = [None]
    for _ in range(20):
        page = client.get("/v1/conversations", params={"limit": 100, "after": cursors[-1] or ""}).json()
        if not page["has_more"]:
            break
        cursors.append(page["last_id"])
    draw = random.Random(2)

    def word(low: int, high: int) -> str:
        return f"w{draw.randrange(low, high):x}"

    yield "first page of 20", lambda _: {}
    yield "page of 100 at any place", lambda at: {"limit": 100, "after": cursors[at % len(cursors)] or ""}
    yield "oldest first", lambda _: {"order": "asc"}
    yield "search: a common word", lambda _: {"query": word(0, 50)}
    yield "search: a rare word", lambda _: {"query": word(2000, VOCABULARY)}
    yield "search: three words of any frequency", lambda _: {"query": " ".join(word(0, 2000) for _ in range(3))}
    yield "search: two words, each in many, seldom in one", lambda _: {"query": f"{word(50, 90)} {word(50, 90)}"}
    yield "search: words that nothing has", lambda _: {"query": "absent words"}


def measure(
    client: httpx.Client, process: int, *, label: str, request: Callable[[int], dict[str, Any]], count: int
) -> dict[str, Any]:
    """Return percentiles and the server's CPU time in milliseconds of ``count`` requests, one after another."""
    times = []
    before = 0.0
    for at in range(count + 10):
        if at == 10:
            before = cpu_ms(process)
        params = request(at)
        started = time.perf_counter()
        response = client.get("/v1/conversations", params=params)
        took = (time.perf_counter() - started) * 1000
        if response.status_code != 200:
            raise SystemExit(f"{label}: {response.status_code} {response.text}")
        if at >= 10:
            times.append(took)
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    cpu = (cpu_ms(process) - before) / count
    return {"request": label, "p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(times), "cpu": cpu}


def cpu_ms(process: int) -> float:
    """Return the CPU time of ``process`` since its start, in milliseconds."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
