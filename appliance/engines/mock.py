"""The mock engine: vLLM's HTTP API, tokens by the clock, errors on demand.

One process, one port, no model: a completion's words are the same ones each time. Each response names itself
``fake-engine``. A directive anywhere in the request's text describes the response. So it passes any gateway, also
one that drops unknown fields::

    fake: tokens=100 itl_ms=20 ttft_ms=30 fault=cut:5

Values of ``fault``, with ``n`` a number of tokens:

* ``cut:n`` closes the connection after n tokens, ``stall:n`` sends nothing more after n;
* ``error:n`` sends an error frame after n tokens as vLLM does;
* ``no_done``, ``no_usage`` and ``no_finish`` omit that part;
* ``garbage`` sends a frame that is not JSON, ``double`` sends each token twice;
* ``merge`` puts all tokens after the first into chunks of three, ``split`` writes byte by byte;
* ``content_type`` names another content type than that of the body;
* ``early_empty`` sends an empty chunk before the first token;
* ``late_end`` ends the HTTP response half a second after ``[DONE]``;
* ``error_body`` returns 200 with an error, ``status:n`` returns status n;
* ``late_status:n`` returns status n after ``ttft_ms``;
* ``mistake`` responds as vLLM does to a client's mistake, by endpoint;
* ``reset`` closes without a response, ``hang`` sends headers and then nothing.

``--fault`` sets the same for every request. With ``tool=1`` the response is a call of the request's first tool; its
arguments are ``{"place":"Rome"}``. If ``tool_choice`` requires a tool, the response is a call with arguments that
fit the tool's schema. With ``search=n`` the responses to n requests are calls of ``file_search``; the text that
follows them cites passage 1. With ``web=n`` they are calls of ``web_search``, ``open_page`` and ``find_in_page`` in
turn. With ``think=n`` a streamed chat begins with n tokens of reasoning. With ``stamp=1``
each token is the time at which it is written. With ``digest=1`` the text is :func:`digest_of` the request's
messages, so that a test finds a mix-up. With ``echo=1`` the text is that of the last message after its first
line. With ``hold=n`` the stream waits after n tokens until
``POST /release``, which may come before or after.

With the tasks ``transcribe``, ``speech`` and ``image`` the engine serves OpenAI's paths of audio and images. A
transcription names the size of the file in bytes and its SHA-256. Speech is a WAV file of silence, as long as its
text. An image is a PNG file of the requested size. The directive is in the field ``prompt`` of a form.

``POST /tokenize`` has the shape of vLLM's. ``POST /sleep`` and ``/wake_up`` exist as in vLLM's development mode if
``VLLM_SERVER_DEV_MODE=1``. ``GET /stats`` returns counters, ``GET /last`` the last request as it was received.

A copy of this file runs alone: it needs httptools, msgspec and uvloop, and no other module of this package.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import os
import re
import signal
import struct
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, cast

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
"""A client's mistake in vLLM's words; vLLM may find it after a stream has begun with status 200."""
DIRECTIVE = re.compile(rb"fake:((?: ?[a-z_0-9]+=[a-z_0-9.:]+)+)")
STAMP = "t=????????????????"
"""The text of a token until it is written: then it is the time of the monotonic clock, in microseconds."""
DIGEST_TOKENS = 4
"""Tokens of the text with ``digest=1``."""
STAMP_BYTES = STAMP.encode()
HOLD = -1.0
"""The wait of a step that waits for a release."""
ARGUMENTS = ('{"pla', 'ce":"Rome"}')
"""The arguments of the call that ``tool=1`` requests, in the pieces of a stream."""
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "rests", "in", "grün")


SPEECH_RATE = 8000
"""Samples a second of speech."""
SAMPLES_PER_CHARACTER = 160
"""Samples of silence for each character of the text, two bytes each."""
SPEECH_PIECE = 4096
"""Bytes of speech in each chunk of the response."""
MAX_IMAGE = 1024
"""Most pixels of an image in each direction."""

SEARCH_ARGUMENTS = ('{"queries":["capital', ' of Italy"]}')
"""The arguments of the call that ``search`` requests."""
WEB_CALLS = (
    ("web_search", ('{"query":"capital', ' of Italy"}')),
    ("open_page", ('{"page":', '"1"}')),
    ("find_in_page", ('{"page":"1",', '"pattern":"Rome"}')),
)
"""The calls that ``web`` requests, in their order; it begins anew after the last one."""


TASKS = ("generate", "embed", "rerank", "transcribe", "speech", "image")
"""The tasks of a model."""


class MockStreamOptions(msgspec.Struct):
    """``stream_options`` of a request."""

    include_usage: bool = False


class MockRequest(msgspec.Struct):
    """The fields of a request that matter here, of all endpoints together."""

    model: str = ""
    stream: bool = False
    stream_options: MockStreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    input: object = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: object = None
    documents: list[object] | None = None
    # Of speech and images.
    voice: object = None
    prompt: object = None
    response_format: object = None
    size: object = None
    n: int | None = None


DECODE = msgspec.json.Decoder(MockRequest)


@dataclass(slots=True)
class ResponsePlan:
    """The response to one request: its length, its times in milliseconds, its ``fault``.

    ``after`` is the number behind the colon of ``fault``. ``text`` replaces the words. ``name`` and ``arguments``
    are those of the call that ``tool`` requests; the arguments are in the pieces of a stream.
    """

    tokens: int = 16
    itl_ms: float = 5.0
    ttft_ms: float = 5.0
    stamp: int = 0
    tool: int = 0
    name: str = ""
    arguments: tuple[str, ...] = ARGUMENTS
    search: int = 0
    web: int = 0
    think: int = 0
    cites: bool = False
    digest: int = 0
    echo: int = 0
    text: str = ""
    hold: int = 0
    fault: str = ""
    after: int = 0


@dataclass(slots=True)
class MockEngine:
    """State that all connections share.

    ``capacity`` limits the sequences decoded at once, unless it is 0. The times of requests vary by the factor
    ``spread``. ``held`` are the streams that wait for a release, ``releases`` the releases that no stream has used.
    ``last`` is the last request as it was received.
    """

    model: str
    context: int
    task: str
    plan: ResponsePlan
    capacity: int = 0
    wake_delay_s: float = 0.0
    spread: float = 1.0
    asleep: bool = False
    fail_sleep: bool = False
    bad_wake: bool = False
    fail_wake: bool = False
    queue: deque[MockConnection] = field(default_factory=deque)
    held: deque[MockConnection] = field(default_factory=deque)
    releases: int = 0
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


def read_plan(body: bytes, default: ResponsePlan) -> ResponsePlan:
    """Return ``default`` with what the directive in ``body`` sets."""
    plan = replace(default)
    match = DIRECTIVE.search(body)
    for pair in match.group(1).decode().split() if match else ():
        key, value = pair.split("=")
        if key == "fault":
            plan.fault, _, after = value.partition(":")
            plan.after = int(after or 0)
        elif key in ("tokens", "stamp", "tool", "search", "web", "think", "hold", "digest", "echo"):
            setattr(plan, key, int(value))
        else:
            setattr(plan, key, float(value))
    return plan


def digest_of(messages: object) -> str:
    """Return the text with which ``digest=1`` responds to ``messages``."""
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()


def plan_text(plan: ResponsePlan, request: MockRequest) -> None:
    """Set the text in ``plan`` if the directive requests a digest or an echo."""
    if plan.digest:
        plan.text, plan.tokens = digest_of(request.messages), DIGEST_TOKENS
    elif plan.echo:
        content = (request.messages or [{}])[-1].get("content")
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        plan.text = str(content).partition("\n")[2] or "nothing"


def plan_call(plan: ResponsePlan, request: MockRequest) -> None:
    """Set the call of a tool in ``plan`` if the directive or ``tool_choice`` requests one.

    ``tool_choice`` has a shape for each API: ``required`` and ``any``, or the name of a tool.
    """
    tools = {}
    for tool in request.tools or ():
        # The chat API keeps a function one level deeper.
        function = tool.get("function") or tool
        tools[str(function.get("name", "none"))] = function.get("parameters") or function.get("input_schema")
    plan.name = next(iter(tools), "none")
    choice = request.tool_choice
    if isinstance(choice, dict):
        function = choice.get("function") or choice
        choice, plan.name = choice.get("type"), str(function.get("name") or plan.name)
    if choice in ("required", "any", "function", "tool") and plan.name in tools:
        text = json.dumps(example(tools[plan.name], tools[plan.name]), separators=(",", ":"), ensure_ascii=False)
        half = len(text) // 2
        plan.tool, plan.arguments = 1, (text[:half], text[half:])


def plan_search(plan: ResponsePlan, request: MockRequest) -> None:
    """Set the call of a hosted tool in ``plan`` if the directive requests one and the request has its function."""
    results = sum(message.get("role") == "tool" for message in request.messages or ())
    plan.cites = plan.search > 0 or plan.web > 0
    name, arguments = WEB_CALLS[results % len(WEB_CALLS)] if plan.web else ("file_search", SEARCH_ARGUMENTS)
    known = any(tool.get("function", {}).get("name") == name for tool in request.tools or ())
    plan.search = int(max(plan.search, plan.web) > results and known)
    if plan.search:
        plan.name, plan.arguments = name, arguments


def example(schema: object, root: object) -> object:
    """Return a value that fits the JSON schema ``schema``, a part of ``root``; patterns have no effect."""
    plain = dereferenced(schema, root)
    if "const" in plain or plain.get("enum"):
        return plain["const"] if "const" in plain else plain["enum"][0]
    kind = plain.get("type", "object" if "properties" in plain or not plain else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    number = max(plain.get("minimum", 1), plain.get("exclusiveMinimum", 0) + 1)
    values: dict[str, object] = {"boolean": True, "null": None, "integer": number, "number": number}
    if kind == "object":
        known = plain.get("properties", {})
        values[kind] = {name: example(known.get(name), root) for name in plain.get("required", [])}
    if kind == "array":
        values[kind] = [example(plain.get("items"), root)] * max(1, plain.get("minItems", 1))
    return values.get(kind, "Rome".ljust(plain.get("minLength", 0), "e"))


def dereferenced(schema: object, root: object) -> dict[str, Any]:
    """Return ``schema`` without references and alternatives: the first one, and ``allOf`` merged."""
    found: Any = schema
    while isinstance(found, dict) and not found.keys().isdisjoint(("$ref", "anyOf", "oneOf", "allOf")):
        if "$ref" in found:
            place, found = found["$ref"].removeprefix("#"), root
            for part in place.split("/")[1:]:
                found = found[part]
        elif "allOf" in found:
            parts = [dereferenced(part, root) for part in found["allOf"]]
            found = {name: value for part in parts for name, value in part.items()}
            found["properties"] = {name: one for part in parts for name, one in part.get("properties", {}).items()}
            found["required"] = [name for part in parts for name in part.get("required", [])]
        else:
            found = (found.get("anyOf") or found["oneOf"])[0]
    return found if isinstance(found, dict) else {}


class FormError(ValueError):
    """A form that is not valid, or lacks a field."""


def form_fields(content_type: str, body: bytes) -> dict[str, bytes]:
    """Return the contents of the parts of a form by name; raises :class:`FormError` if it is not valid."""
    found = re.search(r'boundary="?([^";]+)"?', content_type)
    if not content_type.startswith("multipart/form-data") or found is None:
        raise FormError("not a form")
    pieces = (b"\r\n" + body).split(b"\r\n--" + found[1].encode())
    if pieces[0] or pieces[-1] not in (b"--", b"--\r\n"):
        raise FormError("the form is incomplete")
    fields: dict[str, bytes] = {}
    for piece in pieces[1:-1]:
        head, mark, content = piece.partition(b"\r\n\r\n")
        name = re.search(rb'; name="([^"]+)"', head)
        if name is None or not mark:
            raise FormError("a part has no name")
        fields[name[1].decode()] = content
    return fields


def wav_file(samples: int) -> bytes:
    """Return a WAV file of silence: one channel, 16 bits."""
    head = struct.pack("<4sI4s", b"RIFF", 36 + 2 * samples, b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, SPEECH_RATE, 2 * SPEECH_RATE, 2, 16)
    return b"".join([head, form, struct.pack("<4sI", b"data", 2 * samples), bytes(2 * samples)])


def png_file(width: int, height: int) -> bytes:
    """Return a PNG file of one grey."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress((b"\0" + b"\x80" * width) * height)),
        (b"IEND", b""),
    ):
        parts.append(struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


def chunk(data: bytes) -> bytes:
    """Return ``data`` as a chunk of HTTP's chunked coding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def frame(value: object) -> bytes:
    """Return ``value`` as an SSE event without a name."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def event(kind: str, **more: object) -> bytes:
    """Return an SSE event named ``kind`` whose data hold the name as well."""
    return b"event: %s\n" % kind.encode() + frame({"type": kind, **more})


class MockConnection(asyncio.Protocol):
    """One client connection; requests one after the other.

    Responses are iterators of pairs: milliseconds to wait before a write, and the bytes to write. An empty write
    closes the connection.
    """

    def __init__(self, engine: MockEngine, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine
        self.loop = loop
        self.decoding = False
        self.writable = True
        self.timer: asyncio.TimerHandle | None = None
        self.due = 0.0
        self.steps: Iterator[tuple[float, bytes]] | None = None
        self.new_request()

    def new_request(self) -> None:
        """Prepare to parse the next request."""
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.head: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection."""
        self.transport = cast("asyncio.Transport", transport)
        self.engine.counters["connections"] += 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        """Abort the request of this connection, whether it is decoded or waits."""
        counters = self.engine.counters
        counters["connections"] -= 1
        if self.timer:
            self.timer.cancel()
        if self in self.engine.queue:
            self.engine.queue.remove(self)
            counters["waiting"] -= 1
            counters["aborted"] += 1
        if self in self.engine.held:
            self.engine.held.remove(self)
        if self.decoding:
            self.end("aborted")

    def pause_writing(self) -> None:
        """Stop writing: the client does not read."""
        self.writable = False

    def resume_writing(self) -> None:
        """Go on writing."""
        self.writable = True
        if self.decoding and self.timer is None and self not in self.engine.held:
            self.step()

    def data_received(self, data: bytes) -> None:
        """Parse what was received; close the connection if it is not HTTP."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_url(self, url: bytes) -> None:
        """Add a piece of the request target (httptools)."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header field (httptools)."""
        self.head.append((name.lower(), value))

    def on_body(self, data: bytes) -> None:
        """Add a piece of the body (httptools)."""
        self.body.append(data)

    def on_message_complete(self) -> None:
        """Respond to the request that is complete now (httptools)."""
        method, path, body = self.parser.get_method(), self.url.partition(b"?")[0], b"".join(self.body)
        head = self.head
        self.new_request()
        if method == b"GET":
            self.get(path)
            return
        if path == b"/tokenize":
            self.tokenize(body)
            return
        if path == b"/release":
            self.release()
            return
        if self.changes_sleep(path):
            return
        counters = self.engine.counters
        counters["requests"] += 1
        counters["canaries"] += b'"ready?"' in body or b'"ready.wav"' in body
        lines = "\n".join(f"{name.decode('latin1')}: {value.decode('latin1')}" for name, value in head)
        self.engine.last = {"path": path.decode(), "head": lines, "body": body.decode("utf-8", "replace")}
        if path.startswith(b"/v1/audio/trans"):
            self.transcribe(path, head, body)
            return
        try:
            request = DECODE.decode(body)
        except msgspec.DecodeError as error:
            self.send_json({"error": {"message": str(error), "type": "BadRequestError", "code": 400}}, 400)
            return
        self.post(path, request, body)

    def get(self, path: bytes) -> None:
        """Respond to a GET request."""
        engine = self.engine
        card = {"id": engine.model, "object": "model", "created": 0, "owned_by": NAME}
        known: dict[bytes, object] = {
            b"/health": {},
            b"/stats": engine.counters,
            b"/is_sleeping": {"is_sleeping": engine.asleep},
            b"/last": engine.last,
            b"/v1/models": {"object": "list", "data": [card | {"max_model_len": engine.context}]},
        }
        self.send_json(known.get(path, {"detail": "Not Found"}), 200 if path in known else 404)

    def release(self) -> None:
        """Let the stream that waits longest go on, or the next one that will wait."""
        engine = self.engine
        self.send_json({})
        if engine.held:
            engine.held.popleft().step()
        else:
            engine.releases += 1

    def tokenize(self, body: bytes) -> None:
        """Count one token for each five letters of a word that are begun, and 10 for a chat's template."""
        request = json.loads(body, parse_int=str)
        messages, text, extra = request.get("messages"), request.get("prompt"), 0
        if isinstance(messages, list):
            contents = [message.get("content") for message in messages if isinstance(message, dict)]
            text, extra = " ".join(content for content in contents if isinstance(content, str)), 10
        if not isinstance(text, str):
            self.send_json({"error": {"message": "no prompt", "type": "BadRequestError", "code": 400}}, 400)
            return
        count = extra + sum(-(-len(word) // 5) for word in text.split())
        self.send_json({"count": count, "max_model_len": self.engine.context, "tokens": list(range(count))})

    def send_json(self, value: object, status: int = 200) -> None:
        """Send a whole response."""
        body = json.dumps(value, ensure_ascii=False).encode()
        self.transport.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (status, len(body), body)
        )

    def send_error(self, path: bytes, status: int) -> None:
        """Send an error of this status in the shape that vLLM uses on ``path``."""
        if path == b"/v1/messages":
            self.send_json({"type": "error", "error": {"type": "fake", "message": "as requested"}}, status)
        else:
            self.send_json({"error": {"message": "as requested", "type": "fake", "code": status}}, status)

    def post(self, path: bytes, request: MockRequest, body: bytes) -> None:
        """Respond to a request of the inference API."""
        plan = read_plan(body, self.engine.plan)
        if self.engine.spread > 1:
            # The golden ratio's multiples fill 0..1 evenly, whatever the clients and the number of requests.
            turn = self.engine.counters["requests"] * 0.6180339887498949 % 1
            plan.ttft_ms *= self.engine.spread ** (2 * turn - 1)
            plan.itl_ms *= self.engine.spread ** (1 - 2 * (turn * 7 % 1))
        plan_text(plan, request)
        wanted = request.max_completion_tokens or request.max_tokens or request.max_output_tokens
        self.finish = "stop" if wanted is None or wanted >= plan.tokens else "length"
        plan.tokens = plan.tokens if wanted is None else min(plan.tokens, wanted)
        plan_call(plan, request)
        plan_search(plan, request)
        if plan.tool or plan.search:
            self.finish, plan.tokens = "tool_calls", len(plan.arguments)
        self.usage = {"prompt_tokens": max(1, len(body) // 8), "completion_tokens": plan.tokens}
        self.usage["total_tokens"] = sum(self.usage.values())
        routes = {
            b"/v1/chat/completions": self.chat,
            b"/v1/completions": self.completion,
            b"/v1/responses": self.response,
            b"/v1/messages": self.message,
        }
        others: dict[bytes, tuple[str, Callable[[], None]]] = {
            b"/v1/embeddings": ("embed", lambda: self.embeddings(request)),
            b"/v1/audio/speech": ("speech", lambda: self.speak(request, plan)),
            b"/v1/images/generations": ("image", lambda: self.draw(request, plan)),
        }
        if self.fails(path, request, plan):
            return
        if request.model.partition(":")[0] != self.engine.model:
            error = {
                "message": f"The model `{request.model}` does not exist.",
                "type": "NotFoundError",
                "code": 404,
            }
            self.send_json({"error": error}, 404)
        elif path in others and self.engine.task == others[path][0]:
            others[path][1]()
        elif path == b"/v1/messages/count_tokens":
            self.send_json({"input_tokens": self.usage["prompt_tokens"]})
        elif path in routes and self.engine.task == "generate":
            self.steps = routes[path](request, plan)
            self.start_decoding()
        elif path == b"/v1/rerank" and self.engine.task == "rerank":
            count = len(request.documents or [])
            scores = [{"index": i, "relevance_score": 1 / (i + 1)} for i in range(count)]
            self.send_json({"id": "rerank-fake", "model": request.model, "results": scores, "usage": self.usage})
        elif path == b"/v1/score" and self.engine.task == "rerank":
            score = {"index": 0, "object": "score", "score": 0.5}
            self.send_json({"id": "score-fake", "object": "list", "data": [score], "usage": self.usage})
        else:
            self.send_json({"detail": "Not Found"}, 404)

    def bad_request(self, message: str, param: str | None = None) -> None:
        """Send a 400."""
        error = {"message": message, "type": "BadRequestError", "code": 400, "param": param}
        self.send_json({"error": error}, 400)

    def transcribe(self, path: bytes, head: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Respond to a form with audio: text that names the size of the file and its digest."""
        content_type = dict(head).get(b"content-type", b"").decode("latin1")
        try:
            fields = form_fields(content_type, body)
        except FormError as error:
            self.bad_request(str(error))
            return
        self.engine.last["body"] = json.dumps(
            {name: value.decode("utf-8", "replace") for name, value in fields.items() if name != "file"}
        )
        plan = read_plan(fields.get("prompt", b""), self.engine.plan)
        request = MockRequest(
            model=fields.get("model", b"").decode(), stream=fields.get("stream", b"") in (b"true", b"1")
        )
        if self.fails(path, request, plan):
            return
        file = fields.get("file", b"")
        if self.engine.task != "transcribe" or request.model != self.engine.model:
            error_body = {"message": f"The model `{request.model}` does not exist.", "type": "NotFoundError"}
            self.send_json({"error": {**error_body, "code": 404}}, 404)
        elif not file.startswith((b"RIFF", b"OggS", b"fLaC", b"ID3", b"\x1aE")):
            self.bad_request("Invalid or unsupported audio file.", "file")
        else:
            self.steps = self.transcription(request, plan, fields, file)
            self.start_decoding()

    def transcription(
        self, request: MockRequest, plan: ResponsePlan, fields: dict[str, bytes], file: bytes
    ) -> Iterator[tuple[float, bytes]]:
        """Yield a transcription in the requested format."""
        plan.text, plan.tokens = f"{len(file):07d} {hashlib.sha256(file).hexdigest()}", DIGEST_TOKENS
        if request.stream:
            base = {"id": "trsc-fake", "object": "transcription.chunk", "created": 0, "model": request.model}
            one = base | {"choices": [{"delta": {"content": "@"}, "finish_reason": None}]}
            last = base | {"choices": [{"delta": {"content": ""}, "finish_reason": "stop"}]}
            return self.stream(plan, b"", one, [frame(last), b"data: [DONE]\n\n"])
        if fields.get("response_format") in (b"text", b"srt", b"vtt"):
            return self.whole_body(plan, plan.text.encode() + b"\n", b"text/plain; charset=utf-8")
        usage = {"type": "duration", "seconds": 1}
        return self.whole(plan, {"text": plan.text, "usage": usage})

    def speak(self, request: MockRequest, plan: ResponsePlan) -> None:
        """Respond with speech: silence as long as the text, in pieces."""
        text, kind = request.input, request.response_format or "wav"
        if not isinstance(text, str) or not text:
            self.bad_request("input is empty", "input")
        elif not isinstance(request.voice, (str, dict)):
            self.bad_request("voice is missing", "voice")
        elif kind not in ("wav", "pcm"):
            self.bad_request(f"response_format {kind} is not supported", "response_format")
        else:
            self.steps = self.speech(wav_file(SAMPLES_PER_CHARACTER * len(text)), str(kind), plan)
            self.start_decoding()

    def speech(self, file: bytes, kind: str, plan: ResponsePlan) -> Iterator[tuple[float, bytes]]:
        """Yield ``file``, a piece after each interval between two tokens."""
        data = file if kind == "wav" else file[44:]
        head = f"HTTP/1.1 200 OK\r\ncontent-type: audio/{kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        wait = plan.ttft_ms
        for number, at in enumerate(range(0, len(data), SPEECH_PIECE)):
            if plan.fault in ("cut", "stall") and number == plan.after:
                yield from self.break_off(plan, b"", named=False)
            if number and number == plan.hold:
                yield HOLD, b""
            yield wait, head + chunk(data[at : at + SPEECH_PIECE])
            head, wait = b"", plan.itl_ms
        yield 0, b"0\r\n\r\n"

    def draw(self, request: MockRequest, plan: ResponsePlan) -> None:
        """Respond with images as text."""
        size = re.fullmatch(r"(\d{1,4})x(\d{1,4})", str(request.size or "64x64"))
        width, height = (int(size[1]), int(size[2])) if size is not None else (0, 0)
        if not isinstance(request.prompt, str) or not request.prompt:
            self.bad_request("prompt is empty", "prompt")
        elif not (0 < width <= MAX_IMAGE and 0 < height <= MAX_IMAGE):
            self.bad_request(f"size {request.size} is not supported", "size")
        elif request.response_format not in (None, "b64_json"):
            self.bad_request("response_format must be b64_json", "response_format")
        else:
            image = base64.b64encode(png_file(width, height)).decode()
            usage = {"input_tokens": len(request.prompt.split()), "output_tokens": 16}
            usage["total_tokens"] = sum(usage.values())
            data = [{"b64_json": image}] * (request.n or 1)
            self.steps = self.whole(plan, {"created": int(time.time()), "data": data, "usage": usage})
            self.start_decoding()

    def fails(self, path: bytes, request: MockRequest, plan: ResponsePlan) -> bool:
        """Send an error in place of the whole response; return whether the plan has one."""
        if plan.fault == "reset":
            self.transport.close()
        elif plan.fault == "mistake" and not request.stream:
            self.send_json({"error": MISTAKE}, 400)
        elif plan.fault == "status":
            self.send_error(path, plan.after)
        elif plan.fault == "late_status":
            self.loop.call_later(plan.ttft_ms / 1000, self.send_error, path, plan.after)
        elif plan.fault == "error_body":
            self.send_json({"error": {"message": "as requested", "type": "InternalServerError", "code": 500}})
        elif self.engine.asleep:
            self.send_json({"error": {"message": "asleep", "type": "InternalServerError", "code": 500}}, 500)
        else:
            return False
        return True

    def changes_sleep(self, path: bytes) -> bool:
        """Sleep or wake up if ``path`` requests it, as in vLLM's development mode; return whether it does."""
        engine = self.engine
        if os.environ.get("VLLM_SERVER_DEV_MODE") != "1" or path not in (b"/sleep", b"/wake_up"):
            return False

        def done() -> None:
            engine.asleep = path == b"/sleep"
            if engine.bad_wake and not engine.asleep:
                engine.plan = replace(engine.plan, tokens=1)
            failed = engine.fail_sleep if engine.asleep else engine.fail_wake
            self.send_json({}, 500 if failed else 200)

        self.loop.call_later(engine.wake_delay_s if path == b"/wake_up" else 0, done)
        return True

    def start_decoding(self) -> None:
        """Decode, or wait in the engine's queue while it decodes ``capacity`` other sequences."""
        engine = self.engine
        if engine.capacity and engine.counters["active"] >= engine.capacity:
            engine.counters["waiting"] += 1
            engine.queue.append(self)
            return
        self.decoding = True
        engine.counters["active"] += 1
        self.step()

    def end(self, how: str) -> None:
        """Count the end of a sequence under ``how``, unless that is ``active``, and start the next one."""
        engine = self.engine
        self.decoding = False
        engine.counters["active"] -= 1
        engine.counters[how] += how != "active"
        if engine.queue:
            engine.counters["waiting"] -= 1
            following = engine.queue.popleft()
            self.loop.call_soon(following.start_decoding)

    def embeddings(self, request: MockRequest) -> None:
        """Send a vector for each input."""
        texts = request.input if isinstance(request.input, list) else [request.input]
        rows = [
            {"object": "embedding", "index": i, "embedding": [len(str(text)) / 100, 0.5, -0.5, 0.25]}
            for i, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": self.usage["prompt_tokens"], "total_tokens": self.usage["prompt_tokens"]}
        self.send_json({"object": "list", "model": self.engine.model, "data": rows, "usage": usage})

    def step(self) -> None:
        """Write what is due and wait for the next write, while the client reads."""
        self.timer = None
        while self.decoding and self.writable and self.steps is not None:
            wait, data = next(self.steps, (0.0, None))
            if data is None:
                self.end("done")
                return
            if wait == HOLD:
                if not self.engine.releases:
                    self.engine.held.append(self)
                    return
                self.engine.releases -= 1
                continue
            if wait > 0:
                self.due = time.monotonic() + wait / 1000
                self.timer = self.loop.call_later(wait / 1000, self.write_and_step, data)
                return
            self.write(data)

    def write_and_step(self, data: bytes) -> None:
        """Write ``data`` if they are due, and go on.

        A timer of uvloop may be early: it counts whole milliseconds from the time at which the loop last woke up.
        """
        early = self.due - time.monotonic()
        if early > 0:
            self.timer = self.loop.call_later(max(early, 0.001), self.write_and_step, data)
            return
        self.timer = None
        self.write(data)
        self.step()

    def write(self, data: bytes) -> None:
        """Write ``data``; close the connection if they are empty."""
        if data:
            if STAMP_BYTES in data:
                data = data.replace(STAMP_BYTES, b"t=%016d" % (time.monotonic_ns() // 1000))
            self.transport.write(data)
        else:
            self.end("active")
            self.transport.abort()

    def texts(self, plan: ResponsePlan) -> Iterator[str]:
        """Yield the text of each chunk."""
        if plan.fault == "merge":
            words = list(self.words(plan))
            yield from words[:1]
            yield from ("".join(words[i : i + 3]) for i in range(1, len(words), 3))
        else:
            yield from self.words(plan)

    def words(self, plan: ResponsePlan) -> Iterator[str]:
        """Yield the text of each token."""
        if plan.tool or plan.search:
            yield from plan.arguments
            return
        for i in range(plan.tokens):
            if plan.text:
                size = -(-len(plan.text) // plan.tokens)
                yield plan.text[i * size : (i + 1) * size]
                continue
            text = ("" if i == 0 else " ") + WORDS[i % len(WORDS)]
            yield STAMP if plan.stamp else text + (" [1]" if plan.cites and i == plan.tokens - 1 else "")

    def stream(
        self,
        plan: ResponsePlan,
        first: bytes,
        one: dict[str, object],
        last: list[bytes],
        event: bytes = b"",
        number: int | None = None,
    ) -> Iterator[tuple[float, bytes]]:
        """Yield an SSE response: ``first`` frames, one frame for each token, ``last`` frames.

        A token's frame is ``one`` with the text in place of ``@``, after the line ``event``. ``number`` replaces
        ``#``; it is that of the first token.
        """
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
        before, _, after = json.dumps(one, separators=(",", ":")).partition('"@"')
        pieces = (event + b"data: " + before.encode(), after.encode() + b"\n\n")
        wait = plan.ttft_ms
        counters = self.engine.counters
        for i, text in enumerate(self.texts(plan)):
            counters["tokens"] += 1
            if i and i == plan.hold:
                yield HOLD, b""
            if plan.fault in ("cut", "stall", "error", "garbage") and i == plan.after:
                yield from self.break_off(plan, head if i == 0 else b"", named=bool(event) and number is None)
            line = json.dumps(text, ensure_ascii=False).encode().join(pieces)
            if number is not None:
                line = line.replace(b'"#"', b"%d" % (number + i))
            data = chunk(line)
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

    def mistake(
        self, plan: ResponsePlan, head: bytes, first: bytes, *, named: bool
    ) -> Iterator[tuple[float, bytes]]:
        """Yield what vLLM 0.32 sends if it finds a client's mistake after a stream has begun, by endpoint."""
        if b"response.created" in first:
            yield 0, head + chunk(b"\n\n".join(first.split(b"\n\n")[:2]) + b"\n\n")
        elif named:
            text = "2 validation errors for ChatCompletionStreamResponse [input_value={'error': {'code': 400}}]"
            error: dict[str, object] = {"type": "error", "error": {"type": "internal_error", "message": text}}
            yield 0, head + chunk(b"event: error\n" + frame(error)) + b"0\r\n\r\n"
        else:
            yield plan.ttft_ms, head + chunk(frame({"error": MISTAKE}))
            yield 0, chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        yield 1, b""

    def break_off(self, plan: ResponsePlan, head: bytes, *, named: bool) -> Iterator[tuple[float, bytes]]:
        """Yield the error of a stream that fails after some tokens."""
        if plan.fault == "garbage":
            yield 0, head + chunk(b"data: {not json\n\n")
        elif plan.fault == "error":
            error = {"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError"}}
            frames = chunk(frame(error)) + chunk(b"data: [DONE]\n\n")
            if named:
                frames = chunk(b"event: error\n" + frame({"type": "error", **error}))
            yield 0, head + frames + b"0\r\n\r\n"
            yield 1, b""
        elif plan.fault == "stall":
            yield 1e9, b""
        else:
            yield plan.itl_ms, b""

    def ending(
        self, plan: ResponsePlan, request: MockRequest, finish: dict[str, object], base: dict[str, object]
    ) -> list[bytes]:
        """Return the frames after the last token of a stream of OpenAI's older APIs."""
        wants = request.stream_options is not None and request.stream_options.include_usage
        return [
            b"" if plan.fault == "no_finish" else frame(finish),
            frame(base | {"choices": [], "usage": self.usage}) if wants and plan.fault != "no_usage" else b"",
            b"" if plan.fault == "no_done" else b"data: [DONE]\n\n",
        ]

    def whole(self, plan: ResponsePlan, value: object) -> Iterator[tuple[float, bytes]]:
        """Yield a response that is not streamed."""
        return self.whole_body(plan, json.dumps(value, ensure_ascii=False).encode(), b"application/json")

    def whole_body(self, plan: ResponsePlan, body: bytes, kind: bytes) -> Iterator[tuple[float, bytes]]:
        """Yield ``body`` as a response that is not streamed."""
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (kind, len(body))
        if plan.fault == "cut":
            yield plan.ttft_ms, head + body[: len(body) // 2]
            yield 1, b""
        yield (1e9 if plan.fault in ("stall", "hang") else plan.ttft_ms), head + body

    def base(self, kind: str) -> dict[str, object]:
        """Return the fields that all responses of OpenAI's older APIs have."""
        return {
            "id": "chatcmpl-fake0123456789abcdef",
            "object": kind,
            "created": int(time.time()),
            "model": self.engine.model,
            "system_fingerprint": NAME,
        }

    def chat(self, request: MockRequest, plan: ResponsePlan) -> Iterator[tuple[float, bytes]]:
        """Yield a response of OpenAI's chat API."""
        call = {"id": "call_fake", "type": "function", "function": {"name": plan.name}}
        calls = plan.tool or plan.search
        if not request.stream:
            message: dict[str, object] = {"role": "assistant", "content": "".join(self.texts(plan))}
            if calls:
                call["function"] = {"name": plan.name, "arguments": message["content"]}
                message |= {"content": None, "tool_calls": [call]}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish}
            usage = {} if plan.fault == "no_usage" else {"usage": self.usage}
            return self.whole(plan, self.base("chat.completion") | {"choices": [choice], **usage})
        base = self.base("chat.completion.chunk")

        def one(delta: dict[str, object], finish: str | None = None) -> dict[str, object]:
            return base | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}

        first = frame(one({"role": "assistant", "content": ""}))
        for i in range(plan.think):
            first += frame(one({"reasoning": ("" if i == 0 else " ") + WORDS[i % len(WORDS)]}))
        token: dict[str, object] = {"content": "@"}
        if calls:
            first += frame(one({"tool_calls": [{"index": 0, **call}]}))
            token = {"tool_calls": [{"index": 0, "function": {"arguments": "@"}}]}
        return self.stream(plan, first, one(token), self.ending(plan, request, one({}, self.finish), base))

    def completion(self, request: MockRequest, plan: ResponsePlan) -> Iterator[tuple[float, bytes]]:
        """Yield a response of OpenAI's completions API."""
        base = self.base("text_completion")
        if not request.stream:
            choice = {"index": 0, "text": "".join(self.texts(plan)), "finish_reason": self.finish}
            return self.whole(plan, base | {"choices": [choice], "usage": self.usage})
        last = base | {"choices": [{"index": 0, "text": "", "finish_reason": self.finish}]}
        one = base | {"choices": [{"index": 0, "text": "@", "finish_reason": None}]}
        return self.stream(plan, b"", one, self.ending(plan, request, last, base))

    def response(self, request: MockRequest, plan: ResponsePlan) -> Iterator[tuple[float, bytes]]:
        """Yield a response of OpenAI's Responses API, in which every event has its name twice and a number."""
        text = "".join(self.texts(plan))
        usage: dict[str, object] = {
            "input_tokens": self.usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": plan.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.usage["total_tokens"],
        }
        part = {"type": "output_text", "text": text, "annotations": []}
        item: dict[str, object] = {"type": "message", "id": "item_fake", "role": "assistant", "content": [part]}
        if plan.tool:
            item = {"type": "function_call", "id": "item_fake", "call_id": "call_fake", "arguments": text}
            item["name"] = plan.name
        item["status"] = "completed"
        full: dict[str, object] = {
            "id": "resp_fake",
            "object": "response",
            "created_at": int(time.time()),
            "model": self.engine.model,
            "status": "completed",
            "output": [item],
            "usage": usage,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        if not request.stream:
            return self.whole(plan, full)
        begun = full | {"status": "in_progress", "output": [], "usage": None}
        empty: dict[str, object] = {"arguments": ""} if plan.tool else {"content": []}
        empty = item | {"status": "in_progress"} | empty
        where: dict[str, object] = {"item_id": "item_fake", "output_index": 0}
        first: list[tuple[str, dict[str, object]]] = [
            ("response.created", {"response": begun}),
            ("response.in_progress", {"response": begun}),
            ("response.output_item.added", {"item": empty, "output_index": 0}),
        ]
        last: list[tuple[str, dict[str, object]]] = [
            ("response.output_item.done", {"item": item, "output_index": 0}),
            ("response.completed", {"response": full}),
        ]
        if plan.tool:
            kind = "response.function_call_arguments"
            last.insert(0, (f"{kind}.done", where | {"arguments": text, "name": plan.name}))
        else:
            kind = "response.output_text"
            where["content_index"] = 0
            first.append(("response.content_part.added", where | {"part": part | {"text": ""}}))
            last.insert(0, ("response.content_part.done", where | {"part": part}))
            last.insert(0, (f"{kind}.done", where | {"text": text, "logprobs": []}))
            where["logprobs"] = []
        one = {"type": f"{kind}.delta", **where, "delta": "@", "sequence_number": "#"}
        numbers = count()
        begin = b"".join(event(name, **more, sequence_number=next(numbers)) for name, more in first)
        after = count(len(first) + plan.tokens)
        end = [event(name, **more, sequence_number=next(after)) for name, more in last]
        return self.stream(plan, begin, one, end, event=b"event: %s.delta\n" % kind.encode(), number=len(first))

    def message(self, request: MockRequest, plan: ResponsePlan) -> Iterator[tuple[float, bytes]]:
        """Yield a response of Anthropic's API: the prompt's tokens in its first event, the output's in its last."""
        usage = {"input_tokens": self.usage["prompt_tokens"], "output_tokens": plan.tokens}
        full = {"id": "msg_fake", "type": "message", "role": "assistant", "model": self.engine.model}
        reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
        stop = {"stop_reason": reasons.get(self.finish, "end_turn"), "stop_sequence": None}
        block: dict[str, object] = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": "@"}
        if plan.tool:
            block = {"type": "tool_use", "id": "call_fake", "name": plan.name, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": "@"}
        if not request.stream:
            text = "".join(self.texts(plan))
            block |= {"input": json.loads(text)} if plan.tool else {"text": text}
            return self.whole(plan, full | {"content": [block], **stop, "usage": usage})
        nothing: dict[str, object] = {"content": [], "stop_reason": None}
        begun = full | nothing | {"usage": usage | {"output_tokens": 0}}
        first = event("message_start", message=begun) + event("content_block_start", index=0, content_block=block)
        ended = event("message_delta", delta=stop, usage=usage)
        last = [
            event("content_block_stop", index=0),
            b"" if plan.fault == "no_usage" else ended,
            event("message_stop"),
        ]
        one = {"type": "content_block_delta", "index": 0, "delta": delta}
        return self.stream(plan, first, one, last, event=b"event: content_block_delta\n")


async def serve(args: argparse.Namespace) -> None:
    """Serve until a signal, after the time that loading a model takes."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    fault, _, after = args.fault.partition(":")
    plan = ResponsePlan(
        tokens=args.tokens, itl_ms=args.itl_ms, ttft_ms=args.ttft_ms, fault=fault, after=int(after or 0)
    )
    engine = MockEngine(
        model=args.model,
        context=args.context,
        task=args.task,
        plan=plan,
        capacity=args.capacity,
        wake_delay_s=args.wake_delay_s,
        spread=args.spread,
    )
    engine.fail_sleep = bool(args.fail_sleep)
    engine.bad_wake = bool(args.bad_wake)
    engine.fail_wake = bool(args.fail_wake)
    loading = asyncio.create_task(asyncio.sleep(args.load_delay_s))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([loading, stopping], return_when=asyncio.FIRST_COMPLETED)
    if args.fail_load:
        sys.exit(f"{NAME}: fails instead of loading, because of --fail-load")
    if not stop.is_set():
        server = await loop.create_server(
            lambda: MockConnection(engine, loop), "127.0.0.1", args.port, backlog=2048
        )
        port = server.sockets[0].getsockname()[1]
        print(f"{NAME}: {args.model} on http://127.0.0.1:{port}; tokens come by the clock", flush=True)
        await stop.wait()
        server.close()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--task", choices=TASKS, default="generate")
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--itl-ms", type=float, default=5.0)
    parser.add_argument("--ttft-ms", type=float, default=5.0)
    parser.add_argument("--fault", default="", help="sets `fault` for each request without a directive for it")
    parser.add_argument(
        "--spread", type=float, default=1.0, help="times vary from 1/SPREAD to SPREAD times those given"
    )
    parser.add_argument("--load-delay-s", type=float, default=0.0)
    parser.add_argument("--fail-load", type=int, default=0)
    parser.add_argument("--wake-delay-s", type=float, default=0.0)
    parser.add_argument("--fail-sleep", type=int, default=0, help="fall asleep and return an error all the same")
    parser.add_argument("--fail-wake", type=int, default=0, help="wake and return an error, as without memory")
    parser.add_argument("--bad-wake", type=int, default=0, help="generate another text after a wake")
    parser.add_argument(
        "--capacity", type=int, default=0, help="sequences decoded at once; others wait in the engine's queue"
    )
    uvloop.run(serve(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
