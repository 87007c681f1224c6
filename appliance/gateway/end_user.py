"""The end user of a request: one of the people that share an API key. Pure.

An application such as Open WebUI sends everyone's requests with one key. If that key is marked ``end_users``, each
person counts as a user, ``<key user>/<end user>``: in the fair queue, for limits, for usage, for affinity and for
``Idempotency-Key``. Only :func:`caller` reads these fields, and for every other key it ignores them, so that a
client cannot impersonate another user.
"""

from __future__ import annotations

import re
from hashlib import blake2b

import msgspec
from msgspec import UNSET, Raw, UnsetType

from appliance.errors import InvalidRequestError, PermissionDeniedError
from appliance.gateway import json_text
from appliance.store.models import Key

HEADER = b"x-openwebui-user-id"
"""Open WebUI sends it if ``ENABLE_FORWARD_USER_INFO_HEADERS`` is true."""

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,62}")
"""Identifiers that are kept as they are."""

DIGEST = "~"
"""First character of a digest. No plain identifier begins with it, so that neither can imitate the other."""

DIGEST_BYTES = 12

DIGESTED = re.compile(f"{DIGEST}[0-9a-f]{{{2 * DIGEST_BYTES}}}")
"""Identifiers that are a digest."""

LONGEST_JSON = 4096
"""Characters of a JSON identifier that is parsed; Claude Code's has about 200."""

PERSON = ("account_uuid", "account_id", "user_id", "device_id")
"""Members of a JSON identifier that name the person, best first; those without a value are skipped."""

SESSION = "session"
"""Members whose name contains it change with every session, so they do not identify a person."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _Named(msgspec.Struct):
    """The fields of a body that can name an end user. Raw: a value of another type must not cause a rejection."""

    safety_identifier: Raw | UnsetType = UNSET
    user: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET


class _Metadata(msgspec.Struct):
    user_id: Raw | UnsetType = UNSET


_NAMED = msgspec.json.Decoder(_Named)
_METADATA = msgspec.json.Decoder(_Metadata)
_STRING = msgspec.json.Decoder(str)
_OBJECT = msgspec.json.Decoder(dict[str, Raw])

UNREADABLE = (ValueError, RecursionError)
"""Errors of the decoders: msgspec's own and a UnicodeDecodeError are ValueErrors."""


def caller(key: Key, headers: dict[bytes, bytes], body: bytes) -> Key:
    """Return ``key`` as the end user of this request uses it, or ``key`` itself.

    Args:
        key: The verified key of the request.
        headers: Names in lower case and values, as received.
        body: The body as JSON; empty while it has not arrived.

    Returns:
        ``key`` if it is not marked ``end_users`` or the request names no end user; otherwise a copy whose ``user``
        is ``<key user>/<end user>``.
    """
    if not key.end_users:
        return key
    name = end_user(headers, body)
    return key if name is None else key.of_end_user(name)


def acting_caller(key: Key, user: bytes | None) -> Key:
    """Return ``key`` as a process of this machine uses it for ``user``.

    Args:
        key: The active key.
        user: The user of the request, as the gateway named it to the process; ``None`` for the key's own.

    Raises :class:`PermissionDeniedError` for a user that cannot have the key.
    """
    if user is None or user == key.user.encode():
        return key
    account, _, name = user.decode("latin1").partition("/")
    if key.end_users and account == key.account and (PLAIN.fullmatch(name) or DIGESTED.fullmatch(name)):
        return key.of_end_user(name)
    raise PermissionDeniedError("The key in x-appliance-key does not belong to the user in x-appliance-user")


def end_user(headers: dict[bytes, bytes], body: bytes) -> str | None:
    """Return the end user that a request names, or ``None``.

    The order is ``x-openwebui-user-id``, then ``safety_identifier``, ``user`` and ``metadata.user_id`` of the body;
    an empty value, and one that is not a string, is skipped.

    Args:
        headers: Names in lower case and values, as received.
        body: The body as JSON. Invalid JSON names no end user; the gateway rejects it later.

    Returns:
        An identifier of at most 63 characters that matches :data:`PLAIN`, or a digest.
    """
    sent = headers.get(HEADER)
    if sent is not None:
        name = identifier(sent.decode("utf-8", "surrogateescape"))
        if name is not None:
            return name
    for raw in _values(body):
        name = identifier(_text(raw))
        if name is not None:
            return name
    return None


def identifier(text: str) -> str | None:
    """Return ``text`` as an identifier: trimmed, without its session, as a digest unless it is plain.

    Returns ``None`` if nothing remains.
    """
    text = _without_session(text.strip()).strip()
    if not text:
        return None
    if PLAIN.fullmatch(text):
        return text
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES)
    return DIGEST + digest.hexdigest()


def _values(body: bytes) -> tuple[Raw | UnsetType, ...]:
    try:
        named = _NAMED.decode(body.removeprefix(BYTE_ORDER_MARK))
    except UNREADABLE:
        named = _leniently(body)
    metadata: Raw | UnsetType = UNSET
    if isinstance(named.metadata, Raw):
        try:
            metadata = _METADATA.decode(named.metadata).user_id
        except UNREADABLE:
            # A list, a text, a number: not an object.
            metadata = UNSET
    return named.safety_identifier, named.user, metadata


def _leniently(body: bytes) -> _Named:
    """Read a body that only a lenient parser accepts; one that is not JSON names no end user."""
    try:
        table = json_text.members(body)
    except InvalidRequestError:
        return _Named()
    return _Named(*(table.get(name, UNSET) for name in _Named.__struct_fields__))


def _text(raw: Raw | UnsetType) -> str:
    """Return a JSON string's text; empty for every other type."""
    if not isinstance(raw, Raw):
        return ""
    try:
        return _STRING.decode(raw)
    except UNREADABLE:
        return ""


def _without_session(text: str) -> str:
    """Return the part of Claude Code's identifier that stays the same over sessions; any other text unchanged.

    Up to version 2.1.77 it is ``user_<device>_account_<account>_session_<session>``, the account often empty; since
    then a JSON object with ``device_id``, ``account_uuid`` and ``session_id``. Both yield the same person. Proxies
    copy it into ``user``, so every source is treated alike.
    """
    if text[:1] == "{" and len(text) <= LONGEST_JSON:
        return _without_session_member(text)
    head, mark, _ = text.rpartition("_session_")
    device, account_mark, account = head.removeprefix("user_").partition("_account_")
    if not mark or not account_mark or not head.startswith("user_"):
        return text
    return account or device


def _without_session_member(text: str) -> str:
    try:
        members = _OBJECT.decode(text)
    except UNREADABLE:
        return text
    for name in PERSON:
        value = _text(members.get(name, UNSET)).strip()
        if value:
            return value
    left = sorted((name, bytes(value)) for name, value in members.items() if SESSION not in name.lower())
    # Members without a value identify no person: with nothing else, the key's own user counts.
    return repr(left) if any(value not in (b'""', b"null") for _, value in left) else ""
