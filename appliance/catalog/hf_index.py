"""Reads the index of MiniMax-M3: a sparse attention whose layers choose blocks of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from appliance.catalog.config_fields import ConfigFields
from appliance.catalog.shape import Attention

NAMES = {
    "index_n_heads": "sparse_num_index_heads",
    "index_head_dim": "sparse_index_dim",
    "index_block_size": "sparse_block_size",
    "index_topk_blocks": "sparse_topk_blocks",
}
"""Sizes of the index, and their names in an older file's ``sparse_attention_config``."""

SPARSE = "minimax_m3_sparse"
"""The file's name of a layer with an index."""

HARMLESS = frozenset({"sparse_disable_index_value", "sparse_init_block", "sparse_local_block"})
"""Fields of ``sparse_attention_config`` about blocks that are always read and about the index's values."""

READ = frozenset({*HARMLESS, *NAMES.values(), "sparse_attention_freq"})

ONLY: Mapping[str, tuple[object, ...]] = {"sparse_score_type": ("max",), "use_sparse_attention": (True,)}

CACHE_BYTES = 2.0
"""Bytes per number of the index's cache. Source: ``MiniMaxM3IndexerCache`` of vLLM 0.32, without options."""


def _older(fields: ConfigFields) -> Mapping[str, Any]:
    """Return ``sparse_attention_config``; :class:`ConfigError` for a field in it that is not understood."""
    table = fields.raw("sparse_attention_config", own=True)[1] or {}
    return fields.inner("sparse_attention_config", table, READ, ONLY)


def kinds(fields: ConfigFields, layers: int) -> list[str]:
    """Return the kind of each layer: ``indexed_attention`` or ``full_attention``."""
    listed = fields.listed("layer_types", layers)
    table = _older(fields)
    if listed is None and table:
        flags = table.get("sparse_attention_freq")
        if not isinstance(flags, list) or len(flags) != layers or not all(flag in (0, 1) for flag in flags):
            raise fields.refused("sparse_attention_config.sparse_attention_freq", flags)
        listed = [SPARSE if flag else "full_attention" for flag in flags]
    listed = listed or ["full_attention"] * layers
    unknown = next((kind for kind in listed if kind not in ("full_attention", SPARSE)), None)
    if unknown is not None:
        raise fields.refused("layer_types", unknown)
    return ["indexed_attention" if kind == SPARSE else kind for kind in listed]


def split(
    fields: ConfigFields, plain: Attention, kinds: list[str]
) -> tuple[Attention, Attention | None, list[str]]:
    """Return the attention of the layers with an index, that of the others, and the kinds of a shape.

    In the shape, layers with an index are full and those without one are of the other kind. ``plain`` is the
    attention without its index.
    """
    table = _older(fields)
    sizes = {
        key: fields.size(key, fields.raw(key)[1] if table.get(older) is None else table[older])
        for key, older in NAMES.items()
    }
    if "indexed_attention" not in kinds:
        return plain, None, kinds
    sparse = replace(
        plain,
        index_heads=sizes["index_n_heads"],
        index_dim=sizes["index_head_dim"],
        index_top=sizes["index_topk_blocks"] * sizes["index_block_size"],
        index_bytes_each=CACHE_BYTES,
    )
    others = ["full_attention" if kind == "indexed_attention" else "sliding_attention" for kind in kinds]
    return sparse, plain if "full_attention" in kinds else None, others
