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

import msgspec

from appliance.errors import InvalidRequestError

HINTS = (b'url"', b"\\u00")
"""What a body with an address in a content part must contain: such a key, or one spelled with escapes."""

PLAIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?(/[!-\[\]-~]*)?")
"""An address without user, backslash, space or letters outside ASCII."""

_ANY = msgspec.json.Decoder()


def check(body: bytes, domains: tuple[str, ...]) -> None:
    """Raise :class:`InvalidRequestError` where a content part names an address that is not allowed."""
    if HINTS[0] not in body and HINTS[1] not in body:
        return
    table = _ANY.decode(body)
    if not isinstance(table, dict):
        return
    for field in ("messages", "input"):
        items = table.get(field)
        for item in items if isinstance(items, list) else ():
            content = item.get("content") if isinstance(item, dict) else None
            for url in _urls(content) if isinstance(content, list) else ():
                if not _allowed(url, domains):
                    allowed = ", ".join(domains) or "none"
                    raise InvalidRequestError(
                        f"{field}: {url[:80]!r} may not be fetched from here; send the media as a data: URL "
                        f"(hosts allowed: {allowed})",
                        code="media_not_allowed",
                        param=field,
                    )


def _urls(part: Any) -> Iterator[str]:
    if isinstance(part, list):
        for inner in part:
            yield from _urls(inner)
    elif isinstance(part, dict):
        for key, value in part.items():
            if isinstance(value, str):
                if key == "url" or key.endswith("_url"):
                    yield value
            else:
                yield from _urls(value)


def _allowed(url: str, domains: tuple[str, ...]) -> bool:
    if url[:5].lower() == "data:":
        return True
    return bool(PLAIN.fullmatch(url)) and (urlsplit(url).hostname or "") in domains
