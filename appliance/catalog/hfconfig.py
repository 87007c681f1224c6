"""Reads a Hugging Face ``config.json`` into a :class:`~appliance.catalog.shape.Shape`.

Pure: takes the parsed table. Families differ in where they say things and in what they do not say at all
(Qwen3 normalises queries and keys without a word of it in the file), so each family's silence is written down
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.catalog.shape import Attention, LinearAttention, Mla, Moe, Shape
from appliance.errors import ConfigError

LIMITS: dict[str, tuple[int, int]] = {
    "hidden_size": (8, 65536),
    "num_hidden_layers": (1, 1024),
    "vocab_size": (2, 4_000_000),
    "num_attention_heads": (1, 1024),
    "max_position_embeddings": (1, 16_777_216),
}
"""What every model must say, and the range in which the figure can be true."""

UNSUPPORTED = {
    "nemotron_h": "its Mamba-2 layers",
    "falcon_mamba": "its Mamba layers",
    "jamba": "its Mamba layers",
    "mamba": "its Mamba layers",
    "llama4": "its chunked attention",
    "deepseek_v4": "its compressed attention",
    "t5": "an encoder",
    "whisper": "an encoder",
}
"""Families whose weights these formulas would miscount: refused rather than guessed."""

UNSUPPORTED_FIELDS = {
    "hybrid_override_pattern": "Mamba layers",
    "mamba_num_heads": "Mamba layers",
    "ssm_state_size": "Mamba layers",
    "block_configs": "layers of unequal shape",
    "hybrid_layer_pattern": "layers of unequal shape",
    "compress_ratios": "compressed attention",
    "attention_other_setting": "layers of unequal shape",
    "kda_layers": "a linear attention of another kind",
    "linear_attn_config": "a linear attention of another kind",
}
"""Fields that betray such a family under another name."""

QK_NORM_PER_HEAD = {
    "qwen3",
    "qwen3_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_moe",
    "gemma3",
    "gemma4",
    "gemma4_text",
    "gemma3_text",
    "qwen3_vl_text",
    "qwen3_vl_moe_text",
    "qwen3_5_text",
    "qwen3_5_moe_text",
}
"""Families that normalise queries and keys, one weight per head dimension, without saying so."""

QKV_BIAS = {"qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl"}
"""Families with biases on q, k and v without saying so."""


def parse(name: str, config: Mapping[str, Any], source: str = "", pooling: bool = False) -> Shape:
    """The shape in ``config``; :class:`ConfigError` with one line where a field is missing or cannot be
    true."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"{name}: config.json holds no object; is it the model's config.json?")
    kind = str(config.get("model_type", ""))
    text = config.get("text_config")
    table: dict[str, Any] = {**config, **text} if isinstance(text, Mapping) else dict(config)
    text_kind = str(table.get("model_type", kind))
    for family in (kind, text_kind):
        what = next((what for prefix, what in UNSUPPORTED.items() if family.startswith(prefix)), None)
        if what:
            raise ConfigError(f"{name}: {family} is not supported ({what}); describe it by hand in models.toml")
    betrayed = next((what for field, what in UNSUPPORTED_FIELDS.items() if table.get(field)), None)
    if betrayed:
        raise ConfigError(f"{name}: config.json speaks of {betrayed}, which is not supported; describe it by hand")
    read = _Reader(name, table)
    for key in LIMITS:
        read.integer(key)
    hidden, layers = read.integer("hidden_size"), read.integer("num_hidden_layers")
    tied = config.get("tie_word_embeddings", table.get("tie_word_embeddings"))
    if tied is None:
        tied = text_kind.startswith(("gemma", "phi3small"))
    full: Attention | Mla = _mla(read) if "kv_lora_rank" in table else _attention(read, text_kind, full=True)
    linear_layers, sliding_layers = _layer_kinds(read, layers)
    moe, dense_layers = _moe(read, text_kind, layers)
    gemma = text_kind.startswith("gemma")
    extra, norms = 0, 4 if gemma else 2
    if text_kind.startswith("gemma4"):
        # Layer scale; beside experts, three more norms, the router's scale per hidden unit and one per
        # expert.
        extra = 1 + (3 * hidden + hidden + moe.experts if moe else 0)
    dense = _dense_width(read, moe, text_kind)
    return Shape(
        name=name,
        hidden=hidden,
        layers=layers,
        vocab=read.integer("vocab_size"),
        max_context=_context(read),
        tied=bool(tied),
        full=full,
        sliding=_attention(read, text_kind, full=False) if sliding_layers else None,
        linear=_linear(read) if linear_layers else None,
        sliding_layers=sliding_layers,
        linear_layers=linear_layers,
        dense_width=dense,
        moe=moe,
        dense_layers=dense_layers,
        extra_per_layer=extra,
        norms_per_layer=norms,
        dense_beside_moe=bool(moe and table.get("enable_moe_block")),
        pooling=pooling,
        native=_native(config, table),
        fp8_block=_fp8_block(config),
        source=source,
    )


