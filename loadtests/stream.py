"""Parses the bytes of one response into a :class:`Sample`. Pure: the caller passes the time of each piece.

TTFT is the time to the first *content*. Headers, comments and the empty first chunk of a response do not count.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from loadtests.sample import Sample

TEXTS_KEPT = 65536
"""Chunks of text kept of one response, for the next turn of its chat and to detect doubled tokens."""


class _ChunkDelta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[object] | None = None


class _ChunkChoice(msgspec.Struct):
    delta: _ChunkDelta | None = None
    message: _ChunkDelta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct):
    choices: list[_ChunkChoice] | None = None
    usage: _Usage | None = None
    error: Any = None
    kind: str | None = msgspec.field(default=None, name="object")


_DECODE = msgspec.json.Decoder(_Event)

GARBAGE, ERROR = "garbage", "error"
Fault: TypeAlias = str


class Reader:
    """Parser of one response; ``fault`` is its first error, :data:`GARBAGE` or :data:`ERROR`, empty for none."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.texts: list[str] = []
        self.fault: Fault = ""
        self._rest = b""
        self._last_count = 0

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.texts)

    def feed(self, piece: bytes, now: float) -> None:
        """Parse a piece of an event stream, read at ``now`` (monotonic, in seconds); ignored after an error."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if self.fault or self.sample.done:
                return
            if line.startswith(b"data:"):
                self._data(line[5:].strip(), now)

    def feed_body(self, body: bytes, now: float) -> None:
        """Parse a whole response without streaming, which ended at ``now``."""
        try:
            event = _DECODE.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.fault = GARBAGE
            return
        if event.error is not None or event.kind == "error":
            self.fault = ERROR
            return
        self._event(event, now)
        self.sample.done = True

    def _data(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self.sample.done = True
            return
        try:
            event = _DECODE.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.fault = GARBAGE
            return
        if event.error is not None or event.kind == "error":
            self.fault = ERROR
        else:
            self._event(event, now)

    def _event(self, event: _Event, now: float) -> None:
        sample = self.sample
        count: int | None = None
        if event.usage is not None:
            count = event.usage.completion_tokens
            sample.completion_tokens = count if count is not None else sample.completion_tokens
            sample.prompt_tokens = event.usage.prompt_tokens or sample.prompt_tokens
            if event.usage.prompt_tokens_details is not None:
                sample.cached_tokens = event.usage.prompt_tokens_details.cached_tokens
        for choice in event.choices or ():
            sample.finish_reason = choice.finish_reason or sample.finish_reason
            part = choice.delta or choice.message
            text = choice.text
            called = False
            if part is not None:
                text = part.content or part.reasoning_content or part.reasoning
                called = bool(part.tool_calls)
            if text or called:
                self._content(text or "", count, now)

    def _content(self, text: str, count: int | None, now: float) -> None:
        """Record a chunk with content; ``count`` is the engine's running token count if each chunk has one."""
        sample = self.sample
        if sample.first_token_at is None:
            sample.first_token_at = now
            # With vLLM's continuous_usage_stats the number of tokens in a chunk is known.
            sample.first_tokens = count or 1
        elif sample.last_token_at is not None:
            sample.gaps.add(now - sample.last_token_at, now)
        sample.last_token_at = now
        sample.chunks += 1
        if len(self.texts) < TEXTS_KEPT:
            self.texts.append(text)
