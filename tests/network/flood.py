"""An attack on the edge, as a separate program: many connections that all do the same.

    python -m tests.network.flood ATTACK ADDRESS PORT NAME KEY COUNT

It prints a line of JSON when all connections are open, then one a second with the results so far, the last one on
SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

CHAT = json.dumps(
    {"model": "qwen3-30b", "messages": [{"role": "user", "content": "fake:tokens=1 ttft_ms=5"}]}
).encode()
LONG = {"role": "user", "content": "fake:tokens=100000 itl_ms=0.05 ttft_ms=5"}
STREAM = json.dumps({"model": "qwen3-30b", "stream": True, "messages": [LONG]}).encode()
PACE_S = 0.2
"""Seconds between two bytes of a slow connection, and between two requests of a fast one."""


def unverified() -> ssl.SSLContext:
    """Return a TLS context that trusts any certificate. It reads no list of authorities, which costs 30 ms."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@dataclass
class Flood:
    """The target of an attack, the key it uses, and its results."""

    host: str
    port: int
    name: str
    key: str
    results: Counter[str] = field(default_factory=Counter)
    up: int = 0
    context: ssl.SSLContext = field(default_factory=unverified)
    connecting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(8))

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with self.connecting:
            opening = asyncio.open_connection(
                self.host, self.port, ssl=self.context, server_hostname=self.name, limit=2**14
            )
            reader, writer = await asyncio.wait_for(opening, 3)
        self.up += 1
        return reader, writer

    def head(self, size: int, *more: str, path: str = "/v1/chat/completions") -> bytes:
        lines = [f"POST {path} HTTP/1.1", f"Host: {self.name}", "Content-Type: application/json", *more]
        lines += [f"Authorization: Bearer {self.key}"] if self.key else []
        return ("\r\n".join([*lines, f"Content-Length: {size}"]) + "\r\n\r\n").encode()

    async def read_response(self, reader: asyncio.StreamReader) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").lower()
        self.results[head.split()[1]] += 1
        size = head.partition("content-length: ")[2].split("\r\n")[0]
        await reader.readexactly(int(size or "0"))


async def requests(flood: Flood) -> None:
    """Send one request after the other, with or without a key."""
    reader, writer = await flood.open()
    while True:
        writer.write(flood.head(len(CHAT)) + CHAT)
        await flood.read_response(reader)
        await asyncio.sleep(PACE_S)


@asynccontextmanager
async def trickle(writer: asyncio.StreamWriter, start: bytes) -> AsyncIterator[None]:
    """Send ``start`` and then one byte after the other."""

    async def send() -> None:
        while True:
            writer.write(b"x")
            await asyncio.sleep(PACE_S)

    writer.write(start)
    sending = asyncio.create_task(send())
    try:
        yield
    finally:
        sending.cancel()
        writer.transport.abort()


async def slow_head(flood: Flood) -> None:
    """Send a header that never ends."""
    reader, writer = await flood.open()
    async with trickle(writer, f"POST /v1/chat/completions HTTP/1.1\r\nHost: {flood.name}\r\nX: ".encode()):
        await reader.read()
    flood.results["cut"] += 1


async def slow_body(flood: Flood) -> None:
    """Send a body byte by byte."""
    reader, writer = await flood.open()
    async with trickle(writer, flood.head(100_000)):
        await flood.read_response(reader)


async def slow_reader(flood: Flood) -> None:
    """Start a long stream and read nothing of it."""
    reader, writer = await flood.open()
    writer.write(flood.head(len(STREAM)) + STREAM)
    await reader.readexactly(1)
    flood.results["begun"] += 1
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.Event().wait()


async def too_large(flood: Flood) -> None:
    """Send bodies over the limit."""
    while True:
        reader, writer = await flood.open()
        try:
            writer.write(flood.head(17 * 2**20) + bytes(2**16))
            await flood.read_response(reader)
        finally:
            writer.transport.abort()
        await asyncio.sleep(PACE_S)


ATTACKS: dict[str, Callable[[Flood], Awaitable[None]]] = {
    "requests": requests, "slow-head": slow_head, "slow-body": slow_body, "slow-reader": slow_reader,
    "too-large": too_large,
}  # fmt: skip


async def run(flood: Flood, attack: str, count: int) -> None:
    async def repeat() -> None:
        while True:
            try:
                await ATTACKS[attack](flood)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                flood.results[type(error).__name__] += 1
            await asyncio.sleep(1)

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tasks = [asyncio.create_task(repeat()) for _ in range(count)]
    tried = 0
    while flood.up + flood.results.total() < count and tried < 100 and not stop.is_set():
        await asyncio.sleep(0.1)
        tried += 1
    print(json.dumps({"up": flood.up}), flush=True)
    while not stop.is_set():
        print(json.dumps(flood.results), flush=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1)
    for task in tasks:
        task.cancel()
    print(json.dumps(flood.results), flush=True)


def main() -> None:
    attack, host, port, name, key, count = sys.argv[1:]
    asyncio.run(run(Flood(host, int(port), name, key), attack, int(count)))


if __name__ == "__main__":
    main()
