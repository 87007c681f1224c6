"""Which replica a chat belongs to, so that its prefix is in that replica's cache. Pure.

Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, SODA 2018): a chat's key points at a place
on a ring of replicas, and the first replica from there on that is not much busier than the mean takes it. A replica
that leaves moves its own chats only, and a hot one passes its chats to the same neighbours each time.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from zlib import crc32

import msgspec

from appliance.gateway.body import BodyFields, Message

POINTS = 64
"""Places of each replica on the ring; with 64, shares of 8 replicas differ by some 12 % (1 / sqrt(64))."""

SLACK = 4
"""A replica may hold 1 / SLACK of its slots whatever the mean is: at low load, moving a chat costs more
than it wins.
"""

PROMPT_PREFIX = 1024
"""Bytes of a plain prompt that make its key: templates and files' heads repeat, their ends do not."""

CHAT_HEADERS = frozenset({b"x-chat-id", b"x-session-id", b"x-openwebui-chat-id", b"x-claude-code-session-id"})
"""Headers by which clients name a chat: ours, a common one, Open WebUI's and Claude Code's."""

_ROLE_USER = "user"
_ITEMS = msgspec.json.Decoder(list[Message])


class Ring:
    """The order in which replicas are asked, by key. Names are the replicas'."""

    def __init__(self, names: list[str]) -> None:
        places = sorted((_place(f"{name}#{i}".encode()), name) for name in names for i in range(POINTS))
        self._places = [place for place, _ in places]
        around = [name for _, name in places]
        # From each place on, every replica once: made here, so that asking is one search.
        self._orders = [tuple(dict.fromkeys(around[start:] + around[:start])) for start in range(len(around))]

    def order(self, key: bytes) -> tuple[str, ...]:
        """Every replica once, the chat's own first."""
        return self._orders[bisect_right(self._places, _place(key)) % len(self._orders)]


def bound(total: int, replicas: int, slots: int, factor: float) -> int:
    """Requests that a replica may hold and still take its own chats: ``factor`` times the mean, or the slack."""
    return max(-int(-factor * (total + 1) // replicas), slots // SLACK, 1)


def chat_key(fields: BodyFields, headers: dict[bytes, bytes], user: str) -> bytes | None:
    """What names the chat that a request belongs to; ``None`` where nothing does.

    A chat id counts within its user only. Without one it is the beginning of the conversation: everything up to
    the first user message stays the same over all turns.
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
                # /v1/responses: a conversation too, which grows at its end.
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


def _place(key: bytes) -> int:
    # CRC-32 spread over 64 bits by a large odd factor (Knuth's multiplicative hashing): the same on every start,
    # which Python's own hash is not, and a tenth of a cryptographic hash, which nothing here needs.
    return crc32(key) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
