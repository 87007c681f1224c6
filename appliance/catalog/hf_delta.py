"""Reads the layers of Kimi Delta Attention: which they are, and their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.catalog.config_fields import ConfigFields
from appliance.catalog.shape import DeltaAttention

OLDER = {
    "head_dim": "linear_head_dim",
    "num_heads": "linear_num_heads",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
}
"""Names in a published file's ``linear_attn_config``, and those of the class in transformers."""

LISTS = ("full_attn_layers", "kda_layers")

KINDS = ("full_attention", "linear_attention")


def _older(fields: ConfigFields) -> Mapping[str, Any]:
    """Return ``linear_attn_config``; :class:`ConfigError` for a field in it that is not understood."""
    table = fields.raw("linear_attn_config", own=True)[1] or {}
    return fields.inner("linear_attn_config", table, (*OLDER, *LISTS), {})


def kinds(fields: ConfigFields, layers: int) -> list[str]:
    """Return the kind of each layer; ``linear_attn_config`` counts layers from 1.

    Raises :class:`ConfigError` for a layer that no list or both lists have.
    """
    listed = fields.listed("layer_types", layers)
    table = _older(fields)
    if listed is None and any(name in table for name in LISTS):
        full, delta = (table.get(name) for name in LISTS)
        numbers = [*full, *delta] if isinstance(full, list) and isinstance(delta, list) else []
        if not all(isinstance(one, int) for one in numbers) or sorted(numbers) != list(range(1, layers + 1)):
            raise fields.refused("linear_attn_config.full_attn_layers", full)
        listed = [KINDS[layer + 1 not in (full or [])] for layer in range(layers)]
    if listed is None:
        listed = [KINDS[not layer or layer % 4 > 0] for layer in range(layers)]
    unknown = next((kind for kind in listed if kind not in KINDS), None)
    if unknown is not None:
        raise fields.refused("layer_types", unknown)
    return listed


def sizes(fields: ConfigFields) -> DeltaAttention:
    """Return the sizes of a layer."""
    table = _older(fields)
    found: dict[str, int] = {}
    for older, key in OLDER.items():
        name, assumed = fields.raw(key)
        found[older] = fields.size(name, table.get(older, assumed))
    return DeltaAttention(
        heads=found["num_heads"], head_dim=found["head_dim"], conv=found["short_conv_kernel_size"]
    )
