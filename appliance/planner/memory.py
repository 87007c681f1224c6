"""The use of a card's memory under vLLM's accounting, and the tokens of KV cache that remain.

Pure. vLLM takes ``gpu_memory_utilization`` of the card. It subtracts weights, the peak of a profiling run, CUDA
graphs and memory outside torch, and uses the rest for the KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from appliance.catalog.cards import Card
from appliance.catalog.shape import Shape
from appliance.contract.card_memory import GIB, USUAL_UTILIZATION, budget
from appliance.planner import kv_cache, precision
from appliance.planner.drafts import NO_DRAFTS, Drafts
from appliance.planner.layout import SINGLE, Layout
from appliance.planner.precision import Precision

CONTEXT_BYTES = 0.6 * GIB
"""CUDA context, cuBLAS and kernel images of one process. Source: nvidia-smi of an idle torch process, order of
magnitude. With the other terms here the sum for a Qwen3-30B-A3B is NVIDIA's 3.5 GB "other_mem"."""

NCCL_BYTES = 342e6
"""NCCL's buffers at TP2. Source: aiconfigurator, rtxpro6000_blackwell_server.yaml."""

GRAPH_BYTES_PER_LAYER = 10e6
"""CUDA graphs of all captured batch sizes, per layer. Source: vLLM's "Graph capturing finished" lines, about
0.5 GB for 48 layers."""

SAMPLER_BYTES_PER_LOGIT = 8
"""Logits in fp32 and the sampler's copy of them."""

FRAGMENT_SHARE = 0.01
"""Share of weights and activations that the allocator loses by rounding."""


@dataclass(frozen=True, slots=True)
class CardMemory:
    """Bytes on the fullest card of a replica by their use, and the rest for the KV cache."""

    total: float
    budget: float
    weights: float
    activations: float
    graphs: float
    nccl: float
    context: float
    kv: float
    kv_tokens: int
    """Tokens for the whole replica, as vLLM reports them."""
    layout: kv_cache.KvLayout

    @property
    def fits(self) -> bool:
        """Whether weights and working space leave any KV cache."""
        return self.kv > 0 and self.kv_tokens > 0

    @property
    def overhead(self) -> float:
        """Working space: all bytes except weights and KV cache."""
        return self.activations + self.graphs + self.nccl + self.context

    def sequences(self, context: float) -> float:
        """Return the number of chats of ``context`` tokens that fit at once."""
        return self.layout.sequences(self.kv, max(1, ceil(context)))


def default_batched_tokens(card: Card) -> int:
    """Return vLLM's --max-num-batched-tokens for its API server, by the card's memory (0.32)."""
    gib = card.memory_bytes / GIB
    return 16384 if gib >= 160 else 8192 if _large_defaults(card) else 2048


def default_sequences(card: Card) -> int:
    """Return vLLM's --max-num-seqs for its API server, by the card's memory (0.32)."""
    return 1024 if _large_defaults(card) else 256


def _large_defaults(card: Card) -> bool:
    """Return whether vLLM has its larger defaults on a card: from 70 GiB on, but not on an A100 (PR 17885)."""
    return card.memory_bytes / GIB >= 70 and "A100" not in card.name


def weight_bytes(shape: Shape, dtype: Precision, layout: Layout, drafts: Drafts = NO_DRAFTS) -> float:
    """Return the bytes of weights on the fullest card of a replica, those of its ``drafts`` included."""
    parts = precision.weights(shape, dtype)
    extra = drafts.weight_bytes(shape, dtype)
    if shape.checkpoint_bytes is not None and dtype.name == shape.native:
        # vLLM also loads the other parts of the checkpoint: a vision tower, and the MTP head only if it drafts.
        rest = max(0.0, shape.checkpoint_bytes - parts.total)
        extra = max(extra, rest) if drafts.kind == "mtp" else extra + rest
    layers = ceil(shape.layers / layout.pp) / shape.layers
    ends = parts.embedding + (shape.head_params * dtype.embedding_bytes)
    body = parts.dense - shape.head_params * dtype.embedding_bytes
    shards = 1 if layout.attention_dp else layout.tp
    experts = parts.experts / layout.tp
    edge = ends / shards if layout.pp == 1 else max(parts.embedding, ends - parts.embedding) / shards
    return (body * layers / shards) + experts * layers + edge + extra / layout.tp


def activation_bytes(shape: Shape, layout: Layout, *, batched_tokens: int, sequences: int) -> float:
    """Return the peak of the profiling run in bytes: residual stream, projections, experts' workspace, logits."""
    tp = 1 if layout.attention_dp else layout.tp
    width = 6 * shape.hidden + 4 * shape.full.core_dim() / tp
    if shape.moe is not None:
        share = 1 / layout.tp
        width += shape.moe.per_token * (3 * shape.moe.width * share + shape.hidden)
    if shape.dense_width:
        width = max(width, 6 * shape.hidden + 3 * shape.dense_width / tp)
    logits = 0.0 if shape.pooling else min(sequences, batched_tokens) * shape.vocab * SAMPLER_BYTES_PER_LOGIT
    return batched_tokens * width * 2.0 + logits


@lru_cache(maxsize=4096)
def card_memory(
    card: Card,
    shape: Shape,
    dtype: Precision,
    *,
    layout: Layout = SINGLE,
    utilization: float = USUAL_UTILIZATION,
    context: int | None = None,
    sequences: int | None = None,
    batched_tokens: int | None = None,
    graphs: bool = True,
    drafts: Drafts = NO_DRAFTS,
) -> CardMemory:
    """Return the memory of one card of a replica in bytes.

    ``context`` is the longest context in tokens, ``sequences`` is --max-num-seqs, ``batched_tokens`` is
    --max-num-batched-tokens; ``graphs`` is False for --enforce-eager, ``drafts`` its speculative decoding.
    """
    sequences = sequences or default_sequences(card)
    batched = batched_tokens or default_batched_tokens(card)
    context = context or shape.max_context
    weights = weight_bytes(shape, dtype, layout, drafts)
    activations = activation_bytes(shape, layout, batched_tokens=batched, sequences=sequences)
    fragments = FRAGMENT_SHARE * (weights + activations)
    graph_bytes = GRAPH_BYTES_PER_LAYER * (ceil(shape.layer_pairs / layout.pp) + drafts.layers) if graphs else 0.0
    nccl = NCCL_BYTES * (1 + (layout.tp > 2)) if layout.cards_per_replica > 1 else 0.0
    available = budget(card.memory_bytes, utilization)
    kv = available - weights - activations - fragments - graph_bytes - nccl - CONTEXT_BYTES
    pages = kv_cache.layout(
        shape,
        tp=1 if layout.attention_dp else layout.tp,
        pp=layout.pp,
        kv_bytes=dtype.kv_bytes,
        batched_tokens=batched,
        drafts=drafts,
    )
    tokens = pages.tokens(max(kv, 0.0), context) * (layout.tp if layout.attention_dp else 1)
    return CardMemory(
        total=card.memory_bytes,
        budget=available,
        weights=weights,
        activations=activations + fragments,
        graphs=graph_bytes,
        nccl=nccl,
        context=CONTEXT_BYTES,
        kv=kv,
        kv_tokens=tokens,
        layout=pages,
    )
