"""The evaluation of retrieval: the corpus of this folder, and recall, nDCG and abstention of each kind of search.

Recall@k is the share of the requests whose relevant document is among the first k passages. nDCG@10 uses binary
relevance (Järvelin and Kekäläinen, 2002). Both count a request as missed if the search abstains. Abstention is
judged like a classifier: by precision over all abstentions, and by recall over the requests that the corpus
cannot satisfy.

Thresholds are chosen on every second request (:func:`half`), and the scores of the other half are reported too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from appliance.assistant.retrieval.chunking import ChunkSettings, chunk_markdown
from appliance.assistant.retrieval.fusion import HybridWeights
from appliance.assistant.retrieval.index import HybridIndex, IndexedPassage, TimeWindow
from appliance.assistant.retrieval.ranking import RankingSettings, SearchOutcome, SearchQuery, SearchRequest, search
from appliance.assistant.retrieval.vectors import VectorIndex

CORPUS = Path(__file__).parent / "corpus"
NOW = datetime(2025, 11, 15, tzinfo=UTC)
"""The present of the corpus."""

Embedder = Callable[[Sequence[str]], NDArray[np.float32]]
"""Returns the vectors of texts, shape (texts, dimensions)."""


@dataclass(frozen=True, slots=True)
class CorpusDocument:
    """A document of the corpus; facts have the time during which they hold."""

    key: str
    language: str
    date: datetime
    text: str
    valid_from: datetime | None = None
    valid_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class JudgedRequest:
    """A request and the documents that satisfy it; none for a request to abstain from."""

    kind: str
    text: str
    relevant: frozenset[str]
    as_of: datetime | None = None
    window: TimeWindow | None = None


@dataclass(frozen=True, slots=True)
class RetrievalMethod:
    """A way to search: the weights of the two rankings, and its own threshold."""

    name: str
    weights: HybridWeights
    min_evidence: float


METHODS = (
    RetrievalMethod("BM25 alone", HybridWeights(embedding_weight=0, text_weight=1), min_evidence=0.01),
    RetrievalMethod("vectors alone", HybridWeights(embedding_weight=1, text_weight=0), min_evidence=0.18),
    RetrievalMethod("fused", HybridWeights(), min_evidence=RankingSettings().min_evidence),
)
"""The methods of the table; the thresholds are those that :func:`choose_threshold` returns on the first half."""


@dataclass(frozen=True, slots=True)
class RetrievalScores:
    """Results of one method over some requests; every value is a share from 0 to 1."""

    requests: int
    recall_at_1: float
    recall_at_5: float
    ndcg_at_10: float
    abstain_precision: float
    abstain_recall: float
    false_abstain: float
    """Share of the requests with a relevant document at which the search abstained."""


def _time(text: str) -> datetime | None:
    return datetime.fromisoformat(text).replace(tzinfo=UTC) if text else None


def read_documents() -> list[CorpusDocument]:
    """Return the documents of the corpus."""
    found = []
    for block in (CORPUS / "documents.corpus").read_text("utf-8").split("\n== "):
        head, _, text = block.removeprefix("== ").partition("\n")
        key, language, date, *validity = [part.strip() for part in head.split("|")]
        start, _, end = (validity[0] if validity else "").partition("..")
        written = _time(date)
        assert written is not None, key
        found.append(CorpusDocument(key, language, written, text.strip(), _time(start), _time(end)))
    return found


def read_requests() -> list[JudgedRequest]:
    """Return the judged requests of the corpus."""
    found = []
    for line in (CORPUS / "questions.corpus").read_text("utf-8").splitlines():
        kind, text, relevant, *more = [part.strip() for part in line.split("|")]
        options = dict(option.split("=") for option in more)
        start, _, end = options.get("window", "").partition("..")
        window = TimeWindow(_time(start), _time(end)) if start else None
        found.append(
            JudgedRequest(kind, text, frozenset(relevant.split()), _time(options.get("as_of", "")), window)
        )
    return found


def build_index(documents: Iterable[CorpusDocument], embed: Embedder) -> HybridIndex:
    """Return the index of the documents, cut into chunks as the appliance cuts files."""
    chunks = [
        (document, number, chunk)
        for document in documents
        for number, chunk in enumerate(chunk_markdown(document.text, ChunkSettings(), lambda text: len(text) // 3))
    ]
    vectors = embed([chunk.indexed_text for _, _, chunk in chunks])
    index = HybridIndex(VectorIndex(vectors.shape[1], rows=len(chunks)))
    for (document, number, chunk), vector in zip(chunks, vectors, strict=True):
        index.put(
            IndexedPassage(
                key=f"{document.key}#{number}",
                text=chunk.text,
                group=document.key,
                indexed_text=chunk.indexed_text,
                date=document.date,
                valid_from=document.valid_from,
                valid_until=document.valid_until,
            ),
            vector,
        )
    return index


def run_requests(
    index: HybridIndex,
    requests: Sequence[JudgedRequest],
    method: RetrievalMethod,
    vectors: NDArray[np.float32],
    *,
    limit: int = 10,
) -> list[SearchOutcome]:
    """Return the outcome of each request; ``vectors`` has their embeddings in the same order."""
    settings = RankingSettings(min_evidence=method.min_evidence)
    return [
        search(
            index,
            SearchRequest(
                [SearchQuery(request.text, vector)],
                limit=limit,
                weights=method.weights,
                as_of=request.as_of,
                window=request.window,
                now=NOW,
            ),
            settings,
        )
        for request, vector in zip(requests, vectors, strict=True)
    ]


def score(requests: Sequence[JudgedRequest], outcomes: Sequence[SearchOutcome]) -> RetrievalScores:
    """Return the scores of ``outcomes``, one for each request."""
    at_1, at_5, ndcg, false = [], [], [], 0
    abstained = [outcome.abstention is not None for outcome in outcomes]
    for request, outcome, abstains in zip(requests, outcomes, abstained, strict=True):
        if not request.relevant:
            continue
        groups = [*dict.fromkeys(one.passage.group for one in outcome.passages)]
        hits = [group in request.relevant for group in groups]
        at_1.append(any(hits[:1]))
        at_5.append(any(hits[:5]))
        ndcg.append(_ndcg(hits[:10], len(request.relevant)))
        false += abstains
    unanswerable = sum(not request.relevant for request in requests)
    right = sum(a and not r.relevant for a, r in zip(abstained, requests, strict=True))
    return RetrievalScores(
        requests=len(requests),
        recall_at_1=_mean(at_1),
        recall_at_5=_mean(at_5),
        ndcg_at_10=_mean(ndcg),
        abstain_precision=right / sum(abstained) if any(abstained) else 1.0,
        abstain_recall=right / unanswerable if unanswerable else 1.0,
        false_abstain=false / len(at_1) if at_1 else 0.0,
    )


def by_kind(requests: Sequence[JudgedRequest], outcomes: Sequence[SearchOutcome]) -> Mapping[str, RetrievalScores]:
    """Return the scores of each kind of request."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for at, request in enumerate(requests):
        groups[request.kind].append(at)
    return {kind: score([requests[at] for at in ats], [outcomes[at] for at in ats]) for kind, ats in groups.items()}


def half(items: Sequence[object], *, held_out: bool) -> list[int]:
    """Return the positions of the half on which thresholds are chosen, or of the half that is held out."""
    return [at for at in range(len(items)) if at % 2 == held_out]


def choose_threshold(requests: Sequence[JudgedRequest], outcomes: Sequence[SearchOutcome]) -> float:
    """Return the threshold with the best F1 of abstention, to two digits.

    Args:
        requests: The half on which thresholds are chosen.
        outcomes: Their outcomes without a threshold, with as many passages as possible.
    """
    best = [max((one.evidence for one in outcome.passages), default=0.0) for outcome in outcomes]
    unanswerable = [not request.relevant for request in requests]

    def f1(threshold: float) -> float:
        abstained = [value < threshold for value in best]
        right = sum(a and u for a, u in zip(abstained, unanswerable, strict=True))
        return 2 * right / (sum(abstained) + sum(unanswerable))

    return max((step / 100 for step in range(1, 100)), key=f1)


def _ndcg(hits: Sequence[bool], relevant: int) -> float:
    gain = sum(hit / math.log2(rank + 1) for rank, hit in enumerate(hits, 1))
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(relevant, 10) + 1))
    return gain / ideal


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 1.0
