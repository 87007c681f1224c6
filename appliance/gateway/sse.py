"""Reads usage, errors and the end of an engine's stream while it is forwarded. Pure: no clock, no socket.

Two facts make it cheap. In JSON, a string never contains a raw newline or an unescaped quote. So ``\\n\\n`` ends
a frame, and ``"usage":{`` or ``"choices":[]`` in the bytes is a field and not text. Nearly every piece contains
neither: a token costs only one ``rfind``, one ``count`` and three ``in``.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from appliance.errors import EngineFailedError
from appliance.gateway.engine_error import EngineError, read_error

MAX_FRAME = 16 * 2**20
"""Most bytes of one frame; a longer one is an error. The last event of /v1/responses repeats the whole response, so
frames of a megabyte do occur."""


_DONE = b"data: [DONE]\n\n"

_ERRORS = {
    "/v1/messages": (b"event: error\n", b'data: {"type":"error"', b'data: {"error"'),
    "/v1/responses": (b"event: error\n", b"event: response.failed\n", b'data: {"error"'),
}
_ERROR = (b'data: {"error"', b'data: {"type":"error"')
"""Marks of an event with which an engine ends a failed stream, by endpoint and on all others."""

OPENERS = frozenset({"response.created", "response.queued", "response.in_progress"})
"""Events of /v1/responses that an engine sends before it has validated the request's parameters."""


class PromptDetails(msgspec.Struct):
    """Details of the prompt's tokens."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """Token counts as chat, completions and embeddings, or responses and messages (input, output), report them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    input_tokens_details: PromptDetails | None = None
    cache_read_input_tokens: int | None = None

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return self.prompt_tokens or self.input_tokens or 0

    @property
    def completion(self) -> int:
        """Tokens of the response."""
        return self.completion_tokens or self.output_tokens or 0

    @property
    def cached(self) -> int:
        """Tokens of the prompt from the prefix cache, if the engine reports them."""
        details = self.prompt_tokens_details or self.input_tokens_details
        return (details.cached_tokens or 0) if details is not None else self.cache_read_input_tokens or 0


class _SseDelta(msgspec.Struct):
    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None


class _SseChoice(msgspec.Struct):
    delta: _SseDelta | None = None
    text: Any = None


class _SseEvent(msgspec.Struct):
    usage: Usage | None = None


class _Opening(msgspec.Struct):
    response: Raw | UnsetType = UNSET


class _Frame(msgspec.Struct):
    choices: list[_SseChoice] | None = None
    usage: Usage | None = None
    type: str = ""
    delta: Any = None
    response: _SseEvent | None = None
    message: _SseEvent | None = None


_FRAME = msgspec.json.Decoder(_Frame)
_OPENING = msgspec.json.Decoder(_Opening)
_ANSWER = msgspec.json.Decoder(_SseEvent)


def read_usage(body: bytes) -> Usage | None:
    """Return the usage of a whole (not streamed) response, if it has one."""
    try:
        return _ANSWER.decode(body).usage
    except msgspec.DecodeError:
        return None


