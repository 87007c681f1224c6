"""The results of a file search: as OpenAI's items, as fenced data for the model, as citations in its text. Pure.

The model cites a passage as ``[n]``. Numbers are unique within one prompt: those of a search begin after those of
the searches before it. So ``[n]`` means one passage, also over several searches and turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from appliance.assistant.memory.chat_context import MemoryCitation
from appliance.assistant.retrieval.context import build_context
from appliance.assistant.retrieval.ranking import RankedPassage
from appliance.assistant.retrieval.stored_result import estimated_tokens, mappings, ranked_result
from appliance.assistant.web.result_text import CitedPage

NOTHING_FOUND = "The search found no passage about this. State that the files do not contain it."
SEARCH_FAILED = "The search is not available now. State that the files could not be searched."
_CITATION = re.compile(r"\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]")


@dataclass(frozen=True, slots=True)
class CitedFile:
    """The source to which a number refers."""

    file_id: str
    filename: str

    def annotation(self, *, index: int) -> dict[str, Any]:
        """Return the annotation at ``index``."""
        return {"type": "file_citation", "index": index, "file_id": self.file_id, "filename": self.filename}


CitedSource = CitedFile | CitedPage | MemoryCitation
"""The source of a number: a result of a search of files or of the web, or a passage of the memory of the role."""


@dataclass(frozen=True, slots=True)
class SearchText:
    """The result of one search for the model, and the sources of its numbers."""

    text: str
    sources: Mapping[int, CitedFile]


def results_of(ranked: Sequence[RankedPassage]) -> list[dict[str, Any]]:
    """Return ``ranked`` as the results of a ``file_search_call``."""
    return [
        {
            "file_id": one.passage.group,
            "filename": one.passage.source,
            "score": round(one.score, 6),
            "text": one.passage.text,
            "attributes": dict(one.passage.attributes),
            **({} if one.passage.date is None else {"date": one.passage.date.isoformat()}),
        }
        for one in ranked
    ]


def search_text(item: Mapping[str, Any], first: int, budget: int) -> SearchText:
    """Return the results of ``item``, a ``file_search_call``, as fenced data of at most ``budget`` tokens.

    Args:
        item: The item, with its results.
        first: Number of the first passage.
        budget: Most tokens, estimated from bytes.
    """
    if item.get("status") == "failed":
        return SearchText(SEARCH_FAILED, {})
    ranked = [_ranked(one, index) for index, one in enumerate(mappings(item.get("results")))]
    block = build_context(ranked, budget, estimated_tokens, first=first)
    if not block.citations:
        return SearchText(NOTHING_FOUND, {})
    return SearchText(
        block.text, {one.number: CitedFile(file_id=one.group, filename=one.source) for one in block.citations}
    )


def source_citations(text: str, sources: Mapping[int, CitedSource]) -> Iterator[dict[str, Any]]:
    """Yield an annotation for each number in ``text`` that cites one of ``sources``."""
    for match in _CITATION.finditer(text):
        for number in match.group(1).split(","):
            source = sources.get(int(number))
            if isinstance(source, CitedPage):
                yield source.annotation(start=match.start(), end=match.end())
            elif source is not None:
                yield source.annotation(index=match.start())


FILE_RESULTS, WEB_RESULTS, WEB_SOURCES = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
)
"""Fields that clients get only if ``include`` names them."""


def shown_item(item: dict[str, Any], include: Set[str]) -> dict[str, Any]:
    """Return ``item`` as a client gets it that requested the fields in ``include``."""
    kind = item.get("type")
    if kind == "file_search_call":
        return item if FILE_RESULTS in include else {**item, "results": None}
    if kind != "web_search_call":
        return item
    shown = {name: value for name, value in item.items() if name != "results" or WEB_RESULTS in include}
    action = item.get("action")
    if isinstance(action, Mapping) and WEB_SOURCES not in include:
        shown["action"] = {name: value for name, value in action.items() if name != "sources"}
    return shown


def _ranked(result: Mapping[str, Any], index: int) -> RankedPassage:
    return ranked_result(
        index,
        text=str(result.get("text") or ""),
        source=str(result.get("filename") or ""),
        group=str(result.get("file_id") or ""),
        date=result.get("date"),
    )
