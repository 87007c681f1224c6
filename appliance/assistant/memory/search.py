"""The search over stores of a tenant: embedding, candidates of each store, reranking, threshold.

1. Every store must belong to the tenant; otherwise nothing is embedded.
2. The queries are embedded once. A store whose vectors are of another embedder is refused. A store without vectors
   is searched by words, as is every store of a site without an embedder.
3. Each store gives its candidates. A rank within a store does not compare with one of another store. So the fused
   score of a passage is multiplied by the best evidence of its store, relative to that of the best store.
4. The reranker scores the best candidates of all stores. If it fails, the fused order stays, and the outcome
   has the reason.
5. The thresholds decide, and passages that were removed meanwhile are dropped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from appliance.assistant.calibration.site_rules import SiteRules
from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.embedding_client import EmbeddingClient
from appliance.assistant.memory.metrics import MemoryMetrics
from appliance.assistant.memory.qdrant_sync import QdrantSync
from appliance.assistant.memory.store_index import KIND, IndexCache
from appliance.assistant.missing import expired_store, not_found
from appliance.assistant.retrieval.filters import compile_filter
from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint, require_same
from appliance.assistant.retrieval.fusion import HybridWeights
from appliance.assistant.retrieval.index import TimeWindow
from appliance.assistant.retrieval.ranking import (
    AbstainReason,
    Abstention,
    RankedPassage,
    RankingSettings,
    SearchQuery,
    SearchRequest,
    choose,
    find_candidates,
    reorder,
)
from appliance.assistant.store.passages import present, state_of
from appliance.assistant.store.vector_stores import VectorStoreRepository
from appliance.errors import EngineFailedError, InvalidRequestError, RequestError

LOG = logging.getLogger(__name__)

MAX_STORES = 16
MAX_QUERIES = 16
MAX_QUERY_LETTERS = 4000
"""Letters of a query that are searched; the rest of a longer one is not."""
ACTIVE_S = 3600.0
"""Seconds after which a search records again that a store is in use: stores expire by days."""
RERANK_PATH = "/v1/rerank"

Ranking = Literal["fused", "reranked", "words"]


@dataclass(frozen=True, slots=True)
class StoreSearchOutcome:
    """Passages, best first; or none and the reason."""

    passages: tuple[RankedPassage, ...]
    abstention: Abstention | None
    queries: tuple[str, ...]
    """The queries as they were searched."""
    ranking: Ranking
    """The origin of the order: fused rankings, the reranker, or words alone."""
    degraded: str | None = None
    """The reason why the reranker was not used although the site has one."""


class StoreSearch:
    """The searches of one assistant; it shares its indexes."""

    def __init__(self, context: AssistantContext) -> None:
        self._context = context
        self._embedder = context.shared(EmbeddingClient)
        self._metrics = context.shared(MemoryMetrics)
        self._rules = context.shared(SiteRules)
        self._sync = context.shared(QdrantSync)
        self._indexes = IndexCache(context.database, sync=self._sync)

    async def search(
        self,
        caller: Caller,
        store_ids: Sequence[str],
        queries: Sequence[str],
        *,
        limit: int = 10,
        filters: object = None,
        weights: HybridWeights | None = None,
        threshold: float = 0.0,
        window: TimeWindow | None = None,
        as_of: datetime | None = None,
        now: datetime | None = None,
        rerank: bool = True,
        max_stores: int = MAX_STORES,
    ) -> StoreSearchOutcome:
        """Return the passages of the stores for ``queries``, or the reason why there are none.

        Args:
            caller: The tenant, which is billed for the embedding.
            store_ids: Stores of the tenant, 1 to ``max_stores``.
            queries: Formulations of one request, 1 to 16.
            limit: Most passages, 1 to 50.
            filters: OpenAI's attribute filter as parsed from JSON, or None.
            weights: Weights of the two rankings.
            threshold: Least score of a passage, 0 to 1.
            window: The times in which a passage must be written.
            as_of: The time that the request is about, if it is about the past.
            now: The present; the default is the clock.
            rerank: Whether the reranker of the site is used.
            max_stores: The bound of a request; a command of the operator may have all stores of a user.

        Raises:
            InvalidRequestError: With ``param``, the field of the request; or a store is expired.
            NotFoundError: The tenant does not have one of the stores.
            ConflictError: A store has vectors of another embedder.
            EngineUnavailableError: The embedder cannot respond now.
            VectorIndexError: Qdrant cannot respond for a large store, or its points are incomplete.
        """
        began = time.monotonic()
        request = SearchRequest(
            [SearchQuery(text[:MAX_QUERY_LETTERS]) for text in queries[:MAX_QUERIES]],
            limit=limit,
            weights=weights or HybridWeights(),
            score_threshold=threshold,
            accepts=None if filters is None else compile_filter(filters),
            window=window,
            as_of=as_of,
            now=now or datetime.now(UTC),
        )
        if not 1 <= len(store_ids) <= max_stores:
            raise InvalidRequestError(f"a search has 1 to {max_stores} vector stores", param="vector_store_ids")
        outcome = "failed"
        try:
            found = await self._search(caller, [*dict.fromkeys(store_ids)], request, rerank=rerank)
            outcome = "found" if found.passages else "abstained"
        finally:
            self._metrics.searches.labels(outcome).inc()
            self._metrics.search_seconds.observe(time.monotonic() - began)
            self._metrics.index_bytes.set(self._indexes.bytes)
        return found

    async def _search(
        self, caller: Caller, store_ids: Sequence[str], request: SearchRequest, *, rerank: bool
    ) -> StoreSearchOutcome:
        texts = tuple(query.text for query in request.queries)
        has_vectors = await asyncio.to_thread(self._check, caller.user, store_ids)
        embedded = has_vectors and self._embedder.model is not None and request.weights.embedding_weight > 0
        fingerprint = None
        if embedded:
            try:
                vectors = await self._embedder.queries(caller, texts)
            except RequestError:
                self._metrics.embed_failures.inc()
                raise
            fingerprint = self._embedder.fingerprint()
            queries = [SearchQuery(text, vector) for text, vector in zip(texts, vectors, strict=True)]
            request = replace(request, queries=queries)
        # None is the loop's executor, whose threads serve most other endpoints too.
        executor = self._sync.executor if self._sync.waits_for_qdrant(store_ids) else None
        found = await asyncio.get_running_loop().run_in_executor(
            executor, self._candidates, caller.user, store_ids, request, fingerprint
        )
        settings, ranked, reason = found.settings, found.ranked, None
        model = self._context.settings.reranker
        ranking: Ranking = "fused" if embedded else "words"
        if model is not None and rerank and ranked:
            try:
                relevance = await self._relevance(caller, model, texts, ranked[: settings.rerank_depth])
                ranked, ranking = reorder(ranked, relevance, request, settings), "reranked"
            except RequestError as error:
                self._metrics.rerank_failures.inc()
                LOG.warning("the reranker %s failed (%s); the fused order stays", model, error.code)
                reason = f"the reranker {model} failed; passages have the fused order"
        chosen = choose(ranked, request, settings, reranked=ranking == "reranked")
        abstention = found.abstention if not ranked and found.abstention is not None else chosen.abstention
        passages = await asyncio.to_thread(self._present, caller.user, chosen.passages)
        if chosen.passages and not passages:
            abstention = Abstention(AbstainReason.EXCLUDED, "all passages were removed during the search")
        return StoreSearchOutcome(passages, abstention, texts, ranking, reason)

    def _check(self, tenant: str, store_ids: Sequence[str]) -> bool:
        """Return whether a store has vectors, and record that the stores are in use.

        Raises :class:`NotFoundError` unless all are the tenant's, :class:`InvalidRequestError` if one is expired.
        """
        found, idle, now = False, [], time.time()
        with self._context.database.reading() as connection:
            for store_id in store_ids:
                state = state_of(connection, tenant, store_id)
                if state is None:
                    raise not_found(KIND, store_id)
                if state.expires_at is not None and state.expires_at <= now:
                    raise expired_store(store_id)
                found = found or state.fingerprint is not None
                if state.last_active_at < now - ACTIVE_S:
                    idle.append(store_id)
        if idle:
            VectorStoreRepository(self._context.database).touch(tenant, idle, now)
        return found

    def _candidates(
        self,
        tenant: str,
        store_ids: Sequence[str],
        request: SearchRequest,
        fingerprint: EmbedderFingerprint | None,
    ) -> _Candidates:
        """Return the candidates of all stores, best first."""
        settings = RankingSettings(rule=self._rules.choose(fingerprint).rule)
        stores: list[list[RankedPassage]] = []
        reasons: list[Abstention] = []
        for store_id in store_ids:
            with self._indexes.open(tenant, store_id) as index:
                one = request
                if index.fingerprint is not None and fingerprint is not None:
                    require_same(index.fingerprint, fingerprint, store=store_id)
                else:
                    # Words alone: the store has no vectors, or the query has none.
                    one = replace(request, weights=HybridWeights(embedding_weight=0.0, text_weight=1.0))
                found = find_candidates(index.passages, one, settings)
            if isinstance(found, Abstention):
                reasons.append(found)
            else:
                stores.append(found)
        return _Candidates(merge(stores), settings, _most_specific(reasons))

    def _present(self, tenant: str, passages: Sequence[RankedPassage]) -> tuple[RankedPassage, ...]:
        """Return those of ``passages`` that the database still has."""
        if not passages:
            return ()
        with self._context.database.reading() as connection:
            numbers = present(connection, tenant, [int(one.passage.key) for one in passages])
        return tuple(one for one in passages if int(one.passage.key) in numbers)

    async def _relevance(
        self, caller: Caller, model: str, queries: Sequence[str], ranked: Sequence[RankedPassage]
    ) -> list[list[float]]:
        """Return the relevance of each passage for each query; raise :class:`RequestError` if it is not usable."""
        documents = [one.passage.indexed_text or one.passage.text for one in ranked]
        bodies = [{"model": model, "query": query, "documents": documents} for query in queries]
        found = await asyncio.gather(*(self._context.inference.post(RERANK_PATH, body, caller) for body in bodies))
        return [read_relevance(response, len(documents)) for response in found]


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The candidates of all stores, their thresholds, and a reason if a store could have none."""

    ranked: list[RankedPassage]
    settings: RankingSettings
    abstention: Abstention | None


