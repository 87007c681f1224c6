"""One streamed answer as its client saw it, event by event. Pure: the caller says when each line came.

TTFT is counted to the first content, not to the headers or to the empty chunk that opens an answer. An
answer counts as good only with ``finish_reason``, usage and ``[DONE]``: a stream cut anywhere lacks one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Sample:
    """Times in seconds on one monotonic clock; ``cause`` is empty for a good answer."""

    sent_at: float
    status: int = 0
    first_token_at: float | None = None
    last_token_at: float | None = None
    ended_at: float = 0.0
    max_itl: float = 0.0
    frames: int = 0
    completion_tokens: int | None = None
    finish_reason: str | None = None
    done: bool = False
    cause: str = ""
    text: list[str] = field(default_factory=list)

    @property
    def ttft(self) -> float | None:
        """Seconds to the first content."""
        return None if self.first_token_at is None else self.first_token_at - self.sent_at

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first; ``None`` with fewer than two tokens."""
        if self.first_token_at is None or self.last_token_at is None:
            return None
        if self.completion_tokens is None or self.completion_tokens < 2:
            return None
        return (self.last_token_at - self.first_token_at) / (self.completion_tokens - 1)

    @property
    def e2e(self) -> float:
        """Seconds from sending to the end of the answer."""
        return self.ended_at - self.sent_at

    def line(self, line: bytes, now: float) -> None:
        """Take one line of the stream that came at ``now``; lines after ``[DONE]`` or a failure change nothing."""
        if self.cause or self.done or not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return
        try:
            event: Any = json.loads(data)
        except ValueError:
            self.cause = "garbage"
            return
        if not isinstance(event, dict):
            self.cause = "garbage"
        elif "error" in event:
            self.cause = "error event"
        else:
            self._event(event, now)

    def end(self, now: float, *, cut: bool = False) -> None:
        """The stream ended at ``now``; ``cut`` when the connection broke. Names the first thing missing."""
        self.ended_at = now
        if self.cause:
            return
        if cut:
            self.cause = "cut"
        elif self.first_token_at is None:
            self.cause = "no content"
        elif self.finish_reason is None:
            self.cause = "no finish_reason"
        elif self.completion_tokens is None:
            self.cause = "no usage"
        elif not self.done:
            self.cause = "no [DONE]"

    def _event(self, event: dict[str, Any], now: float) -> None:
        usage = event.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            self.completion_tokens = usage["completion_tokens"]
        for choice in event.get("choices") or ():
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            delta = choice.get("delta") or {}
            content = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
            if content:
                self._token(content, now)

    def _token(self, content: str, now: float) -> None:
        if self.first_token_at is None:
            self.first_token_at = now
        elif self.last_token_at is not None:
            self.max_itl = max(self.max_itl, now - self.last_token_at)
        self.last_token_at = now
        self.frames += 1
        self.text.append(content)
