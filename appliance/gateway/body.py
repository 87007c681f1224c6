"""Reads the fields of a request's body that concern the gateway, and edits it without re-serialising it. Pure.

One msgspec decode finds the few fields that the gateway uses or bounds. If their form is unusual (``4.0`` for
``4``, ``"true"`` for ``true``), :mod:`~appliance.gateway.json_text` and pydantic read them as the engine does. So
the gateway bounds the values that the engine will use. A field that the engine cannot read either stays unchanged:
the engine rejects it with its own message. An edit adds or replaces a field of the outermost object. It keeps the
bytes of every other value: tool definitions, unknown fields and number formats survive.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType
from pydantic import TypeAdapter, ValidationError

from appliance.contract.model import Role
from appliance.errors import InvalidRequestError
from appliance.gateway import json_text

INCLUDE_USAGE = b'"stream_options":{"include_usage":true}'


CHATS = frozenset({"/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"})
"""Endpoints whose body has a conversation in ``messages``."""

TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Fields that limit the tokens of a response, by API."""


class StreamOptions(msgspec.Struct):
    """The part of ``stream_options`` that concerns the gateway."""

    include_usage: bool | None = None


class Message(msgspec.Struct):
    """One message of a chat: its role, and its content as received."""

    role: str = ""
    content: Raw | UnsetType = UNSET


class BodyFields(msgspec.Struct):
    """The fields of a request that the gateway uses or bounds."""

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
    background: bool | None = None
    # The engine's own, which no client may set: see CONTROLS.
    request_id: Raw | UnsetType = UNSET
    priority: Raw | UnsetType = UNSET
    cache_salt: Raw | UnsetType = UNSET
    kv_transfer_params: Raw | UnsetType = UNSET


CONTROLS = ("request_id", "priority", "cache_salt", "kv_transfer_params")
"""Fields with which vLLM lets a client choose the id of its request, overtake others, divide the prefix cache, and
move KV caches between engines. The gateway removes them."""

SYSTEM_ROLES = frozenset({"system", "developer"})
"""Roles of messages that instruct the model."""


_SYSTEM_FIELD = {
    "/v1/responses": "instructions",
    "/v1/messages": "system",
    "/v1/messages/count_tokens": "system",
}
"""The field of an endpoint with its system prompt outside the messages."""

_FIELDS = msgspec.json.Decoder(BodyFields)
_MESSAGE_LIST = msgspec.json.Decoder(list[Message])

_INTEGER: TypeAdapter[int | None] = TypeAdapter(int | None)
_BOOLEAN: TypeAdapter[bool | None] = TypeAdapter(bool | None)
_STRING: TypeAdapter[str | None] = TypeAdapter(str | None)
_LENIENT: dict[str, TypeAdapter[Any]] = {
    "stream": _BOOLEAN,
    "background": _BOOLEAN,
    "n": _INTEGER,
    "best_of": _INTEGER,
    **dict.fromkeys(TOKEN_LIMITS, _INTEGER),
    "prompt_cache_key": _STRING,
}
"""Readers of a field as in the engine: vLLM validates its requests with pydantic in lax mode."""


def decode(body: bytes) -> BodyFields:
    """Read the fields of ``body``.

    Raises :class:`InvalidRequestError` for a body that is not a JSON object or names no model.
    """
    try:
        if not body.isascii():
            # msgspec validates only the values that it decodes; an engine rejects the whole text.
            str(body, "utf-8")
        return _FIELDS.decode(body)
    except msgspec.DecodeError:
        return _decode_leniently(body)
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"The body is not JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise InvalidRequestError("The body is nested too deeply", code="invalid_json") from None


