"""``appliance memory calibrate``: fits the rule of evidence of the site's embedder to labelled requests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np

from appliance.assistant.calibration.evaluation import (
    RetrievalMethod,
    RetrievalScores,
    corpus_chunks,
    fit_rule,
    half,
    index_chunks,
    read_documents,
    read_requests,
    run_requests,
    score,
)
from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.embedding_client import EmbeddingClient
from appliance.assistant.retrieval.evidence import EvidenceRule
from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint
from appliance.assistant.retrieval.fusion import HybridWeights
from appliance.errors import ConfigError, InternalError

QUERIES_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Calibration:
    """The result of a fit."""

    fingerprint: EmbedderFingerprint
    rule: EvidenceRule | None
    """None if the embedder does not separate the requests."""
    held_out: RetrievalScores | None
    """The scores of the half to which the rule was not fitted."""


async def calibrate(context: AssistantContext, caller: Caller) -> Calibration:
    """Embed the packaged corpus by the site's embedder and return the rule that fits its first half.

    Args:
        context: The site; its rules do not change.
        caller: The user that is billed, in the background.

    Raises:
        ConfigError: The site has no embedder.
        RequestError: The embedder or the gateway fails, or rejects the caller.
    """
    client = context.shared(EmbeddingClient)
    if client.model is None:
        raise ConfigError("assistant.embedder is not set: a search by words needs no calibration")
    requests, chunks = read_requests(), corpus_chunks(read_documents())
    documents = await client.documents(caller, [one.chunk.indexed_text for one in chunks])
    texts = [request.text for request in requests]
    queries = []
    for start in range(0, len(texts), QUERIES_AT_ONCE):
        queries += await client.queries(caller, texts[start : start + QUERIES_AT_ONCE], background=True)
    fingerprint = client.fingerprint()
    if fingerprint is None:
        raise InternalError("the embedder returned vectors and has no fingerprint")
    index, vectors = index_chunks(chunks, np.stack(documents)), np.stack(queries)
    first, second = half(requests, held_out=False), half(requests, held_out=True)
    weights = HybridWeights()
    rule = await asyncio.to_thread(fit_rule, index, [requests[at] for at in first], vectors[first], weights)
    if rule is None:
        return Calibration(fingerprint, None, None)
    held_out = [requests[at] for at in second]
    method = RetrievalMethod("fused", weights, rule)
    outcomes = await asyncio.to_thread(run_requests, index, held_out, method, vectors[second])
    return Calibration(fingerprint, rule, score(held_out, outcomes))
