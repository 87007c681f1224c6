"""The measuring client: a plain socket and an HTTP parser, with the time of each read.

It replaces both of Locust's clients. One of them reads in blocks of 1,024 bytes and receives a token seconds late,
and both count a stream as successful after its headers. Under Locust the sockets are gevent's; this module does not
depend on that.
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
"""Bytes of a response without streaming that are kept for parsing."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server and the key for it, empty for none.

    ``timeout_s`` is the limit of a whole response in seconds, ``stall_s`` that of a gap after its first token.
    """

    url: str
    key: str = field(repr=False)
    timeout_s: float = 120.0
    stall_s: float = 30.0


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One request; ``cancel_after`` is the number of content chunks to disconnect after, ``None`` for none."""

    model: str
    body: Mapping[str, Any]
    kind: str = "chat"
    max_tokens: int = 0
    stream: bool = True
    cancel_after: int | None = None
    chat_id: str = ""
    wanted_prompt_tokens: int | None = None


class _ResponseParser:
    """The parser's callbacks for one response."""

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
    def ends_with_connection(self) -> bool:
        """Whether no header gives the length of the body."""
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
        """Text of the last response."""
        self._tls = ssl.create_default_context() if self._route.scheme == "https" else None
        self._socket: socket.socket | None = None

    def send(self, spec: RequestSpec, *, user: int = 0, scheduled_at: float | None = None) -> Sample:
        """Send one request and read its response; every outcome is a :class:`Sample`, none an exception.

        ``scheduled_at`` is the time of an open loop's schedule, on the monotonic clock.
        """
        body = {"model": spec.model, **spec.body}
        if spec.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        data = self._request(spec, json.dumps(body, ensure_ascii=False).encode())
        sample = Sample(
            time.monotonic(),
            user,
            model=spec.model,
            kind=spec.kind,
            streamed=spec.stream,
            max_tokens=spec.max_tokens,
            wanted_prompt_tokens=spec.wanted_prompt_tokens,
        )
        sample.scheduled_at = scheduled_at
        reader = Reader(sample)
        response = _ResponseParser(sample, reader)
        error_name = ""
        try:
            ending = self._send(data, response, spec.cancel_after)
        except TimeoutError:
            silent = time.monotonic() - response.now >= self.target.stall_s
            ending = Ending.STALLED if sample.first_token_at is not None and silent else Ending.TIMEOUT
        except (OSError, httptools.HttpParserError) as error:
            ending, error_name = Ending.CUT, type(error).__name__
        sample.ended_at = time.monotonic()
        if ending is not Ending.WHOLE or not response.parser.should_keep_alive():
            self.close()
        if response.plain and sample.status == 200:
            reader.feed_body(b"".join(response.plain), sample.ended_at)
        self.text = reader.text
        sample.cause = classify(
            sample,
            ending,
            content_type=response.content_type,
            fault=reader.fault,
            texts=reader.texts,
            error_name=error_name,
        )
        if sample.status >= 400 and response.plain:
            sample.detail = b"".join(response.plain)[:200].decode("utf-8", "replace")
        return sample

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _request(self, spec: RequestSpec, body: bytes) -> bytes:
        lines = [
            f"POST {self._route.target(PATHS[spec.kind])} HTTP/1.1",
            f"Host: {self._route.authority}",
            "Content-Type: application/json",
            f"Accept: {'text/event-stream' if spec.stream else 'application/json'}",
            f"Content-Length: {len(body)}",
        ]
        if self.target.key:
            lines.append(f"Authorization: Bearer {self.target.key}")
        lines += [f"{name}: {value}" for name, value in self._route.headers.items()]
        if spec.chat_id:
            lines.append(f"x-chat-id: {spec.chat_id}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def _connect(self) -> socket.socket:
        raw = self._route.connect(self.target.timeout_s)
        self._socket = raw if self._tls is None else self._tls.wrap_socket(raw, server_hostname=self._route.host)
        return self._socket

    def _send(self, data: bytes, response: _ResponseParser, cancel_after: int | None) -> Ending:
        sample = response.sample
        deadline = sample.sent_at + self.target.timeout_s
        kept = self._socket if self._socket is not None and not _gone(self._socket) else None
        if self._socket is not None and kept is None:
            self.close()
            sample.reconnected = True
        try:
            return self._send_on(
                kept or self._connect(), data, response, deadline=deadline, cancel_after=cancel_after
            )
        except (ConnectionResetError, BrokenPipeError):
            # A server may close a kept connection at the moment of its use; every HTTP client retries once then.
            if kept is None or sample.status:
                raise
            self.close()
            sample.reconnected = True
            return self._send_on(self._connect(), data, response, deadline=deadline, cancel_after=cancel_after)

    def _send_on(
        self,
        connection: socket.socket,
        data: bytes,
        response: _ResponseParser,
        *,
        deadline: float,
        cancel_after: int | None,
    ) -> Ending:
        sample = response.sample
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        connection.sendall(data)
        silent_since = time.monotonic()
        while not response.complete:
            left = deadline - time.monotonic()
            if sample.first_token_at is not None:
                left = min(left, silent_since + self.target.stall_s - time.monotonic())
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            piece = connection.recv(65536)
            response.now = silent_since = time.monotonic()
            if not piece:
                if sample.status == 0:
                    raise ConnectionResetError
                return Ending.WHOLE if response.ends_with_connection else Ending.CUT
            response.parser.feed_data(piece)
            if cancel_after is not None and sample.chunks >= cancel_after and not sample.done:
                return Ending.CANCELLED
        return Ending.WHOLE


def _gone(connection: socket.socket) -> bool:
    """Return whether the server has closed a kept connection, or sent data without a request."""
    connection.settimeout(0)
    try:
        connection.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    return True
