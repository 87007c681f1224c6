"""Reads the stream of an engine's chat completion, in pieces of any size. Pure: no socket, no clock.

vLLM and llama.cpp name the reasoning differently (``reasoning``, ``reasoning_content``). A comment is skipped. A
frame that is not JSON ends the turn: the rest of such a stream cannot be trusted.
"""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.errors import EngineFailedError, EngineReportedError, RequestError

MAX_FRAME_BYTES = 16 * 2**20


class CallPiece(msgspec.Struct):
    """A piece of a call of a tool."""

    index: int = 0
    id: str | None = None
    function: CallFunction | None = None


class CallFunction(msgspec.Struct):
    """Name and a piece of the arguments."""

    name: str | None = None
    arguments: str | None = None


class ChatDelta(msgspec.Struct):
    """New pieces of the message."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallPiece] | None = None


class ChatPiece(msgspec.Struct):
    """A choice of a chunk."""

    delta: ChatDelta | None = None
    finish_reason: str | None = None


class TokenDetails(msgspec.Struct):
    """Details of token counts."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class ChatUsage(msgspec.Struct):
    """Token counts of one call of the engine."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: TokenDetails | None = None
    completion_tokens_details: TokenDetails | None = None


class ChatChunk(msgspec.Struct):
    """One frame of the stream."""

    choices: list[ChatPiece] = []
    usage: ChatUsage | None = None
    error: Any = None


_CHUNK = msgspec.json.Decoder(ChatChunk)


class ChatStream:
    """The reader of one stream: feed it bytes, it returns whole chunks."""

    def __init__(self) -> None:
        self._rest = b""
        self.done = False
        """Whether the stream ended with its mark."""

    def feed(self, piece: bytes) -> list[ChatChunk]:
        """Return the chunks that are complete now.

        Raises :class:`RequestError` for an error in the stream, :class:`EngineFailedError` if it is not valid.
        """
        data = self._rest + piece
        lines = data.split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_FRAME_BYTES:
            raise EngineFailedError("the engine sent a frame without an end; see its log")
        found: list[ChatChunk] = []
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            content = line[5:].strip()
            if content == b"[DONE]":
                self.done = True
                continue
            found.append(self._chunk(content))
        return found

    def _chunk(self, content: bytes) -> ChatChunk:
        try:
            chunk = _CHUNK.decode(content)
        except msgspec.DecodeError as error:
            raise EngineFailedError("the engine sent a frame that is not valid; see its log") from error
        if chunk.error is not None:
            raise _reported(chunk.error)
        return chunk


def _reported(error: Any) -> RequestError:
    """Return the error that the engine or the gateway sent as a frame."""
    found = error if isinstance(error, dict) else {}
    message = str(found.get("message") or "the engine reported an error")
    code = found.get("code")
    rejection = EngineReportedError(message, status=code if isinstance(code, int) else 502)
    if isinstance(code, str):
        rejection.code = code
        rejection.status = _STATUS.get(code, 502)
    return rejection


_STATUS = {"rate_limit_exceeded": 429, "invalid_request": 400, "context_length_exceeded": 400}
