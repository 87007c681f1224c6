"""The load client: many connections, one process, no HTTP library. Prints one JSON object.

The client of ``appliance loadtest`` takes 84 us of CPU time for each plain request, more than the gateway's 57 us:
on one core it would measure itself. This one sends fixed bytes and searches the response for its end.

Plain mode sends the next request after each response. Stream mode opens its connections spread over a time and
reads the time stamps in the tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from typing import Any, cast

import uvloop

STAMP = re.compile(rb"t=(\d{16})")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class BenchRun:
    """State shared by all connections."""

    def __init__(self, args: argparse.Namespace) -> None:
        text = f"cfg tokens={args.tokens} itl_ms={args.itl_ms} ttft_ms={args.ttft_ms}"
        messages = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": text}]
        self.body: dict[str, Any] = {
            "model": args.model,
            "messages": messages,
            "max_tokens": 512,
            "temperature": 0.7,
        }
        self.plain = args.plain
        if not args.plain:
            self.body["stream"] = True
        self.args = args
        self.stop_at = 0.0
        self.done = 0
        self.tokens = 0
        self.errors: dict[str, int] = {}
        self.ttft: list[float] = []
        self.transit: list[float] = []
        self.latency: list[float] = []

    def request(self, number: int) -> bytes:
        # Each connection is a chat of its own, so that sticky routing spreads them.
        messages = self.body["messages"]
        own = self.body | {
            "messages": [messages[0], {"role": "user", "content": f"{messages[1]['content']} #{number}"}]
        }
        data = json.dumps(own).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.args.port}\r\n"
            f"Authorization: Bearer {self.args.keys[number % len(self.args.keys)]}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data

    def fail(self, cause: str) -> None:
        self.errors[cause] = self.errors.get(cause, 0) + 1


class BenchConnection(asyncio.Protocol):
    def __init__(self, run: BenchRun, number: int, ended: asyncio.Future[None]) -> None:
        self.run = run
        self.bytes = run.request(number)
        self.ended = ended
        self.rounds = run.args.rounds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.send()

    def send(self) -> None:
        self.began = time.monotonic_ns()
        self.buffer = b""
        self.status = b""
        self.seen = 0
        self.transport.write(self.bytes)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self.status:
            self.status = data[9:12]
            if self.status != b"200":
                self.run.fail(self.status.decode("latin1"))
                self.finish(over=True)
                return
        if self.run.plain:
            self.buffer += data
            end = self.buffer.find(b"\r\n\r\n")
            match = LENGTH.search(self.buffer, 0, end + 2) if end >= 0 else None
            if (match and len(self.buffer) >= end + 4 + int(match.group(1))) or self.buffer.endswith(
                b"\r\n0\r\n\r\n"
            ):
                self.run.latency.append((now - self.began) / 1e6)
                self.finish(over=False)
            return
        data = self.buffer + data
        cut = data.rfind(b"\n") + 1
        self.buffer, whole = data[cut:], data[:cut]
        for stamp in STAMP.findall(whole):
            if not self.seen:
                self.run.ttft.append((now - self.began) / 1e6)
            self.seen += 1
            self.run.transit.append(now / 1000 - int(stamp))
        if whole.endswith(b"0\r\n\r\n"):
            self.run.tokens += self.seen
            if self.seen != self.run.args.tokens:
                self.run.fail("tokens missing")
            self.finish(over=False)

    def finish(self, *, over: bool) -> None:
        self.run.done += 1
        self.rounds -= 1
        if over or self.rounds <= 0 or time.monotonic() > self.run.stop_at:
            self.transport.close()
            if not self.ended.done():
                self.ended.set_result(None)
        else:
            self.send()

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.ended.done():
            self.run.fail("connection lost")
            self.ended.set_result(None)


def quantile(values: list[float], share: float) -> float | None:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3) if ordered else None


async def one(run: BenchRun, number: int) -> None:
    await asyncio.sleep(run.args.spread_s * number / run.args.connections)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    try:
        await loop.create_connection(lambda: BenchConnection(run, number, ended), "127.0.0.1", run.args.port)
    except OSError:
        run.fail("not connected")
        return
    await ended


async def main(args: argparse.Namespace) -> None:
    run = BenchRun(args)
    began = time.monotonic()
    cpu = time.process_time()
    run.stop_at = began + args.seconds
    await asyncio.wait_for(asyncio.gather(*(one(run, i) for i in range(args.connections))), args.seconds + 120)
    wall = time.monotonic() - began
    print(
        json.dumps(
            {
                "wall_s": round(wall, 3),
                "requests": run.done,
                "requests_per_s": round(run.done / wall, 1),
                "tokens": run.tokens,
                "errors": run.errors,
                "client_cpu_share": round((time.process_time() - cpu) / wall, 3),
                "ttft_ms": {p: quantile(run.ttft, q) for p, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))},
                "transit_us": {p: quantile(run.transit, q) for p, q in (("p50", 0.5), ("p99", 0.99))},
                "latency_ms": {p: quantile(run.latency, q) for p, q in (("p50", 0.5), ("p99", 0.99))},
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--keys", nargs="+", default=["none"])
    parser.add_argument("--model", default="bench")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--spread-s", type=float, default=0)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--itl-ms", type=int, default=20)
    parser.add_argument("--ttft-ms", type=int, default=30)
    uvloop.run(main(parser.parse_args()))
