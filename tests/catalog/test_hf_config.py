"""Correct and contradictory config.json files, from folders and from the local cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.catalog import hf_config
from appliance.errors import ConfigError
from tests.catalog.configs import DENSE


def test_a_dense_model_is_read() -> None:
    assert hf_config.parse("m", DENSE).total_params == 596_049_920


def test_the_text_config_of_a_vision_model_is_read() -> None:
    outer = {
        "model_type": "qwen3_vl",
        "text_config": {**DENSE, "model_type": "qwen3_vl_text"},
        "vision_config": {},
    }
    assert hf_config.parse("m", outer).total_params == 596_049_920


def test_layer_types_determine_the_sliding_layers() -> None:
    kinds = ["sliding_attention"] * 21 + ["full_attention"] * 7
    shape = hf_config.parse("m", {**DENSE, "layer_types": kinds, "sliding_window": 128})
    assert (shape.sliding_layers, shape.full_layers) == (21, 7)
    assert shape.sliding is not None
    assert shape.sliding.window == 128


def test_a_window_that_is_switched_off_has_no_sliding_layers() -> None:
    assert hf_config.parse("m", {**DENSE, "sliding_window": 4096, "use_sliding_window": False}).sliding_layers == 0


@pytest.mark.parametrize(
    ("table", "native"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, "awq-int4"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4"),
    ],
)
def test_the_precision_of_the_checkpoint_is_read(table: dict[str, Any], native: str) -> None:
    shape = hf_config.parse("m", {**DENSE, "quantization_config": table})
    assert shape.native == native
    assert shape.fp8_block == (128 if native == "fp8" else 0)


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"])
@pytest.mark.parametrize("value", [None, -1, 0, 1.5, "64", True, 10**12])
def test_a_missing_or_impossible_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        hf_config.parse("m", {**DENSE, field: value})
    message = str(caught.value)
    assert field in message
    assert "\n" not in message
    assert "nearest" in message or "has no" in message


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_key_value_heads": 5}, "num_key_value_heads = 5"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types names 3"),
        (
            {"num_experts": 8, "num_experts_per_tok": 9, "moe_intermediate_size": 64},
            "num_experts_per_tok = 9",
        ),
        ({"num_experts": 8, "moe_intermediate_size": 64}, "has no num_experts_per_tok"),
        ({"model_type": "jamba"}, "Mamba"),
        ({"hybrid_override_pattern": "M*"}, "Mamba"),
        ({"compress_ratios": [4]}, "compressed"),
    ],
)
def test_a_contradiction_or_an_unsupported_structure_is_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word.replace("*", r"\*")):
        hf_config.parse("m", {**DENSE, **change})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*DENSE, "layer_types", "num_experts", "kv_lora_rank"]), json_values))
def test_any_table_is_read_or_refused_in_one_line(changes: dict[str, Any]) -> None:
    message = ""
    try:
        assert hf_config.parse("m", {**DENSE, **changes}).total_params > 0
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message


FAMILIES = [
    entry["config"]
    for entry in json.loads(Path(__file__).with_name("families.json").read_text("utf-8"))["families"].values()
    if "config" in entry
]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FAMILIES), st.data())
def test_any_value_of_any_field_is_read_or_refused_in_one_line(config: dict[str, Any], data: st.DataObject) -> None:
    more = ["quantization_config", "rope_scaling", "layer_types", "text_config", "per_layer_config"]
    field = data.draw(st.sampled_from([*config, *more]))
    message = ""
    try:
        hf_config.parse("m", {**config, field: data.draw(json_values | st.just(float("nan")))})
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message
