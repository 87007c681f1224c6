"""The memory of speculative decoding: the weights of the drafting head, its KV cache, further recurrent states.

Pure. Of each method, vLLM 0.32 loads:

| method | further weights | KV cache |
|---|---|---|
| MTP | a decoder layer with full attention, a projection of two vectors to one | a layer |
| EAGLE3 | a dense decoder layer on two vectors, a projection of three, a head of 32,000 tokens | a layer |
| n-grams | none | none |

A model with linear attention also has a further recurrent state for each draft token of a sequence.

Embedding and head are those of the model (``v1/spec_decode/llm_base_proposer.py``). The layers are in
``models/qwen3_5_mtp.py`` and ``models/llama_eagle3.py``, the states in ``v1/kv_cache_interface.py``.
DFlash and draft models are models of their own, whose size a site does not state: only their states are counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from appliance.catalog.shape import Attention, Shape
from appliance.planner.precision import Precision

DraftKind = Literal["", "mtp", "eagle", "dflash", "ngram"]
"""Method of speculative decoding."""

EAGLE3_VOCAB = 32_000
"""Tokens that an EAGLE3 head can draft. Source: published heads, as in SpecForge's ``configs/*-eagle3.json``."""
EAGLE3_MOE_WIDTH = 6
"""Width of the MLP of an EAGLE3 head in hidden sizes, for a model of experts only. Source: SpecForge's widest head,
that of Qwen3-235B-A22B (24576); that of Qwen3-30B-A3B has 3."""

METHODS: Mapping[str, DraftKind] = {
    "mtp": "mtp",
    "qwen3_next_mtp": "mtp",
    "deepseek_mtp": "mtp",
    "eagle": "eagle",
    "eagle3": "eagle",
    "dflash": "dflash",
    "ngram": "ngram",
    "ngram_gpu": "ngram",
    "suffix": "ngram",
}
"""The methods of vLLM's ``--speculative-config`` that this module counts."""


@dataclass(frozen=True, slots=True)
class Drafts:
    """Speculative decoding of an engine: ``kind`` and the most tokens that one step drafts."""

    kind: DraftKind = ""
    tokens: int = 0

    @property
    def layers(self) -> int:
        """Further attention layers, each with a KV cache."""
        return 1 if self.tokens and self.kind in ("mtp", "eagle") else 0

    def weight_bytes(self, shape: Shape, dtype: Precision) -> float:
        """Return the bytes of weights in addition to those of ``shape``, whose MTP head is in ``dtype``."""
        if not self.tokens:
            return 0.0
        return {"mtp": mtp_bytes, "eagle": eagle3_bytes}.get(self.kind, _no_bytes)(shape, dtype)


NO_DRAFTS = Drafts()


def drafts_of(options: Mapping[str, Any]) -> Drafts:
    """Return the drafts of an engine of vLLM with ``options``; :data:`NO_DRAFTS` for a method of another kind."""
    stated = options.get("speculative-config")
    if isinstance(stated, str):
        try:
            stated = json.loads(stated)
        except ValueError:
            return NO_DRAFTS
    if not isinstance(stated, dict):
        return NO_DRAFTS
    kind = METHODS.get(str(stated.get("method", "")), "")
    tokens = stated.get("num_speculative_tokens")
    return Drafts(kind, tokens) if kind and isinstance(tokens, int) and tokens > 0 else NO_DRAFTS


def mtp_bytes(shape: Shape, dtype: Precision) -> float:
    """Return the bytes of one MTP module: a layer like the last of ``shape``, the projection, its norms."""
    hidden = shape.hidden
    attention = shape.full.params(hidden) * dtype.attention_bytes
    if shape.moe is not None:
        experts = shape.moe.experts * shape.moe.expert_params(hidden) * dtype.expert_bytes
        mlp = experts + shape.moe.common_params(hidden) * dtype.mlp_bytes
    else:
        mlp = (3 if shape.gated else 2) * hidden * shape.dense_width * dtype.mlp_bytes
    # The projection and the norms stay at 16 bits in published checkpoints: two of the layer and three around it.
    return attention + mlp + (2 * hidden**2 + 5 * hidden) * 2.0


def eagle3_bytes(shape: Shape, _: Precision) -> float:
    """Return the bytes of an EAGLE3 head for ``shape``: published heads are in bf16 for every model."""
    hidden = shape.hidden
    heads, kv_heads, size = hidden // 128, max(1, hidden // 512), 128
    if isinstance(shape.full, Attention):
        heads, kv_heads, size = shape.full.heads, shape.full.kv_heads, shape.full.head_dim
    # Queries, keys and values of the embedding and the hidden state together.
    attention = 2 * hidden * size * (heads + 2 * kv_heads) + heads * size * hidden
    mlp = 3 * hidden * (shape.dense_width or EAGLE3_MOE_WIDTH * hidden)
    return 2.0 * (attention + mlp + 3 * hidden**2 + EAGLE3_VOCAB * hidden + 4 * hidden)


def _no_bytes(_: Shape, __: Precision) -> float:
    return 0.0
