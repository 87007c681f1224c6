"""Reads a Hugging Face ``config.json`` into a :class:`~appliance.catalog.shape.Shape`.

Pure: takes the parsed table. :mod:`appliance.catalog.families` has the facts that the files of a family do not
state. A file with a field that is neither read nor harmless is rejected (:mod:`appliance.catalog.config_fields`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from appliance.catalog import hf_blocks, hf_delta, hf_experts, hf_index, hf_mamba, quantised, rope
from appliance.catalog.config_fields import BY_HAND, ConfigFields, check_outside, defaults, split
from appliance.catalog.shape import Attention, DeltaAttention, LinearAttention, Mamba2, Mla, Shape
from appliance.errors import ConfigError

MPT_ATTENTION: Mapping[str, tuple[object, ...]] = {
    "attn_type": ("multihead_attention",),
    "kv_n_heads": (None,),
    "qk_ln": (False,),
}
"""Keys of MPT's ``attn_config`` that change its size, in the values that are understood."""

MPT_HARMLESS = frozenset(
    {
        "alibi",
        "alibi_bias_max",
        "attn_impl",
        "attn_pdrop",
        "attn_uses_sequence_id",
        "clip_qkv",
        "model_type",
        "prefix_lm",
        "softmax_scale",
    }
)


def parse(name: str, config: Mapping[str, Any], source: str = "", pooling: bool = False) -> Shape:
    """Return the shape in ``config``, without the output head if ``pooling`` is set.

    Raises :class:`ConfigError`, one line, for a field that is missing, impossible or not understood.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{name}: config.json holds no JSON object; name the model's config.json")
    tables, path = split(name, config)
    fields = ConfigFields(name, tables[-1], kind=_kind(tables), path=path)
    blocks = hf_mamba.blocks(fields)
    for key in ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"):
        # Only a nested table may rely on its class for the fields that every model has.
        if blocks is None or key != "num_hidden_layers":
            fields.positive(key, own=not path)
    hidden = fields.positive("hidden_size")
    layers = fields.positive("num_hidden_layers") if blocks is None else len(blocks)
    context = _context(fields)
    window = _window(fields)
    uneven = hf_blocks.read(fields, layers, hidden) if fields.family.uneven else None
    if uneven is not None:
        kinds = uneven.kinds
    else:
        kinds = _layer_kinds(fields, layers, window=window, context=context) if blocks is None else blocks
    mlps = layers if blocks is None else blocks.count("mlp") + blocks.count("moe")
    moe, sparse = hf_experts.moe(
        fields, mlps, None if blocks is None else [kind == "moe" for kind in blocks if kind in {"mlp", "moe"}]
    )
    dense_layers = sparse.count(False)
    full = _mla(fields) if fields.family.latent else _attention(fields, hidden, kinds)
    sliding = _attention(fields, hidden, kinds, window=window) if "sliding_attention" in kinds else None
    if fields.family.block_index and isinstance(full, Attention):
        full, sliding, kinds = hf_index.split(fields, full, kinds)
    linear_layers = kinds.count("linear_attention")
    width = (
        _dense_width(fields, hidden, needed=dense_layers > 0) if uneven is None else sum(uneven.widths) // layers
    )
    found = quantised.native(name, tuple(tables))
    fields.seen.update(("quantization_config", "compression_config"))
    extra, once = _extra(fields, full, width=width, layers=layers, moe_layers=mlps - dense_layers if moe else 0)
    if sliding is not None and fields.option(fields.family.output_gate) == "head":
        once += hidden * (sliding.heads - full.heads) * kinds.count("sliding_attention")
    if uneven is not None and isinstance(full, Attention):
        full = replace(full, kv_heads=full.heads // uneven.heads_per_kv_head)
        # The mean width times the layers lacks the rest of the division; a layer without attention has one norm.
        once += 3 * hidden * (sum(uneven.widths) % layers) - hidden * kinds.count("mlp")
    norms, norm_bias = _norms(fields)
    shape = Shape(
        name=name,
        hidden=hidden,
        layers=layers,
        vocab=fields.positive("vocab_size"),
        max_context=context,
        tied=_tied(fields, tables),
        full=full,
        sliding=sliding,
        linear=_linear(fields, hidden) if linear_layers else None,
        sliding_layers=kinds.count("sliding_attention"),
        linear_layers=linear_layers,
        shared_index_layers=_shared_index_layers(fields, layers) if fields.family.indexer else 0,
        linear_beside_full=fields.family.mamba is not None and fields.family.mamba.layers == "parallel",
        mlp_only_layers=kinds.count("mlp") + kinds.count("moe"),
        attention_only_layers=layers - mlps,
        dense_width=width,
        moe=moe,
        dense_layers=dense_layers,
        extra_per_layer=extra + (norms * hidden if norm_bias else 0),
        extra_once=once + _ends(fields, hidden, context=context, norm_bias=norm_bias),
        norms_per_layer=norms,
        gated=fields.family.gated,
        dense_beside_moe=moe is not None and bool(fields.family.experts and fields.family.experts.beside_dense),
        pooling=pooling,
        native=found.precision,
        fp8_block=found.fp8_block,
        source=source,
    )
    fields.finish()
    check_outside(name, tables, path)
    return replace(shape, native_bytes=quantised.part_bytes(name, found, shape, kinds, sparse))


def _kind(tables: list[Mapping[str, Any]]) -> str:
    """Return the text model's model_type; derived from that of the table around it if it has none."""
    kind = tables[-1].get("model_type")
    if kind is not None:
        return str(kind)
    around = next((str(table["model_type"]) for table in reversed(tables) if table.get("model_type")), "")
    return f"{around}_text" if around else ""


