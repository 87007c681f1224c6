"""Models whose layers differ: each is described by itself in ``block_configs``."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.catalog import hf_config
from appliance.errors import ConfigError


def layer(width: float, group: int | None = None, **more: Any) -> dict[str, Any]:
    attention = {"n_heads_in_group": group, "no_op": group is None, "window_length": None, **more}
    return {"attention": attention, "ffn": {"ffn_mult": width, "no_op": False, "sparsify": None}}


SUPER: dict[str, Any] = {
    "model_type": "nemotron-nas",
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": None,
    "intermediate_size": None,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "block_configs": [
        *[layer(5.25, 8)] * 48,
        layer(2.625, 8),
        *[layer(1.3125)] * 10,
        *[layer(1.0)] * 8,
        *[layer(0.5)] * 6,
        *[layer(2.625)] * 5,
        layer(3.28125),
        layer(5.25),
    ],
}
"""The layers of nvidia/Llama-3_3-Nemotron-Super-49B-v1, in another order."""


def test_nemotron_super_has_its_published_weights() -> None:
    shape = hf_config.parse("m", SUPER)
    assert shape.total_params == 49_867_145_216
    assert (shape.full_layers, shape.mlp_only_layers, shape.dense_layers) == (49, 31, 80)
    assert shape.kv_bytes_per_token() == 49 * 2 * 8 * 128 * 2
    assert shape.layer_pairs == (49 + 80) / 2


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (layer(5.25, 8, window_length=512), "block_configs[0].attention.window_length = 512"),
        (layer(5.25, 8, memory=1), "block_configs[0].attention.memory = 1"),
        (layer(5.25, 16), "n_heads_in_group = [8, 16]"),
        (layer(5.25, 0), "block_configs[0].attention.n_heads_in_group = 0"),
        (layer(0.0, 8), "block_configs[0].ffn.ffn_mult = 0.0"),
        ({**layer(1.0, 8), "ffn": {"no_op": True}}, "block_configs[0].ffn.no_op = True"),
        ({"attention": {}}, "block_configs[0]"),
        (None, "block_configs[0]"),
    ],
)
def test_a_layer_that_is_not_understood_is_named(block: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hf_config.parse("m", {**SUPER, "block_configs": [block, *SUPER["block_configs"][1:]]})
    assert words in str(caught.value)


def test_the_number_of_layers_has_to_agree() -> None:
    with pytest.raises(ConfigError, match="names 79 layers, num_hidden_layers is 80"):
        hf_config.parse("m", {**SUPER, "block_configs": SUPER["block_configs"][1:]})
    with pytest.raises(ConfigError, match="has no block_configs"):
        hf_config.parse("m", {**SUPER, "block_configs": None})
