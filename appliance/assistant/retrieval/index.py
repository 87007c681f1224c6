"""The index of one store: passages with their terms, vectors, dates and attributes, searched under one mask.

A passage has one row: its vector, its dates and its bit of a mask are at the same index. A row of a removed passage
is used again. The caller serialises changes and searches.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from appliance.assistant.retrieval.bm25 import Bm25Index, TermPresence, TextMatch
from appliance.assistant.retrieval.filters import Attributes, AttributeValue, Predicate
from appliance.assistant.retrieval.language import Script, main_script
from appliance.assistant.retrieval.terms import term_counts
from appliance.assistant.retrieval.vectors import Mask, VectorIndex, Vectors, unit_vector


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """The times from ``start`` until before ``end``; None is unlimited."""

    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class IndexedPassage:
    """A chunk of a file or a round of a chat, as the index returns it. All times have a time zone."""

    key: str
    text: str
    source: str = ""
    """A title for citations: a file name or the title of a chat."""
    section: str = ""
    group: str = ""
    """The id of the file or of the chat."""
    indexed_text: str = ""
    """The text for the term index if it differs from ``text``: headings, extracted facts."""
    date: datetime | None = None
    """When the text was written."""
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    """When a newer fact superseded this one; None for a fact that still holds."""
    attributes: Attributes = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Reject times without a time zone: they cannot be compared with others."""
        for name in ("date", "valid_from", "valid_until"):
            value = getattr(self, name)
            if value is not None and value.utcoffset() is None:
                raise ValueError(f"{self.key!r}: {name} has no time zone")


class AllowedKeys:
    """The keys that a mask allows, without a copy of them.

    Args:
        keys: The key of each row, also after its removal.
        rows: The row of each key in use.
        mask: Whether a row is allowed, bool of shape (rows,).
    """

    def __init__(self, keys: Sequence[str], rows: Mapping[str, int], mask: Mask) -> None:
        self._keys, self._rows, self._mask = keys, rows, mask
        self._count = int(np.count_nonzero(mask))

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: str) -> bool:
        row = self._rows.get(key)
        return row is not None and bool(self._mask[row])

    def __iter__(self) -> Iterator[str]:
        return (self._keys[row] for row in np.flatnonzero(self._mask).tolist())

    @property
    def total(self) -> int:
        """Keys in use, allowed or not."""
        return len(self._rows)


class RemoteVectors(Protocol):
    """The vectors of passages in another process; :class:`HybridIndex` has their terms, dates and attributes."""

    @property
    def dimensions(self) -> int:
        """Numbers of each vector."""
        ...

    def search(self, query: Vectors, limit: int, allowed: AllowedKeys) -> dict[str, float]:
        """Return the allowed keys with the highest cosine similarity and their similarity, best first."""
        ...

    def similarities(self, keys: Sequence[str], query: Vectors) -> dict[str, float]:
        """Return the cosine similarity of each of ``keys`` that has a vector."""
        ...