def _decode_leniently(body: bytes) -> BodyFields:
    table = json_text.members(body)
    model = json_text.value(table["model"]) if "model" in table else None
    if not isinstance(model, str) or not json_text.is_string(table["model"]):
        message = "The request names no model; set `model` to a name that GET /v1/models lists (field model)"
        raise InvalidRequestError(message, param="model")
    fields = BodyFields(model)
    for name, adapter in _LENIENT.items():
        if name in table:
            setattr(fields, name, _lenient(table[name], adapter))
    for name in ("prompt", "input", *CONTROLS):
        if name in table:
            setattr(fields, name, table[name])
    if "messages" in table:
        fields.messages = _messages(table["messages"])
    if "stream_options" in table:
        fields.stream_options = _stream_options(table["stream_options"])
    return fields


def _lenient(raw: Raw, adapter: TypeAdapter[Any]) -> Any:
    """Read one field as the engine does; return ``None`` if the engine rejects it."""
    try:
        return adapter.validate_python(json_text.numbers(raw))
    except (ValidationError, InvalidRequestError):
        return None


def _messages(raw: Raw) -> list[Message] | None:
    try:
        return _MESSAGE_LIST.decode(raw)
    except msgspec.DecodeError:
        if bytes(raw)[:1] != b"[":
            return None
        return [_message(item) for item in json_text.items(raw)]


def _message(raw: Raw) -> Message:
    if bytes(raw)[:1] != b"{":
        return Message()
    table = json_text.members(raw)
    role = json_text.value(table["role"]) if "role" in table else ""
    return Message(role if isinstance(role, str) else "", table.get("content", UNSET))


def _stream_options(raw: Raw) -> StreamOptions | None:
    if bytes(raw)[:1] != b"{":
        return None
    table = json_text.members(raw)
    return StreamOptions(_lenient(table["include_usage"], _BOOLEAN) if "include_usage" in table else None)


def check(fields: BodyFields, endpoint: str, *, context: int, max_n: int, capped: bool = False) -> bool:
    """Reject a request that would only burden an engine.

    Args:
        fields: The fields of the body.
        endpoint: Path of the endpoint.
        context: Longest prompt plus response of the model, in tokens.
        max_n: Most parallel sequences of one request.
        capped: Whether a token limit over the context is accepted.

    Returns:
        Whether a token limit is over the context, for :func:`with_cap`.

    Raises:
        InvalidRequestError: The request is invalid; the error names the field.
    """
    if fields.n is not None:
        _bound("n", fields.n, most=max_n)
    if fields.best_of is not None:
        _bound("best_of", fields.best_of, most=max_n)
    over = _over_context(fields, endpoint, context=context, capped=capped)
    if endpoint == "/v1/completions" and (many := sequences(fields, endpoint)) > max_n:
        raise InvalidRequestError(
            f"prompt and n request {many} choices at once; the maximum is {max_n}: send several requests",
            param="prompt",
        )
    if endpoint in CHATS and not (isinstance(fields.messages, list) and fields.messages):
        raise InvalidRequestError("messages is empty; send at least one message", param="messages")
    if endpoint == "/v1/responses" and fields.background:
        # The engine would respond at once and generate for a request that cannot be counted or cancelled.
        raise InvalidRequestError(
            "background responses are not supported; omit `background` and read the response or the stream",
            param="background",
            code="background_not_supported",
        )
    return over


def sequences(fields: BodyFields, endpoint: str) -> int:
    """Return the number of sequences that an engine decodes for the request: choices per prompt, times prompts."""
    choices = max(fields.n or 1, fields.best_of or 1)
    return choices * _prompts(fields.prompt) if endpoint == "/v1/completions" else choices


def _prompts(prompt: Raw | UnsetType) -> int:
    """Count the prompts in ``prompt``: one as text or as tokens, or a list of such."""
    text = bytes(prompt) if isinstance(prompt, Raw) else b""
    if text[:1] != b"[" or text[1:].lstrip()[:1] not in (b'"', b"["):
        return 1
    return len(json_text.items(text))


