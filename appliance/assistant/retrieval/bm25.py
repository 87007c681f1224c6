"""A BM25 index over terms, built incrementally, with exact statistics after each change.

The score of a document is the sum over the distinct terms of the query of

    idf · tf · (k1 + 1) / (tf + k1 · (1 - b + b · length / mean length))
    idf = ln(1 + (N - n + 0.5) / (n + 0.5))

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, with the idf of Lucene.
That idf is never negative. N is the number of documents and n of those with the term. A result depends on the
documents and not on the order in which they were added: equal scores are ordered by key.

An index is not safe for threads: the caller serialises changes and searches.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

K1 = 1.2
B = 0.75
_COMPACT_ABOVE = 64
"""Removed documents that are kept in any case before the postings are made anew."""


@dataclass(frozen=True, slots=True)
class TextHit:
    """A document with terms of the query."""

    key: str
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class TextMatch:
    """The result of a query over all documents; valid until the next change of the index."""

    _keys: Sequence[str]
    _slots: Mapping[str, int]
    _scores: NDArray[np.float64]
    _coverage: NDArray[np.float64]

    def best(self, limit: int) -> list[TextHit]:
        """Return at most ``limit`` allowed documents that contain a term of the query, best first."""
        found = np.flatnonzero(self._scores)
        if limit < 1:
            return []
        if len(found) > limit:
            # Every document with the score of the last one stays: the keys decide between them.
            scores = self._scores[found]
            least = np.partition(scores, len(found) - limit)[len(found) - limit]
            found = found[scores >= least]
        hits = [TextHit(self._keys[slot], float(self._scores[slot])) for slot in found.tolist()]
        hits.sort(key=lambda hit: (-hit.score, hit.key))
        return hits[:limit]

    def coverage(self, key: str) -> float:
        """Return the share of the idf of all terms of the query that the document ``key`` contains, 0 to 1.

        A term that no document has counts fully: the index has nothing about it.
        """
        return min(1.0, float(self._coverage[self._slots[key]]))


@dataclass(slots=True, eq=False)
class _Postings:
    """The documents of one term by their slots, removed ones included, and the number of live ones."""

    slots: array[int] = field(default_factory=lambda: array("i"))
    frequencies: array[int] = field(default_factory=lambda: array("i"))
    live: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TermPresence:
    """Which documents contain a set of terms; valid until the next change of the index."""

    _slots: Mapping[str, int]
    _present: NDArray[np.bool_]

    def __contains__(self, key: str) -> bool:
        return bool(self._present[self._slots[key]])


class Bm25Index:
    """Documents by key, each a count of terms.

    Args:
        k1: Saturation of the term frequency, at least 0.
        b: Weight of the document's length, 0 to 1.
    """

    def __init__(self, *, k1: float = K1, b: float = B) -> None:
        self._k1, self._b = k1, b
        self._postings: dict[str, _Postings] = {}
        self._keys: list[str] = []
        """The key of each slot, also after its removal."""
        self._live = bytearray()
        """Whether the document of each slot is in the index, 0 or 1."""
        self._slots: dict[str, int] = {}
        self._rows = array("i")
        self._terms: list[tuple[str, ...]] = []
        self._lengths = array("i")
        self._total = 0
        """Terms of all live documents."""

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: str) -> bool:
        return key in self._slots

    def add(self, key: str, counts: Mapping[str, int], *, row: int = 0) -> None:
        """Add the document ``key``.

        Args:
            key: A key that the index does not contain.
            counts: How often each term occurs, each at least 1; may be empty.
            row: The place of the document in the masks of :meth:`search`.

        Raises:
            ValueError: The index contains ``key``, or a count is below 1.
        """
        if key in self._slots:
            raise ValueError(f"the index contains {key!r}; use replace()")
        if any(count < 1 for count in counts.values()):
            raise ValueError(f"{key!r}: each term occurs at least once")
        slot = len(self._keys)
        self._slots[key] = slot
        self._keys.append(key)
        self._live.append(1)
        self._rows.append(row)
        self._terms.append(tuple(counts))
        length = sum(counts.values())
        self._lengths.append(length)
        self._total += length
        for term, count in counts.items():
            postings = self._postings.get(term)
            if postings is None:
                postings = self._postings[term] = _Postings()
            postings.slots.append(slot)
            postings.frequencies.append(count)
            postings.live += 1

    def remove(self, key: str) -> None:
        """Remove the document ``key``.

        Raises:
            KeyError: The index does not contain ``key``.
        """
        slot = self._slots.pop(key)
        self._live[slot] = 0
        self._total -= self._lengths[slot]
        for term in self._terms[slot]:
            postings = self._postings[term]
            postings.live -= 1
            if not postings.live:
                del self._postings[term]
        self._terms[slot] = ()
        if len(self._keys) - len(self._slots) > max(_COMPACT_ABOVE, len(self._slots)):
            self._compact()

    def replace(self, key: str, counts: Mapping[str, int], *, row: int = 0) -> None:
        """Replace the document ``key``, or add it if the index does not contain it."""
        if any(count < 1 for count in counts.values()):
            raise ValueError(f"{key!r}: each term occurs at least once")
        if key in self._slots:
            self.remove(key)
        self.add(key, counts, row=row)

    def idf(self, term: str) -> float:
        """Return the inverse document frequency of ``term`` over the live documents."""
        postings = self._postings.get(term)
        count = postings.live if postings is not None else 0
        return math.log1p((len(self._slots) - count + 0.5) / (count + 0.5))

    def containing(self, alternatives: Iterable[Sequence[str]]) -> TermPresence:
        """Return the documents that contain all terms of one of ``alternatives``."""
        present = np.zeros(len(self._keys), np.bool_)
        for group in alternatives:
            all_of = np.ones(len(self._keys), np.bool_)
            for term in group:
                has = np.zeros(len(self._keys), np.bool_)
                postings = self._postings.get(term)
                if postings is not None:
                    has[np.frombuffer(postings.slots, np.intc)] = True
                all_of &= has
            present |= all_of
        return TermPresence(self._slots, present)

    def match(self, query: Sequence[str], *, allowed: NDArray[np.bool_] | None = None) -> TextMatch:
        """Return the scores of all documents for ``query``; valid until the next change of the index.

        Args:
            query: Terms; repeated ones count once.
            allowed: bool of shape (rows,), indexed by the rows of :meth:`add`; None allows all.
        """
        scores, covered = np.zeros(len(self._keys)), np.zeros(len(self._keys))
        lengths = np.frombuffer(self._lengths, np.intc)
        mean = self._total / max(1, len(self._slots)) or 1.0
        everything = 0.0
        for term in sorted(set(query)):
            idf = self.idf(term)
            everything += idf
            postings = self._postings.get(term)
            if postings is None:
                continue
            slots = np.frombuffer(postings.slots, np.intc)
            frequencies = np.frombuffer(postings.frequencies, np.intc).astype(np.float64)
            damping = self._k1 * (1 - self._b + self._b * lengths[slots] / mean)
            scores[slots] += idf * frequencies * (self._k1 + 1) / (frequencies + damping)
            covered[slots] += idf
        scores[np.frombuffer(self._live, np.uint8) == 0] = 0
        if allowed is not None:
            scores[~allowed[np.frombuffer(self._rows, np.intc)]] = 0
        return TextMatch(self._keys, self._slots, scores, covered / (everything or 1.0))

    def _compact(self) -> None:
        """Make the postings anew, without removed documents."""
        slots = np.full(len(self._keys), -1, np.intc)
        live = [slot for slot, alive in enumerate(self._live) if alive]
        slots[live] = np.arange(len(live), dtype=np.intc)
        for postings in self._postings.values():
            moved = slots[np.frombuffer(postings.slots, np.intc)]
            kept = moved >= 0
            frequencies = np.frombuffer(postings.frequencies, np.intc)[kept]
            postings.slots = array("i", moved[kept].tobytes())
            postings.frequencies = array("i", frequencies.tobytes())
        self._keys = [self._keys[slot] for slot in live]
        self._rows = array("i", (self._rows[slot] for slot in live))
        self._terms = [self._terms[slot] for slot in live]
        self._lengths = array("i", (self._lengths[slot] for slot in live))
        self._live = bytearray(b"\x01" * len(live))
        self._slots = {key: slot for slot, key in enumerate(self._keys)}
