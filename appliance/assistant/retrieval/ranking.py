"""The pipeline of a search: a request becomes ranked passages, or an abstention with its reason.

1. **Mask.** Before any ranking, the mask excludes facts that do not hold at the requested time. It also excludes
   passages outside the time window and files that the filter rejects. Without a requested time, a superseded fact
   is excluded.
2. **Candidates.** Each query gives a BM25 ranking and a ranking by similarity. A passage that
   contains too few of the query's terms leaves the BM25 ranking before a fusion. A rank alone would give it the
   weight of a match.
3. **Fusion.** Reciprocal rank fusion with the weights of the request; recent passages get a small bonus.
4. **Relevance.** A reranker, if there is one, scores the best candidates anew and orders them. Without one, the
   evidence of a candidate decides (:mod:`appliance.assistant.retrieval.evidence`).
5. **Threshold.** If no candidate reaches the threshold, the search abstains. With a reranker, every passage must
   reach it. Without one, the evidence is coarser: passages after the best need half of it.

Ranks alone cannot show that nothing fits, because some passage is always the first. So abstention depends on the
evidence and not on the fused score.

Pure: the reranker and the time are arguments.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from numpy.typing import ArrayLike

from appliance.assistant.retrieval.bm25 import TermPresence, TextMatch
from appliance.assistant.retrieval.evidence import WORDS, EvidenceRule, evidence, requested_names
from appliance.assistant.retrieval.filters import Predicate
from appliance.assistant.retrieval.fusion import RANK_CONSTANT, HybridWeights, fuse
from appliance.assistant.retrieval.index import HybridIndex, IndexedPassage, TimeWindow
from appliance.assistant.retrieval.language import Script
from appliance.assistant.retrieval.terms import query_terms
from appliance.assistant.retrieval.vectors import Mask, Vectors, unit_vector
from appliance.errors import InvalidRequestError

Reranker = Callable[[str, Sequence[str]], Sequence[float]]
"""Returns the relevance of each text for the query, 0 to 1."""

MAX_RESULTS = 50
"""The largest `max_num_results` of OpenAI's API."""
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """One formulation of what the user looks for."""

    text: str
    vector: ArrayLike | None = None
    """Its embedding, shape (dimensions,); None only if the request has no embedding weight."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A validated search over one index."""

    queries: Sequence[SearchQuery]
    """At least one; several formulations are fused."""
    limit: int = 10
    """Most passages to return, 1 to 50."""
    weights: HybridWeights = field(default_factory=HybridWeights)
    score_threshold: float = 0.0
    """Passages with a lower score are dropped, 0 to 1."""
    accepts: Predicate | None = None
    window: TimeWindow | None = None
    as_of: datetime | None = None
    """The time that the user's request is about, if it is about the past."""
    now: datetime | None = None
    """The present; None gives no bonus for recent passages."""

    def __post_init__(self) -> None:
        """Reject values outside OpenAI's bounds.

        Raises:
            InvalidRequestError: With `param`, the field of the request.
        """
        if not 1 <= self.limit <= MAX_RESULTS:
            raise InvalidRequestError(
                f"max_num_results is {self.limit}; use 1 to {MAX_RESULTS}", param="max_num_results"
            )
        if not 0 <= self.score_threshold <= 1:
            raise InvalidRequestError(
                f"score_threshold is {self.score_threshold}; use 0 to 1", param="ranking_options.score_threshold"
            )
        if not self.queries or not all(query.text.strip() for query in self.queries):
            raise InvalidRequestError("query is empty; write what to look for", param="query")


@dataclass(frozen=True, slots=True)
class RankingSettings:
    """Constants of the pipeline; the thresholds belong to the embedder and the reranker."""

    candidates: int = 100
    """Passages of each ranking that are fused."""
    rerank_depth: int = 50
    """Best fused candidates that the reranker scores."""
    rank_constant: int = RANK_CONSTANT
    min_relevance: float = 0.5
    """Least relevance by the reranker, which then decides alone. That of Qwen3-Reranker is the probability of "yes"
    against "no". Other rerankers are classifiers: above 0.5, a passage is relevant rather than not."""
    min_coverage: float = 0.3
    """Least share of the query's terms, by idf, in a passage of the BM25 ranking that is fused."""
    rule: EvidenceRule = WORDS
    """The constants of the embedder, by which a search without a reranker abstains."""
    floor_share: float = 0.5
    """Share of ``rule.min_evidence`` that each further passage needs."""
    recency_bonus: float = 0.02
    """Share of the score that a passage of today has more than an old one."""
    recency_half_life_days: float = 30.0


