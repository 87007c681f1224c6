"""Mamba-2 layers of a config.json: their sizes, their pattern, their state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.catalog import hf_config
from appliance.catalog.models import dump_model, known_models
from appliance.catalog.shape import Mamba2
from appliance.errors import ConfigError

TRUTH = json.loads(Path(__file__).with_name("families.json").read_text("utf-8"))["families"]
NEMOTRON: dict[str, Any] = TRUTH["nemotron_h"]["config"]
GRANITE: dict[str, Any] = TRUTH["granitemoehybrid"]["config"]
BAMBA: dict[str, Any] = TRUTH["bamba"]["config"]
FALCON: dict[str, Any] = TRUTH["falcon_h1"]["config"]

MIXER = Mamba2(heads=8, head_dim=64, state=16, groups=2, conv=4)


def test_the_parts_of_a_mixer_add_up() -> None:
    inner, mixed = 512, 512 + 2 * 2 * 16
    expected = 100 * (inner + mixed + 8) + mixed * 4 + mixed + 3 * 8 + inner + inner * 100
    assert MIXER.params(100) == expected


def test_a_card_holds_its_share_of_the_state_and_at_least_one_group() -> None:
    convolved = (512 + 2 * 2 * 16) * 3 * 2
    assert MIXER.state_bytes() == 512 * 16 * 2 + convolved
    assert MIXER.state_bytes(2) == MIXER.state_bytes() / 2
    one_group = Mamba2(heads=8, head_dim=64, state=16, groups=1, conv=4)
    assert one_group.state_bytes(4) == 512 * 16 * 2 / 4 + (512 + 2 * 4 * 16) * 3 * 2 / 4


def test_a_pattern_of_letters_equals_the_list_of_names() -> None:
    named = hf_config.parse("m", NEMOTRON)
    letters = {key: value for key, value in NEMOTRON.items() if key != "layers_block_type"}
    spelled = hf_config.parse("m", {**letters, "hybrid_override_pattern": "ME*-"})
    assert spelled == named
    assert (named.linear_layers, named.full_layers, named.moe_layers, named.dense_layers) == (1, 1, 1, 1)
    assert (named.layers, named.layer_pairs) == (4, 2)


def test_the_state_has_the_type_that_the_engine_keeps() -> None:
    def each(config: dict[str, Any]) -> int:
        linear = hf_config.parse("m", config).linear
        assert isinstance(linear, Mamba2)
        return linear.state_bytes_each

    assert each(NEMOTRON) == 4
    assert each({**NEMOTRON, "mamba_ssm_cache_dtype": "bfloat16"}) == 2
    assert each({key: value for key, value in NEMOTRON.items() if key != "mamba_ssm_cache_dtype"}) == 4
    assert each(GRANITE) == 2


def test_granite_without_experts_has_its_shared_mlp() -> None:
    """The file of a dense Granite 4 states 0 experts; transformers builds the shared MLP alone."""
    dense = hf_config.parse("m", {**GRANITE, "num_local_experts": 0, "num_experts_per_tok": 0})
    experts = hf_config.parse("m", GRANITE)
    assert dense.moe is None
    assert dense.dense_width == GRANITE["shared_intermediate_size"]
    assert dense.total_params == experts.total_params - experts.expert_params - 8 * 4096 * 8


def test_attention_in_parallel_with_mamba_counts_in_every_layer() -> None:
    shape = hf_config.parse("m", FALCON)
    assert (shape.linear_layers, shape.full_layers) == (8, 8)
    assert shape.layer_pairs == 12
    assert shape.kv_bytes_per_token() == 8 * 2 * 8 * 128 * 2


GRANITE_SMALL = {
    **GRANITE,
    "num_hidden_layers": 40,
    "layer_types": [
        *["mamba"] * 5,
        *["attention", *["mamba"] * 9] * 3,
        "attention",
        *["mamba"] * 4,
    ],
    "num_key_value_heads": 8,
    "intermediate_size": 768,
    "shared_intermediate_size": 1536,
    "num_local_experts": 72,
    "num_experts_per_tok": 10,
    "mamba_d_state": 128,
    "vocab_size": 100352,
    "tie_word_embeddings": True,
    "position_embedding_type": "nope",
    "normalization_function": "rmsnorm",
    "init_method": "mup",
}
BAMBA_9B = {
    **BAMBA,
    "num_hidden_layers": 32,
    "attn_layer_indices": [9, 18, 27],
    "mamba_d_state": 128,
    "vocab_size": 128256,
}
FALCON_7B = {
    **FALCON,
    "num_hidden_layers": 44,
    "hidden_size": 3072,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 130049,
    "mamba_n_heads": 24,
    "mamba_d_head": 128,
    "mamba_d_ssm": 3072,
    "mamba_rms_norm": True,
    "mamba_use_mlp": True,
    "attn_layer_indices": None,
}


@pytest.mark.parametrize(
    ("config", "billions"),
    [(GRANITE_SMALL, 32.2), (BAMBA_9B, 9.78), (FALCON_7B, 7.59)],
    ids=["granite-4.0-h-small", "Bamba-9B", "Falcon-H1-7B"],
)
def test_published_models_have_the_rounded_count_of_their_cards(config: dict[str, Any], billions: float) -> None:
    assert hf_config.parse("m", config).total_params / 1e9 == pytest.approx(billions, abs=0.01)


def test_a_width_of_a_head_may_follow_from_the_channels() -> None:
    assert hf_config.parse("m", {**BAMBA, "mamba_d_head": "auto"}) == hf_config.parse("m", BAMBA)


@pytest.mark.parametrize("family", ["nemotron_h", "granitemoehybrid", "falcon_h1"])
def test_a_written_model_is_read_again(tmp_path: Path, family: str) -> None:
    shape = hf_config.parse("some/model", TRUTH[family]["config"])
    path = tmp_path / "models.toml"
    path.write_text(dump_model(shape), "utf-8")
    assert known_models(path)["some/model"] == shape


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**NEMOTRON, "layers_block_type": None}, "has no hybrid_override_pattern"),
        (
            {**NEMOTRON, "layers_block_type": None, "hybrid_override_pattern": "MXM"},
            "hybrid_override_pattern = 'MXM'",
        ),
        ({**NEMOTRON, "hybrid_override_pattern": "MMMM"}, "hybrid_override_pattern = 'MMMM'"),
        ({**NEMOTRON, "layers_block_type": ["mamba", "convolution"]}, "layers_block_type"),
        ({**NEMOTRON, "num_hidden_layers": 5}, "names 4 layers, num_hidden_layers is 5"),
        ({**NEMOTRON, "n_groups": 7}, "n_groups = 7 does not divide 128 Mamba heads"),
        ({**NEMOTRON, "n_shared_experts": 2}, "n_shared_experts = 2"),
        ({**NEMOTRON, "mamba_ssm_cache_dtype": "int8"}, "mamba_ssm_cache_dtype"),
        ({**GRANITE, "mamba_d_head": 32}, "do not give the 8192 channels"),
        ({**GRANITE, "layer_types": ["mamba"] * 3}, "names 3 layers"),
        ({**GRANITE, "layer_types": ["moe"] * 8}, "layer_types = 'moe'"),
        ({**GRANITE, "layers_block_type": ["mamba"] * 8}, "layer_types"),
        ({**GRANITE, "normalization_function": "layernorm"}, "normalization_function"),
        ({**BAMBA, "attn_layer_indices": [9]}, "attn_layer_indices = [9]"),
        ({**BAMBA, "attn_layer_indices": "all"}, "attn_layer_indices = 'all'"),
        ({**FALCON, "attn_layer_indices": [1]}, "attn_layer_indices"),
        ({**FALCON, "mamba_use_mlp": False}, "mamba_use_mlp = False"),
    ],
)
def test_a_structure_that_is_not_understood_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hf_config.parse("m", config)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
