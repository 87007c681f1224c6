"""Assigns each chat to a replica, so that the replica's cache holds the chat's prefix. Pure.

It is consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, SODA 2018). A chat's key selects a
position on a ring of replicas. The first replica from there that is not much busier than the mean gets the chat.
If a replica is removed, only its own chats move, and an overloaded one passes its chats to the same neighbours each
time.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from zlib import crc32

import msgspec

from appliance.gateway.body import BodyFields, Message

POINTS = 64
"""Positions of each replica on the ring; with 64, shares of 8 replicas differ by about 12 % (1 / sqrt(64))."""

SLACK = 4
"""A replica may use 1 / SLACK of its slots whatever the mean is: at low load, moving a chat costs more than it
saves.
"""

PROMPT_PREFIX = 1024
"""Bytes of a plain prompt that form its key: templates and the beginnings of files repeat, their ends do not."""

CHAT_HEADERS = frozenset({b"x-chat-id", b"x-session-id", b"x-openwebui-chat-id", b"x-claude-code-session-id"})
"""Headers that identify a chat: this gateway's, a common one, Open WebUI's and Claude Code's."""

_ROLE_USER = "user"
_ITEMS = msgspec.json.Decoder(list[Message])


class Ring:
    """The order of the replicas for each key, by the replicas' ``names``."""

    def __init__(self, names: list[str]) -> None:
        points = sorted((_position(f"{name}#{i}".encode()), name) for name in names for i in range(POINTS))
        self._positions = [position for position, _ in points]
        around = [name for _, name in points]
        # For each position, every replica once: computed here, so that a lookup is one search.
        self._orders = [tuple(dict.fromkeys(around[start:] + around[:start])) for start in range(len(around))]

    def order(self, key: bytes) -> tuple[str, ...]:
        """Return every replica once, the chat's own first."""
        return self._orders[bisect_right(self._positions, _position(key)) % len(self._orders)]


def bound(total: int, replicas: int, slots: int, factor: float) -> int:
    """Return the number of requests below which a replica takes its own chats.

    That is ``factor`` times the mean of all replicas, or the slack if that is more.

    Args:
        total: Requests on all replicas.
        replicas: Number of replicas.
        slots: Slots of the replica.
        factor: Multiple of the mean load.
    """
    return max(-int(-factor * (total + 1) // replicas), slots // SLACK, 1)


def chat_key(fields: BodyFields, headers: dict[bytes, bytes], user: str) -> bytes | None:
    """Return a key of the chat that a request belongs to, or ``None``.

    A chat id is valid within its user only. Without one, the key is the beginning of the conversation: everything
    up to the first user message is the same in all turns.
    """
    if not CHAT_HEADERS.isdisjoint(headers):
        value = next(headers[name] for name in sorted(CHAT_HEADERS) if name in headers)
        return b"%s\0%s" % (user.encode(), value)
    if fields.prompt_cache_key:
        return b"%s\0%s" % (user.encode(), fields.prompt_cache_key.encode())
    messages = fields.messages
    if isinstance(messages, list):
        return _beginning(messages)
    for prompt in (fields.prompt, fields.input):
        if isinstance(prompt, msgspec.Raw):
            text = bytes(prompt)
            if text[:1] == b"[" and text[1:].lstrip()[:1] == b"{":
                # /v1/responses: also a conversation, which grows at its end.
                with contextlib.suppress(msgspec.DecodeError):
                    return _beginning(_ITEMS.decode(text))
            return text[:PROMPT_PREFIX]
    return None


def _beginning(messages: list[Message]) -> bytes:
    key = b""
    for message in messages:
        if isinstance(message.content, msgspec.Raw):
            key += bytes(message.content)
        if message.role == _ROLE_USER:
            break
    return key


def _position(key: bytes) -> int:
    # CRC-32, which a large odd factor spreads over 64 bits (Knuth's multiplicative hashing). Unlike Python's own
    # hash, it is the same after every start. A cryptographic hash costs ten times as much and is not needed here.
    return crc32(key) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