class AbstainReason(enum.Enum):
    """Why a search returned no passage; the values are stable, for logs and metrics."""

    EMPTY_INDEX = "empty_index"
    EXCLUDED = "excluded"
    """Filter, time window or validity exclude every passage."""
    BELOW_THRESHOLD = "below_threshold"


@dataclass(frozen=True, slots=True)
class Abstention:
    """The reason of an abstention and the best value that was below its threshold."""

    reason: AbstainReason
    message: str
    best: float = 0.0
    threshold: float = 0.0


@dataclass(frozen=True, slots=True)
class RankedPassage:
    """A passage that the search returned."""

    passage: IndexedPassage
    score: float
    """Orders the hits, 0 to 1: the reranker's relevance, or the fused score."""
    evidence: float
    """The value that was compared with the threshold, 0 to 1."""


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """Passages, best first; or none and the reason."""

    passages: tuple[RankedPassage, ...]
    abstention: Abstention | None = None


def search(
    index: HybridIndex,
    request: SearchRequest,
    settings: RankingSettings | None = None,
    *,
    rerank: Reranker | None = None,
) -> SearchOutcome:
    """Return the passages for ``request``, or the reason why there are none.

    Args:
        index: The passages.
        request: The search; each query has a vector unless the request has no embedding weight.
        settings: The thresholds of the embedder and of the reranker.
        rerank: Scores passages for a query.
    """
    settings = settings or RankingSettings()
    found = find_candidates(index, request, settings)
    if isinstance(found, Abstention):
        return SearchOutcome((), found)
    if rerank is not None:
        depth = [one.passage.indexed_text or one.passage.text for one in found[: settings.rerank_depth]]
        relevance = [rerank(query.text, depth) for query in request.queries] if depth else []
        found = reorder(found, relevance, request, settings)
    return choose(found, request, settings, reranked=rerank is not None)


def find_candidates(
    index: HybridIndex, request: SearchRequest, settings: RankingSettings
) -> list[RankedPassage] | Abstention:
    """Return the fused candidates, best first, without a threshold; or why the index cannot have any."""
    if not len(index):
        return Abstention(AbstainReason.EMPTY_INDEX, "the store has no passages")
    allowed = index.mask(moment=request.as_of or request.now, window=request.window, accepts=request.accepts)
    if not allowed.any():
        return Abstention(AbstainReason.EXCLUDED, "filter, time window or validity exclude every passage")
    matches = [_match(index, query, request.weights, settings, allowed) for query in request.queries]
    fused = fuse(
        [(request.weights.text_weight, one.text_ranking) for one in matches]
        + [(request.weights.embedding_weight, [*one.similarities]) for one in matches],
        rank_constant=settings.rank_constant,
    )
    scored = [(one.score * _recency(index[one.key], request.now, settings), one.key) for one in fused]
    scored.sort(key=lambda pair: (-pair[0], pair[1]))
    keys = [key for _, key in scored]
    by_query = [one.evidence(keys) for one in matches]
    return [RankedPassage(index[key], score, max(found[key] for found in by_query)) for score, key in scored]


def reorder(
    candidates: Sequence[RankedPassage],
    relevance: Sequence[Sequence[float]],
    request: SearchRequest,
    settings: RankingSettings,
) -> list[RankedPassage]:
    """Return the first candidates in the order of the reranker's relevance.

    Args:
        candidates: The fused candidates, best first.
        relevance: For each query, the relevance of the first candidates; the best query counts.
        request: The search.
        settings: The number of candidates that are scored.

    Raises:
        ValueError: The relevance is not one number from 0 to 1 for each of them.
    """
    first = candidates[: settings.rerank_depth]
    for scores in relevance:
        if len(scores) != len(first) or not all(0 <= score <= 1 for score in scores):
            raise ValueError(
                f"the reranker returned {len(scores)} scores for {len(first)} texts, or one outside 0 to 1"
            )
    best = [max(scores) for scores in zip(*relevance, strict=True)]
    ranked = [
        RankedPassage(one.passage, value * _recency(one.passage, request.now, settings), value)
        for one, value in zip(first, best, strict=True)
    ]
    return sorted(ranked, key=lambda one: (-one.score, one.passage.key))


