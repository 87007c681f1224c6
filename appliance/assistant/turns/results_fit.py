"""Results of tools in the messages of a running turn, shortened so that the next call fits in the context. Pure.

The oldest results lose their text first, since the model has read them most often. A call keeps its place and gets
:data:`REMOVED` as its result, so that each call has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

REMOVED = "The result was removed to make room for newer ones."


def without_oldest_results(
    messages: Sequence[Mapping[str, Any]], begin: int, excess: float
) -> list[dict[str, Any]] | None:
    """Return ``messages`` with at least ``excess`` bytes less; None if no result has a text to remove.

    Args:
        messages: The messages of the next call.
        begin: Index of the first message that the turn itself has added; those before it remain.
        excess: Bytes to remove. With fewer bytes in all results, all of them are removed.
    """
    shorter = [dict(message) for message in messages]
    removed = 0
    for message in shorter[begin:]:
        if removed and removed >= excess:
            break
        size = len(str(message.get("content")).encode("utf-8", "replace"))
        if message.get("role") == "tool" and size > len(REMOVED):
            message["content"] = REMOVED
            removed += size - len(REMOVED)
    return shorter if removed else None
