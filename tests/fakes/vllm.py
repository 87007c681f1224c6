"""The fake engine: vLLM's HTTP API, tokens by the clock, faults on demand.

One process, one port. Every answer says ``fake-engine``. What it does for a request is set by a directive
anywhere in the request's text, so it passes through any gateway, also one that drops unknown fields::

    fake: tokens=100 itl_ms=20 ttft_ms=30 fault=cut:5

Faults: ``cut:n`` closes the connection after n tokens, ``stall:n`` falls silent after n, ``error:n`` sends an
error frame after n as vLLM does, ``no_done``, ``no_usage`` and ``no_finish`` leave a part out, ``garbage``
sends a frame that is no JSON, ``double`` sends each token twice, ``content_type`` names the wrong type,
``early_empty`` sends an empty chunk before the first token, ``error_body`` answers 200 with an error,
``late_end`` lets HTTP's own end come half a second after ``[DONE]``,
``reset`` closes without an answer, ``hang`` sends headers and then nothing, ``split`` writes byte by byte,
``status:n`` answers status n, ``late:n`` does so after ``ttft_ms``, ``mistake`` does what vLLM does with a
client's mistake, by endpoint.

``--fault`` gives a fault to every request. ``merge`` puts all tokens after the first into chunks of three.
``POST /tokenize`` counts as vLLM's does.

``POST /sleep`` and ``/wake_up`` exist as in vLLM's development mode, with ``VLLM_SERVER_DEV_MODE=1``.
``GET /stats`` counts requests and aborts, ``GET /last`` shows the last request as it arrived.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import httptools
import msgspec
import uvloop

NAME = "fake-engine"
MISTAKE = {
    "message": "token_id(s) [9] in logit_bias",
    "type": "BadRequestError",
    "param": "logit_bias",
    "code": 400,
}
"""A client's mistake in vLLM's words; a stream has begun with status 200 when it finds one."""
DIRECTIVE = re.compile(rb"fake:((?: ?[a-z_0-9]+=[a-z_0-9.:]+)+)")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "rests", "in", "grün")


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Request(msgspec.Struct):
    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    input: object = None
    documents: list[object] | None = None


DECODE = msgspec.json.Decoder(Request)


@dataclass(slots=True)
class Plan:
    """What one request gets. Times in milliseconds."""

    tokens: int = 16
    itl_ms: float = 5.0
    ttft_ms: float = 5.0
    stamp: int = 0
    fault: str = ""
    after: int = 0


@dataclass(slots=True)
class Engine:
    """What all connections share."""

    model: str
    context: int
    task: str
    plan: Plan
    capacity: int = 0
    wake_delay_s: float = 0.0
    spread: float = 1.0
    asleep: bool = False
    fail_sleep: bool = False
    queue: deque[Connection] = field(default_factory=deque)
    counters: dict[str, int] = field(
        default_factory=lambda: {
            "requests": 0,
            "canaries": 0,
            "active": 0,
            "done": 0,
            "aborted": 0,
            "connections": 0,
            "waiting": 0,
            "tokens": 0,
        }
    )
    last: dict[str, str] = field(default_factory=dict)


def read_plan(body: bytes, default: Plan) -> Plan:
    """The directive in ``body`` over ``default``."""
    plan = Plan(default.tokens, default.itl_ms, default.ttft_ms, default.stamp, default.fault, default.after)
    match = DIRECTIVE.search(body)
    for pair in match.group(1).decode().split() if match else ():
        key, value = pair.split("=")
        if key == "fault":
            plan.fault, _, after = value.partition(":")
            plan.after = int(after or 0)
        elif key in ("tokens", "stamp"):
            setattr(plan, key, int(value))
        else:
            setattr(plan, key, float(value))
    return plan


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def frame(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class Connection(asyncio.Protocol):
    """One client connection; requests one after the other."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine
        self.loop = loop
        self.live = False
        self.writable = True
        self.timer: asyncio.TimerHandle | None = None
        self.steps: Iterator[tuple[float, bytes]] | None = None
        self.new_request()

    def new_request(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.head: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.engine.counters["connections"] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        counters = self.engine.counters
        counters["connections"] -= 1
        if self.timer:
            self.timer.cancel()
        if self in self.engine.queue:
            self.engine.queue.remove(self)
            counters["waiting"] -= 1
            counters["aborted"] += 1
        if self.live:
            self.end("aborted")

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self.live and self.timer is None:
            self.step()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.head.append((name.lower(), value))

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        method, path, body = self.parser.get_method(), self.url.partition(b"?")[0], b"".join(self.body)
        head = self.head
        self.new_request()
        if method == b"GET":
            self.get(path)
            return
        if path == b"/tokenize":
            self.tokenize(body)
            return
        if self.control(path):
            return
        counters = self.engine.counters
        counters["requests"] += 1
        counters["canaries"] += b'"ready?"' in body
        lines = "\n".join(f"{name.decode('latin1')}: {value.decode('latin1')}" for name, value in head)
        self.engine.last = {"path": path.decode(), "head": lines, "body": body.decode("utf-8", "replace")}
        try:
            request = DECODE.decode(body)
        except msgspec.DecodeError as error:
            self.answer({"error": {"message": str(error), "type": "BadRequestError", "code": 400}}, 400)
            return
        self.post(path, request, body)

    def get(self, path: bytes) -> None:
        engine = self.engine
        card = {"id": engine.model, "object": "model", "created": 0, "owned_by": NAME}
        known: dict[bytes, object] = {
            b"/health": {},
            b"/stats": engine.counters,
            b"/is_sleeping": {"is_sleeping": engine.asleep},
            b"/last": engine.last,
            b"/v1/models": {"object": "list", "data": [card | {"max_model_len": engine.context}]},
        }
        self.answer(known.get(path, {"detail": "Not Found"}), 200 if path in known else 404)

    def tokenize(self, body: bytes) -> None:
        """One token per five letters of a word begun, and 10 for a chat's template; as exact as it is untrue."""
        asked = msgspec.json.decode(body)
        if "messages" in asked:
            text, extra = " ".join(message["content"] for message in asked["messages"]), 10
        else:
            text, extra = asked["prompt"], 0
        count = extra + sum(-(-len(word) // 5) for word in text.split())
        self.answer({"count": count, "max_model_len": self.engine.context, "tokens": list(range(count))})

    def answer(self, value: object, status: int = 200) -> None:
        body = json.dumps(value, ensure_ascii=False).encode()
        self.transport.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (status, len(body), body)
        )

    def post(self, path: bytes, request: Request, body: bytes) -> None:
        plan = read_plan(body, self.engine.plan)
        if self.engine.spread > 1:
            # The golden ratio's multiples fill 0..1 evenly, whoever sends the requests and however many.
            turn = self.engine.counters["requests"] * 0.6180339887498949 % 1
            plan.ttft_ms *= self.engine.spread ** (2 * turn - 1)
            plan.itl_ms *= self.engine.spread ** (1 - 2 * (turn * 7 % 1))
        wanted = request.max_completion_tokens or request.max_tokens or request.max_output_tokens
        self.finish = "stop" if wanted is None or wanted >= plan.tokens else "length"
        plan.tokens = plan.tokens if wanted is None else min(plan.tokens, wanted)
        self.usage = {"prompt_tokens": max(1, len(body) // 8), "completion_tokens": plan.tokens}
        self.usage["total_tokens"] = sum(self.usage.values())
        routes = {
            b"/v1/chat/completions": self.chat,
            b"/v1/completions": self.completion,
            b"/v1/responses": self.response,
            b"/v1/messages": self.message,
        }
        if plan.fault == "reset":
            self.transport.close()
        elif plan.fault == "late":
            error = {"error": {"message": "as told", "type": "fake", "code": plan.after}}
            self.loop.call_later(plan.ttft_ms / 1000, self.answer, error, plan.after)
        elif (refusal := self.refusal(request, plan)) is not None:
            self.answer(*refusal)
        elif self.engine.asleep:
            self.answer({"error": {"message": "asleep", "type": "InternalServerError", "code": 500}}, 500)
        elif request.model.partition(":")[0] != self.engine.model:
            error = {
                "message": f"The model `{request.model}` does not exist.",
                "type": "NotFoundError",
                "code": 404,
            }
            self.answer({"error": error}, 404)
        elif path == b"/v1/embeddings" and self.engine.task == "embed":
            self.embeddings(request)
        elif path == b"/v1/messages/count_tokens":
            self.answer({"input_tokens": self.usage["prompt_tokens"]})
        elif path in routes and self.engine.task == "generate":
            self.steps = routes[path](request, plan)
            self.begin()
        elif path == b"/v1/rerank" and self.engine.task == "rerank":
            count = len(request.documents or [])
            scores = [{"index": i, "relevance_score": 1 / (i + 1)} for i in range(count)]
            self.answer({"id": "rerank-fake", "model": request.model, "results": scores, "usage": self.usage})
        elif path == b"/v1/score" and self.engine.task == "rerank":
            score = {"index": 0, "object": "score", "score": 0.5}
            self.answer({"id": "score-fake", "object": "list", "data": [score], "usage": self.usage})
        else:
            self.answer({"detail": "Not Found"}, 404)

    @staticmethod
    def refusal(request: Request, plan: Plan) -> tuple[dict[str, object], int] | None:
        """The whole error that the plan asks for, and its status."""
        if plan.fault == "status":
            return {"error": {"message": "as told", "type": "fake", "code": plan.after}}, plan.after
        if plan.fault == "error_body":
            return {"error": {"message": "as told", "type": "InternalServerError", "code": 500}}, 200
        return ({"error": MISTAKE}, 400) if plan.fault == "mistake" and not request.stream else None

    def control(self, path: bytes) -> bool:
        """What vLLM has in development mode only; whether it was that."""
        engine = self.engine
        if os.environ.get("VLLM_SERVER_DEV_MODE") != "1" or path not in (b"/sleep", b"/wake_up"):
            return False

        def done() -> None:
            engine.asleep = path == b"/sleep"
            self.answer({}, 500 if engine.asleep and engine.fail_sleep else 200)

        self.loop.call_later(engine.wake_delay_s if path == b"/wake_up" else 0, done)
        return True

    def begin(self) -> None:
        """Decode, or wait in the engine's own line while ``capacity`` others do."""
        engine = self.engine
        if engine.capacity and engine.counters["active"] >= engine.capacity:
            engine.counters["waiting"] += 1
            engine.queue.append(self)
            return
        self.live = True
        engine.counters["active"] += 1
        self.step()

    def end(self, how: str) -> None:
        """One sequence is over; the next in line begins."""
        engine = self.engine
        self.live = False
        engine.counters["active"] -= 1
        engine.counters[how] += how != "active"
        if engine.queue:
            engine.counters["waiting"] -= 1
            following = engine.queue.popleft()
            self.loop.call_soon(following.begin)

    def embeddings(self, request: Request) -> None:
        texts = request.input if isinstance(request.input, list) else [request.input]
        rows = [
            {"object": "embedding", "index": i, "embedding": [len(str(text)) / 100, 0.5, -0.5, 0.25]}
            for i, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": self.usage["prompt_tokens"], "total_tokens": self.usage["prompt_tokens"]}
        self.answer({"object": "list", "model": self.engine.model, "data": rows, "usage": usage})

    # Answers are iterators of (milliseconds to wait before, bytes to write); an empty write closes.

    def step(self) -> None:
        """Write what is due and sleep until the next write, as long as the client reads."""
        self.timer = None
        while self.live and self.writable and self.steps is not None:
            wait, data = next(self.steps, (0.0, None))
            if data is None:
                self.end("done")
                return
            if wait > 0:
                self.timer = self.loop.call_later(wait / 1000, self.write_and_step, data)
                return
            self.write(data)

    def write_and_step(self, data: bytes) -> None:
        self.timer = None
        self.write(data)
        self.step()

    def write(self, data: bytes) -> None:
        if data:
            self.transport.write(data)
        else:
            self.end("active")
            self.transport.abort()

    def texts(self, plan: Plan) -> Iterator[str]:
        if plan.fault == "merge":
            words = list(self.words(plan))
            yield from words[:1]
            yield from ("".join(words[i : i + 3]) for i in range(1, len(words), 3))
        else:
            yield from self.words(plan)

    def words(self, plan: Plan) -> Iterator[str]:
        for i in range(plan.tokens):
            if plan.stamp:
                yield f"t={time.monotonic_ns() // 1000:016d}"
            else:
                yield ("" if i == 0 else " ") + WORDS[i % len(WORDS)]

    def stream(
        self, plan: Plan, first: bytes, one: dict[str, object], put: str, last: list[bytes], event: bytes = b""
    ) -> Iterator[tuple[float, bytes]]:
        """SSE: ``first`` frames, one frame per token (``one`` with the text at ``put``), ``last`` frames."""
        kind = b"application/json" if plan.fault == "content_type" else b"text/event-stream; charset=utf-8"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\ntransfer-encoding: chunked\r\n\r\n"
        if plan.fault == "hang":
            yield 0, head
            yield 1e9, b""
        if plan.fault == "mistake":
            yield from self.mistake(plan, head, first, named=bool(event))
        early = plan.fault == "early_empty"
        if early:
            yield 0, head + chunk(first)
        before, _, after = json.dumps(one, separators=(",", ":")).partition(f'"{put}"')
        pieces = (event + b"data: " + before.encode(), after.encode() + b"\n\n")
        wait = plan.ttft_ms
        counters = self.engine.counters
        for i, text in enumerate(self.texts(plan)):
            counters["tokens"] += 1
            if plan.fault in ("cut", "stall", "error", "garbage") and i == plan.after:
                yield from self.break_off(plan, head if i == 0 else b"", named=bool(event))
            data = chunk(json.dumps(text, ensure_ascii=False).encode().join(pieces))
            if plan.fault == "double":
                data += data
            if i == 0 and not early:
                data = head + (chunk(first) if first else b"") + data
            if plan.fault == "split":
                for byte in data:
                    yield 0.01, bytes([byte])
            else:
                yield wait, data
            wait = plan.itl_ms
        yield 0, b"".join(chunk(part) for part in last if part)
        yield (500 if plan.fault == "late_end" else 0), b"0\r\n\r\n"

    def mistake(self, plan: Plan, head: bytes, first: bytes, *, named: bool) -> Iterator[tuple[float, bytes]]:
        """What vLLM 0.32 sends where it finds a client's mistake after a stream has begun, by endpoint."""
        if b"response.created" in first:
            yield 0, head + chunk(first)
        elif named:
            text = "2 validation errors for ChatCompletionStreamResponse [input_value={'error': {'code': 400}}]"
            event = {"type": "error", "error": {"type": "internal_error", "message": text}}
            yield 0, head + chunk(b"event: error\n" + frame(event)) + b"0\r\n\r\n"
        else:
            yield plan.ttft_ms, head + chunk(frame({"error": MISTAKE}))
            yield 0, chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        yield 1, b""

    def break_off(self, plan: Plan, head: bytes, *, named: bool) -> Iterator[tuple[float, bytes]]:
        if plan.fault == "garbage":
            yield 0, head + chunk(b"data: {not json\n\n")
        elif plan.fault == "error":
            error = {"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError"}}
            said = chunk(frame(error)) + chunk(b"data: [DONE]\n\n")
            if named:
                said = chunk(b"event: error\n" + frame({"type": "error", **error}))
            yield 0, head + said + b"0\r\n\r\n"
            yield 1, b""
        elif plan.fault == "stall":
            yield 1e9, b""
        else:
            yield plan.itl_ms, b""

    def ending(
        self, plan: Plan, request: Request, finish: dict[str, object], base: dict[str, object]
    ) -> list[bytes]:
        wants = request.stream_options is not None and request.stream_options.include_usage
        return [
            b"" if plan.fault == "no_finish" else frame(finish),
            frame(base | {"choices": [], "usage": self.usage}) if wants and plan.fault != "no_usage" else b"",
            b"" if plan.fault == "no_done" else b"data: [DONE]\n\n",
        ]

    def whole(self, plan: Plan, value: object) -> Iterator[tuple[float, bytes]]:
        body = json.dumps(value, ensure_ascii=False).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        if plan.fault == "cut":
            yield plan.ttft_ms, head + body[: len(body) // 2]
            yield 1, b""
        yield (1e9 if plan.fault in ("stall", "hang") else plan.ttft_ms), head + body

    def base(self, kind: str) -> dict[str, object]:
        return {
            "id": "chatcmpl-fake0123456789abcdef",
            "object": kind,
            "created": int(time.time()),
            "model": self.engine.model,
            "system_fingerprint": NAME,
        }

    def chat(self, request: Request, plan: Plan) -> Iterator[tuple[float, bytes]]:
        if not request.stream:
            message = {"role": "assistant", "content": "".join(self.texts(plan))}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish}
            usage = {} if plan.fault == "no_usage" else {"usage": self.usage}
            return self.whole(plan, self.base("chat.completion") | {"choices": [choice], **usage})
        base = self.base("chat.completion.chunk")

        def one(delta: dict[str, object], finish: str | None = None) -> dict[str, object]:
            return base | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}

        first = frame(one({"role": "assistant", "content": ""}))
        ending = self.ending(plan, request, one({}, self.finish), base)
        return self.stream(plan, first, one({"content": "@"}), "@", ending)

    def completion(self, request: Request, plan: Plan) -> Iterator[tuple[float, bytes]]:
        base = self.base("text_completion")
        if not request.stream:
            choice = {"index": 0, "text": "".join(self.texts(plan)), "finish_reason": self.finish}
            return self.whole(plan, base | {"choices": [choice], "usage": self.usage})
        last = base | {"choices": [{"index": 0, "text": "", "finish_reason": self.finish}]}
        one = base | {"choices": [{"index": 0, "text": "@", "finish_reason": None}]}
        return self.stream(plan, b"", one, "@", self.ending(plan, request, last, base))

    def response(self, request: Request, plan: Plan) -> Iterator[tuple[float, bytes]]:
        text = "".join(self.texts(plan))
        usage = {"input_tokens": self.usage["prompt_tokens"], "output_tokens": plan.tokens}
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {
            "type": "message",
            "id": "msg_fake",
            "role": "assistant",
            "status": "completed",
            "content": [part],
        }
        full: dict[str, object] = {
            "id": "resp_fake",
            "object": "response",
            "model": self.engine.model,
            "status": "completed",
        }
        full |= {"output": [item], "usage": usage | {"total_tokens": sum(usage.values())}}
        if not request.stream:
            return self.whole(plan, full)
        empty: dict[str, object] = {"output": [], "usage": None}
        first = b"".join(
            b"event: %s\n" % kind.encode() + frame({"type": kind, "response": full | empty})
            for kind in ("response.created", "response.in_progress")
        )
        one: dict[str, object] = {"type": "response.output_text.delta", "item_id": "msg_fake", "delta": "@"}
        return self.stream(plan, first, one, "@", [frame({"type": "response.completed", "response": full})])

    def message(self, request: Request, plan: Plan) -> Iterator[tuple[float, bytes]]:
        """Anthropic's API: the prompt's tokens are told when it begins, the answer's when it ends."""
        usage = {"input_tokens": self.usage["prompt_tokens"], "output_tokens": plan.tokens}
        full = {"id": "msg_fake", "type": "message", "role": "assistant", "model": self.engine.model}
        if not request.stream:
            text = {"type": "text", "text": "".join(self.texts(plan))}
            return self.whole(plan, full | {"content": [text], "stop_reason": "end_turn", "usage": usage})

        def event(kind: str, **more: object) -> bytes:
            return b"event: %s\n" % kind.encode() + frame({"type": kind, **more})

        begun = full | {"content": [], "usage": usage | {"output_tokens": 0}}
        first = event("message_start", message=begun)
        one = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "@"}}
        ended = event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
        last = [b"" if plan.fault == "no_usage" else ended, event("message_stop")]
        return self.stream(plan, first, one, "@", last, b"event: content_block_delta\n")


async def serve(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    fault, _, after = args.fault.partition(":")
    plan = Plan(args.tokens, args.itl_ms, args.ttft_ms, fault=fault, after=int(after or 0))
    engine = Engine(args.model, args.context, args.task, plan, args.capacity, args.wake_delay_s, args.spread)
    engine.fail_sleep = bool(args.fail_sleep)
    loading = asyncio.create_task(asyncio.sleep(args.load_delay_s))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([loading, stopping], return_when=asyncio.FIRST_COMPLETED)
    if args.fail_load:
        sys.exit(f"{NAME}: told to fail instead of loading")
    if not stop.is_set():
        server = await loop.create_server(lambda: Connection(engine, loop), "127.0.0.1", args.port, backlog=2048)
        port = server.sockets[0].getsockname()[1]
        print(f"{NAME}: {args.model} on http://127.0.0.1:{port}; tokens come by the clock", flush=True)
        await stop.wait()
        server.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--task", choices=("generate", "embed", "rerank"), default="generate")
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--itl-ms", type=float, default=5.0)
    parser.add_argument("--ttft-ms", type=float, default=5.0)
    parser.add_argument("--fault", default="", help="what every answer has that asks for no other fault")
    parser.add_argument(
        "--spread", type=float, default=1.0, help="times vary from 1/SPREAD to SPREAD of what is said"
    )
    parser.add_argument("--load-delay-s", type=float, default=0.0)
    parser.add_argument("--fail-load", type=int, default=0)
    parser.add_argument("--wake-delay-s", type=float, default=0.0)
    parser.add_argument("--fail-sleep", type=int, default=0, help="fall asleep, and say that it failed")
    parser.add_argument("--capacity", type=int, default=0, help="sequences decoded at once; others wait in line")
    uvloop.run(serve(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
