"""The evaluation of a search over the labelled requests of this folder, and the fit of a rule of evidence.

Recall@k is the share of the requests whose relevant document is among the first k passages. nDCG@10 uses binary
relevance (Järvelin and Kekäläinen, 2002). Both count a request as missed if the search abstains. Abstention is
judged like a classifier: by precision over all abstentions, and by recall over the requests that the corpus
cannot satisfy. These are of two kinds: `abstain` is about another topic, and `near_miss` has the topic and the
words of a document that does not contain the fact.

Rules are fitted on every second request (:func:`half`), and the scores of the other half are reported.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import NormalDist, mean, median, stdev

import numpy as np
from numpy.typing import NDArray

from appliance.assistant.retrieval.chunking import Chunk, ChunkSettings, chunk_markdown
from appliance.assistant.retrieval.evidence import EvidenceRule
from appliance.assistant.retrieval.fusion import HybridWeights
from appliance.assistant.retrieval.index import HybridIndex, IndexedPassage, TimeWindow
from appliance.assistant.retrieval.ranking import RankingSettings, SearchOutcome, SearchQuery, SearchRequest, search
from appliance.assistant.retrieval.vectors import VectorIndex

CORPUS = Path(__file__).parent
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


ABSTAIN_KINDS = ("abstain", "near_miss")
"""Kinds of requests that no document satisfies."""

MISSED = 0.005
"""Share of answerable requests at which a fitted rule may abstain. An unrelated passage costs tokens, and the
context block requests that the model states what is absent. A missed document costs the trust in the memory."""
PRECISION = 0.95
"""Least precision of abstention that a fitted rule is expected to have on its own half."""
SHARES = (0.2, 0.3, 0.4, 0.5)
"""The values of ``text_share`` that a fit tries."""
LEAST = 0.01
"""Evidence of a request without a candidate; it has a logarithm."""


@dataclass(frozen=True, slots=True)
class RetrievalMethod:
    """A way to search: the weights of the two rankings, and its own rule."""

    name: str
    weights: HybridWeights
    rule: EvidenceRule


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
    for block in (CORPUS / "documents.txt").read_text("utf-8").split("\n== "):
        head, _, text = block.removeprefix("== ").partition("\n")
        key, language, date, *validity = [part.strip() for part in head.split("|")]
        start, _, end = (validity[0] if validity else "").partition("..")
        written = datetime.fromisoformat(date).replace(tzinfo=UTC)
        found.append(CorpusDocument(key, language, written, text.strip(), _time(start), _time(end)))
    return found


def read_requests() -> list[JudgedRequest]:
    """Return the judged requests of the corpus."""
    found = []
    for line in (CORPUS / "questions.txt").read_text("utf-8").splitlines():
        kind, text, relevant, *more = [part.strip() for part in line.split("|")]
        options = dict(option.split("=") for option in more)
        start, _, end = options.get("window", "").partition("..")
        window = TimeWindow(_time(start), _time(end)) if start else None
        found.append(
            JudgedRequest(kind, text, frozenset(relevant.split()), _time(options.get("as_of", "")), window)
        )
    return found


@dataclass(frozen=True, slots=True)
class CorpusChunk:
    """A chunk of a document of the corpus."""

    document: CorpusDocument
    number: int
    chunk: Chunk


def corpus_chunks(documents: Iterable[CorpusDocument]) -> list[CorpusChunk]:
    """Return the chunks of the documents, cut as the appliance cuts files."""
    return [
        CorpusChunk(document, number, chunk)
        for document in documents
        for number, chunk in enumerate(chunk_markdown(document.text, ChunkSettings(), lambda text: len(text) // 3))
    ]


def build_index(documents: Iterable[CorpusDocument], embed: Embedder) -> HybridIndex:
    """Return the index of the documents, embedded by ``embed``."""
    chunks = corpus_chunks(documents)
    return index_chunks(chunks, embed([one.chunk.indexed_text for one in chunks]))


def index_chunks(chunks: Sequence[CorpusChunk], vectors: NDArray[np.float32]) -> HybridIndex:
    """Return the index of ``chunks`` with their ``vectors``, shape (chunks, dimensions)."""
    index = HybridIndex(VectorIndex(vectors.shape[1], rows=len(chunks)))
    for one, vector in zip(chunks, vectors, strict=True):
        document = one.document
        index.put(
            IndexedPassage(
                key=f"{document.key}#{one.number}",
                text=one.chunk.text,
                group=document.key,
                indexed_text=one.chunk.indexed_text,
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
    settings = RankingSettings(rule=method.rule)
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


def fit_rule(
    index: HybridIndex,
    requests: Sequence[JudgedRequest],
    vectors: NDArray[np.float32],
    weights: HybridWeights,
    *,
    shares: Sequence[float] = SHARES,
) -> EvidenceRule | None:
    """Return the rule with the most correct abstentions among those that miss no more than :data:`MISSED`.

    Of equal rules, the one with the most weight of words wins. None if no rule is expected to have
    :data:`PRECISION`: the embedder does not separate the requests.

    Args:
        index: The corpus.
        requests: The requests to which the rule is fitted, and only those.
        vectors: Their embeddings, shape (requests, dimensions).
        weights: Weights of the two rankings.
        shares: Values of ``text_share`` to try.
    """
    fitted = []
    unrelated = round(unrelated_similarity(index, vectors), 3)
    for share in shares:
        method = RetrievalMethod("fit", weights, EvidenceRule(unrelated, share, min_evidence=0.0))
        outcomes = run_requests(index, requests, method, vectors, limit=50)
        best = [max((one.evidence for one in outcome.passages), default=0.0) for outcome in outcomes]
        answerable = [value for value, request in zip(best, requests, strict=True) if request.relevant]
        threshold = round(low_quantile(answerable, MISSED), 3)
        right = sum(value < threshold and not one.relevant for value, one in zip(best, requests, strict=True))
        if right >= PRECISION * (right + MISSED * len(answerable)):
            fitted.append((right, share, threshold))
    if not fitted:
        return None
    _, share, threshold = max(fitted)
    return EvidenceRule(unrelated, share, threshold)


def unrelated_similarity(index: HybridIndex, vectors: NDArray[np.float32]) -> float:
    """Return the median similarity of all requests and passages, at least 0: nearly all pairs are unrelated."""
    everything = index.mask()
    found = [value for vector in vectors for value in index.search_vector(vector, len(index), everything).values()]
    return max(0.0, median(found))


def low_quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of a log-normal distribution with the moments of ``values`` is.

    A few hundred values have no quantile of 0.5 % of their own: the least one is chance.
    """
    logs = [math.log(max(value, LEAST)) for value in values]
    return math.exp(NormalDist(mean(logs), stdev(logs)).inv_cdf(share))


def _ndcg(hits: Sequence[bool], relevant: int) -> float:
    gain = sum(hit / math.log2(rank + 1) for rank, hit in enumerate(hits, 1))
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(relevant, 10) + 1))
    return gain / ideal


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 1.0
