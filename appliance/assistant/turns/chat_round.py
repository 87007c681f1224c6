"""One call of the engine within a chat completion that may search the web: its frames, held back or passed. Pure.

A client sees one completion, although the engine is called several times. So all frames have the id of the first
call, the calls of hosted functions are held back, and the end is sent once.

| frame of the engine | effect |
|---|---|
| comment | passed |
| content, reasoning | passed, with the id of the completion |
| the role alone, after the first call | dropped |
| a piece of a call | held until the end of this engine call |
| a finish reason, usage, ``[DONE]`` | held; the completion has one of each |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.errors import EngineFailedError, EngineReportedError

MAX_FRAME_BYTES = 16 * 2**20
_NAMES = ("id", "object", "created", "model", "system_fingerprint")


@dataclass(slots=True)
class ChatCall:
    """A call of a function by the model."""

    call_id: str = ""
    name: str = ""
    arguments: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the call as a message has it."""
        function = {"name": self.name, "arguments": self.arguments or "{}"}
        return {"id": self.call_id, "type": "function", "function": function}


@dataclass(slots=True)
class ChatCompletionState:
    """The state of one completion over all calls of the engine."""

    names: dict[str, Any] = field(default_factory=dict)
    """Id, model and other fields that each frame has."""
    text: str = ""
    """The content that the client received so far."""
    usage: dict[str, int] = field(default_factory=dict)
    has_usage: bool = False
    written: int = 0
    """Tokens of the model so far; an upper estimate for calls without usage."""

    def add_usage(self, usage: object, *, size: int) -> None:
        """Add the token counts of one call of the engine.

        Without usage, each of the ``size`` bytes that the model wrote counts as a token.
        """
        count = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
        self.written += count if isinstance(count, int) else size
        if not isinstance(usage, Mapping):
            return
        self.has_usage = True
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            count = usage.get(name)
            self.usage[name] = self.usage.get(name, 0) + (count if isinstance(count, int) else 0)

    def frame(self, **more: Any) -> bytes:
        """Return a frame of this completion with ``more``."""
        text = json.dumps({**self.names, **more}, ensure_ascii=False)
        return b"data: " + text.encode("utf-8", "replace") + b"\n\n"

    def delta(self, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        """Return the frame of a piece of the message."""
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish}
        return self.frame(choices=[choice])


class EngineCallFrames:
    """The frames of one call of the engine; feed it bytes, it returns those for the client.

    Args:
        state: The completion.
        first: Whether this is its first call.
    """

    def __init__(self, state: ChatCompletionState, *, first: bool) -> None:
        self._state = state
        self._first = first
        self._rest = b""
        self._usage: object = None
        self.calls: dict[int, ChatCall] = {}
        self.finish: str | None = None
        self.text = ""
        """The content of this call."""
        self._size = 0

    def feed(self, piece: bytes) -> bytes:
        """Return the bytes for the client. Raises :class:`EngineReportedError`, :class:`EngineFailedError`."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > MAX_FRAME_BYTES:
            raise EngineFailedError("the engine sent a frame without an end; see its log")
        return b"".join(self._line(line) for line in lines)

    def end(self) -> None:
        """Count the tokens of this call. Raises :class:`EngineFailedError` for a stream that was cut."""
        self._state.add_usage(self._usage, size=self._size)
        if self.finish is None:
            raise EngineFailedError("the engine's stream ended early; see its log")

    def _line(self, line: bytes) -> bytes:
        if line.startswith(b":"):
            return line + b"\n\n"
        content = line[5:].strip() if line.startswith(b"data:") else b""
        if not content or content == b"[DONE]":
            return b""
        try:
            chunk = json.loads(content)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict):
            raise EngineFailedError("the engine sent a frame that is not valid; see its log")
        if chunk.get("error"):
            raise _reported(chunk["error"])
        return self._chunk(chunk)

    def _chunk(self, chunk: dict[str, Any]) -> bytes:
        state = self._state
        if not state.names:
            state.names = {name: chunk[name] for name in _NAMES if name in chunk}
        if chunk.get("usage"):
            self._usage = chunk["usage"]
        choices = chunk.get("choices") or ()
        choice = choices[0] if choices and isinstance(choices[0], dict) else {}
        delta = dict(choice.get("delta") or {})
        for piece in delta.pop("tool_calls", None) or ():
            self._add_call(piece)
        if choice.get("finish_reason"):
            self.finish = str(choice["finish_reason"])
        text = delta.get("content")
        if isinstance(text, str):
            self.text += text
            state.text += text
        self._size += written_bytes(delta)
        if not any(delta.get(name) for name in delta if name != "role") and not (self._first and "role" in delta):
            return b""
        if not self._first:
            delta.pop("role", None)
        passed = {**choice, "delta": delta, "finish_reason": None}
        return state.frame(choices=[passed])

    def _add_call(self, piece: Any) -> None:
        if not isinstance(piece, Mapping):
            return
        self._size += written_bytes({"tool_calls": [piece]})
        call = self.calls.setdefault(int(piece.get("index") or 0), ChatCall())
        function = piece.get("function") or {}
        call.call_id = call.call_id or str(piece.get("id") or "")
        call.name += str(function.get("name") or "")
        call.arguments += str(function.get("arguments") or "")


def written_bytes(message: Mapping[str, Any]) -> int:
    """Return the bytes that the model wrote in ``message``, a message or a delta: text, reasoning, calls."""
    texts = [message.get(name) for name in ("content", "reasoning", "reasoning_content", "refusal")]
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        texts += [function.get(name) for name in ("name", "arguments")] if isinstance(function, Mapping) else []
    return sum(len(text.encode("utf-8", "replace")) for text in texts if isinstance(text, str))


def _reported(error: Any) -> EngineReportedError:
    found = error if isinstance(error, Mapping) else {}
    status = found.get("code")
    reported = EngineReportedError(
        str(found.get("message") or "the engine reported an error"),
        status=status if isinstance(status, int) and 400 <= status < 600 else 502,
    )
    if isinstance(status, str):
        reported.code = status
    return reported
