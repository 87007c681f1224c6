"""Ids of the assistant's objects: a prefix as in OpenAI's API, then a UUID of version 7 in hexadecimal.

Such an id begins with the time in milliseconds, so ids of one kind sort by their creation, across processes. Its 74
random bits cannot be guessed; a tenant's access never depends on that alone.
"""

from __future__ import annotations

import re
import secrets
import threading
import time

CONVERSATION = "conv"
RESPONSE = "resp"
MESSAGE = "msg"
REASONING = "rs"
FUNCTION_CALL = "fc"
FUNCTION_CALL_OUTPUT = "fco"
FILE_SEARCH_CALL = "fs"
WEB_SEARCH_CALL = "ws"
COMPACTION = "cmp"
FILE = "file"
VECTOR_STORE = "vs"
FILE_BATCH = "vsfb"

LONGEST = 64
"""Characters of the longest id that a request may name."""

_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9]{0,15}[_-][A-Za-z0-9_-]{1,47}")
_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """Return a new id with ``prefix``. Ids of one process increase strictly (RFC 9562, 6.2, method 1)."""
    global _last  # noqa: PLW0603 - one clock for the whole process
    with _lock:
        # 48 bits of milliseconds and 12 bits that count within one.
        _last = max(time.time_ns() // 1_000_000 << 12, _last + 1)
        stamp = _last
    number = stamp >> 12 << 80 | 7 << 76 | (stamp & 0xFFF) << 64 | 2 << 62 | secrets.randbits(62)
    return f"{prefix}{'-' if prefix == FILE else '_'}{number:032x}"


def is_id(text: str) -> bool:
    """Return whether ``text`` has the form of an id, of any prefix."""
    return len(text) <= LONGEST and _PATTERN.fullmatch(text) is not None