def merge(stores: Sequence[Sequence[RankedPassage]]) -> list[RankedPassage]:
    """Return the candidates of several stores in one order, by score and the best evidence of their store."""
    stores = [store for store in stores if store]
    best = [max(one.evidence for one in store) for store in stores]
    highest = max(best, default=0.0)
    ranked = [
        replace(one, score=one.score * (evidence / highest if highest else 1.0))
        for store, evidence in zip(stores, best, strict=True)
        for one in store
    ]
    return sorted(ranked, key=lambda one: (-one.score, int(one.passage.key)))


def read_relevance(response: dict[str, Any], count: int) -> list[float]:
    """Return the relevance of ``count`` documents from a rerank response, in their order.

    Raises :class:`EngineFailedError` if one is absent or outside 0 to 1.
    """
    found: dict[int, float] = {}
    results = response.get("results")
    for row in results if isinstance(results, list) else ():
        index, score = (row.get("index"), row.get("relevance_score")) if isinstance(row, dict) else (None, None)
        if isinstance(index, int) and isinstance(score, (int, float)) and 0 <= score <= 1:
            found[index] = float(score)
    if found.keys() != set(range(count)):
        raise EngineFailedError("the reranker returned no relevance from 0 to 1 for each passage")
    return [found[at] for at in range(count)]


def _most_specific(reasons: Sequence[Abstention]) -> Abstention | None:
    """Return the reason of a store that has passages, or else the first one."""
    return next((one for one in reasons if one.reason is not AbstainReason.EMPTY_INDEX), next(iter(reasons), None))
