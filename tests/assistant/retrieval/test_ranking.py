"""The pipeline: filters, validity and windows before the ranking, thresholds and abstention after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from appliance.assistant.retrieval.evidence import EvidenceRule
from appliance.assistant.retrieval.filters import compile_filter
from appliance.assistant.retrieval.fusion import HybridWeights
from appliance.assistant.retrieval.index import HybridIndex, IndexedPassage, TimeWindow
from appliance.assistant.retrieval.ranking import (
    AbstainReason,
    RankingSettings,
    Reranker,
    SearchOutcome,
    SearchQuery,
    SearchRequest,
)
from appliance.assistant.retrieval.ranking import search as search_index
from appliance.assistant.retrieval.vectors import VectorIndex
from appliance.errors import InvalidRequestError

NORTH, EAST, SOUTH = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]
BOTH, TEXT, DENSE = HybridWeights(), HybridWeights(embedding_weight=0), HybridWeights(text_weight=0)
FITTED = RankingSettings(rule=EvidenceRule(0.0, text_share=0.3, min_evidence=0.15))
LOOSE = RankingSettings(rule=EvidenceRule(0.0, text_share=0.3, min_evidence=0.0, absent_name_factor=1.0))


def search(
    index: HybridIndex, request: SearchRequest, settings: RankingSettings = FITTED, **more: Reranker
) -> SearchOutcome:
    return search_index(index, request, settings, **more)


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def index_of(*passages: tuple[IndexedPassage, Sequence[float]]) -> HybridIndex:
    index = HybridIndex(VectorIndex(3, rows=1))
    for passage, vector in passages:
        index.put(passage, vector)
    return index


def request(text: str, vector: Sequence[float] | None = None, **options: object) -> SearchRequest:
    return SearchRequest([SearchQuery(text, vector)], **options)  # type: ignore[arg-type]


def keys(outcome: SearchOutcome) -> list[str]:
    return [one.passage.key for one in outcome.passages]


PUMP = IndexedPassage("pump", "The oil pump is loud", attributes={"kind": "manual", "year": 2024})
VALVE = IndexedPassage("valve", "The valve is closed", attributes={"kind": "letter", "year": 2025})


def test_both_rankings_find_their_passage() -> None:
    index = index_of((PUMP, NORTH), (VALVE, EAST))
    assert keys(search(index, request("loud pumps", weights=TEXT))) == ["pump"]
    assert keys(search(index, request("something else", EAST, weights=DENSE))) == ["valve"]
    assert set(keys(search(index, request("loud pumps", EAST), LOOSE))) == {"pump", "valve"}


def test_a_passage_with_few_terms_of_the_query_is_not_fused_as_a_match() -> None:
    """The rank of a passage that shares one common word must not equal the rank of a match by meaning."""
    index = index_of((IndexedPassage("common", "is"), SOUTH), (VALVE, NORTH), (PUMP, EAST))
    outcome = search(index, request("water flow is stopped entirely today", NORTH), LOOSE)
    assert keys(outcome)[0] == "valve"
    assert outcome.passages[0].score == pytest.approx(0.5), "the BM25 ranking is empty"


def test_a_missing_vector_is_an_error_and_not_a_silent_text_search() -> None:
    with pytest.raises(ValueError, match="no vector"):
        search(index_of((PUMP, NORTH)), request("pump"))


@pytest.mark.parametrize("vector", [[0.0, 0.0, 0.0], [1.0], [float("nan"), 0.0, 0.0]])
def test_an_invalid_vector_is_an_error(vector: list[float]) -> None:
    with pytest.raises(ValueError, match="vector"):
        search(index_of((PUMP, NORTH)), request("pump", vector))


# --- Abstention ---------------------------------------------------------------------------------------------------


def test_an_unrelated_request_abstains_with_the_best_value() -> None:
    outcome = search(index_of((PUMP, NORTH), (VALVE, EAST)), request("orchids", SOUTH))
    assert outcome.passages == ()
    assert outcome.abstention is not None
    assert outcome.abstention.reason is AbstainReason.BELOW_THRESHOLD
    assert 0 <= outcome.abstention.best < outcome.abstention.threshold == FITTED.rule.min_evidence


def test_an_empty_index_abstains() -> None:
    outcome = search(index_of(), request("pump", NORTH))
    assert outcome.abstention is not None
    assert outcome.abstention.reason is AbstainReason.EMPTY_INDEX


@pytest.mark.parametrize(
    "options",
    [
        {"accepts": compile_filter({"type": "eq", "key": "kind", "value": "none"})},
        {"window": TimeWindow(day("2025-01-01"), day("2025-02-01"))},
    ],
)
def test_excluded_passages_are_another_reason(options: dict[str, object]) -> None:
    outcome = search(index_of((PUMP, NORTH)), request("pump", NORTH, **options))
    assert outcome.abstention is not None
    assert outcome.abstention.reason is AbstainReason.EXCLUDED


def test_a_search_without_any_candidate_abstains() -> None:
    outcome = search(index_of((PUMP, NORTH)), request("orchids", weights=TEXT), LOOSE)
    assert outcome.abstention is not None
    assert outcome.abstention.reason is AbstainReason.BELOW_THRESHOLD


def test_the_score_threshold_of_the_request_abstains_with_its_own_value() -> None:
    index = index_of((PUMP, NORTH), (VALVE, EAST))
    assert keys(search(index, request("oil pump loud", NORTH, score_threshold=0.9))) == ["pump"]
    outcome = search(index, request("heat", NORTH, score_threshold=0.9))
    assert outcome.abstention is not None
    assert outcome.abstention.threshold == 0.9


def test_a_passage_that_lacks_a_name_of_the_request_has_less_evidence() -> None:
    cards = IndexedPassage("cards", "The price of the card RTX 5090 is 2300")
    index = index_of((cards, NORTH), (VALVE, SOUTH))
    like = [0.4, 0.0, 0.92]
    found = search(index, request("the price of the RTX 5090", like)).passages[0].evidence
    missed = search(index, request("the price of the RTX 4090", like), LOOSE).passages[0].evidence
    weakened = search(index, request("the price of the RTX 4090", like), FITTED)
    assert found > missed
    assert [one.evidence for one in weakened.passages] == [pytest.approx(missed / 2)]


def test_a_name_in_another_alphabet_weakens_nothing() -> None:
    index = index_of((IndexedPassage("kazan", "Поезд в Казань отправляется вечером"), NORTH))
    for text in ("the train to Kazan", "Kazan"):
        assert search(index, request(text, NORTH)).passages[0].evidence >= 0.7
    (one,) = search(index, request("поезд в Самару", NORTH)).passages
    assert one.evidence < 0.5


def test_with_the_rule_of_words_a_similarity_is_not_evidence() -> None:
    """The scale of an unknown embedder: a similarity of 0.8 may be that of unrelated texts."""
    words = RankingSettings()
    index = index_of((PUMP, NORTH), (VALVE, EAST))
    for weights in (BOTH, DENSE):
        assert search(index, request("orchids", NORTH, weights=weights), words).abstention is not None
        assert keys(search(index, request("a loud oil pump", NORTH, weights=weights), words)) == ["pump"]


def test_weak_passages_after_a_strong_one_are_dropped() -> None:
    index = index_of((PUMP, NORTH), (VALVE, SOUTH))
    assert keys(search(index, request("oil pump", NORTH))) == ["pump"]


# --- Time ---------------------------------------------------------------------------------------------------------

OLD = IndexedPassage(
    "old", "The price is 3900", valid_from=day("2024-01-01"), valid_until=day("2025-06-01"), date=day("2024-01-01")
)
NEW = IndexedPassage("new", "The price is 4700", valid_from=day("2025-06-01"), date=day("2025-06-01"))


@pytest.mark.parametrize(
    ("as_of", "now", "expected"),
    [
        (None, None, {"new"}),
        (None, "2025-11-01", {"new"}),
        ("2025-06-01", "2025-11-01", {"new"}),
        ("2025-05-31", "2025-11-01", {"old"}),
        ("2024-01-01", None, {"old"}),
        ("2023-12-31", "2025-11-01", set()),
    ],
)
def test_a_superseded_fact_is_found_for_its_time_only(
    as_of: str | None, now: str | None, expected: set[str]
) -> None:
    index = index_of((OLD, NORTH), (NEW, NORTH))
    outcome = search(
        index, request("price", NORTH, as_of=day(as_of) if as_of else None, now=day(now) if now else None)
    )
    assert set(keys(outcome)) == expected


def test_a_window_includes_its_start_and_excludes_its_end() -> None:
    index = index_of(*((IndexedPassage(str(n), "price", date=day(f"2025-0{n}-01")), NORTH) for n in range(1, 6)))
    index.put(IndexedPassage("undated", "price"), NORTH)
    found = search(index, request("price", NORTH, window=TimeWindow(day("2025-02-01"), day("2025-04-01"))))
    assert set(keys(found)) == {"2", "3"}
    assert set(keys(search(index, request("price", NORTH, window=TimeWindow(start=day("2025-04-01")))))) == {
        "4",
        "5",
    }


def test_recent_passages_win_a_tie_but_not_a_better_match() -> None:
    now = day("2025-11-01")
    index = index_of(
        (IndexedPassage("a-old", "pump", date=now - timedelta(days=900)), NORTH),
        (IndexedPassage("b-new", "pump", date=now), NORTH),
        (IndexedPassage("c-undated", "pump"), NORTH),
    )
    weak = replace(LOOSE, rank_constant=10_000)
    assert keys(search(index, request("pump", NORTH, now=now), weak))[0] == "b-new"
    assert keys(search(index, request("pump", NORTH), weak))[0] == "a-old", "without a present, the key decides"
    better = index_of(
        (IndexedPassage("old", "oil pump", date=now - timedelta(days=900)), NORTH),
        (IndexedPassage("new", "oil", date=now), EAST),
    )
    assert keys(search(better, request("oil pump", NORTH, now=now), LOOSE))[0] == "old"


def test_a_future_date_has_no_larger_bonus() -> None:
    now = day("2025-11-01")
    index = index_of((IndexedPassage("future", "pump", date=now + timedelta(days=9000)), NORTH))
    (one,) = search(index, request("pump", NORTH, now=now)).passages
    assert one.score <= 1


@pytest.mark.parametrize("name", ["date", "valid_from", "valid_until"])
def test_a_time_without_a_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no time zone"):
        IndexedPassage("p", "text", **{name: datetime(2025, 1, 1)})  # type: ignore[arg-type]  # noqa: DTZ001


# --- Filters and limits -------------------------------------------------------------------------------------------


def test_a_filter_and_the_limit_hold() -> None:
    index = index_of((PUMP, NORTH), (VALVE, NORTH))
    manuals = compile_filter({"type": "eq", "key": "kind", "value": "manual"})
    assert keys(search(index, request("the", NORTH, accepts=manuals))) == ["pump"]
    assert len(search(index, request("the", NORTH, limit=1)).passages) == 1


def test_attributes_of_different_types_are_different() -> None:
    index = index_of(
        (IndexedPassage("one", "x", attributes={"a": 1}), NORTH),
        (IndexedPassage("true", "x", attributes={"a": True}), NORTH),
    )
    number = compile_filter({"type": "eq", "key": "a", "value": 1})
    assert keys(search(index, request("x", NORTH, accepts=number))) == ["one"]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"limit": 0}, "max_num_results"),
        ({"limit": 51}, "max_num_results"),
        ({"score_threshold": -0.1}, "ranking_options.score_threshold"),
        ({"score_threshold": 1.1}, "ranking_options.score_threshold"),
        ({"score_threshold": float("nan")}, "ranking_options.score_threshold"),
    ],
)
def test_refused_requests_name_the_field(options: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request("pump", NORTH, **options)
    assert caught.value.param == param
    assert caught.value.status == 400


@pytest.mark.parametrize("queries", [[], [SearchQuery("  ")], [SearchQuery("a"), SearchQuery("")]])
def test_an_empty_query_is_refused(queries: list[SearchQuery]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SearchRequest(queries)
    assert caught.value.param == "query"


def test_several_queries_are_fused() -> None:
    index = index_of((PUMP, NORTH), (VALVE, EAST))
    both = SearchRequest([SearchQuery("oil pump", NORTH), SearchQuery("closed valve", EAST)])
    assert set(keys(search(index, both))) == {"pump", "valve"}


# --- Reranker -----------------------------------------------------------------------------------------------------


def test_a_reranker_orders_and_drops() -> None:
    index = index_of((PUMP, NORTH), (VALVE, EAST))

    def rerank(query: str, texts: Sequence[str]) -> list[float]:
        return [0.9 if "valve" in text else 0.4 for text in texts]

    outcome = search(index, request("oil pump", NORTH), rerank=rerank)
    assert keys(outcome) == ["valve"]
    assert outcome.passages[0].score == 0.9


def test_a_reranker_that_rejects_everything_abstains() -> None:
    outcome = search(
        index_of((PUMP, NORTH)), request("oil pump", NORTH), rerank=lambda query, texts: [0.2] * len(texts)
    )
    assert outcome.abstention is not None
    assert outcome.abstention.best == 0.2
    assert outcome.abstention.threshold == RankingSettings().min_relevance


def test_a_reranker_scores_no_more_than_its_depth() -> None:
    index = index_of(*((IndexedPassage(f"{n:02}", "pump"), NORTH) for n in range(9)))
    seen: list[int] = []

    def rerank(query: str, texts: Sequence[str]) -> list[float]:
        seen.append(len(texts))
        return [1.0] * len(texts)

    search(index, request("pump", NORTH), replace(FITTED, rerank_depth=4), rerank=rerank)
    assert seen == [4]


@pytest.mark.parametrize("scores", [[], [0.5, 0.5], [1.5], [-0.1], [float("nan")]])
def test_an_invalid_reranker_is_an_error(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="reranker"):
        search(index_of((PUMP, NORTH)), request("pump", NORTH), rerank=lambda query, texts: scores)


def test_an_error_of_the_reranker_passes_through() -> None:
    def rerank(query: str, texts: Sequence[str]) -> list[float]:
        raise TimeoutError("engine")

    with pytest.raises(TimeoutError):
        search(index_of((PUMP, NORTH)), request("pump", NORTH), rerank=rerank)


# --- The index over any sequence of changes -----------------------------------------------------------------------

WORDS = st.lists(st.sampled_from(["oil", "pump", "valve", "loud"]), min_size=1, max_size=4).map(" ".join)
VECTORS = st.sampled_from([NORTH, EAST, SOUTH])


class HybridIndexMachine(RuleBasedStateMachine):
    """Changes of an index, compared with a new index of the same passages."""

    def __init__(self) -> None:
        super().__init__()
        self.index = HybridIndex(VectorIndex(3, rows=1))
        self.passages: dict[str, tuple[IndexedPassage, list[float]]] = {}

    @rule(key=st.sampled_from("abcdef"), text=WORDS, vector=VECTORS, year=st.integers(1, 3), ended=st.booleans())
    def put(self, key: str, text: str, vector: list[float], year: int, *, ended: bool) -> None:
        until = day("2025-01-01") if ended else None
        passage = IndexedPassage(
            key, text, attributes={"year": year}, valid_until=until, date=day(f"202{year}-01-01")
        )
        self.index.put(passage, vector)
        self.passages[key] = (passage, vector)

    @rule(key=st.sampled_from("abcdef"))
    def refuse(self, key: str) -> None:
        with pytest.raises(ValueError, match="vector"):
            self.index.put(IndexedPassage(key, "refused"), [0.0, 0.0, 0.0])

    @rule(key=st.sampled_from("abcdef"))
    def remove(self, key: str) -> None:
        if key in self.passages:
            self.index.remove(key)
            del self.passages[key]
        else:
            with pytest.raises(KeyError):
                self.index.remove(key)

    @invariant()
    def equals_a_new_index(self) -> None:
        fresh = index_of(*self.passages.values())
        recent = compile_filter({"type": "gte", "key": "year", "value": 2})
        assert len(self.index) == len(fresh)
        for one in (
            request("oil pump", NORTH),
            request("valve", EAST, accepts=recent),
            request("loud", SOUTH, as_of=day("2024-06-01"), window=TimeWindow(start=day("2022-01-01"))),
        ):
            mine, its = search(self.index, one, LOOSE), search(fresh, one, LOOSE)
            assert {key.passage.key: key.evidence for key in mine.passages} == pytest.approx(
                {key.passage.key: key.evidence for key in its.passages}
            )
            assert all(found.passage == self.passages[found.passage.key][0] for found in mine.passages)


TestHybridIndexMachine = HybridIndexMachine.TestCase
TestHybridIndexMachine.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


def test_each_freed_row_is_used_once() -> None:
    index = index_of(*((IndexedPassage(key, "pump"), NORTH) for key in "abcd"))
    index.remove("b")
    index.remove("d")
    index.put(IndexedPassage("e", "valve"), EAST)
    index.put(IndexedPassage("f", "filter"), SOUTH)
    for key, vector in (("a", NORTH), ("c", NORTH), ("e", EAST), ("f", SOUTH)):
        assert key in keys(search(index, request("none", vector, weights=DENSE))), key


def test_a_removed_passage_does_not_count_as_allowed() -> None:
    index = index_of((OLD, NORTH), (NEW, NORTH))
    index.remove("new")
    outcome = search(index, request("price", NORTH))
    assert outcome.abstention is not None
    assert outcome.abstention.reason is AbstainReason.EXCLUDED


def test_a_vector_index_with_rows_is_refused() -> None:
    vectors = VectorIndex(3)
    vectors.put(0, NORTH)
    with pytest.raises(ValueError, match="pass an empty one"):
        HybridIndex(vectors)


def test_more_passages_than_the_first_room() -> None:
    rng = np.random.default_rng(3)
    index = HybridIndex(VectorIndex(3, rows=1))
    for number in range(2100):
        index.put(IndexedPassage(f"{number:04}", "pump", attributes={"n": number}), rng.standard_normal(3))
    index.put(IndexedPassage("target", "rare word", attributes={"n": -1}), NORTH)
    only = compile_filter({"type": "lt", "key": "n", "value": 0})
    assert keys(search(index, request("rare", NORTH, accepts=only))) == ["target"]