class HybridIndex:
    """Passages by key.

    Args:
        vectors: An index without vectors; in memory, or over a file of the caller.
        remote: The vectors of another process, which a search uses instead. ``vectors`` then has a placeholder of
            any dimensions for each passage.
    """

    def __init__(self, vectors: VectorIndex, *, remote: RemoteVectors | None = None) -> None:
        if len(vectors):
            raise ValueError("the vector index has vectors without passages; pass an empty one")
        self._vectors = vectors
        self._remote = remote
        self._text = Bm25Index()
        self._passages: dict[str, IndexedPassage] = {}
        self._rows: dict[str, int] = {}
        self._scripts: dict[str, Script | None] = {}
        self._keys: list[str] = []
        """The key of each row, also after its removal."""
        self._free: list[int] = []
        self._date, self._valid_from, self._valid_until = (np.zeros(0) for _ in range(3))
        """Seconds since the epoch by row; NaN for a missing date, infinite for a missing bound."""
        self._attributes: list[Attributes] = []
        self._attributes_at = np.zeros(0, np.int32)
        """By row, the index in ``_attributes``: the passages of a file have the same ones."""
        self._numbers: dict[frozenset[tuple[str, type, AttributeValue]], int] = {}
        """The index in ``_attributes`` by content. A boolean equals a number, so the types are part of it."""

    def __len__(self) -> int:
        return len(self._passages)

    def __contains__(self, key: str) -> bool:
        return key in self._passages

    def __getitem__(self, key: str) -> IndexedPassage:
        return self._passages[key]

    @property
    def dimensions(self) -> int:
        """Numbers of each vector that a search compares."""
        return self._vectors.dimensions if self._remote is None else self._remote.dimensions

    def put(self, passage: IndexedPassage, vector: ArrayLike, *, counts: Mapping[str, int] | None = None) -> None:
        """Add ``passage``, or replace the passage with its key.

        Args:
            passage: The passage.
            vector: The embedding of its text, shape (dimensions,); with remote vectors, the placeholder.
            counts: The counts of its terms if the caller stored them; otherwise they are made from the text.

        Raises:
            ValueError: The vector is not valid; the index has not changed.
        """
        unit = unit_vector(vector, self._vectors.dimensions)
        counts = term_counts(passage.indexed_text or passage.text) if counts is None else counts
        row = self._rows.get(passage.key)
        if row is None:
            row = self._free[0] if self._free else len(self._keys)
        self._vectors.put(row, unit)
        if passage.key not in self._rows:
            if self._free:
                heapq.heappop(self._free)
                self._keys[row] = passage.key
            else:
                self._keys.append(passage.key)
                self._grow()
        self._text.replace(passage.key, counts, row=row)
        self._passages[passage.key] = passage
        self._scripts[passage.key] = main_script(counts)
        self._rows[passage.key] = row
        self._date[row] = _seconds(passage.date, math.nan)
        self._valid_from[row] = _seconds(passage.valid_from, -math.inf)
        self._valid_until[row] = _seconds(passage.valid_until, math.inf)
        self._attributes_at[row] = self._number(passage.attributes)

    def remove(self, key: str) -> None:
        """Remove the passage ``key``.

        Raises:
            KeyError: The index does not contain it.
        """
        row = self._rows.pop(key)
        del self._passages[key], self._scripts[key]
        self._text.remove(key)
        self._vectors.remove(row)
        heapq.heappush(self._free, row)

    def mask(
        self,
        *,
        moment: datetime | None = None,
        window: TimeWindow | None = None,
        accepts: Predicate | None = None,
    ) -> Mask:
        """Return the rows that a search may return, bool of shape (rows,).

        Args:
            moment: The time at which a fact must hold; None requires a fact without an end.
            window: The times in which a passage must be written; passages without a date are excluded.
            accepts: A predicate over the attributes.
        """
        allowed: Mask = np.zeros(self._vectors.rows, np.bool_)
        used = len(self._keys)
        live = np.ones(used, np.bool_)
        live[self._free] = False
        if moment is None:
            live &= self._valid_until[:used] == math.inf
        else:
            at = moment.timestamp()
            live &= (self._valid_from[:used] <= at) & (at < self._valid_until[:used])
        if window is not None:
            dates = self._date[:used]
            live &= dates >= _seconds(window.start, -math.inf)
            live &= dates < _seconds(window.end, math.inf)
        if accepts is not None:
            accepted = np.array([accepts(attributes) for attributes in self._attributes], np.bool_)
            live &= accepted[self._attributes_at[:used]]
        allowed[:used] = live
        return allowed

    def match_text(self, query: Sequence[str], allowed: Mask) -> TextMatch:
        """Return the BM25 scores of the allowed passages and the coverage of all; valid until the next change."""
        return self._text.match(query, allowed=allowed)

    def containing(self, alternatives: Iterable[Sequence[str]]) -> TermPresence:
        """Return the passages that contain all terms of one of ``alternatives``; valid until the next change."""
        return self._text.containing(alternatives)

    def script(self, key: str) -> Script | None:
        """Return the alphabet of most words of the passage ``key``; None if it has no letters."""
        return self._scripts[key]

    def search_vector(self, query: ArrayLike, limit: int, allowed: Mask) -> dict[str, float]:
        """Return the allowed passages with the highest cosine similarity and their similarity, best first."""
        if self._remote is not None:
            keys = AllowedKeys(self._keys, self._rows, allowed[: len(self._keys)])
            return self._remote.search(unit_vector(query, self.dimensions), limit, keys)
        hits = self._vectors.search(query, limit, allowed=allowed)
        return {self._keys[hit.slot]: hit.similarity for hit in hits}

    def similarities(self, keys: Sequence[str], query: Vectors) -> dict[str, float]:
        """Return the cosine similarity of the passages ``keys`` to ``query``, a vector of length 1."""
        if self._remote is not None:
            return self._remote.similarities(keys, query) if keys else {}
        return {key: float(self._vectors.vector(self._rows[key]) @ query) for key in keys}

    def _grow(self) -> None:
        """Make room for the dates of all rows."""
        if len(self._keys) > len(self._date):
            more = np.zeros(max(1024, len(self._date)))
            self._date, self._valid_from, self._valid_until = (
                np.concatenate((one, more)) for one in (self._date, self._valid_from, self._valid_until)
            )
            self._attributes_at = np.concatenate((self._attributes_at, more.astype(np.int32)))

    def _number(self, attributes: Attributes) -> int:
        """Return the index of ``attributes`` in the list of all different ones."""
        content = frozenset((key, type(value), value) for key, value in attributes.items())
        number = self._numbers.setdefault(content, len(self._attributes))
        if number == len(self._attributes):
            self._attributes.append(dict(attributes))
        return number


def _seconds(value: datetime | None, missing: float) -> float:
    return missing if value is None else value.timestamp()
