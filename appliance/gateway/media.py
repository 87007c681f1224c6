"""Limits the addresses that a request can make an engine fetch to the hosts that the site allows. Pure.

An engine that loads any ``image_url`` reads the metadata service, the router and other machines of the network for
any client (CVE-2026-24779 and its bypasses). Every address except a data: URL must name an allowed host, spelled
plainly, so that two parsers cannot disagree about it. The engine itself follows no redirect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from appliance.errors import InvalidRequestError
from appliance.gateway import json_text

HINTS = (b'url"', b"\\u00")
"""Every body with an address in a content part contains one of these: such a key, or a key with escapes."""

PLAIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?(/[!-\[\]-~]*)?")
"""An address without user, backslash, space or letters outside ASCII."""

FIELDS = ("messages", "input", "query", "queries", "documents", "items", "data_1", "data_2", "text_1", "text_2")
"""Fields of a body with content parts: conversations, inputs of scoring and ranking (vLLM 0.33.0's protocols)."""

PARTS = ("content", "output")
"""Fields of an item with content parts; ``output`` is a tool's result in /v1/responses, which may have images."""

NOT_FETCHED = frozenset({"input", "annotations", "citations"})
"""Fields of a content part that no engine fetches: arguments of a tool call, and sources of a text."""

ITEMS_WITH_ADDRESS = frozenset({"messages", "input", "items"})
"""Fields whose items are content parts themselves: an item's own ``…_url`` is fetched. A document to be ranked may
have any field, such as ``source_url``, and no engine fetches it."""


def check(body: bytes, domains: tuple[str, ...]) -> None:
    """Raise :class:`InvalidRequestError` if a content part of ``body`` has an address outside ``domains``."""
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
                        f"{field}: the engines may not fetch {url[:80]!r}; send the media as a data: URL "
                        f"(hosts allowed: {allowed})",
                        code="media_not_allowed",
                        param=field,
                    )


def _urls(parts: list[Any]) -> Iterator[str]:
    """Yield every address in content parts at any depth; without recursion, because a client chooses the depth."""
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
