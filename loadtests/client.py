"""Asks over a plain socket and times what comes, with an HTTP parser and nothing else in between.

Not Locust's own clients: one of them reads in blocks of 1,024 bytes and so sees a token seconds late, and
both count a stream as good once its headers came. Under Locust sockets are gevent's; here nothing knows that.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httptools

from appliance.system.proxy import route
from loadtests.outcome import Ending, classify
from loadtests.sample import Sample
from loadtests.stream import Reader

PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
PLAIN_LIMIT = 64 * 2**20
"""Bytes of an answer in one piece that are kept for reading."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server and the key for it, empty for none.

    ``timeout_s`` bounds a whole answer, ``stall_s`` the silence inside one.
    """

    url: str
    key: str = field(repr=False)
    timeout_s: float = 120.0
    stall_s: float = 30.0


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One request. ``cancel_after``: leave after so many content chunks; ``None`` reads to the end."""

    model: str
    body: Mapping[str, Any]
    kind: str = "chat"
    max_tokens: int = 0
    stream: bool = True
    cancel_after: int | None = None
    chat_id: str = ""
    wanted_prompt_tokens: int | None = None


class _ResponseParser:
    """The parser's callbacks for one answer."""

    def __init__(self, sample: Sample, reader: Reader) -> None:
        self.sample = sample
        self.reader = reader
        self.parser = httptools.HttpResponseParser(self)
        self.headers: dict[str, str] = {}
        self.complete = False
        self.plain: list[bytes] = []
        self.plain_bytes = 0
        self.now = 0.0
        self.streaming = False

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def to_the_end(self) -> bool:
        """The body ends with the connection, as nothing else says where."""
        return "content-length" not in self.headers and "transfer-encoding" not in self.headers

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin1").lower()] = value.decode("latin1")

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status < 200:
            return
        self.sample.status = status
        self.streaming = status == 200 and self.sample.streamed and self.content_type == "text/event-stream"
        with contextlib.suppress(ValueError):
            self.sample.queue_ms = float(self.headers.get("x-queue-wait-ms", ""))

    def on_body(self, body: bytes) -> None:
        if self.streaming:
            self.reader.feed(body, self.now)
        elif self.plain_bytes < PLAIN_LIMIT:
            self.plain.append(body)
            self.plain_bytes += len(body)

    def on_message_complete(self) -> None:
        if self.sample.status:
            self.complete = True


class LoadClient:
    """One user's connection, kept open between requests as real clients do."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._route = route(target.url)
        self.text = ""
        """The last answer's text."""
        self._tls = ssl.create_default_context() if self._route.scheme == "https" else None
        self._socket: socket.socket | None = None

    def ask(self, ask: RequestSpec, *, user: int = 0, scheduled_at: float | None = None) -> Sample:
        """One request; every outcome is a :class:`Sample`, none an exception."""
        body = {"model": ask.model, **ask.body}
        if ask.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        data = self._head(ask, json.dumps(body, ensure_ascii=False).encode())
        sample = Sample(
            time.monotonic(), user, ask.model, ask.kind, ask.stream, ask.max_tokens, ask.wanted_prompt_tokens
        )
        sample.scheduled_at = scheduled_at
        reader = Reader(sample)
        answer = _ResponseParser(sample, reader)
        why = ""
        try:
            ending = self._exchange(data, answer, ask.cancel_after)
        except TimeoutError:
            silent = time.monotonic() - answer.now >= self.target.stall_s
            ending = Ending.STALLED if sample.first_token_at is not None and silent else Ending.TIMEOUT
        except (OSError, httptools.HttpParserError) as error:
            ending, why = Ending.CUT, type(error).__name__
        sample.ended_at = time.monotonic()
        if ending is not Ending.WHOLE or not answer.parser.should_keep_alive():
            self.close()
        if answer.plain and sample.status == 200:
            reader.whole(b"".join(answer.plain), sample.ended_at)
        self.text = reader.text
        sample.cause = classify(
            sample, ending, content_type=answer.content_type, fault=reader.fault, texts=reader.texts, why=why
        )
        if sample.status >= 400 and answer.plain:
            sample.detail = b"".join(answer.plain)[:200].decode("utf-8", "replace")
        return sample

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _head(self, ask: RequestSpec, body: bytes) -> bytes:
        lines = [
            f"POST {self._route.target(PATHS[ask.kind])} HTTP/1.1",
            f"Host: {self._route.authority}",
            "Content-Type: application/json",
            f"Accept: {'text/event-stream' if ask.stream else 'application/json'}",
            f"Content-Length: {len(body)}",
        ]
        if self.target.key:
            lines.append(f"Authorization: Bearer {self.target.key}")
        lines += [f"{name}: {value}" for name, value in self._route.headers.items()]
        if ask.chat_id:
            lines.append(f"x-chat-id: {ask.chat_id}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def _connect(self) -> socket.socket:
        raw = self._route.connect(self.target.timeout_s)
        self._socket = raw if self._tls is None else self._tls.wrap_socket(raw, server_hostname=self._route.host)
        return self._socket

    def _exchange(self, data: bytes, answer: _ResponseParser, cancel_after: int | None) -> Ending:
        sample = answer.sample
        deadline = sample.sent_at + self.target.timeout_s
        kept = self._socket if self._socket is not None and not _gone(self._socket) else None
        if self._socket is not None and kept is None:
            self.close()
            sample.reconnected = True
        try:
            return self._once(kept or self._connect(), data, answer, deadline, cancel_after)
        except (ConnectionResetError, BrokenPipeError):
            # A server may close a kept connection in the instant we use it; every HTTP client asks once more then.
            if kept is None or sample.status:
                raise
            self.close()
            sample.reconnected = True
            return self._once(self._connect(), data, answer, deadline, cancel_after)

    def _once(
        self,
        connection: socket.socket,
        data: bytes,
        answer: _ResponseParser,
        deadline: float,
        cancel_after: int | None,
    ) -> Ending:
        sample = answer.sample
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        connection.sendall(data)
        silent_since = time.monotonic()
        while not answer.complete:
            left = deadline - time.monotonic()
            if sample.first_token_at is not None:
                left = min(left, silent_since + self.target.stall_s - time.monotonic())
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            piece = connection.recv(65536)
            answer.now = silent_since = time.monotonic()
            if not piece:
                if sample.status == 0:
                    raise ConnectionResetError
                return Ending.WHOLE if answer.to_the_end else Ending.CUT
            answer.parser.feed_data(piece)
            if cancel_after is not None and sample.chunks >= cancel_after and not sample.done:
                return Ending.CANCELLED
        return Ending.WHOLE


def _gone(connection: socket.socket) -> bool:
    """Whether the server has closed a kept connection, or sent what nobody asked for."""
    connection.settimeout(0)
    try:
        connection.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    return True