def _tied(fields: ConfigFields, tables: list[Mapping[str, Any]]) -> bool:
    """Return whether the head is the embedding: the outermost statement, else the assumption of the classes."""
    fields.seen.add("tie_word_embeddings")
    for table in tables:
        tied = table.get("tie_word_embeddings")
        if tied is not None:
            if not isinstance(tied, bool):
                raise ConfigError(f"{fields.name}: tie_word_embeddings = {tied!r:.40} is neither true nor false")
            return tied
    outside = defaults("tied_outside")
    around = all(outside.get(str(table.get("model_type")), True) for table in tables[:-1])
    return around and bool(fields.assumed.get("tie_word_embeddings", fields.family.tied))


def _context(fields: ConfigFields) -> int:
    """Return the longest context in tokens, scaled as vLLM scales it."""
    first = rope.LENGTHS[0]
    assumed = fields.raw(first)[1]
    stated = [key for key in rope.LENGTHS if fields.raw(key, own=True)[1] is not None]
    if first not in stated and (assumed is not None or not stated):
        if assumed is None:
            raise fields.missing(fields.spelled(first)[0])
        stated.append(first)
    context = min(fields.length(key) for key in stated)
    if fields.raw("model_max_length", own=True)[1]:
        context = fields.length("model_max_length")
    fields.seen.update(("rope_scaling", "rope_parameters"))
    original = fields.raw("original_max_position_embeddings")[1]
    if original is not None:
        original = fields.length("original_max_position_embeddings")
    scaled = rope.scaled(fields.name, context, fields.table, original=original)
    return context if fields.family.gemma3_context else scaled


def _window(fields: ConfigFields) -> int | None:
    """Return the sliding window or the chunk in tokens, None if it is switched off."""
    if fields.family.chunked:
        return fields.integer("attention_chunk_size", default=0) or None
    window = fields.integer("sliding_window", default=0)
    used = fields.flag("use_sliding_window", default=True)
    if fields.table.get("layer_types") and fields.table.get("use_sliding_window") is None:
        used = True
    if not used or not window:
        return None
    if "gemma" in fields.kind and fields.table.get("use_bidirectional_attention") in (True, "all"):
        return window // 2 + 1
    return window


