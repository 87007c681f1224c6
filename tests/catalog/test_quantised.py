"""The precision of a checkpoint, or the field that is not understood."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.catalog import hf_config, quantised
from appliance.catalog.models import dump_model, known_models
from appliance.catalog.shape import Shape
from appliance.errors import ConfigError
from appliance.planner import precision

DENSE: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "vocab_size": 151936,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
MOE = {
    **DENSE,
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 4,
}


def packed(bits: int, kind: str = "int", form: str = "pack-quantized", **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "strategy": "group", **more}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"weights": weights}},
    }


def parse(table: dict[str, Any], base: dict[str, Any] = DENSE, key: str = "quantization_config") -> Shape:
    return hf_config.parse("m", {**base, key: table})


READ: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}, "awq-int4"),
    ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, "awq-int4"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": True}, "awq-int4"),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8"),
    (
        {"quant_method": "auto-round", "bits": 4, "data_type": "int", "packing_format": "auto_round:auto_awq"},
        "awq-int4",
    ),
    ({"quant_method": "auto-round", "bits": 8}, "int8"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "awq-int4"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, "int8"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}, "fp8"),
    ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}, "fp8"),
    ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}, "mxfp4"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
    ({"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}, "fp8"),
    ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "awq-int4"),
    ({"quant_method": "modelopt_fp4"}, "nvfp4"),
    ({"quant_algo": "FP8", "kv_cache_scheme": "FP8", "producer": {"name": "modelopt"}}, "fp8"),
    (packed(4, group_size=128), "awq-int4"),
    (packed(8), "int8"),
    (packed(8, "int", "int-quantized"), "int8"),
    (packed(8, "float", "float-quantized"), "fp8"),
    (packed(4, "float", "nvfp4-pack-quantized"), "nvfp4"),
]
BITS = {"awq-int4": 4.25, "int8": 8.0, "fp8": 8.0, "nvfp4": 4.5, "mxfp4": 16.0}


@pytest.mark.parametrize(("table", "native"), READ, ids=[json.dumps(table)[:70] for table, _ in READ])
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_the_size_follows_from_the_bits(table: dict[str, Any], native: str, key: str) -> None:
    shape = parse(table, key=key)
    assert shape.native == native
    linear = shape.total_params - shape.embedding_params
    expected = linear * BITS[native] / 8 + shape.embedding_params * 2
    assert precision.weights(shape, precision.parse(shape.native)).total == pytest.approx(expected, rel=0.05)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}, "'torchao'"),
    ({"quant_method": "hqq", "quant_config": {}}, "'hqq'"),
    ({"quant_method": "quanto", "weights": "int4"}, "'quanto'"),
    ({"quant_method": "quark", "global_quant_config": {}}, "'quark'"),
    ({"quant_method": "aqlm"}, "'aqlm'"),
    ({"bits": 4}, "quant_method = None"),
    ({"quant_method": "gptq", "bits": 3}, "bits = 3"),
    ({"quant_method": "gptq", "bits": 2}, "bits = 2"),
    ({"quant_method": "gptq"}, "bits = None"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 8}, "group_size = 8"),
    ({"quant_method": "gptq", "bits": 4, "lm_head": True}, "lm_head = True"),
    ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*mlp.*": {}}}, "dynamic"),
    ({"quant_method": "auto-round", "bits": 4, "data_type": "mx_fp"}, "data_type"),
    ({"quant_method": "auto-round", "bits": 4, "extra_config": {"a": {"bits": 8}}}, "extra_config"),
    ({"quant_method": "auto-round", "bits": 4, "packing_format": "fp8"}, "packing_format"),
    ({"quant_method": "bitsandbytes"}, "load_in_4bit"),
    ({"quant_method": "modelopt", "quant_algo": "W2A16"}, "quant_algo = 'W2A16'"),
    ({"quant_method": "modelopt"}, "quant_algo = None"),
    ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "MIXED_PRECISION"),
    ({"quant_method": "fp8", "foo_bits": 4}, "'foo_bits'"),
    ({"quant_method": "fp8", "ignored_layers": ["model.layers.0.convolution"]}, "layers.0.convolution"),
    ({"quant_method": "fp8", "ignored_layers": ["re:.*[.*"]}, "not valid"),
    ({"quant_method": "fp8", "quantized_layers": {"lm_head": {"quant_algo": "FP8"}}}, "quantized_layers without"),
    ({"quant_method": "fp8", "ignored_layers": "all"}, "ignored_layers = 'all'"),
    ({"quant_method": "fp8", "weight_block_size": ["a"]}, "weight_block_size"),
    (packed(3), "3 bits"),
    (packed(4, group_size=16), "group_size = 16"),
    (packed(4, "float", "mxfp4-pack-quantized"), "mxfp4-pack-quantized"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "without config_groups"),
    ({**packed(4), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
]


@pytest.mark.parametrize(("table", "words"), REFUSED, ids=[json.dumps(table)[:70] for table, _ in REFUSED])
def test_a_field_that_is_not_understood_is_named(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(table)
    assert words in str(caught.value)
    assert "quantization_config" in str(caught.value) or "weight_block_size" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_groups_of_unequal_weights_are_refused() -> None:
    table = packed(4)
    table["config_groups"]["group_1"] = packed(8)["config_groups"]["group_0"]
    with pytest.raises(ConfigError, match="unequal weights"):
        parse(table)


GROUP4, GROUP8 = (packed(bits)["config_groups"]["group_0"] for bits in (4, 8))


@pytest.mark.parametrize(
    ("groups", "attention", "mlp"),
    [
        ([{**GROUP8, "targets": ["re:.*self_attn.*"]}, {**GROUP4, "targets": ["re:.*mlp.*"]}], 1.0, 0.52),
        ([{**GROUP4, "targets": ["Linear"]}, {**GROUP8, "targets": ["re:.*self_attn.*"]}], 1.0, 0.52),
        ([{**GROUP4, "targets": ["re:.*mlp.*"]}], 2.0, 0.52),
        ([{**GROUP4, "targets": ["re:.*(gate|up|down|q|k|v|o)_proj$"]}], 0.52, 0.52),
    ],
)
def test_a_group_has_the_modules_that_it_names(groups: list[Any], attention: float, mlp: float) -> None:
    table = {**packed(4), "config_groups": {str(number): group for number, group in enumerate(groups)}}
    shape = parse(table)
    assert shape.native == "awq-int4"
    assert shape.native_bytes is not None
    assert shape.native_bytes.attention == pytest.approx(attention, abs=1e-3)
    assert shape.native_bytes.dense == pytest.approx(mlp, abs=1e-3)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["re:.*memory.*"], "re:.*memory.*"),
        ("Linear", "targets = 'Linear'"),
        (["re:["], "not valid"),
        ([], "targets"),
    ],
)
def test_a_target_that_is_not_understood_is_named(targets: object, words: str) -> None:
    table = {**packed(4), "config_groups": {"group_0": {**GROUP4, "targets": targets}}}
    with pytest.raises(ConfigError) as caught:
        parse(table)
    assert words in str(caught.value)


def size(shape: Shape) -> float:
    return precision.weights(shape, precision.parse(shape.native)).total


ATTENTION = 2560 * 128 * (32 + 8 + 8 + 32)
MLP = 3 * 2560 * 9728
LISTS: list[tuple[list[str], int]] = [
    (["lm_head", "model.norm", "model.layers.0.mlp.gate"], 0),
    (["model.layers.0.mlp.down_proj"], MLP // 3),
    (["model.layers.1.mlp"], MLP),
    (["model.layers.1"], ATTENTION + MLP),
    (["model.layers.1*"], 11 * (ATTENTION + MLP)),
    (["model.layers.1.*"], ATTENTION + MLP),
    (["re:.*self_attn.*"], 36 * ATTENTION),
    (["model.layers.*.self_attn"], 36 * ATTENTION),
    (["language_model.model.layers.3.self_attn*", "language_model.model.layers.3.self_attn.q_proj"], ATTENTION),
    (["self_attn.o_proj", "*.o_proj"], 36 * 2560 * 128 * 32),
    (["re:.*mlp\\.(gate|up|down)_proj.*"], 36 * MLP),
    (["model.layers.36*", "mtp*"], 0),
]


@pytest.mark.parametrize(("entries", "weights"), LISTS, ids=[entries[0] for entries, _ in LISTS])
@pytest.mark.parametrize(("method", "each"), [("fp8", 1.0), ("modelopt_fp4", 0.5625)])
def test_a_module_of_a_list_has_16_bits(entries: list[str], weights: int, method: str, each: float) -> None:
    plain, shape = parse({"quant_method": method}), parse({"quant_method": method, "ignore": entries})
    # Without a list, norms count as quantised: 200 000 weights.
    assert size(shape) - size(plain) == pytest.approx(weights * (2 - each), abs=500_000)
    assert (shape.native_bytes is None) == (weights == 0)


EXPERTS = 4 * 128 * 3 * 2560 * 1536


@pytest.mark.parametrize(
    ("entries", "weights"),
    [
        (["model.layers.2.mlp.experts"], EXPERTS // 4),
        (["*.experts.*"], EXPERTS),
        ([f"model.layers.0.mlp.experts.{number}.down_proj" for number in range(128)], EXPERTS // 12),
        (["re:.*mlp\\.(gate|up|down)_proj.*", "lm_head"], None),
        (["model.layers.0.mlp.experts.7.down_proj"], None),
    ],
)
def test_experts_of_a_list_are_one_module(entries: list[str], weights: int | None) -> None:
    table = {"quant_method": "fp8", "ignored_layers": entries}
    if weights is None:
        with pytest.raises(ConfigError, match="among the modules at 16 bits"):
            parse(table, MOE)
        return
    assert size(parse(table, MOE)) - size(parse({"quant_method": "fp8"}, MOE)) == pytest.approx(
        weights, abs=500_000
    )


def test_a_list_does_not_change_another_precision() -> None:
    shape = parse({"quant_method": "fp8", "ignored_layers": ["re:.*self_attn.*"]})
    for other in ("bf16", "awq-int4"):
        assert precision.weights(shape, precision.parse(other)) == precision.weights(
            parse({"quant_method": "fp8"}), precision.parse(other)
        )


def mixed(base: dict[str, Any], **more: Any) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for layer in range(base["num_hidden_layers"]):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            table[f"model.layers.{layer}.self_attn.{name}"] = {"quant_algo": "FP8"}
        table[f"model.layers.{layer}.mlp.experts"] = {"quant_algo": "NVFP4", "group_size": 16}
    quant = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {**table, **more}}
    return {**base, "quantization_config": quant}


def test_modules_of_unequal_precision_have_their_own_bytes() -> None:
    shape = hf_config.parse("m", mixed(MOE, lm_head={"quant_algo": "W4A16_NVFP4"}))
    assert shape.native == "nvfp4"
    assert shape.native_bytes is not None
    assert shape.native_bytes.attention == pytest.approx(1, abs=1e-4)
    assert (shape.native_bytes.experts, shape.native_bytes.head) == (0.5625, 0.5625)


def test_each_expert_of_a_mixed_checkpoint_is_named() -> None:
    config = mixed(MOE)
    layers = config["quantization_config"]["quantized_layers"]
    whole = hf_config.parse("m", config).native_bytes
    for layer in range(4):
        del layers[f"model.layers.{layer}.mlp.experts"]
        for number in range(128):
            for name in ("w1", "w2", "w3"):
                layers[f"model.layers.{layer}.mlp.experts.{number}.{name}"] = {"quant_algo": "NVFP4"}
    assert hf_config.parse("m", config).native_bytes == whole
    layers["model.layers.0.mlp.experts.5.w1"] = {"quant_algo": "FP8"}
    with pytest.raises(ConfigError, match="experts of unequal precision"):
        hf_config.parse("m", config)
    del layers["model.layers.0.mlp.experts.5.w1"]
    with pytest.raises(ConfigError, match="some experts"):
        hf_config.parse("m", config)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"model.layers.0.memory": {"quant_algo": "FP8"}}, "layers.0.memory"),
        ({"model.layers.0.self_attn.q_proj": {"quant_algo": "W2"}}, "'W2'"),
        ({"model.layers.0.self_attn.q_proj": "FP8"}, "q_proj = 'FP8'"),
    ],
)
def test_a_mixed_module_that_is_not_understood_is_named(layers: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hf_config.parse("m", mixed(MOE, **layers))
    assert words in str(caught.value)


def test_a_shape_with_bytes_by_part_is_read_again(tmp_path: Path) -> None:
    shape = replace(parse({"quant_method": "fp8", "ignored_layers": ["re:.*self_attn.*"]}), name="some/model")
    path = tmp_path / "models.toml"
    path.write_text(dump_model(shape), "utf-8")
    assert known_models(path)["some/model"] == shape


@given(
    st.sampled_from([table for table, _ in READ]),
    st.from_regex(r"[a-z]{2,8}_(bits|width|size|ratio|layers)", fullmatch=True),
)
def test_an_unknown_field_is_refused(table: dict[str, Any], field: str) -> None:
    if field in quantised.READ | quantised.HARMLESS:
        return
    with pytest.raises(ConfigError, match=field):
        parse({**table, field: 2})


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", 4])
def test_an_unknown_type_of_weights_is_named(dtype: object) -> None:
    with pytest.raises(ConfigError, match="is not a type of weights"):
        hf_config.parse("m", {**DENSE, "torch_dtype": dtype})
