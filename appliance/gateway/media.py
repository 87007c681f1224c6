"""Which addresses a request may make an engine fetch: none, but for hosts that the site names. Pure.

An engine that loads any ``image_url`` reads the metadata service, the router and the neighbours for whoever asks
(CVE-2026-24779 and its bypasses). What is not a data: URL must name an allowed host, spelled plainly, so that no
two parsers can disagree about it; the engine itself follows no redirect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from appliance.errors import InvalidRequestError
from appliance.gateway import json_text

HINTS = (b'url"', b"\\u00")
"""What a body with an address in a content part must contain: such a key, or one spelled with escapes."""

PLAIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?(/[!-\[\]-~]*)?")
"""An address without user, backslash, space or letters outside ASCII."""

FIELDS = ("messages", "input", "query", "queries", "documents", "items", "data_1", "data_2", "text_1", "text_2")
"""Where a body has content parts: conversations, and what is scored or ranked (vLLM 0.32.0's protocols)."""

PARTS = ("content", "output")
"""Where an item has them; ``output`` is what a tool gave back in /v1/responses, images among it."""

NOT_FETCHED = frozenset({"input", "annotations", "citations"})
"""What a content part says and no engine fetches: a tool call's arguments, and where a text comes from."""

ITEMS_WITH_ADDRESS = frozenset({"messages", "input", "items"})
"""Fields whose items are content parts themselves: an item's own ``…_url`` is fetched. A document that is ranked
may have any field, ``source_url`` among them, and no engine fetches it."""


def check(body: bytes, domains: tuple[str, ...]) -> None:
    """Raise :class:`InvalidRequestError` where a content part names an address that is not allowed."""
    if HINTS[0] not in body and HINTS[1] not in body:
        return
    table = json_text.value(body)
    if not isinstance(table, dict):
        return
    for field in FIELDS:
        items = table.get(field)
        for item in items if isinstance(items, list) else (items,):
            if not isinstance(item, dict):
                continue
            own = item if field in ITEMS_WITH_ADDRESS else {}
            parts = [{key: own[key] for key in own if key.endswith("_url")}]
            parts += [item[key] for key in PARTS if key in item]
            for url in _urls(parts):
                if not _allowed(url, domains):
                    allowed = ", ".join(domains) or "none"
                    raise InvalidRequestError(
                        f"{field}: {url[:80]!r} may not be fetched from here; send the media as a data: URL "
                        f"(hosts allowed: {allowed})",
                        code="media_not_allowed",
                        param=field,
                    )


def _urls(parts: list[Any]) -> Iterator[str]:
    """Every address in content parts, however deep; without recursion, for a client chooses the depth."""
    left = [*parts]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        elif isinstance(part, dict):
            for key, value in part.items():
                if key == "url" or key.endswith("_url"):
                    yield from (
                        one for one in (value if isinstance(value, list) else (value,)) if isinstance(one, str)
                    )
                if key not in NOT_FETCHED and not isinstance(value, str):
                    left.append(value)


def _allowed(url: str, domains: tuple[str, ...]) -> bool:
    if url[:5].lower() == "data:":
        return True
    return bool(PLAIN.fullmatch(url)) and (urlsplit(url).hostname or "") in domains