def _layer_kinds(fields: ConfigFields, layers: int, *, window: int | None, context: int) -> list[str]:
    """Return the kind of each layer: full, sliding or linear attention."""
    family = fields.family
    listed = _own_kinds(fields, layers, chunked=window is not None and window < context)
    if listed is not None:
        return listed
    listed = _listed_kinds(fields, layers)
    late = fields.integer("max_window_layers", default=layers)
    if listed is not None:
        known = {"full_attention", "sliding_attention"}
        known |= {"linear_attention"} if family.linear else set()
        known |= {"indexed_attention", "deepseek_sparse_attention"} if family.indexer else set()
        unknown = next((kind for kind in listed if not isinstance(kind, str) or kind not in known), None)
        if unknown is not None:
            raise ConfigError(
                f"{fields.name}: layer_types has {unknown!r:.40}, which the planner does not understand in "
                f"model_type {fields.kind}; {BY_HAND}"
            )
        kinds = ["full_attention" if "index" in kind or "sparse" in kind else kind for kind in listed]
    elif family.linear:
        kinds = _pattern(layers, fields.positive("full_attention_interval", default=4), "linear_attention")
    elif family.window == "whole":
        # A window of at least the longest context has no effect.
        kinds = ["sliding_attention" if (window or context) < context else "full_attention"] * layers
    elif family.window == "late":
        kinds = ["sliding_attention" if layer >= late else "full_attention" for layer in range(layers)]
    elif family.window == "every fourth":
        kinds = ["sliding_attention" if layer % 4 else "full_attention" for layer in range(layers)]
    else:
        kinds = _pattern(layers, _period(fields), "sliding_attention")
    if family.linear:
        fields.seen.add("full_attention_interval")
    elif "=" in family.window:
        fields.seen.update(fields.spelled(family.window.partition("=")[0]))
    if "gemma4" in fields.kind:
        kinds[-1] = "full_attention"
    return ["full_attention" if kind == "sliding_attention" and window is None else kind for kind in kinds]


def _own_kinds(fields: ConfigFields, layers: int, *, chunked: bool) -> list[str] | None:
    """Return the kinds of a family with its own description of layers, None for any other."""
    family = fields.family
    if family.mamba is not None:
        return hf_mamba.kinds(fields, layers, family.mamba)
    if family.delta:
        return hf_delta.kinds(fields, layers)
    if family.block_index:
        return hf_index.kinds(fields, layers)
    if family.chunked:
        return _chunked_kinds(fields, layers, chunked=chunked)
    return None


def _listed_kinds(fields: ConfigFields, layers: int) -> list[Any] | None:
    """Return the kinds that the file lists by name, or by 1 for a sliding layer (MiMo-V2-Flash)."""
    listed = fields.listed("layer_types", layers)
    if not fields.family.layer_pattern:
        return listed
    pattern = fields.listed("hybrid_layer_pattern", layers)
    if pattern is None and listed is None:
        raise fields.missing("hybrid_layer_pattern")
    if pattern is None:
        return listed
    spelled = ["sliding_attention" if one == 1 else "full_attention" for one in pattern]
    if not all(one in (0, 1) for one in pattern) or listed not in (None, spelled):
        raise fields.refused("hybrid_layer_pattern", pattern)
    return spelled


def _chunked_kinds(fields: ConfigFields, layers: int, *, chunked: bool) -> list[str]:
    """Return the kinds of Llama 4: layers with rotary positions attend in chunks, those without to everything.

    Chunked layers are full if ``chunked`` is not set.
    """
    rotary = fields.listed("no_rope_layers", layers)
    if rotary is None:
        period = fields.positive("no_rope_layer_interval", default=4)
        rotary = [int((layer + 1) % period != 0) for layer in range(layers)]
    fields.seen.add("no_rope_layer_interval")
    if not all(one in (0, 1) for one in rotary):
        raise fields.refused("no_rope_layers", rotary)
    spelled = ["chunked_attention" if one else "full_attention" for one in rotary]
    listed = fields.listed("layer_types", layers)
    if listed is not None and listed != spelled:
        raise fields.refused("layer_types", listed)
    return ["sliding_attention" if one and chunked else "full_attention" for one in rotary]


def _pattern(layers: int, period: int, other: str) -> list[str]:
    """Return kinds of ``layers`` layers: every ``period``-th is full, the rest is ``other``."""
    return [other if (layer + 1) % period else "full_attention" for layer in range(layers)]


