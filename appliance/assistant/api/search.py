"""``POST /v1/vector_stores/{id}/search``: the memory's search in OpenAI's shape.

``rewrite_query`` is accepted and has no effect: the query is searched as it is, as ``search_query`` of the response
shows. The ranker ``none`` omits the reranker of the site. An abstention is an empty list.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from appliance.assistant.api.json_body import CHECKED
from appliance.assistant.api.requests import Calling
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.search import MAX_QUERIES, StoreSearch
from appliance.assistant.retrieval.fusion import HybridWeights
from appliance.assistant.retrieval.ranking import MAX_RESULTS, RankedPassage

MAX_LETTERS = 100_000
_Query = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LETTERS, pattern=r"\S")]
_Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class HybridOptions(BaseModel):
    """``ranking_options.hybrid_search``; only the ratio of the weights matters."""

    model_config = ConfigDict(strict=True)

    embedding_weight: _Weight = 1.0
    text_weight: _Weight = 1.0


class RankingOptions(BaseModel):
    """``ranking_options`` of a search."""

    model_config = ConfigDict(strict=True)

    ranker: Literal["auto", "none", "default-2024-11-15", "default_2024_08_21"] | None = None
    score_threshold: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    hybrid_search: HybridOptions | None = None


class StoreSearchBody(BaseModel):
    """The body of a search; unknown fields have no effect, as in OpenAI's API."""

    model_config = ConfigDict(strict=True)

    query: _Query | Annotated[list[_Query], Field(min_length=1, max_length=MAX_QUERIES)]
    max_num_results: Annotated[int, Field(ge=1, le=MAX_RESULTS)] | None = None
    filters: Any = None
    ranking_options: RankingOptions | None = None
    rewrite_query: bool | None = None

    @property
    def queries(self) -> list[str]:
        """The queries, one or several."""
        return [self.query] if isinstance(self.query, str) else self.query

    @property
    def weights(self) -> HybridWeights | None:
        """The weights of the two rankings; None for the default."""
        hybrid = None if self.ranking_options is None else self.ranking_options.hybrid_search
        return None if hybrid is None else HybridWeights(hybrid.embedding_weight, hybrid.text_weight)


def search_router(context: AssistantContext) -> APIRouter:
    """Return the endpoint of the search."""
    router = APIRouter(dependencies=CHECKED)
    memory = context.shared(StoreSearch)

    @router.post("/v1/vector_stores/{store_id}/search")
    async def search(store_id: str, body: StoreSearchBody, caller: Calling) -> dict[str, Any]:
        options = body.ranking_options or RankingOptions()
        found = await memory.search(
            caller,
            [store_id],
            body.queries,
            limit=10 if body.max_num_results is None else body.max_num_results,
            filters=body.filters,
            weights=body.weights,
            threshold=options.score_threshold or 0.0,
            rerank=options.ranker != "none",
        )
        return {
            "object": "vector_store.search_results.page",
            "search_query": body.queries,
            "data": [search_hit(one) for one in found.passages],
            "has_more": False,
            "next_page": None,
        }

    return router


def search_hit(one: RankedPassage) -> dict[str, Any]:
    """Return ``one`` as OpenAI's result of a search."""
    passage = one.passage
    return {
        "file_id": passage.group,
        "filename": passage.source,
        "score": one.score,
        "attributes": dict(passage.attributes),
        "content": [{"type": "text", "text": passage.text}],
    }