class _Reader:
    """Fields of one config.json, each checked as it is read."""

    def __init__(self, name: str, table: dict[str, Any]) -> None:
        self.name = name
        self.table = table

    def integer(self, *keys: str, default: int | None = None) -> int:
        """The first of ``keys`` that is there, a positive whole number within its limits."""
        key = next((key for key in keys if self.table.get(key) is not None), None)
        if key is None:
            if default is not None:
                return default
            raise ConfigError(
                f"{self.name}: config.json has no {keys[0]}; take the model's own file, not an adapter's"
            )
        value = self.table[key]
        low, high = LIMITS.get(key, (0, 1 << 24))
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            nearest = min(max(value, low), high) if isinstance(value, (int, float)) else low
            shown = f"{value!r}"[:40]
            raise ConfigError(
                f"{self.name}: {key} = {shown} cannot be true; nearest: a whole number like {int(nearest)}"
            )
        return value

    def layer_types(self, layers: int) -> list[str] | None:
        """``layer_types`` where given, and then as long as there are layers."""
        kinds = self.table.get("layer_types")
        if kinds is None:
            return None
        if not isinstance(kinds, list) or len(kinds) != layers:
            count = len(kinds) if isinstance(kinds, list) else 0
            raise ConfigError(
                f"{self.name}: layer_types names {count} layers, num_hidden_layers says {layers}; make them agree"
            )
        return [str(kind) for kind in kinds]


def _attention(read: _Reader, kind: str, *, full: bool) -> Attention:
    table = read.table
    heads = read.integer("num_attention_heads")
    kv_heads = read.integer("num_key_value_heads", default=heads)
    hidden = read.integer("hidden_size")
    head_dim = read.integer("head_dim", default=hidden // heads)
    if full and table.get("global_head_dim"):
        head_dim = read.integer("global_head_dim")
    if full and table.get("num_global_key_value_heads"):
        kv_heads = read.integer("num_global_key_value_heads")
    if kv_heads == 0 or heads % kv_heads:
        fit = max((n for n in range(1, heads + 1) if heads % n == 0 and n <= max(kv_heads, 1)), default=1)
        raise ConfigError(
            f"{read.name}: num_key_value_heads = {kv_heads} does not divide {heads} heads; nearest: {fit}"
        )
    if "head_dim" not in table and hidden % heads:
        raise ConfigError(
            f"{read.name}: hidden_size {hidden} is no multiple of {heads} heads and head_dim is missing"
        )
    gpt_oss = kind == "gpt_oss"
    bias = "all" if gpt_oss else "qkv" if kind in QKV_BIAS or table.get("attention_bias") else "none"
    norm = "head" if kind in QK_NORM_PER_HEAD else "none"
    if table.get("use_qk_norm"):
        norm = "full" if table.get("qk_norm_type") == "per_layer" else "head"
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        window=None if full else read.integer("sliding_window"),
        bias=bias,  # type: ignore[arg-type]
        qk_norm=norm,  # type: ignore[arg-type]
        output_gate=bool(table.get("attn_output_gate")) or kind == "qwen3_next",
        sinks=gpt_oss,
        value_is_key=full and bool(table.get("attention_k_eq_v")),
    )


def _mla(read: _Reader) -> Mla:
    return Mla(
        heads=read.integer("num_attention_heads"),
        q_rank=read.integer("q_lora_rank", default=0),
        kv_rank=read.integer("kv_lora_rank"),
        nope_dim=read.integer("qk_nope_head_dim"),
        rope_dim=read.integer("qk_rope_head_dim"),
        v_dim=read.integer("v_head_dim"),
        index_heads=read.integer("index_n_heads", default=0),
        index_dim=read.integer("index_head_dim", default=0),
        index_top=read.integer("index_topk", default=0),
    )


def _linear(read: _Reader) -> LinearAttention:
    return LinearAttention(
        key_heads=read.integer("linear_num_key_heads"),
        value_heads=read.integer("linear_num_value_heads"),
        key_dim=read.integer("linear_key_head_dim"),
        value_dim=read.integer("linear_value_head_dim"),
        conv=read.integer("linear_conv_kernel_dim"),
    )