def _period(fields: ConfigFields) -> int:
    """Return the period of ``FIELD=N``; EXAONE also writes it as a row of letters."""
    key, _, usual = fields.family.window.partition("=")
    name, value = fields.raw(key)
    if isinstance(value, str) and value and value.strip("L") == "G" and value.endswith("G"):
        return len(value)
    if isinstance(value, str):
        raise fields.refused(name, value)
    return fields.positive(key, default=int(usual))


def _attention(fields: ConfigFields, hidden: int, kinds: list[str], *, window: int | None = None) -> Attention:
    """Return the softmax attention of the sliding layers with ``window``, else of the full ones."""
    family = fields.family
    sliding = window is not None
    heads = _of_kind(fields, "num_attention_heads", fields.positive("num_attention_heads"), sliding=sliding)
    kv_heads = fields.integer("num_key_value_heads", default=heads)
    several = kv_heads * (family.sliding_kv_heads if sliding else 1)
    kv_heads = _of_kind(fields, "num_key_value_heads", several, sliding=sliding)
    if family.extra in {"falcon", "multi query"}:
        kv_heads = _old_kv_heads(fields, heads, kv_heads)
    key, stated = fields.raw("head_dim")
    if stated is None and hidden % heads:
        raise ConfigError(
            f"{fields.name}: hidden_size {hidden} is not a multiple of {heads} heads and {key} is missing"
        )
    head_dim = _of_kind(fields, "head_dim", fields.positive("head_dim", default=hidden // heads), sliding=sliding)
    value_dim = 0
    if "v_head_dim" in family.sliding_fields:
        value_dim = _of_kind(fields, "v_head_dim", fields.positive("v_head_dim"), sliding=sliding)
    value_is_key = False
    if "gemma4" in fields.kind and window is None:
        value_is_key = fields.flag("attention_k_eq_v")
        head_dim, kv_heads = _global_heads(fields, kinds, head_dim=head_dim, kv_heads=kv_heads, own_kv=value_is_key)
    if kv_heads == 0 or heads % kv_heads:
        fit = max((n for n in range(1, heads + 1) if heads % n == 0 and n <= max(kv_heads, 1)), default=1)
        raise ConfigError(
            f"{fields.name}: num_key_value_heads = {kv_heads} does not divide {heads} heads; nearest: {fit}"
        )
    norm = fields.option(family.qk_norm)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        window=window,
        chunked=family.chunked and window is not None,
        bias=cast("Any", fields.option(family.bias)),
        qk_norm=cast("Any", norm),
        output_gate=fields.option(family.output_gate) == "full",
        sinks=family.sinks == "all" or (sliding and family.sinks == "sliding"),
        value_is_key=value_is_key,
        value_dim=0 if value_dim == head_dim else value_dim,
    )


def _of_kind(fields: ConfigFields, key: str, usual: int, *, sliding: bool) -> int:
    """Return ``usual``, or the size that the file states for the sliding layers only."""
    names = fields.family.sliding_fields.get(key)
    if names is None:
        return usual
    fields.seen.update(names)
    return fields.positive(*names, default=usual, own=True) if sliding else usual


def _old_kv_heads(fields: ConfigFields, heads: int, stated: int) -> int:
    """Return the KV heads of Falcon and GPT-BigCode: one with ``multi_query``, ``stated`` in new Falcon models."""
    one = fields.flag("multi_query", default=True)
    if fields.family.extra == "falcon" and fields.flag("new_decoder_architecture"):
        return stated
    return 1 if one else heads


def _global_heads(
    fields: ConfigFields, kinds: list[str], *, head_dim: int, kv_heads: int, own_kv: bool
) -> tuple[int, int]:
    """Return width and KV heads of Gemma 4's full layers; transformers 5 lists them layer by layer."""
    wide = fields.positive("global_head_dim", default=512)
    few = fields.integer("num_global_key_value_heads", default=0)
    listed = fields.raw("per_layer_config")[1]
    if listed is None:
        return wide, few if own_kv and few else kv_heads
    full = {layer for layer, kind in enumerate(kinds) if kind == "full_attention"}
    if not listed:
        return head_dim, kv_heads
    tables = list(listed.values()) if isinstance(listed, Mapping) else []
    same = all(table == tables[0] for table in tables) and isinstance(tables[0], Mapping) if tables else False
    layers = {int(key) for key in listed if str(key).isdecimal()} if same else set()
    if layers != full or not {"head_dim", "num_key_value_heads"} >= set(tables[0]):
        raise fields.refused("per_layer_config", listed)
    sizes = [tables[0].get("head_dim", head_dim), tables[0].get("num_key_value_heads", kv_heads)]
    if not all(isinstance(size, int) and not isinstance(size, bool) and 0 < size <= 1 << 16 for size in sizes):
        raise fields.refused("per_layer_config", listed)
    return sizes[0], sizes[1]


def _mla(fields: ConfigFields) -> Mla:
    fields.seen.update(("qk_head_dim", "num_key_value_heads"))
    indexer = ("index_n_heads", "index_head_dim", "index_topk") if fields.family.indexer else ()
    sizes = [fields.positive(key) for key in indexer] or [0, 0, 0]
    return Mla(
        heads=fields.positive("num_attention_heads"),
        q_rank=fields.integer("q_lora_rank", default=0),
        kv_rank=fields.positive("kv_lora_rank"),
        nope_dim=fields.positive("qk_nope_head_dim"),
        rope_dim=fields.positive("qk_rope_head_dim"),
        v_dim=fields.positive("v_head_dim"),
        index_heads=sizes[0],
        index_dim=sizes[1],
        index_top=sizes[2],
    )


def _shared_index_layers(fields: ConfigFields, layers: int) -> int:
    """Return the number of layers without an index, which use that of an earlier layer.

    transformers reads ``indexer_types``, vLLM 0.32 the pattern or the frequency (deepseek_v32/attention.py); a file
    has to give the same layers in each of its statements.
    """
    found: list[list[bool]] = []
    kinds = fields.listed("indexer_types", layers)
    if kinds is not None:
        if any(kind not in ("full", "shared") for kind in kinds):
            raise fields.refused("indexer_types", kinds)
        found.append([kind == "shared" for kind in kinds])
    name, pattern = fields.raw("index_topk_pattern", own=True)
    every = fields.positive("index_topk_freq", default=1, own=True)
    offset = fields.integer("index_skip_topk_offset", default=2, own=True)
    if pattern is not None:
        if not isinstance(pattern, str) or len(pattern) != layers or set(pattern) - set("FS"):
            raise fields.refused(name, pattern)
        found.append([letter == "S" for letter in pattern])
    elif every > 1 or not found:
        found.append([max(layer - offset + 1, 0) % every != 0 for layer in range(layers)])
    if any(one != found[0] for one in found):
        raise fields.refused("indexer_types", kinds)
    return sum(found[0])


def _linear(fields: ConfigFields, hidden: int) -> LinearAttention | DeltaAttention | Mamba2:
    if fields.family.delta:
        return hf_delta.sizes(fields)
    if fields.family.mamba is not None:
        return hf_mamba.mixer(fields, fields.family.mamba, hidden)
    return LinearAttention(
        key_heads=fields.positive("linear_num_key_heads"),
        value_heads=fields.positive("linear_num_value_heads"),
        key_dim=fields.positive("linear_key_head_dim"),
        value_dim=fields.positive("linear_value_head_dim"),
        conv=fields.positive("linear_conv_kernel_dim"),
    )


def _dense_width(fields: ConfigFields, hidden: int, *, needed: bool) -> int:
    """Return the width of the dense MLP, 0 if no layer has one."""
    found = fields.family.experts
    extra = fields.family.extra
    name = found.dense_width if found is not None else "intermediate_size"
    fields.seen.update((*fields.spelled("intermediate_size"), name))
    if extra in {"mpt", "neox japanese"}:
        return hidden * fields.positive("expansion_ratio" if extra == "mpt" else "intermediate_multiple_size")
    if found is not None and not needed and not found.beside_dense:
        return 0
    width = fields.integer(name, default=0)
    if not width and fields.family.gated:
        raise fields.missing(fields.spelled(name)[0])
    # GPT-2 and its relatives do not state the usual width.
    return width or 4 * hidden


def _norms(fields: ConfigFields) -> tuple[int, bool]:
    """Return the number of norms of a layer, and whether they have biases."""
    norms = fields.family.norms
    if fields.family.extra == "falcon":
        parallel = fields.flag("parallel_attn", default=True)
        new = fields.flag("new_decoder_architecture")
        norms = fields.integer("num_ln_in_parallel_attn", default=2 if new else 1) if parallel else 2
    return norms, fields.option(fields.family.norm_bias) == "all"


def _ends(fields: ConfigFields, hidden: int, *, context: int, norm_bias: bool) -> int:
    """Return the weights before the first and after the last layer, without embedding, head and one norm."""
    family = fields.family
    count = hidden if norm_bias else 0
    if not family.final_norm:
        count = -hidden
    if family.positions is not None:
        count += (context + family.positions) * hidden
    if fields.option(family.head_bias) == "all":
        count += fields.positive("vocab_size")
    return count + (2 * hidden if family.embedding_norm else 0)


def _extra(
    fields: ConfigFields, full: Attention | Mla, *, width: int, layers: int, moe_layers: int
) -> tuple[int, int]:
    """Return further weights: of each layer, and of the whole model."""
    family = fields.family
    hidden = fields.positive("hidden_size")
    _check_shape(fields, full, layers)
    each = 0
    if fields.option(family.mlp_bias) == "all" and not moe_layers:
        each += width * (2 if family.gated else 1) + hidden
    if fields.option(family.output_gate) == "head":
        each += hidden * full.heads
    once = {"moe norm": hidden * moe_layers, "neox japanese": hidden}.get(family.extra, 0)
    match family.extra:
        case "gemma4":
            # Layer scale; with experts, three more norms, the router's scale per hidden unit and one per expert.
            each += 1 + (4 * hidden + fields.positive("num_experts") if hf_experts.beside(fields) else 0)
        case "xielu":
            each += 2
        case "sub norms":
            each += hidden + width
        case "lambdas" if isinstance(full, Attention):
            each += 4 * full.head_dim
        case "post norms" if fields.flag("use_post_norm"):
            each += 2 * hidden
    return each, once


def _check_shape(fields: ConfigFields, full: Attention | Mla, layers: int) -> None:
    """Raise :class:`ConfigError` for a structure that the family can have and the planner does not count."""
    hidden = fields.positive("hidden_size")
    match fields.family.extra:
        case "equal heads":
            heads = fields.listed("num_attention_heads_per_layer", layers)
            if heads is not None and set(map(str, heads)) != {str(full.heads)}:
                raise fields.refused("num_attention_heads_per_layer", heads)
        case "heads of a kind":
            _heads_of_layers(fields, layers)
        case "square" if isinstance(full, Attention) and full.heads * full.head_dim != hidden:
            raise fields.refused("head_dim", full.head_dim)
        case "opt" if fields.integer("word_embed_proj_dim", default=hidden) != hidden:
            raise fields.refused("word_embed_proj_dim", fields.table["word_embed_proj_dim"])
        case "mpt":
            _mpt_attention(fields)


def _heads_of_layers(fields: ConfigFields, layers: int) -> None:
    """Check the heads that transformers 5 lists for each sliding layer of Step 3.7."""
    table = fields.raw("per_layer_config", own=True)[1] or {}
    kinds = fields.listed("layer_types", layers) or []
    heads = {"num_attention_heads": fields.table.get("num_sliding_attention_heads")}
    expected = {str(layer): heads for layer, kind in enumerate(kinds) if kind == "sliding_attention"}
    if table and (not isinstance(table, Mapping) or {str(key): one for key, one in table.items()} != expected):
        raise fields.refused("per_layer_config", table)


def _mpt_attention(fields: ConfigFields) -> None:
    fields.inner("attn_config", fields.raw("attn_config")[1] or {}, MPT_HARMLESS, MPT_ATTENTION)
