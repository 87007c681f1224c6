"""A model's shape, and the figures that follow by arithmetic: parameters, KV cache, recurrent state.

Pure. Counts are exact, weight by weight, for the text model. Vision towers and multi-token-prediction heads are not
counted; nor are they in the published counts of ``tests/catalog/test_shape.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

SSM_STATE_BYTES = 4
"""Recurrent state is kept in fp32 (``mamba_ssm_dtype`` of Qwen3.5's config.json)."""
CONV_STATE_BYTES = 2
"""The convolution's window is kept in the model's 16-bit type."""

INDEX_BYTES = 1 + 4 / 128
"""Bytes per number of a sparse attention's index: FP8, and an fp32 scale per 128 numbers.

Source: ``Indexer`` of vLLM 0.32's deepseek_v2.py, whose cache of 128 numbers has 132 bytes.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Softmax attention of one kind of layer. ``window`` is None if it sees the whole context."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    chunked: bool = False
    """Whether a token sees its own chunk of ``window`` tokens instead of the last ``window`` (Llama 4)."""
    bias: Literal["none", "qkv", "out", "all"] = "none"
    qk_norm: Literal["none", "head", "layer", "full"] = "none"
    """Weights of the norms of queries and keys: per head dimension (``layer``: with biases), or for all heads."""
    output_gate: bool = False
    sinks: bool = False
    value_is_key: bool = False
    value_dim: int = 0
    """Width of a value's head, 0 if it is that of a key."""
    index_heads: int = 0
    """Heads of the queries that choose the tokens; 0 if their weights are not counted."""
    index_top: int = 0
    """Tokens that sparse attention reads per step, 0 if it reads all of them."""
    index_dim: int = 0
    """Numbers per token that the selection of those tokens reads."""
    index_bytes_each: float = INDEX_BYTES

    def params(self, hidden: int) -> int:
        """Return the weights of one layer of a model with ``hidden`` dimensions."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        wide = self.value_dim or self.head_dim
        values = 0 if self.value_is_key else self.kv_heads * wide
        count = hidden * (query * (2 if self.output_gate else 1) + key + values) + self.heads * wide * hidden
        if self.index_heads:
            # Queries and one key per token, and a norm of each.
            count += hidden * (self.index_heads + 1) * self.index_dim + 2 * self.index_dim
        if self.bias in {"qkv", "all"}:
            count += query + key + values
        if self.bias in {"out", "all"}:
            count += hidden
        count += {
            "none": 0,
            "head": 2 * self.head_dim,
            "layer": 4 * self.head_dim,
            "full": query + key,
        }[self.qk_norm]
        return count + (self.heads if self.sinks else 0)

    def kv_values(self) -> int:
        """Return the numbers cached per token and layer. Engines store K and V apart even if they are the same."""
        return self.kv_heads * (self.head_dim + (self.value_dim or self.head_dim))

    def core_dim(self) -> int:
        """Return the mean width of the score and value products: FLOPs per token pair are 4 x this."""
        return self.heads * (self.head_dim + (self.value_dim or self.head_dim)) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Mla:
    """Multi-head latent attention (DeepSeek): one compressed vector per token instead of K and V."""

    heads: int
    q_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    index_heads: int = 0
    index_dim: int = 0
    index_top: int = 0
    index_bytes_each: float = INDEX_BYTES

    def params(self, hidden: int) -> int:
        """Return the weights of one layer of a model with ``hidden`` dimensions."""
        width = self.heads * (self.nope_dim + self.rope_dim)
        query = hidden * self.q_rank + self.q_rank + self.q_rank * width if self.q_rank else hidden * width
        compress = hidden * (self.kv_rank + self.rope_dim) + self.kv_rank
        expand = self.kv_rank * self.heads * (self.nope_dim + self.v_dim)
        return query + compress + expand + self.heads * self.v_dim * hidden + self.index_params(hidden)

    def index_params(self, hidden: int) -> int:
        """Return the weights of the lightning indexer of one layer, 0 without one."""
        if not self.index_heads:
            return 0
        # Its queries from the compressed query, one key per token, one weight per head.
        queries = self.q_rank * self.index_heads * self.index_dim
        return queries + hidden * self.index_dim + 2 * self.index_dim + hidden * self.index_heads

    def kv_values(self) -> int:
        """Return the numbers cached per token and layer."""
        return self.kv_rank + self.rope_dim

    def core_dim(self) -> int:
        """Return the width of the absorbed score and value products."""
        return self.heads * (2 * self.kv_rank + self.rope_dim) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """Gated DeltaNet: a state of fixed size per sequence instead of a KV cache."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv: int

    def _widths(self) -> tuple[int, int]:
        return self.key_heads * self.key_dim, self.value_heads * self.value_dim

    def params(self, hidden: int) -> int:
        """Return the weights of one layer of a model with ``hidden`` dimensions."""
        key, value = self._widths()
        mixed = 2 * key + value
        inputs = hidden * (mixed + value) + hidden * 2 * self.value_heads
        small = mixed * self.conv + 2 * self.value_heads + self.value_dim
        return inputs + small + value * hidden

    def state_bytes(self, tp: int = 1, drafts: int = 0) -> float:
        """Return the bytes of recurrent state per sequence and layer on one of ``tp`` cards.

        ``drafts`` are the draft tokens of a step.
        """
        key, value = self._widths()
        whole = (
            self.value_heads * self.key_dim * self.value_dim * SSM_STATE_BYTES
            + (2 * key + value) * (self.conv - 1 + drafts) * CONV_STATE_BYTES
        )
        return whole / tp

    def sharded(self) -> tuple[int, ...]:
        """Return the numbers of heads that tensor parallelism has to divide."""
        return (self.value_heads,)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaAttention:
    """Kimi Delta Attention: a state per head like Gated DeltaNet, with a forget gate per channel."""

    heads: int
    head_dim: int
    conv: int

    def params(self, hidden: int) -> int:
        """Return the weights of one layer of a model with ``hidden`` dimensions."""
        width = self.heads * self.head_dim
        projections = 4 * hidden * width + 3 * width * self.conv
        # Forget gate and output gate have a low rank; each head has a rate and a decay, each channel a bias.
        gates = 2 * (hidden * self.head_dim + self.head_dim * width)
        return projections + gates + hidden * self.heads + width + self.heads + self.head_dim

    def state_bytes(self, tp: int = 1, drafts: int = 0) -> float:
        """Return the bytes of recurrent state per sequence and layer on one of ``tp`` cards.

        ``drafts`` are the draft tokens of a step.
        Source: ``MambaStateShapeCalculator.kda_state_shape`` of vLLM 0.32; the recurrent state is in fp32.
        """
        width = self.heads * self.head_dim
        convolved = 3 * width * (self.conv - 1 + drafts) * CONV_STATE_BYTES
        return (width * self.head_dim * SSM_STATE_BYTES + convolved) / tp

    def sharded(self) -> tuple[int, ...]:
        """Return the numbers of heads that tensor parallelism has to divide."""
        return (self.heads,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2:
    """A Mamba-2 mixer: each head keeps ``head_dim`` x ``state`` numbers per sequence instead of a KV cache.

    Groups of heads share the input and output maps of the state (B and C), as KV heads share keys and values.
    """

    heads: int
    head_dim: int
    state: int
    groups: int
    conv: int
    conv_bias: bool = True
    in_bias: bool = False
    out_bias: bool = False
    norm: bool = True
    """Whether the gated output has a norm."""
    state_bytes_each: int = CONV_STATE_BYTES
    """Bytes per number of the state: 4 in fp32, else those of the model's 16-bit type."""

    def params(self, hidden: int) -> int:
        """Return the weights of one layer of a model with ``hidden`` dimensions."""
        inner = self.heads * self.head_dim
        mixed = inner + 2 * self.groups * self.state
        inputs = inner + mixed + self.heads
        count = hidden * inputs + mixed * self.conv + inner * hidden
        count += (mixed if self.conv_bias else 0) + (inputs if self.in_bias else 0)
        count += (hidden if self.out_bias else 0) + (inner if self.norm else 0)
        # Bias of the time step, decay and skip of each head.
        return count + 3 * self.heads

    def state_bytes(self, tp: int = 1, drafts: int = 0) -> float:
        """Return the bytes of recurrent state per sequence and layer on one of ``tp`` cards.

        ``drafts`` are the draft tokens of a step. Every card holds at least one group: vLLM adds groups until there
        is one a card (``MambaStateShapeCalculator.mamba2_state_shape`` of its 0.32).
        """
        inner = self.heads * self.head_dim
        groups = self.groups if self.groups % tp == 0 else tp
        convolved = (inner + 2 * groups * self.state) * (self.conv - 1 + drafts) * CONV_STATE_BYTES
        return (inner * self.state * self.state_bytes_each + convolved) / tp

    def scan_dim(self) -> float:
        """Return the work of one token on the state, in the unit of :meth:`Attention.core_dim`.

        A step multiplies and adds three times per number of the state: decay, input, output.
        """
        return 1.5 * self.heads * self.head_dim * self.state

    def sharded(self) -> tuple[int, ...]:
        """Return the numbers of heads and groups that tensor parallelism has to divide; one group is repeated."""
        return (self.heads,) if self.groups == 1 else (self.heads, self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe:
    """A layer's experts. ``shared`` is the width of the expert that every token passes, 0 without one."""

    experts: int
    per_token: int
    width: int
    shared: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    gated: bool = True
    """Whether an expert has a gate: three matrices, else two."""
    latent: int = 0
    """Width to which the token is projected before the experts and from which afterwards, 0 without projection."""

    def expert_params(self, hidden: int) -> int:
        """Return the weights of one expert: gate if it has one, up and down."""
        matrices = 3 if self.gated else 2
        bias = (matrices - 1) * self.width + hidden if self.expert_bias else 0
        return matrices * (self.latent or hidden) * self.width + bias

    def common_params(self, hidden: int) -> int:
        """Return the weights of one layer that every token passes: router, projections and shared expert."""
        router = hidden * self.experts + (self.experts if self.router_bias else 0)
        shared = (3 if self.gated else 2) * hidden * self.shared + (hidden if self.shared_gate else 0)
        return router + shared + 2 * hidden * self.latent


@dataclass(frozen=True, slots=True, kw_only=True)
class PartBytes:
    """Bytes per weight of each part of a published checkpoint, scales included."""

    attention: float
    linear: float
    dense: float
    shared: float
    """Shared experts and the projections around the routed ones."""
    experts: float
    head: float


@dataclass(frozen=True, kw_only=True)
class Shape:
    """All facts about a model that the planner uses. The ``…_layers`` count the layers of each kind.

    Sums are computed once: a fit of the planner's constants reads them millions of times.
    """

    name: str
    hidden: int
    layers: int
    vocab: int
    max_context: int
    tied: bool
    full: Attention | Mla
    sliding: Attention | None = None
    """The other kind of layers, with a window; in a model with sparse attention those that read everything."""
    linear: LinearAttention | DeltaAttention | Mamba2 | None = None
    sliding_layers: int = 0
    linear_layers: int = 0
    linear_beside_full: bool = False
    """Whether every layer has softmax attention and linear attention in parallel (Falcon-H1)."""
    shared_index_layers: int = 0
    """Layers of sparse attention that read the tokens which the index of an earlier layer chose (GLM-5.2)."""
    mlp_only_layers: int = 0
    """Layers with an MLP and no attention (Nemotron-H)."""
    attention_only_layers: int = 0
    """Layers with attention and no MLP (Nemotron-H)."""
    dense_width: int = 0
    moe: Moe | None = None
    dense_layers: int = 0
    """Layers whose MLP is dense although the model has experts; all layers of a model without experts."""
    extra_per_layer: int = 0
    """Further small weights per layer (Gemma 4: layer scale, router scales, further norms)."""
    extra_once: int = 0
    """Further small weights of the whole model: learned positions, biases of the head. A missing last norm counts
    negative."""
    norms_per_layer: int = 2
    gated: bool = True
    """Whether dense MLPs have a gate: three matrices, else two."""
    dense_beside_moe: bool = False
    """Whether every MoE layer also has a dense MLP (Gemma 4)."""
    streams: int = 1
    """Residual streams: more than one with hyper-connections."""
    pooling: bool = False
    """Whether the model only embeds: it never computes logits."""
    native: str = "bf16"
    """Precision of the published checkpoint, by the names of :func:`appliance.planner.precision.parse`."""
    native_bytes: PartBytes | None = None
    """The published checkpoint's bytes by part, if some modules have another precision than ``native``."""
    checkpoint_bytes: int | None = None
    """Quoted size of the published checkpoint, if it holds more than the text model counted here."""
    fp8_block: int = 0
    """Width of the blocks in which the published FP8 checkpoint is quantised; a shard must not cut one."""
    approximate: bool = False
    """Whether the shape was guessed from a name: predictions then have a wider interval."""
    source: str = ""

    @cached_property
    def full_layers(self) -> int:
        """Layers that attend to the whole context."""
        linear = 0 if self.linear_beside_full else self.linear_layers
        return self.layers - self.sliding_layers - linear - self.mlp_only_layers

    @cached_property
    def moe_layers(self) -> int:
        """Layers with experts."""
        return self.layers - self.attention_only_layers - self.dense_layers if self.moe else 0

    @cached_property
    def layer_pairs(self) -> float:
        """Half of the model's blocks, each an attention or an MLP: ``layers``, if every layer has one of each.

        Kernels are launched and cards synchronise block by block.
        """
        attention = self.layers - self.mlp_only_layers + (self.linear_layers if self.linear_beside_full else 0)
        return (attention + self.layers - self.attention_only_layers) / 2

    @cached_property
    def embedding_params(self) -> int:
        """The input embedding."""
        return self.vocab * self.hidden

    @cached_property
    def head_params(self) -> int:
        """The output projection, 0 if it shares the embedding's weights or is not needed."""
        return 0 if self.tied or self.pooling else self.vocab * self.hidden

    @cached_property
    def attention_params(self) -> int:
        """All softmax attention layers."""
        count = self.full_layers * self.full.params(self.hidden)
        if isinstance(self.full, Mla):
            count -= self.shared_index_layers * self.full.index_params(self.hidden)
        if self.sliding is not None:
            count += self.sliding_layers * self.sliding.params(self.hidden)
        return count

    @cached_property
    def index_bytes_per_token(self) -> float:
        """Bytes of the index of sparse attention for one token, over all layers; 0 without one."""
        return (self.full_layers - self.shared_index_layers) * self.full.index_dim * self.full.index_bytes_each

    @cached_property
    def linear_params(self) -> int:
        """All linear attention layers."""
        return self.linear_layers * self.linear.params(self.hidden) if self.linear else 0

    @cached_property
    def dense_mlp_params(self) -> int:
        """All dense MLPs."""
        layers = self.dense_layers + (self.moe_layers if self.dense_beside_moe else 0)
        return (3 if self.gated else 2) * self.hidden * self.dense_width * layers

    @cached_property
    def moe_common_params(self) -> int:
        """Routers and shared experts of all layers."""
        return self.moe_layers * self.moe.common_params(self.hidden) if self.moe else 0

    @cached_property
    def expert_params(self) -> int:
        """All routed experts of all layers."""
        return self.moe_layers * self.moe.experts * self.moe.expert_params(self.hidden) if self.moe else 0

    @cached_property
    def small_params(self) -> int:
        """Norms and the like."""
        each = self.norms_per_layer * self.hidden + self.extra_per_layer
        return self.layers * each + self.hidden + self.extra_once

    @cached_property
    def total_params(self) -> int:
        """Every weight, input embedding included."""
        return (
            self.embedding_params
            + self.head_params
            + self.attention_params
            + self.linear_params
            + self.dense_mlp_params
            + self.moe_common_params
            + self.expert_params
            + self.small_params
        )

    @cached_property
    def active_params(self) -> int:
        """Weights that one token passes, input embedding included."""
        if self.moe is None:
            return self.total_params
        return self.total_params - self.expert_params * (self.moe.experts - self.moe.per_token) // self.moe.experts

    def kv_bytes_per_token(self, kv_bytes: float = 2.0) -> float:
        """Return the KV cache of one token in bytes over all softmax layers, before any window closes.

        ``kv_bytes`` are the bytes per number.
        """
        count = self.full_layers * self.full.kv_values()
        if self.sliding is not None:
            count += self.sliding_layers * self.sliding.kv_values()
        return count * kv_bytes + self.index_bytes_per_token

    def kv_bytes_of(self, tokens: float, kv_bytes: float = 2.0) -> float:
        """Return the KV cache of one sequence of ``tokens`` tokens in bytes.

        The cache of a sliding layer stops growing at its window. ``kv_bytes`` are the bytes per number.
        """
        count = self.full_layers * self.full.kv_values() * tokens
        if self.sliding is not None:
            count += self.sliding_layers * self.sliding.kv_values() * min(tokens, self.sliding.window or tokens)
        return count * kv_bytes + self.index_bytes_per_token * tokens

    @cached_property
    def state_bytes_per_sequence(self) -> int:
        """Bytes of the recurrent state of one sequence of any length."""
        return self.linear_layers * int(self.linear.state_bytes()) if self.linear else 0

    @cached_property
    def max_tp(self) -> int:
        """Largest tensor parallel size that divides the heads (attention, sliding and linear)."""
        sizes = [self.full.heads]
        if self.sliding is not None:
            sizes.append(self.sliding.heads)
        if self.linear is not None:
            sizes.extend(self.linear.sharded())
        return max(n for n in (1, 2, 4, 8, 16, 32, 64) if all(size % n == 0 for size in sizes))