def _over_context(fields: BodyFields, endpoint: str, *, context: int, capped: bool) -> bool:
    """Return whether a token limit is over ``context``; reject it unless ``capped``."""
    over = False
    if (limit := fields.max_tokens) is not None:
        if limit > context and capped:
            over = True
        else:
            # A completion may request 0 tokens, to score its prompt.
            _bound("max_tokens", limit, least=0 if endpoint == "/v1/completions" else 1, most=context)
    for name in ("max_completion_tokens", "max_output_tokens"):
        if (limit := getattr(fields, name)) is not None:
            if limit > context and capped:
                over = True
            else:
                _bound(name, limit, most=context)
    return over


def _bound(param: str, value: int, *, least: int = 1, most: int) -> None:
    if not least <= value <= most:
        raise InvalidRequestError(f"{param} is {value}; it must be from {least} to {most}", param=param)


def wants_usage(fields: BodyFields) -> bool:
    """Return whether the client itself requested the usage frame of a stream."""
    options = fields.stream_options
    return isinstance(options, StreamOptions) and options.include_usage is True


def is_controlled(fields: BodyFields) -> bool:
    """Return whether the client set a field of :data:`CONTROLS`."""
    return not (
        fields.request_id is UNSET
        and fields.priority is UNSET
        and fields.cache_salt is UNSET
        and fields.kv_transfer_params is UNSET
    )


def without_controls(body: bytes) -> bytes:
    """Remove the fields of :data:`CONTROLS` from ``body``."""
    table = json_text.members(body)
    for name in CONTROLS:
        table.pop(name, None)
    return json_text.join(table)


def is_split(fields: BodyFields) -> bool:
    """Return whether the chat's instructions are not in one system message at its top."""
    if not isinstance(fields.messages, list):
        return False
    # Long chats have hundreds of messages: two searches in a list cost half of a loop.
    roles = [message.role for message in fields.messages]
    return "developer" in roles or "system" in roles[1:]


def with_one_system(body: bytes) -> bytes:
    """Merge all system and developer messages of the chat in ``body`` into one system message at its top.

    Qwen's templates reject a later system message, and the role developer. ``body`` stays unchanged if the content
    of such a message is neither a text nor a list: the engine rejects it with its own message.
    """
    table = json_text.members(body)
    messages = json_text.items(table["messages"])
    kinds = [_message(message) for message in messages]
    own = [number for number, kind in enumerate(kinds) if kind.role in SYSTEM_ROLES]
    contents = [
        bytes(kind.content) for kind in kinds if kind.role in SYSTEM_ROLES and isinstance(kind.content, Raw)
    ]
    if len(contents) < len(own) or any(content[:1] not in (b'"', b"[") for content in contents):
        return body
    first = json_text.members(messages[own[0]])
    first["role"] = Raw(b'"system"')
    first["content"] = _concatenated(contents)
    others = [message for number, message in enumerate(messages) if number not in own]
    table["messages"] = Raw(json_text.join_items([Raw(json_text.join(first)), *others]))
    return json_text.join(table)


def _concatenated(contents: list[bytes]) -> Raw:
    """Join texts and lists of parts, with a blank line between them; one list makes the result a list."""
    if all(content[:1] == b'"' for content in contents):
        return Raw(b'"' + b"\\n\\n".join(content[1:-1] for content in contents) + b'"')
    parts: list[Raw] = []
    for number, content in enumerate(contents):
        if number:
            parts.append(Raw(b'{"type":"text","text":"\\n\\n"}'))
        if content[:1] == b'"':
            parts.append(Raw(b'{"type":"text","text":' + content + b"}"))
        else:
            parts += json_text.items(content)
    return Raw(json_text.join_items(parts))


