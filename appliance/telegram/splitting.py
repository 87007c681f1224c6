"""Splits a formatted text into messages of at most 4096 UTF-16 units, at sensible borders. Pure.

The best border in the second half of a message decides, in this order: between paragraphs, between lines, between
lines of code, between words. An entity that crosses a border continues in the next message, so code stays code. A
text without any border is cut between two characters.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

from appliance.telegram.formatting import FormattedText, TextEntity, utf16_units

LIMIT = 4096
"""UTF-16 units of the longest message."""

MOST_ENTITIES = 100
"""Entities of one message; Telegram ignores further ones."""

CODE = frozenset({"pre", "code", "text_link"})
"""Kinds of entities in which a space is not a border."""


def split(whole: FormattedText, limit: int = LIMIT) -> list[FormattedText]:
    """Return ``whole`` as messages of at most ``limit`` UTF-16 units; none for a text of spaces only."""
    return [part for part in _pieces(whole, limit) if part.text.strip()]


def _pieces(whole: FormattedText, limit: int) -> Iterator[FormattedText]:
    rest = _stripped(whole)
    while rest.units > limit or len(rest.entities) > MOST_ENTITIES:
        border = _border(rest, limit)
        yield _stripped(_cut(rest, 0, border))
        rest = _stripped(_cut(rest, border, len(rest.text)))
    yield rest


def _border(whole: FormattedText, limit: int) -> int:
    """Return the index of the character at which the next message begins."""
    offsets = [0, *accumulate(2 if character > "\uffff" else 1 for character in whole.text)]
    most = limit
    if len(whole.entities) > MOST_ENTITIES:
        most = max(min(limit, whole.entities[MOST_ENTITIES].offset), 1)
    end = max(bisect_right(offsets, most) - 1, 1)
    text = whole.text
    inside = [(one.offset, one.end) for one in whole.entities if one.kind == "pre"]
    narrow = [(one.offset, one.end) for one in whole.entities if one.kind in CODE]
    for mark, closed in (("\n\n", inside), ("\n", inside), ("\n", []), (" ", narrow), (" ", [])):
        place = end
        while (place := text.rfind(mark, end // 2, place)) > 0:
            if not any(start < offsets[place] < stop for start, stop in closed):
                return place + len(mark)
    return end


def _cut(whole: FormattedText, begin: int, end: int) -> FormattedText:
    """Return the characters from ``begin`` to ``end`` with the parts of the entities there."""
    text = whole.text[begin:end]
    first = utf16_units(whole.text[:begin])
    last = first + utf16_units(text)
    return FormattedText(
        text, tuple(one for entity in whole.entities if (one := _within(entity, first, last)) is not None)
    )


def _within(entity: TextEntity, first: int, last: int) -> TextEntity | None:
    start, stop = max(entity.offset, first), min(entity.end, last)
    return replace(entity, offset=start - first, length=stop - start) if stop > start else None


def _stripped(whole: FormattedText) -> FormattedText:
    """Return ``whole`` without empty lines at its begin and spaces at its end: Telegram removes both."""
    text = whole.text.rstrip()
    begin = len(text) - len(text.lstrip("\n"))
    return _cut(whole, begin, len(text))
