"""The tool file_search: the function that the model sees, and the search that runs for its calls."""

from __future__ import annotations

import json
import logging
from typing import Any

from appliance.assistant.caller import Caller
from appliance.assistant.memory.search import StoreSearch
from appliance.assistant.turns.request import SEARCH_NAME, SearchTool
from appliance.assistant.turns.search_results import results_of
from appliance.errors import ApplianceError, RequestError

LOG = logging.getLogger(__name__)

MAX_QUERIES = 5
"""Queries of one call that are searched."""
MAX_QUERY_LETTERS = 2000
FUNCTION: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": SEARCH_NAME,
        "description": "Search the user's files. Returns numbered passages; cite a used one by its number, as [1].",
        "parameters": {
            "type": "object",
            "properties": {
                "queries": {
                    "type": "array",
                    "items": {"type": "string"},
                    "minItems": 1,
                    "maxItems": MAX_QUERIES,
                    "description": "One to five different formulations of what to find.",
                }
            },
            "required": ["queries"],
            "additionalProperties": False,
        },
    },
}


PASSED_ON = frozenset({401, 403, 429})
"""Errors of an embedder's call that end the turn: the key or the quota of its user."""


def read_queries(arguments: str) -> list[str]:
    """Return the queries of a call's arguments; none if the model wrote no valid ones."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return []
    queries = found.get("queries", found.get("query")) if isinstance(found, dict) else None
    if isinstance(queries, str):
        queries = [queries]
    if not isinstance(queries, list):
        return []
    texts = [one.strip()[:MAX_QUERY_LETTERS] for one in queries if isinstance(one, str) and one.strip()]
    return list(dict.fromkeys(texts))[:MAX_QUERIES]


async def run_search(
    searching: StoreSearch, caller: Caller, tool: SearchTool, queries: list[str]
) -> list[dict[str, Any]] | None:
    """Return the results for ``queries``, best first; None if the search failed, which the model then gets to read.

    Raises :class:`RequestError` if the quota of the caller ends.
    """
    try:
        found = await searching.search(
            caller,
            tool.store_ids,
            queries,
            limit=tool.limit,
            filters=tool.filters,
            weights=tool.weights,
            threshold=tool.threshold,
        )
        return results_of(found.passages)
    except ApplianceError as error:
        if isinstance(error, RequestError) and error.status in PASSED_ON:
            raise
        LOG.warning("request %s: a file search failed: %s", caller.request_id, type(error).__name__)
        return None
