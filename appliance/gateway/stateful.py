"""Which inference requests need the assistant: those with state, chats of some roles, and web search. Pure.

An engine has no conversations. It ignores ``conversation`` and drops hosted tools without an error (vLLM 0.32), so
such a request must not reach it. All other requests reach an engine directly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType
from pydantic import TypeAdapter, ValidationError

from appliance.contract.model import Site
from appliance.errors import InvalidRequestError
from appliance.gateway import json_text
from appliance.gateway.body import decode

HOSTED_TOOLS = ("code_interpreter", "file_search", "image_generation", "mcp", "web_search")
"""Types of tools that a server runs, also with a version (``web_search_2025_08_26``). Clients run the others."""


class _NamedTool(msgspec.Struct):
    type: Raw | UnsetType = UNSET


class _StateFields(msgspec.Struct):
    """The fields of a request to /v1/responses that give it state. Raw: any type must be read."""

    store: Raw | UnsetType = UNSET
    background: Raw | UnsetType = UNSET
    previous_response_id: Raw | UnsetType = UNSET
    conversation: Raw | UnsetType = UNSET
    tools: Raw | UnsetType = UNSET


_STATE = msgspec.json.Decoder(_StateFields)
_TOOLS = msgspec.json.Decoder(list[_NamedTool])
_FLAG: TypeAdapter[bool | None] = TypeAdapter(bool | None)


def is_stateful(body: bytes) -> bool:
    """Return whether the ``body`` of ``POST /v1/responses`` needs the assistant.

    It does unless ``store`` is false and no field refers to state: ``previous_response_id``, ``conversation``,
    ``background`` or a hosted tool. A body that is not JSON does not: an engine's path rejects it.
    """
    try:
        fields = _STATE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            table = json_text.members(body)
        except InvalidRequestError:
            return False
        fields = _StateFields(*(table.get(name, UNSET) for name in _StateFields.__struct_fields__))
    if _flag(fields.store, default=True) or _flag(fields.background, default=False):
        return True
    if _given(fields.previous_response_id) or _given(fields.conversation):
        return True
    return _given(fields.tools) and any(map(_is_hosted, _types(fields.tools)))


class _SearchFields(msgspec.Struct):
    web_search_options: Raw | UnsetType = UNSET


_SEARCH = msgspec.json.Decoder(_SearchFields)
_OPTIONS = b'"web_search_options"'


class NamedRoles:
    """Some roles of a site, and the requests that name one of them as their model."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self._marks = tuple(json.dumps(name).encode() for name in sorted(self.names))

    def named_in(self, body: bytes) -> bool:
        """Return whether ``body`` names one of the roles as its model.

        Nearly every other body is excluded by a search for the names, without a parse.
        """
        if not any(mark in body for mark in self._marks) and b"\\u" not in body:
            return False
        try:
            return decode(body).model in self.names
        except InvalidRequestError:
            return False


class AssistantChats:
    """The stateless requests of ``site`` that need the assistant: those of a role with a memory or web search."""

    def __init__(self, site: Site) -> None:
        self._web = site.search is not None
        searching = {name for name, role in site.roles.items() if role.search and self._web}
        self._searching = NamedRoles(searching)
        self._chatting = NamedRoles(searching | {name for name, role in site.roles.items() if role.memory})

    def includes_chat(self, body: bytes) -> bool:
        """Return whether the ``body`` of a chat completion needs the assistant."""
        return (bool(self._chatting.names) and self._chatting.named_in(body)) or (
            self._web and _requests_search(body)
        )

    def includes_response(self, body: bytes) -> bool:
        """Return whether the ``body`` of a response without state needs the assistant."""
        return bool(self._searching.names) and self._searching.named_in(body)


def _requests_search(body: bytes) -> bool:
    if _OPTIONS not in body and b"\\u" not in body:
        return False
    try:
        return _given(_SEARCH.decode(body).web_search_options)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _given(raw: Raw | UnsetType) -> bool:
    return isinstance(raw, Raw) and bytes(raw) != b"null"


def _flag(raw: Raw | UnsetType, *, default: bool) -> bool:
    """Read a boolean as an engine does, such as ``"false"``; an invalid one has its ``default``."""
    if not isinstance(raw, Raw):
        return default
    try:
        found = _FLAG.validate_python(json_text.numbers(raw))
    except (ValidationError, InvalidRequestError):
        return default
    return default if found is None else found


def _types(raw: Raw | UnsetType) -> list[Any]:
    """Return the types of the tools in ``raw``; none if it is not a list of objects."""
    try:
        tools = _TOOLS.decode(raw) if isinstance(raw, Raw) else []
        return [json_text.value(tool.type) for tool in tools if isinstance(tool.type, Raw)]
    except (msgspec.DecodeError, InvalidRequestError):
        return []


def _is_hosted(kind: object) -> bool:
    return isinstance(kind, str) and any(kind == tool or kind.startswith(f"{tool}_") for tool in HOSTED_TOOLS)
