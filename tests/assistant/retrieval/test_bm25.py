"""The BM25 index equals the formula over the present documents, after any sequence of changes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from appliance.assistant.retrieval.bm25 import K1, B, Bm25Index

TERMS = st.sampled_from("abcdefg")
COUNTS = st.dictionaries(TERMS, st.integers(1, 5), max_size=5)
KEYS = st.sampled_from([f"k{number}" for number in range(12)])


def brute_force(documents: Mapping[str, Mapping[str, int]], query: Sequence[str]) -> dict[str, float]:
    """Return the score of each document with a term of ``query``, by the formula of the module."""
    lengths = {key: sum(counts.values()) for key, counts in documents.items()}
    mean = sum(lengths.values()) / len(documents) if documents else 0
    scores: dict[str, float] = {}
    for key, counts in documents.items():
        parts = []
        for term in sorted(set(query) & set(counts)):
            with_term = sum(term in other for other in documents.values())
            idf = math.log(1 + (len(documents) - with_term + 0.5) / (with_term + 0.5))
            damping = K1 * (1 - B + B * lengths[key] / mean)
            parts.append(idf * counts[term] * (K1 + 1) / (counts[term] + damping))
        if parts:
            scores[key] = sum(parts)
    return scores


class Bm25Machine(RuleBasedStateMachine):
    """Changes of an index and of a dictionary, compared by every query of two terms."""

    def __init__(self) -> None:
        super().__init__()
        self.index = Bm25Index()
        self.documents: dict[str, Mapping[str, int]] = {}

    @rule(key=KEYS, counts=COUNTS)
    def put(self, key: str, counts: dict[str, int]) -> None:
        if key in self.documents:
            with pytest.raises(ValueError, match="replace"):
                self.index.add(key, counts)
        else:
            self.index.add(key, counts)
            self.documents[key] = counts

    @rule(key=KEYS, counts=COUNTS)
    def replace(self, key: str, counts: dict[str, int]) -> None:
        self.index.replace(key, counts)
        self.documents[key] = counts

    @rule(key=KEYS)
    def remove(self, key: str) -> None:
        if key in self.documents:
            self.index.remove(key)
            del self.documents[key]
        else:
            with pytest.raises(KeyError):
                self.index.remove(key)

    @rule(times=st.integers(70, 90))
    def churn(self, times: int) -> None:
        """Add and remove enough documents that the postings are made anew."""
        for number in range(times):
            self.index.add(f"passing{number}", {"a": 1, "z": 2})
        for number in range(times):
            self.index.remove(f"passing{number}")

    @invariant()
    def equals_the_formula(self) -> None:
        assert len(self.index) == len(self.documents)
        for query in (["a", "b"], ["c"], ["d", "z", "d"], []):
            expected = brute_force(self.documents, query)
            found = {hit.key: hit.score for hit in self.index.match(query).best(100)}
            assert found == pytest.approx(expected)


TestBm25Machine = Bm25Machine.TestCase
TestBm25Machine.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)


@given(st.lists(st.tuples(KEYS, COUNTS), unique_by=lambda pair: pair[0], min_size=1), st.randoms())
def test_a_result_is_independent_of_the_history(
    documents: list[tuple[str, dict[str, int]]], random: object
) -> None:
    one, other = Bm25Index(), Bm25Index()
    for key, counts in documents:
        one.add(key, counts)
    other.add("gone", {"a": 9})
    for key, counts in reversed(documents):
        other.add(key, {"b": 3})
        other.replace(key, counts)
    other.remove("gone")
    for limit in (1, 3, 100):
        assert one.match(["a", "b"]).best(limit) == other.match(["a", "b"]).best(limit)


def test_equal_scores_are_ordered_by_key_at_the_limit() -> None:
    index = Bm25Index()
    for key in ("d", "a", "c", "b"):
        index.add(key, {"x": 1})
    assert [hit.key for hit in index.match(["x"]).best(2)] == ["a", "b"]


def test_rare_terms_and_short_documents_rank_first() -> None:
    index = Bm25Index()
    index.add("long", Counter(rare=1, filler=50))
    index.add("short", Counter(rare=1, filler=2))
    index.add("common", Counter(filler=3))
    assert [hit.key for hit in index.match(["rare", "filler"]).best(3)] == ["short", "long", "common"]


def test_a_mask_allows_rows_and_keeps_the_statistics() -> None:
    index = Bm25Index()
    for row, key in enumerate("abc"):
        index.add(key, {"x": 1}, row=row)
    allowed = np.array([True, False, True])
    all_scores = {hit.key: hit.score for hit in index.match(["x"]).best(3)}
    assert {hit.key: hit.score for hit in index.match(["x"], allowed=allowed).best(3)} == {
        key: all_scores[key] for key in "ac"
    }


def test_a_mask_holds_after_the_postings_are_made_anew() -> None:
    index = Bm25Index()
    for row in range(300):
        index.add(f"k{row:03}", {"x": 1}, row=row)
    for row in range(295):
        index.remove(f"k{row:03}")
    allowed = np.zeros(300, np.bool_)
    allowed[297] = True
    assert [hit.key for hit in index.match(["x"], allowed=allowed).best(10)] == ["k297"]


def test_coverage_is_the_share_of_idf() -> None:
    index = Bm25Index()
    index.add("both", {"a": 1, "b": 1})
    index.add("one", {"a": 1})
    match = index.match(["a", "b"])
    assert match.coverage("both") == pytest.approx(1)
    assert match.coverage("one") == pytest.approx(index.idf("a") / (index.idf("a") + index.idf("b")))
    assert index.match(["a", "unknown"]).coverage("both") < 0.5, "an unknown term counts fully"
    assert index.match(["unknown"]).coverage("both") == 0 == index.match([]).coverage("both")


@pytest.mark.parametrize("counts", [{"a": 0}, {"a": -1}])
def test_a_refused_document_changes_nothing(counts: dict[str, int]) -> None:
    index = Bm25Index()
    index.add("kept", {"a": 2})
    for change in (index.add, index.replace):
        with pytest.raises(ValueError, match="at least once"):
            change("kept" if change == index.replace else "new", counts)
    assert [hit.key for hit in index.match(["a"]).best(5)] == ["kept"]


def test_an_empty_index_finds_nothing() -> None:
    index = Bm25Index()
    assert index.match(["a"]).best(5) == []
    index.add("empty", {})
    assert index.match(["a"]).best(5) == []
    assert index.match(["a"]).best(0) == []
