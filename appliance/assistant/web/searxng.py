"""SearXNG's JSON interface. A search that its engines could not run is an error, never an empty list of results.

SearXNG reports a CAPTCHA of an engine with status 200: without results, and with `unresponsive_engines`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from appliance.errors import WebSearchError

MAX_BYTES = 4 * 2**20
"""Bytes of a response."""
MAX_TEXT = 2000
"""Letters of the extract of one result."""
MAX_TITLE = 200
MAX_URL = 4096
MAX_SITES = 5
"""Domains up to which the query itself names them; results of others are removed in any case."""


@dataclass(frozen=True, slots=True)
class WebResult:
    """One result, whose text is of unknown origin."""

    url: str
    title: str
    text: str
    date: datetime | None = None


class SearxngClient:
    """A pooled client of one server.

    Args:
        url: Its address.
        timeout_s: Seconds for one search.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(base_url=url, timeout=timeout_s, trust_env=False)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def search(self, query: str, *, limit: int, domains: Sequence[str] = ()) -> list[WebResult]:
        """Return at most ``limit`` results for ``query``, best first; all are within ``domains`` if there are any.

        Raises :class:`WebSearchError`, whose code is the kind of the failure.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._post(with_domains(query, domains))
        except (TimeoutError, httpx.TimeoutException):
            raise WebSearchError("the search engine takes too long", code="search_timeout") from None
        except httpx.HTTPError as error:
            raise WebSearchError(
                f"the search engine cannot be reached ({type(error).__name__}); check search.url and its unit",
                code="search_unreachable",
            ) from None
        return read_results(found, limit=limit, domains=domains)

    async def _post(self, query: str) -> Any:
        """Return the JSON response. The query is in the body, so that the log of the server does not have it."""
        form = {"q": query, "format": "json"}
        async with self._client.stream("POST", "/search", data=form) as response:
            if response.status_code != 200:
                raise _refusal(response.status_code)
            content = b""
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > MAX_BYTES:
                    raise _unreadable()
        try:
            return json.loads(content)
        except ValueError:
            raise _unreadable() from None


def with_domains(query: str, domains: Sequence[str]) -> str:
    """Return ``query`` limited to ``domains``, in the form that search engines share."""
    if not domains or len(domains) > MAX_SITES:
        return query
    return f"{query} ({' OR '.join(f'site:{domain}' for domain in domains)})"


def read_results(found: Any, *, limit: int, domains: Sequence[str] = ()) -> list[WebResult]:
    """Return the results in ``found``, a response of SearXNG. Raises :class:`WebSearchError`."""
    if not isinstance(found, Mapping) or not isinstance(found.get("results"), list):
        raise _unreadable()
    results: dict[str, WebResult] = {}
    for one in found["results"]:
        result = _result(one)
        if result is not None and _is_allowed(result.url, domains):
            results.setdefault(result.url, result)
    blocked = _names(found.get("unresponsive_engines"))
    if not found["results"] and blocked:
        raise WebSearchError(
            f"the search engines did not respond ({', '.join(blocked)}); this is not an empty result",
            code="search_engines_failed",
        )
    return [*results.values()][:limit]


def _result(one: Any) -> WebResult | None:
    if not isinstance(one, Mapping) or not isinstance(one.get("url"), str):
        return None
    url = one["url"]
    if len(url) > MAX_URL or not url.startswith(("http://", "https://")):
        return None
    return WebResult(
        url=url,
        title=_line(one.get("title"))[:MAX_TITLE] or url[:MAX_TITLE],
        text=_text(one.get("content"))[:MAX_TEXT],
        date=_date(one.get("publishedDate")),
    )


def _is_allowed(url: str, domains: Sequence[str]) -> bool:
    try:
        host = httpx.URL(url).raw_host.decode("ascii", "replace").lower().removesuffix(".")
    except (httpx.InvalidURL, ValueError):
        return False
    return not domains or any(host == domain or host.endswith(f".{domain}") for domain in domains)


def _names(engines: object) -> list[str]:
    """Return engines and reasons, such as `google: CAPTCHA`."""
    found = []
    for one in engines if isinstance(engines, list) else ():
        parts = one if isinstance(one, list) else [one]
        found.append(": ".join(_line(part)[:80] for part in parts[:2] if isinstance(part, str)) or "unknown")
    return found[:10]


def _line(value: object) -> str:
    return " ".join(_text(value).split())


def _text(value: object) -> str:
    return value.strip().encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _date(value: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found is not None and found.utcoffset() is None else found


def _refusal(status: int) -> WebSearchError:
    if status == 403:
        return WebSearchError(
            "SearXNG refuses JSON (403): add json to search.formats in its settings, and turn its limiter off",
            code="search_forbidden",
        )
    if status == 429:
        return WebSearchError("SearXNG refuses further searches (429): turn its limiter off", code="search_limited")
    return WebSearchError(f"SearXNG responded with status {status}; see its log", code="search_invalid")


def _unreadable() -> WebSearchError:
    return WebSearchError(
        "the response is not SearXNG's JSON; check search.url, and search.formats in its settings",
        code="search_invalid",
    )
