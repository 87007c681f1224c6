"""What the gateway reads in a request's body, and how it edits it without re-serialising it. Pure.

One msgspec decode finds the few fields we act on or bound. An edit adds or replaces a field of the outermost object
and leaves the bytes of every other value as they came: tool definitions, unknown fields and number formats
survive exactly.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from appliance.config import Role
from appliance.errors import InvalidRequestError

INCLUDE_USAGE = b'"stream_options":{"include_usage":true}'


CHATS = frozenset({"/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"})
"""Endpoints whose body holds a conversation in ``messages``."""

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
"""Whose a message can be: OpenAI's roles, of which Anthropic knows two."""


class StreamOptions(msgspec.Struct):
    """The part of ``stream_options`` that concerns us."""

    include_usage: bool | None = None


class Message(msgspec.Struct):
    """One message of a chat: whose it is, and its content as it came."""

    role: str = ""
    content: Raw | UnsetType = UNSET


class Fields(msgspec.Struct):
    """The fields of a request that the gateway acts on or bounds."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | UnsetType | None = UNSET
    messages: list[Message] | UnsetType | None = UNSET
    prompt: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    n: int | None = None
    best_of: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    prompt_cache_key: str | None = None


_SYSTEM_FIELD = {
    "/v1/responses": "instructions",
    "/v1/messages": "system",
    "/v1/messages/count_tokens": "system",
}
"""Where an endpoint keeps its system prompt outside the messages."""

_FIELDS = msgspec.json.Decoder(Fields)
_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_MESSAGES = msgspec.json.Decoder(list[Raw])
_MESSAGE = msgspec.json.Decoder(Message)
_MESSAGE_FIELDS = msgspec.json.Decoder(dict[str, Raw])


def decode(body: bytes) -> Fields:
    """The fields of ``body``; raises :class:`InvalidRequestError` that names what is wrong and where."""
    try:
        if not body.isascii():
            # msgspec looks only into the values it is asked for; an engine would choke on the others.
            str(body, "utf-8")
        return _FIELDS.decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        param = path.rstrip("`").lstrip(".") or None
        if "required field `model`" in message:
            message, param = "The request names no model; set `model`, GET /v1/models lists them", "model"
        raise InvalidRequestError(f"{message}{f' (field {param})' if param else ''}", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"The body is not JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise InvalidRequestError("The body is nested too deeply", code="invalid_json") from None


def check(fields: Fields, endpoint: str, *, context: int, max_n: int) -> None:
    """Refuse what would only burden an engine; raises :class:`InvalidRequestError` that names the field.

    ``context`` is the longest prompt plus answer of the model, in tokens; ``max_n`` bounds parallel answers.
    """
    if fields.n is not None:
        _bound("n", fields.n, 1, max_n)
    if fields.best_of is not None:
        _bound("best_of", fields.best_of, 1, max_n)
    if fields.max_tokens is not None:
        # Completions may ask for no token at all, to have their prompt scored.
        _bound("max_tokens", fields.max_tokens, 0 if endpoint == "/v1/completions" else 1, context)
    if fields.max_completion_tokens is not None:
        _bound("max_completion_tokens", fields.max_completion_tokens, 1, context)
    if fields.max_output_tokens is not None:
        _bound("max_output_tokens", fields.max_output_tokens, 1, context)
    if endpoint == "/v1/completions" and (many := sequences(fields, endpoint)) > max_n:
        raise InvalidRequestError(
            f"prompt and n ask for {many} answers at once; at most {max_n} here, send the rest apart",
            param="prompt",
        )
    if endpoint in CHATS:
        messages = fields.messages
        if not isinstance(messages, list) or not messages:
            raise InvalidRequestError("messages is empty; send at least one message", param="messages")
        for index, message in enumerate(messages):
            if message.role not in ROLES:
                known = ", ".join(sorted(ROLES))
                raise InvalidRequestError(
                    f"messages[{index}].role is {message.role[:40]!r}; known roles: {known}", param="messages"
                )


def sequences(fields: Fields, endpoint: str) -> int:
    """Sequences that an engine decodes for the request: the answers to each prompt, times its prompts."""
    answers = max(fields.n or 1, fields.best_of or 1)
    return answers * _prompts(fields.prompt) if endpoint == "/v1/completions" else answers


def _prompts(prompt: Raw | UnsetType) -> int:
    """How many prompts ``prompt`` holds: one as text or as tokens, or a list of such."""
    text = bytes(prompt) if isinstance(prompt, Raw) else b""
    if text[:1] != b"[" or text[1:].lstrip()[:1] not in (b'"', b"["):
        return 1
    return len(_MESSAGES.decode(text))


def _bound(param: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidRequestError(f"{param} is {value}; it must be from {least} to {most} here", param=param)


def wants_usage(fields: Fields) -> bool:
    """Whether the client itself asked for the usage frame of a stream."""
    options = fields.stream_options
    return isinstance(options, StreamOptions) and options.include_usage is True


def with_usage(body: bytes, fields: Fields) -> bytes:
    """``body`` with ``stream_options.include_usage`` true, whatever else ``stream_options`` holds."""
    if fields.stream_options is UNSET:
        start = body.index(b"{") + 1
        return body[:start] + INCLUDE_USAGE + b"," + body[start:]
    table = _OBJECT.decode(body)
    options = {} if fields.stream_options is None else _OBJECT.decode(table["stream_options"])
    options["include_usage"] = Raw(b"true")
    if "continuous_usage_stats" in options:
        # Nothing without include_usage, which the client did not set; with it, usage in every frame.
        options["continuous_usage_stats"] = Raw(b"false")
    table["stream_options"] = Raw(_join(options))
    return _join(table)


def with_role(body: bytes, role: Role, endpoint: str) -> bytes:
    """``body`` as asked of ``role``: its model, its system prompt, its sampling where the client set none.

    A client's own system message keeps its place after the role's: both are joined into one, because Qwen's
    templates accept a system message only at the top.
    """
    table = _OBJECT.decode(body)
    table["model"] = Raw(msgspec.json.encode(role.served_name))
    for name, value in role.sampling.items():
        if name not in table or bytes(table[name]) == b"null":
            table[name] = Raw(msgspec.json.encode(value))
    if role.system_prompt is not None:
        if endpoint == "/v1/chat/completions" and "messages" in table:
            table["messages"] = Raw(_with_system(table["messages"], role.system_prompt))
        elif endpoint in _SYSTEM_FIELD:
            field = _SYSTEM_FIELD[endpoint]
            own = table.get(field)
            text = msgspec.json.decode(own) if own is not None else None
            if isinstance(text, list):
                joined: Any = [{"type": "text", "text": role.system_prompt + "\n\n"}, *text]
            else:
                joined = f"{role.system_prompt}\n\n{text}" if isinstance(text, str) else role.system_prompt
            table[field] = Raw(msgspec.json.encode(joined))
    return _join(table)


def _with_system(raw: Raw, prompt: str) -> bytes:
    try:
        messages = _MESSAGES.decode(raw)
        first = _MESSAGE.decode(messages[0]) if messages else Message()
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"messages: {error}", param="messages") from None
    if first.role in ("system", "developer") and first.content is not UNSET:
        content: Any = msgspec.json.decode(first.content)
        if isinstance(content, list):
            joined: Any = [{"type": "text", "text": prompt + "\n\n"}, *content]
        else:
            joined = f"{prompt}\n\n{content}" if isinstance(content, str) else prompt
        fields = _MESSAGE_FIELDS.decode(messages[0])
        fields["content"] = Raw(msgspec.json.encode(joined))
        rest = [_join(fields), *messages[1:]]
    else:
        rest = [msgspec.json.encode({"role": "system", "content": prompt}), *messages]
    return b"[" + b",".join(bytes(message) for message in rest) + b"]"


def _join(table: dict[str, Raw]) -> bytes:
    """``table`` as a JSON object; the bytes of its values are those that came."""
    return b"{" + b",".join(msgspec.json.encode(key) + b":" + bytes(value) for key, value in table.items()) + b"}"
