"""A lean engine: responds as fast as Python can, so that the benchmark does not measure the engine.

The mock engine takes three times its CPU time: 21.5 us for each plain request, against 7.3 us here (2 rounds of 5 s
in turn on one shared machine, 64 connections). The gateway takes 57 us and nginx 16 us. The engines share a core
with the load client, so the mock engine would limit the rate of nginx.

``python engine.py PORT``. A plain request gets a fixed response. ``cfg tokens=… itl_ms=… ttft_ms=…`` in the text of
a request describes its stream. Each token carries the time of the monotonic clock at which it was written, in
microseconds.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import cast

import uvloop

CONFIG = re.compile(rb"cfg tokens=(\d+) itl_ms=(\d+) ttft_ms=(\d+)")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
STREAM = re.compile(rb'"stream": *true')
USAGE = re.compile(rb'"include_usage": *true')

BASE = b'"id":"chatcmpl-0123456789abcdef","created":1700000000,"model":"bench"'
PLAIN_BODY = (
    b'{"object":"chat.completion",' + BASE + b',"choices":[{"index":0,"message":{"role":"assistant","content":'
    b'"Good morning."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}}'
)


def response_of(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


PLAIN = response_of(PLAIN_BODY)
MODELS = response_of(b'{"object":"list","data":[{"id":"bench","object":"model","created":0,"owned_by":"bench"}]}')
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(frame: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(frame), frame)


def frame(choices: bytes, more: bytes = b"") -> bytes:
    return b'data: {"object":"chat.completion.chunk",' + BASE + b',"choices":[' + choices + b"]" + more + b"}\n\n"


BEFORE, AFTER = frame(b'{"index":0,"delta":{"content":"t=@"},"finish_reason":null}').split(b"@")
SIZE = b"%x\r\n" % (len(BEFORE) + 16 + len(AFTER))
FINISH = chunk(frame(b'{"index":0,"delta":{},"finish_reason":"stop"}'))
DONE = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class BenchEngineConnection(asyncio.Protocol):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.rest = b""
        self.left = 0
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.open = False

    def data_received(self, data: bytes) -> None:
        data = self.rest + data if self.rest else data
        while data:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                break
            match = LENGTH.search(data, 0, end + 2)
            until = end + 4 + (int(match.group(1)) if match else 0)
            if len(data) < until:
                break
            self.request(data[:end], data[end + 4 : until])
            data = data[until:]
        self.rest = data

    def request(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET"):
            self.transport.write(MODELS)
        elif STREAM.search(body) is None:
            self.transport.write(PLAIN)
        else:
            match = CONFIG.search(body)
            tokens, itl, ttft = map(int, match.groups()) if match else (16, 0, 0)
            self.left, self.total, self.itl = tokens, tokens, itl / 1000
            self.usage = USAGE.search(body) is not None
            self.head = HEAD
            self.due = self.loop.time() + ttft / 1000
            self.loop.call_at(self.due, self.step)

    def step(self) -> None:
        if not self.open:
            return
        if self.left:
            self.left -= 1
            stamp = b"%016d" % (time.monotonic_ns() // 1000)
            self.transport.write(b"".join((self.head, SIZE, BEFORE, stamp, AFTER, b"\r\n")))
            self.head = b""
            self.due += self.itl
            self.loop.call_at(self.due, self.step)
            return
        usage = b',"usage":{"prompt_tokens":12,"completion_tokens":%d,"total_tokens":%d}' % (
            self.total,
            self.total + 12,
        )
        self.transport.write(FINISH + (chunk(frame(b"", usage)) if self.usage else b"") + DONE)


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: BenchEngineConnection(loop), "127.0.0.1", int(sys.argv[1]), backlog=2048
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
