"""Pages of lists in OpenAI's form: the query parameters that select one, and its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, Query

Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The part of a list that a client requests."""

    limit: int
    after: str | None
    before: str | None
    newest_first: bool


def _page(
    limit: Limit = 20, order: Order = "desc", after: str | None = None, before: str | None = None
) -> PageRequest:
    return PageRequest(limit=limit, after=after, before=before, newest_first=order == "desc")


Paging = Annotated[PageRequest, Depends(_page)]
"""The page of a request, as a parameter of an endpoint."""


def as_list(data: Sequence[dict[str, Any]], more: bool, *, none: str | None = None) -> dict[str, Any]:
    """Return a page of objects, which have ids, as OpenAI's list.

    Args:
        data: The objects of the page.
        more: Whether the list continues.
        none: The first and last id of an empty page; the types of items in conversations require a text.
    """
    return {
        "object": "list",
        "data": list(data),
        "first_id": data[0]["id"] if data else none,
        "last_id": data[-1]["id"] if data else none,
        "has_more": more,
    }