def _layer_kinds(read: _Reader, layers: int) -> tuple[int, int]:
    """How many layers are linear, and how many slide."""
    kinds = read.layer_types(layers)
    window = read.table.get("sliding_window")
    if read.table.get("use_sliding_window") is False:
        window = None
    if kinds is not None:
        return kinds.count("linear_attention"), kinds.count("sliding_attention") if window else 0
    interval = read.table.get("full_attention_interval")
    if interval and "linear_num_value_heads" in read.table:
        return layers - layers // int(interval), 0
    pattern = read.table.get("sliding_window_pattern")
    if window and isinstance(pattern, int) and pattern > 1:
        return 0, layers - layers // pattern
    if (
        window
        and str(read.table.get("model_type")) == "mistral"
        and window < read.integer("max_position_embeddings")
    ):
        return 0, layers
    return 0, 0


def _moe(read: _Reader, kind: str, layers: int) -> tuple[Moe | None, int]:
    """Experts of a layer, and how many layers have a dense MLP instead."""
    table = read.table
    experts = read.integer("num_experts", "n_routed_experts", "num_local_experts", default=0)
    if not experts:
        return None, layers
    per_token = read.integer("num_experts_per_tok", "top_k_experts", "experts_per_token")
    if not 1 <= per_token <= experts:
        raise ConfigError(
            f"{read.name}: num_experts_per_tok = {per_token} of {experts} experts cannot be true; "
            f"nearest: {experts}"
        )
    width = read.integer("moe_intermediate_size", "intermediate_size")
    shared = read.integer("shared_expert_intermediate_size", default=0)
    shared = shared or width * read.integer("n_shared_experts", default=0)
    dense = read.integer("first_k_dense_replace", default=0)
    only = table.get("mlp_only_layers")
    if isinstance(only, list):
        dense = max(dense, len(only))
    step = read.integer("decoder_sparse_step", default=1)
    if step > 1:
        dense = layers - layers // step
    if dense > layers:
        raise ConfigError(f"{read.name}: {dense} dense layers of {layers} cannot be true; nearest: {layers}")
    gpt_oss = kind == "gpt_oss"
    router_bias = gpt_oss or bool(table.get("use_routing_bias")) or table.get("scoring_func") == "sigmoid"
    router_bias = router_bias or kind.startswith("glm4_moe")
    moe = Moe(
        experts=experts,
        per_token=per_token,
        width=width,
        shared=shared,
        shared_gate="shared_expert_intermediate_size" in table,
        router_bias=router_bias,
        expert_bias=gpt_oss,
    )
    return moe, dense


def _dense_width(read: _Reader, moe: Moe | None, kind: str) -> int:
    if moe is None:
        return read.integer("intermediate_size")
    if read.table.get("enable_moe_block") or "first_k_dense_replace" in read.table or kind.startswith("qwen2_moe"):
        return read.integer("intermediate_size", default=0)
    return read.integer("intermediate_size", default=0) if read.table.get("mlp_only_layers") else 0


def _context(read: _Reader) -> int:
    context = read.integer("max_position_embeddings")
    scaling = read.table.get("rope_scaling")
    if isinstance(scaling, Mapping) and scaling.get("type", scaling.get("rope_type")) == "yarn":
        original = scaling.get("original_max_position_embeddings")
        if isinstance(original, int) and isinstance(scaling.get("factor"), (int, float)):
            context = max(context, int(original * scaling["factor"]))
    return context


def _native(config: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """Precision of the checkpoint, by its quantisation table."""
    quant = config.get("quantization_config") or table.get("quantization_config")
    if isinstance(quant, Mapping):
        method = str(quant.get("quant_method", "")).lower()
        if method in {"awq", "gptq"}:
            return "awq-int4" if quant.get("bits", 4) == 4 else "int8"
        algorithm = str(quant.get("quant_algo", "")).lower()
        known = {"fp8", "mxfp4", "nvfp4"}
        if method in known or algorithm in known:
            return method if method in known else algorithm
        if method == "compressed-tensors":
            text = str(quant.get("format", "")).lower()
            return "nvfp4" if "nvfp4" in text else "awq-int4" if "pack" in text else "fp8"
    dtype = str(table.get("dtype") or table.get("torch_dtype") or "bfloat16")
    return {"float32": "fp32", "float16": "fp16"}.get(dtype, "bf16")


def _fp8_block(config: Mapping[str, Any]) -> int:
    quant = config.get("quantization_config")
    block = quant.get("weight_block_size") if isinstance(quant, Mapping) else None
    return int(block[0]) if isinstance(block, list) and block and isinstance(block[0], int) else 0
