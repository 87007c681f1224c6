"""How a family of models builds its layers: the facts that its config.json does not state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Names = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """How a family describes its experts. Tuples of names are spellings of one field."""

    count: tuple[str, ...] = ("num_experts",)
    per_token: tuple[str, ...] = ("num_experts_per_tok",)
    width: str = "moe_intermediate_size"
    shared: str = ""
    """Field with the shared expert's width, or with the number of shared experts."""
    shared_is: Literal["width", "count"] = "count"
    shared_usual: int = 0
    """The value of ``shared`` if the file does not have the field."""
    shared_gate: bool = False
    router_bias: str = "none"
    """``none``, ``all``, or the flag that switches it on."""
    expert_bias: bool = False
    dense: tuple[str, ...] = ()
    """Fields that state which layers have a dense MLP instead; see ``hf_experts._sparse``."""
    dense_width: str = "intermediate_size"
    """Field with the width of a dense MLP."""
    beside_dense: str = ""
    """Flag for experts in addition to a dense MLP in every layer; without the flag the model has no experts."""
    latent: str = ""
    """Field with the width to which a token is projected before the experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaFields:
    """How a family describes its Mamba-2 layers: the file's names of their sizes."""

    layers: Literal["blocks", "listed", "indices", "parallel"]
    """Which layers they are. ``blocks``: a pattern of attention, Mamba-2 and MLPs; ``listed``: ``layer_types``;
    ``indices``: all except ``attn_layer_indices``; ``parallel``: all, each with attention as well."""
    heads: str = "mamba_n_heads"
    head_dim: str = "mamba_d_head"
    state: str = "mamba_d_state"
    groups: str = "mamba_n_groups"
    conv: str = "mamba_d_conv"
    conv_bias: str = "mamba_conv_bias"
    in_bias: str = "mamba_proj_bias"
    out_bias: str = "mamba_proj_bias"
    width: str = ""
    """Field with the channels of all heads."""
    expand: str = "mamba_expand"
    """Field with the channels as a multiple of the hidden size, if ``width`` does not state them."""
    norm: str = "all"
    state_type: str = ""
    """Field with the type of the recurrent state; without it the state has the model's type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One ``model_type``. Options in the form ``flag:what`` hold if the file sets ``flag``."""

    names: Names = field(default_factory=dict)
    """The file's spellings of an ordinary field."""
    latent: bool = False
    """Multi-head latent attention."""
    indexer: bool = False
    """A lightning indexer in every layer."""
    linear: bool = False
    """Gated DeltaNet in some layers."""
    delta: bool = False
    """Kimi Delta Attention in some layers."""
    mamba: MambaFields | None = None
    """Mamba-2 in some layers."""
    bias: str = "none"
    """Biases of attention: ``none``, ``qkv``, ``out``, ``all``."""
    qk_norm: str = "none"
    """Norms of queries and keys, as in :class:`~appliance.catalog.shape.Attention`."""
    output_gate: str = "none"
    """A gate on attention's output: ``none``, ``full`` (as wide as the queries), ``head`` (one per head)."""
    sinks: Literal["none", "all", "sliding"] = "none"
    sliding_fields: Names = field(default_factory=dict)
    """The file's names of an ordinary field for the sliding layers only."""
    sliding_kv_heads: int = 1
    """KV heads of a sliding layer for each of a full one, if the file does not state them."""
    uneven: bool = False
    """Whether the file describes each layer by itself, in ``block_configs``."""
    layer_pattern: bool = False
    """Whether the file lists its layers, as ``layer_types`` or in ``hybrid_layer_pattern``."""
    block_index: bool = False
    """An index that chooses blocks of tokens, in the layers of kind ``minimax_m3_sparse``."""
    gated: bool = True
    """Whether the MLP has a gate in addition to its up projection."""
    mlp_bias: str = "none"
    norms: int = 2
    """Norms of a layer without those of queries and keys."""
    norm_bias: str = "none"
    final_norm: bool = True
    positions: int | None = None
    """Rows that the learned position embedding has beyond the longest context; None without one."""
    head_bias: str = "none"
    embedding_norm: bool = False
    tied: bool = False
    chunked: bool = False
    """Whether the layers other than the full ones attend in chunks; ``no_rope_layers`` states the full ones."""
    window: str = "whole"
    """Layers that slide when ``layer_types`` is absent. ``whole``: all, if there is a window. ``late``: from
    ``max_window_layers`` on. ``every fourth``: all except every fourth, from the first on. ``FIELD=N``: every Nth
    layer is full, unless FIELD gives another N."""
    experts: Experts | None = None
    extra: str = ""
    """Further weights of a layer, by name; see ``hf_config._extra``."""
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Fields that are understood in these values only."""
    everywhere: Mapping[str, object] = field(default_factory=dict)
    """Lists with one entry per layer that are understood if every entry is this one."""
    harmless: tuple[str, ...] = ()
    """Fields that change neither the size nor the context in this family."""
    gemma3_context: bool = False
    """The longest context includes the rope scaling already."""


SAME_AS: Mapping[str, str] = {
    "RefinedWeb": "falcon",
    "RefinedWebModel": "falcon",
    "gpt-sw3": "gpt2",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "glm4v_moe_text": "glm4_moe",
    "kimi_k2": "deepseek_v3",
    "llama4": "llama4_text",
    "minimax_m3": "minimax_m3_vl_text",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "paddleocr_vl_text": "ernie4_5",
    "qwen2_5_omni_text": "qwen2",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_vl_text": "qwen2",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_omni_moe_text": "qwen3_moe",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_vl_text": "qwen3",
}
"""A ``model_type``, and the family whose text model is built in the same way."""

REFUSED: Mapping[str, str] = {
    "blt": "a model of bytes with encoders of its own",
    "deepseek_v4": "compressed attention",
    "doge": "dynamic masks and cross-domain experts",
    "falcon_mamba": "Mamba layers",
    "gemma3n": "embeddings per layer and layers that share a KV cache",
    "jamba": "Mamba-1 layers",
    "jetmoe": "experts in attention",
    "lfm2": "convolution layers",
    "longcat_flash": "two attentions per layer and experts of size zero",
    "mamba": "Mamba layers",
    "minicpm3": "latent attention that the engine caches head by head",
    "minimax": "lightning attention",
    "mimo_v2_omni": "audio layers",
    "mllama": "cross-attention layers",
    "modernbert-decoder": "windows around a token",
    "olmo_hybrid": "a linear attention of another kind",
    "recurrent_gemma": "recurrent layers",
    "rwkv": "recurrent layers",
    "t5": "an encoder",
    "whisper": "an encoder",
    "xlstm": "recurrent layers",
    "youtu": "latent attention that the engine caches head by head",
    "zamba": "Mamba layers",
    "zaya": "convolutions in attention",
}
"""Families that are recognised but not counted, by the start of their ``model_type``, and the reason for each."""
