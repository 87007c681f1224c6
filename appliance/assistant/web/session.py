"""The web calls of one turn: what the model may open, how often, and the results.

The model opens a page only if a search of this conversation found it or the user wrote its URL. So text of a page
cannot make it send data to an address of an attacker: the model cannot compose a URL.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.assistant.caller import Caller
from appliance.assistant.web.access import WebAccess
from appliance.assistant.web.fetcher import WebPage
from appliance.assistant.web.result_text import as_stored, stored_results
from appliance.assistant.web.searxng import WebResult
from appliance.assistant.web.tool import FIND, OPEN, SEARCH, WebTool
from appliance.errors import PageError, RequestError, WebSearchError

LOG = logging.getLogger(__name__)

MAX_QUERY = 500
"""Letters of a query."""
MAX_PATTERN = 200
PAGE_LETTERS = 24_000
"""Letters of an opened page that are stored and shown to the model, at most."""
AROUND = 400
"""Letters before and after a place that was found."""
MAX_PLACES = 5
_URL = re.compile(r"https?://[^\s<>\"'`]+")
_NUMBER = re.compile(r"\s*\[?(\d{1,4})\]?\s*")
_CLOSING = ".,;:!?)]}»”"


@dataclass(frozen=True, slots=True)
class WebCall:
    """A valid call: its action as an item has it."""

    action: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WebOutcome:
    """The result of a call: results, or an error with its kind."""

    results: list[dict[str, Any]]
    error: dict[str, str] | None = None


class WebSession:
    """The web calls of one turn.

    Args:
        access: Search engine and fetcher.
        tool: The tool of the request or of the role.
        caller: The user, for the log.
    """

    def __init__(self, access: WebAccess, tool: WebTool, caller: Caller) -> None:
        self.tool = tool
        self._access = access
        self._caller = caller
        self._known: set[str] = set()
        self._pages: dict[str, WebPage] = {}
        self._left = access.settings.pages

    @property
    def functions(self) -> list[dict[str, Any]]:
        """The functions that the model sees."""
        return self._access.functions(self.tool)

    @property
    def names(self) -> frozenset[str]:
        """The names of the functions."""
        return frozenset(str(one["function"]["name"]) for one in self.functions)

    def allow_text(self, text: str) -> None:
        """Allow the URLs in ``text``, a message of the user."""
        self._known |= {_plain(match.rstrip(_CLOSING)) for match in _URL.findall(text)}

    def allow_items(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Allow the URLs that the user wrote, and those that searches in ``items`` found."""
        for item in items:
            if item.get("type") == "web_search_call":
                self._known |= {_plain(str(one.get("url"))) for one in stored_results(item)}
            elif item.get("type") == "message" and item.get("role") == "user":
                for part in item.get("content") or ():
                    self.allow_text(str(part.get("text") or ""))

    def read_call(self, name: str, arguments: str, sources: Mapping[int, Any]) -> WebCall | str:
        """Return the call that the model requests, or the reason, for the model, for which it is not valid.

        ``sources`` are the numbered sources of the prompt.
        """
        try:
            found = json.loads(arguments)
        except ValueError:
            found = None
        given = found if isinstance(found, dict) else {}
        query, pattern = _text(given.get("query"), MAX_QUERY), _text(given.get("pattern"), MAX_PATTERN)
        if name == SEARCH and query:
            return WebCall({"type": "search", "query": query, "queries": [query], "sources": []})
        url = self._url(given.get("page"), sources)
        if name == OPEN and url is not None:
            return WebCall({"type": "open_page", "url": url})
        if name == FIND and url is not None and pattern:
            return WebCall({"type": "find_in_page", "url": url, "pattern": pattern})
        if name in (OPEN, FIND) and url is None:
            return "This page is not available: pass the number of a search result, or a URL that the user wrote."
        return "The arguments are not valid: see the schema of the function."

    async def perform(self, call: WebCall) -> WebOutcome:
        """Perform ``call``. A failure is an outcome, which the model gets to read."""
        action = call.action
        try:
            if action["type"] == "search":
                found = await self._search(str(action["query"]))
            else:
                page = await self._page(str(action["url"]))
                found = (
                    [_beginning(page)] if action["type"] == "open_page" else _places(page, str(action["pattern"]))
                )
        except (WebSearchError, PageError) as error:
            return self._failed(error, search=action["type"] == "search")
        metrics = self._access.metrics
        if action["type"] == "search":
            metrics.searches.labels("found" if found else "empty").inc()
        else:
            metrics.pages.labels("read").inc()
        self._known |= {_plain(one.url) for one in found}
        return WebOutcome(as_stored(found))

    async def _search(self, query: str) -> list[WebResult]:
        limit = self.tool.results(self._access.settings.results)
        return await self._access.searxng.search(query, limit=limit, domains=self.tool.domains)

    async def _page(self, url: str) -> WebPage:
        if url in self._pages:
            return self._pages[url]
        fetcher = self._access.fetcher
        if fetcher is None or not self._left:
            raise PageError("no more pages can be opened in this turn", code="page_limit")
        self._left -= 1
        page = self._pages[url] = await fetcher.fetch(url, domains=self.tool.domains)
        return page

    def _failed(self, error: RequestError, *, search: bool) -> WebOutcome:
        metrics = self._access.metrics
        (metrics.searches if search else metrics.pages).labels("failed").inc()
        metrics.failures.labels(error.code).inc()
        # The message may name a host; the log has the kind only.
        LOG.warning("request %s: a web search failed: %s", self._caller.request_id, error.code)
        return WebOutcome([], {"code": error.code, "message": str(error)})

    def _url(self, value: object, sources: Mapping[int, Any]) -> str | None:
        """Return the URL of an allowed page; None for any other."""
        text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
        number = _NUMBER.fullmatch(text)
        if number is not None:
            url = getattr(sources.get(int(number[1])), "url", None)
            return url if isinstance(url, str) and _plain(url) in self._known else None
        return text.strip() if _plain(text) in self._known else None


def with_sources(action: Mapping[str, Any], results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return ``action`` with the URLs of ``results``, if it is a search."""
    if action.get("type") != "search":
        return dict(action)
    return {**action, "sources": [{"type": "url", "url": one["url"]} for one in results]}


def _beginning(page: WebPage) -> WebResult:
    return WebResult(page.url, page.title or page.url, page.text[:PAGE_LETTERS])


def _places(page: WebPage, pattern: str) -> list[WebResult]:
    """Return the places of ``pattern`` in ``page`` with the text around each; upper and lower case are the same."""
    found: list[tuple[int, int]] = []
    for match in re.finditer(re.escape(pattern), page.text, re.IGNORECASE):
        start, end = max(0, match.start() - AROUND), match.end() + AROUND
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], end)
        elif len(found) < MAX_PLACES:
            found.append((start, end))
        else:
            break
    return [WebResult(page.url, page.title or page.url, page.text[start:end]) for start, end in found]


def _plain(url: str) -> str:
    """Return ``url`` in the form in which two spellings of the same URL are equal."""
    return url.strip().partition("#")[0].rstrip("/")


def _text(value: object, most: int) -> str:
    return value.strip()[:most] if isinstance(value, str) else ""