def choose(
    ranked: Sequence[RankedPassage], request: SearchRequest, settings: RankingSettings, *, reranked: bool
) -> SearchOutcome:
    """Return the passages of ``ranked``, best first, that reach the thresholds; or an abstention."""
    threshold = floor = settings.min_relevance
    if not reranked:
        threshold = settings.rule.min_evidence
        floor = threshold * settings.floor_share
    best = max((one.evidence for one in ranked), default=0.0)
    evident = [one for one in ranked if best >= threshold and one.evidence >= floor]
    kept = [one for one in evident if one.score >= request.score_threshold]
    if kept:
        return SearchOutcome(tuple(kept[: request.limit]))
    if evident:
        best, threshold = max(one.score for one in evident), request.score_threshold
    message = f"the best passage has {best:.2f}; the threshold is {threshold:.2f}"
    return SearchOutcome((), Abstention(AbstainReason.BELOW_THRESHOLD, message, best=best, threshold=threshold))


@dataclass(frozen=True, slots=True)
class _QueryMatch:
    """The two rankings of one query, and the evidence of a passage for it."""

    index: HybridIndex
    text: TextMatch | None
    """None if the request has no text weight."""
    vector: Vectors | None
    """Of length 1; None if the request has no embedding weight."""
    text_ranking: list[str]
    similarities: dict[str, float]
    """By key, in the order of the ranking."""
    rule: EvidenceRule
    names: list[tuple[Script | None, TermPresence]]
    """The names of the query: their alphabet, and the passages that contain them."""

    def evidence(self, keys: Sequence[str]) -> dict[str, float]:
        """Return how much each of the passages ``keys`` has in common with the query, 0 to 1."""
        similarities = self.similarities
        if self.vector is not None:
            others = [key for key in keys if key not in similarities]
            similarities = similarities | self.index.similarities(others, self.vector)
        found: dict[str, float] = {}
        for key in keys:
            coverage = self.text.coverage(key) if self.text is not None else 0.0
            similarity = max(0.0, similarities.get(key, 0.0))
            found[key] = evidence(similarity, coverage, self.rule, lacks_name=self._lacks_name(key))
        return found

    def _lacks_name(self, key: str) -> bool:
        return any(
            script in (None, self.index.script(key)) and key not in containing for script, containing in self.names
        )


def _match(
    index: HybridIndex, query: SearchQuery, weights: HybridWeights, settings: RankingSettings, allowed: Mask
) -> _QueryMatch:
    """Return the rankings of ``query`` over the allowed passages."""
    text, text_ranking = None, []
    vector, similarities = None, {}
    if weights.embedding_weight:
        if query.vector is None:
            raise ValueError(f"the query {query.text!r} has no vector; without an embedder, set its weight to 0")
        vector = unit_vector(query.vector, index.dimensions)
        similarities = index.search_vector(vector, settings.candidates, allowed)
    if weights.text_weight or settings.rule.text_share == 1:
        # Words may decide about the evidence without a weight in the ranking.
        text = index.match_text(query_terms(query.text), allowed)
    if text is not None and weights.text_weight:
        # A passage that shares one frequent word with the query would be the first of its ranking as well.
        least = settings.min_coverage if vector is not None else 0.0
        text_ranking = [hit.key for hit in text.best(settings.candidates) if text.coverage(hit.key) >= least]
    # Without one of the rankings, the other one has the whole weight.
    share = settings.rule.text_share if text is not None and vector is not None else float(vector is None)
    names = [(one.script, index.containing({(one.whole,), one.parts})) for one in requested_names(query.text)]
    rule = replace(settings.rule, text_share=share)
    return _QueryMatch(index, text, vector, text_ranking, similarities, rule, names)


def _recency(passage: IndexedPassage, now: datetime | None, settings: RankingSettings) -> float:
    """Return the factor of a passage's score: 1 if it is of today, 1 / (1 + bonus) if it is old or has no date."""
    highest = 1 + settings.recency_bonus
    if now is None:
        return 1.0
    if passage.date is None:
        return 1 / highest
    age_days = max(0.0, (now - passage.date).total_seconds() / DAY_S)
    return (1 + settings.recency_bonus * math.exp2(-age_days / settings.recency_half_life_days)) / highest