class SseFilter:
    """The reader of one SSE response: feed it the received bytes, forward the bytes that it returns.

    It returns whole frames only, so that an error event can still end a response that was cut inside a frame.

    Args:
        strip_usage: Whether to remove the usage frame, which the gateway requested and the client did not.
        endpoint: Path of the request.
        foreign: Whether lines may end in CR and LF, and JSON may have spaces, as vLLM's never do.
    """

    __slots__ = (
        "_carried",
        "_errors",
        "_foreign",
        "_held",
        "_rest",
        "_strip",
        "began",
        "done",
        "error",
        "failed",
        "final",
        "frames",
        "opening",
        "usage",
    )

    def __init__(self, *, strip_usage: bool, endpoint: str = "/v1/chat/completions", foreign: bool = False) -> None:
        self._foreign = foreign
        self._carried = b""
        self._errors = _ERRORS.get(endpoint, _ERROR)
        self._rest = b""
        self._strip = strip_usage
        self._held: bytes | None = b"" if endpoint == "/v1/responses" else None
        self.began = False
        """Whether a token was received."""
        self.done = False
        """Whether ``[DONE]`` was received."""
        self.error: EngineError | None = None
        """The error that the engine sent as an event."""
        self.failed = False
        """Whether the engine sent an error."""
        self.final = False
        """Whether the usage is that of the complete response."""
        self.frames = 0
        self.opening: Raw | None = None
        """The response object of the event that opened a stream of /v1/responses."""
        self.usage: Usage | None = None

    @property
    def estimated_tokens(self) -> int:
        """Tokens so far, if no usage arrives: one per frame, except the frame that opens the response."""
        return max(0, self.frames - 1) if self.began else 0

    def feed(self, data: bytes) -> bytes:
        """Return the part of ``data``, and of earlier data, that may be forwarded now."""
        if self._foreign:
            data = self._plain_lines(data)
        rest = self._rest
        if rest or data[-2:] != b"\n\n":
            if rest:
                data = rest + data
            end = data.rfind(b"\n\n", max(0, len(rest) - 1)) + 2
            if end == 1:
                if len(data) > MAX_FRAME:
                    raise EngineFailedError("the engine sent a frame without an end; see its log")
                self._rest = data
                return b""
            data, self._rest = data[:end], data[end:]
        self.frames += data.count(b"\n\n")
        if not self.began:
            self._detect_token(data)
        if b'"usage":{' in data or b'"choices":[]' in data or (self._foreign and b'"usage"' in data):
            data = self._take_usage(data)
        if data.endswith(_DONE) and _at_line_start(data, len(data) - 14):
            self.done = True
        for mark in self._errors:
            if mark in data and _at_line_start(data, data.index(mark)):
                self._read_error(data, data.index(mark))
        if self._held is not None:
            data = self._hold(data)
        return data

    def _plain_lines(self, data: bytes) -> bytes:
        """Return ``data`` with lines that end in LF; a CR at its end waits for what follows."""
        data = self._carried + data
        self._carried = data[-1:] if data.endswith(b"\r") else b""
        return data[: len(data) - len(self._carried)].replace(b"\r\n", b"\n")

    def finish(self) -> bytes:
        """Return the rest when the engine's response is complete; an unfinished frame is forwarded unchanged."""
        rest, self._rest = (self._held or b"") + self._rest + self._carried, b""
        self._carried = b""
        self._held = None
        return rest

    def _hold(self, data: bytes) -> bytes:
        """Hold the events that open a stream until another one follows.

        vLLM sends them before it validates the request's parameters. While they are held, a mistake of the client
        still gets its status, and another replica may still take over.
        """
        held = (self._held or b"") + data
        if not self.failed and all(kind in OPENERS for kind in _kinds(held)):
            self._held = held
            return b""
        self._held = None
        return held

    def _read_error(self, data: bytes, at: int) -> None:
        frame = data[at : data.find(b"\n\n", at)]
        start = frame.find(b"data: ")
        error = read_error(frame[start + 6 :]) if start >= 0 else None
        if error is not None and self.error is None:
            self.failed = True
            self.error = error

    def _detect_token(self, data: bytes) -> None:
        for frame in data.split(b"\n\n"):
            value = _decode(frame)
            if value is None:
                continue
            for choice in value.choices or ():
                delta = choice.delta
                if choice.text or (
                    delta and (delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls)
                ):
                    self.began = True
                    return
            if value.delta and value.type.endswith(("_delta", ".delta")):
                self.began = True
                return
            if self._held is not None and self.opening is None and value.type in OPENERS:
                opening = _OPENING.decode(frame[frame.find(b"data: {") + 6 :]).response
                self.opening = opening if isinstance(opening, Raw) else None

    def _take_usage(self, data: bytes) -> bytes:
        kept = []
        # The frames of ``data`` are whole. After an odd number of line ends, one of them is behind the last frame.
        *frames, rest = data.split(b"\n\n")
        for frame in frames:
            value = _decode(frame)
            if value is not None:
                answer = value.response or value.message
                usage = value.usage or (answer.usage if answer is not None else None)
                if usage is not None:
                    self.usage = _merge(self.usage, usage)
                    self.final = value.message is None
                    if self._strip and value.choices == []:
                        self.frames -= 1
                        continue
            kept.append(frame + b"\n\n")
        return b"".join(kept) + rest


def _merge(known: Usage | None, new: Usage) -> Usage:
    """Complete ``new`` from ``known``: /v1/messages reports the prompt's tokens first and the response's last."""
    if known is not None:
        for field in Usage.__struct_fields__:
            if not getattr(new, field):
                setattr(new, field, getattr(known, field))
    return new


def _decode(frame: bytes) -> _Frame | None:
    """Return the JSON of one frame; ``None`` for comments, ``[DONE]`` and invalid JSON."""
    start = frame.find(b"data: {")
    if start < 0:
        return None
    try:
        return _FRAME.decode(frame[start + 6 :])
    except msgspec.DecodeError:
        return None


def _kinds(data: bytes) -> list[str]:
    """Return the types of all events in ``data``, whole frames of /v1/responses."""
    found = [_decode(frame) for frame in data.split(b"\n\n")[:-1]]
    return ["" if value is None else value.type for value in found]


def _at_line_start(data: bytes, index: int) -> bool:
    return index == 0 or data[index - 1 : index] == b"\n"
