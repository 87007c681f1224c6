"""A result that an item stores, as a passage of a context block again. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from appliance.assistant.retrieval.index import IndexedPassage
from appliance.assistant.retrieval.ranking import RankedPassage

BYTES_PER_TOKEN = 3
"""Bytes of UTF-8 in a token, estimated low, so that a block keeps within its budget."""


def ranked_result(
    index: int, *, text: str, source: str, group: str, section: str = "", date: object = None
) -> RankedPassage:
    """Return the result with number ``index`` as a passage that keeps its place.

    Args:
        index: Its place among the results of its item.
        text: Its text.
        source: Its title, for the citation.
        group: The file or the page.
        section: The part of it, or empty.
        date: Its date in ISO 8601 with an offset; anything else counts as no date.
    """
    passage = IndexedPassage(
        key=str(index),
        text=text,
        source=source,
        section=section,
        group=group,
        date=_date(date) if isinstance(date, str) else None,
    )
    return RankedPassage(passage, score=0.0, evidence=0.0)


def mappings(found: Any) -> list[Mapping[str, Any]]:
    """Return the objects in the list ``found``, which a client may have made; none if it is not a list."""
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def estimated_tokens(text: str) -> int:
    """Return the tokens of ``text``, estimated from its bytes."""
    return len(text.encode()) // BYTES_PER_TOKEN + 1


def _date(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.utcoffset() is not None else None
