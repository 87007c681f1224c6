"""Reads ``block_configs``: a description of each layer by itself (Nemotron Super and Ultra, found by NAS)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from appliance.catalog.config_fields import ConfigFields

MULTIPLE = 256
"""The width of an MLP is a multiple of this one (``_find_multiple`` of vLLM 0.32's nemotron_nas.py)."""

ATTENTION: Mapping[str, tuple[object, ...]] = {
    "num_sink_tokens": (None,),
    "replace_with_linear": (False, None),
    "sparsify": (None,),
    "unshifted_sink": (False, None),
    "use_prefill_window_in_sink_attention": (False, None),
    "window_length": (None,),
}
FFN: Mapping[str, tuple[object, ...]] = {
    "no_op": (False, None),
    "replace_with_linear": (False, None),
    "sparsify": (None,),
}
"""Fields of a layer, in the values that are understood."""


@dataclass(frozen=True, slots=True)
class LayerWidths:
    """The layers of such a model: which have attention, the width of each MLP, the KV heads."""

    kinds: list[str]
    """``full_attention`` or ``mlp`` for each layer; each has an MLP."""
    widths: list[int]
    heads_per_kv_head: int


def read(fields: ConfigFields, layers: int, hidden: int) -> LayerWidths:
    """Return the layers in ``block_configs``.

    Raises :class:`ConfigError` for a layer that is not understood, and for layers of unequal KV heads.
    """
    blocks = fields.listed("block_configs", layers)
    if blocks is None:
        raise fields.missing("block_configs")
    kinds: list[str] = []
    widths: list[int] = []
    groups: set[int] = set()
    for layer, block in enumerate(blocks):
        path = f"block_configs[{layer}]"
        if not isinstance(block, Mapping) or block.keys() != {"attention", "ffn"}:
            raise fields.refused(path, block)
        attention = fields.inner(f"{path}.attention", block["attention"], ("n_heads_in_group", "no_op"), ATTENTION)
        ffn = fields.inner(f"{path}.ffn", block["ffn"], ("ffn_mult",), FFN)
        group, empty, factor = attention.get("n_heads_in_group"), attention.get("no_op"), ffn.get("ffn_mult")
        if empty not in (True, False, None):
            raise fields.refused(f"{path}.attention.no_op", empty)
        if not empty:
            if isinstance(group, bool) or not isinstance(group, int) or group < 1:
                raise fields.refused(f"{path}.attention.n_heads_in_group", group)
            groups.add(group)
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 64:
            raise fields.refused(f"{path}.ffn.ffn_mult", factor)
        kinds.append("mlp" if empty else "full_attention")
        widths.append(-(-int(2 * factor * hidden / 3) // MULTIPLE) * MULTIPLE)
    if len(groups) != 1:
        raise fields.refused("block_configs[].attention.n_heads_in_group", sorted(groups))
    heads, group = fields.positive("num_attention_heads"), groups.pop()
    if heads % group:
        raise fields.refused("block_configs[].attention.n_heads_in_group", group)
    return LayerWidths(kinds, widths, group)