def with_usage(body: bytes, fields: BodyFields) -> bytes:
    """Set ``stream_options.include_usage`` in ``body``, whatever else ``stream_options`` holds.

    A ``stream_options`` that is neither an object nor null stays: the engine rejects it.
    """
    if fields.stream_options is UNSET:
        start = body.index(b"{") + 1
        return body[:start] + INCLUDE_USAGE + b"," + body[start:]
    table = json_text.members(body)
    raw = bytes(table["stream_options"])
    if raw[:1] != b"{" and raw != b"null":
        return body
    options = {} if raw == b"null" else json_text.members(raw)
    options["include_usage"] = Raw(b"true")
    if "continuous_usage_stats" in options:
        # Without include_usage, which the client did not set, it has no effect; with it, every frame has usage.
        options["continuous_usage_stats"] = Raw(b"false")
    table["stream_options"] = Raw(json_text.join(options))
    return json_text.join(table)


def unstreamed(body: bytes) -> bytes:
    """Return ``body`` as a request for a whole response."""
    table = json_text.members(body)
    table["stream"] = Raw(b"false")
    table.pop("stream_options", None)
    return json_text.join(table)


def with_cap(body: bytes, fields: BodyFields, context: int) -> bytes:
    """Reduce every token limit in ``body`` that is over ``context`` tokens to ``context``.

    vLLM limits a request to the context minus its prompt, but rejects a limit over the whole context. Some clients
    request 32,000 tokens from every model. Anthropic's ``thinking.budget_tokens`` must stay below the limit.
    """
    table = json_text.members(body)
    for name in TOKEN_LIMITS:
        if (getattr(fields, name) or 0) > context:
            table[name] = Raw(b"%d" % context)
    thinking = table.get("thinking")
    if thinking is not None and bytes(thinking)[:1] == b"{":
        parts = json_text.members(thinking)
        budget = _lenient(parts["budget_tokens"], _INTEGER) if "budget_tokens" in parts else None
        if budget is not None and budget >= context:
            parts["budget_tokens"] = Raw(b"%d" % max(1, context - 1))
            table["thinking"] = Raw(json_text.join(parts))
    return json_text.join(table)


def with_model(body: bytes, name: str) -> bytes:
    """Set the model in ``body`` to ``name``."""
    table = json_text.members(body)
    table["model"] = Raw(msgspec.json.encode(name))
    return json_text.join(table)


def with_role(body: bytes, role: Role, endpoint: str) -> bytes:
    """Edit ``body`` for ``role``: its model, its system prompt, and its sampling unless the client set one.

    A client's own system message follows the role's: both are joined into one, because Qwen's templates accept a
    system message only at the top.
    """
    table = json_text.members(body)
    table["model"] = Raw(msgspec.json.encode(role.served_name))
    for name, setting in role.sampling.items():
        if name not in table or bytes(table[name]) == b"null":
            table[name] = Raw(msgspec.json.encode(setting))
    if role.system_prompt is not None:
        if endpoint in _SYSTEM_FIELD:
            field = _SYSTEM_FIELD[endpoint]
            table[field] = _joined(role.system_prompt, table.get(field))
        elif "messages" in table and bytes(table["messages"])[:1] == b"[":
            table["messages"] = Raw(_with_system(table["messages"], role.system_prompt))
    return json_text.join(table)


def _joined(prompt: str, own: Raw | None) -> Raw:
    """Put ``prompt`` before a client's system prompt; keep an invalid value, which the engine rejects."""
    kind = b"n" if own is None else bytes(own)[:1]
    if own is None or kind == b"n":
        return Raw(msgspec.json.encode(prompt))
    if kind == b'"':
        return json_text.before(prompt + "\n\n", own)
    return json_text.first_item({"type": "text", "text": prompt + "\n\n"}, own) if kind == b"[" else own


def _with_system(raw: Raw, prompt: str) -> bytes:
    messages = json_text.items(raw)
    first = _message(messages[0]) if messages else Message()
    if first.role in ("system", "developer") and isinstance(first.content, Raw):
        table = json_text.members(messages[0])
        table["content"] = _joined(prompt, first.content)
        return json_text.join_items([Raw(json_text.join(table)), *messages[1:]])
    system = Raw(msgspec.json.encode({"role": "system", "content": prompt}))
    return json_text.join_items([system, *messages])
