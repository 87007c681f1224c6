"""The results of a web search for the model: fenced data, and the pages to which its numbers refer. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.assistant.retrieval.context import build_context
from appliance.assistant.retrieval.ranking import RankedPassage
from appliance.assistant.retrieval.stored_result import estimated_tokens, mappings, ranked_result
from appliance.assistant.web.searxng import WebResult
from appliance.assistant.web.tool import FIND, OPEN, SEARCH

_EMPTY = {
    "search": "The web search found no result. State that.",
    "open_page": "The page has no text.",
    "find_in_page": "The page does not contain this text.",
}


@dataclass(frozen=True, slots=True)
class CitedPage:
    """The web page to which a number refers."""

    url: str
    title: str

    def annotation(self, *, start: int, end: int) -> dict[str, Any]:
        """Return the annotation of the text from ``start`` to ``end``."""
        return {
            "type": "url_citation",
            "start_index": start,
            "end_index": end,
            "title": self.title,
            "url": self.url,
        }


@dataclass(frozen=True, slots=True)
class WebText:
    """The result of one call for the model, and the sources of its numbers."""

    text: str
    sources: Mapping[int, CitedPage]


def as_stored(results: Sequence[WebResult]) -> list[dict[str, Any]]:
    """Return ``results`` as the field ``results`` of a ``web_search_call``."""
    return [
        {
            "url": one.url,
            "title": one.title,
            "text": one.text,
            **({} if one.date is None else {"date": one.date.isoformat()}),
        }
        for one in results
    ]


def web_text(item: Mapping[str, Any], first: int, budget: int) -> WebText:
    """Return the results of ``item``, a ``web_search_call``, as fenced data of at most ``budget`` tokens.

    Args:
        item: The item, with its results.
        first: Number of the first result.
        budget: Most tokens, estimated from bytes.
    """
    kind = str(_action(item).get("type"))
    if item.get("status") == "failed":
        error = item.get("error")
        reason = str(error.get("message")) if isinstance(error, Mapping) else "the reason is unknown"
        if kind == "search":
            return WebText(
                f"The web search failed: {reason}. State that the web could not be searched. It does not mean that "
                "there is nothing to find.",
                {},
            )
        return WebText(f"The page could not be read: {reason}.", {})
    ranked = [_ranked(one, index) for index, one in enumerate(stored_results(item))]
    block = build_context(ranked, budget, estimated_tokens, first=first)
    if not block.citations:
        return WebText(_EMPTY.get(kind, _EMPTY["search"]), {})
    return WebText(block.text, {one.number: CitedPage(one.group, one.source) for one in block.citations})


def call_of(item: Mapping[str, Any]) -> tuple[str, str]:
    """Return name and arguments of the function call that ``item`` records."""
    action = _action(item)
    if action.get("type") == "open_page":
        name, arguments = OPEN, {"page": action.get("url")}
    elif action.get("type") == "find_in_page":
        name, arguments = FIND, {"page": action.get("url"), "pattern": action.get("pattern")}
    else:
        name, arguments = SEARCH, {"query": action.get("query")}
    return name, json.dumps({key: str(value or "") for key, value in arguments.items()}, ensure_ascii=False)


def stored_results(item: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the valid results of ``item``, which a client may have made."""
    return mappings(item.get("results"))


def _action(item: Mapping[str, Any]) -> Mapping[str, Any]:
    action = item.get("action")
    return action if isinstance(action, Mapping) else {}


def _ranked(result: Mapping[str, Any], index: int) -> RankedPassage:
    url = str(result.get("url") or "")
    title = str(result.get("title") or "")
    return ranked_result(
        index,
        text=str(result.get("text") or title),
        source=title or url,
        section=url,
        group=url,
        date=result.get("date"),
    )
