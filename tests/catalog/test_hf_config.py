"""config.json of every family, and config.json that lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.catalog import hf_config
from appliance.catalog.models import dump_model, known_models
from appliance.errors import ConfigError
from appliance.planner import add_model

DENSE: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "vocab_size": 151936,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}


def test_a_dense_model() -> None:
    assert hf_config.parse("m", DENSE).total_params == 596_049_920


def test_text_config_inside_a_vision_model() -> None:
    outer = {
        "model_type": "qwen3_vl",
        "text_config": {**DENSE, "model_type": "qwen3_vl_text"},
        "vision_config": {},
    }
    assert hf_config.parse("m", outer).total_params == 596_049_920


def test_sliding_window_by_layer_types() -> None:
    kinds = ["sliding_attention"] * 21 + ["full_attention"] * 7
    shape = hf_config.parse("m", {**DENSE, "layer_types": kinds, "sliding_window": 128})
    assert (shape.sliding_layers, shape.full_layers) == (21, 7)
    assert shape.sliding is not None
    assert shape.sliding.window == 128


def test_a_window_switched_off_does_not_slide() -> None:
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
def test_precision_of_the_checkpoint(table: dict[str, Any], native: str) -> None:
    shape = hf_config.parse("m", {**DENSE, "quantization_config": table})
    assert shape.native == native
    assert shape.fp8_block == (128 if native == "fp8" else 0)


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"])
@pytest.mark.parametrize("value", [None, -1, 0, 1.5, "64", True, 10**12])
def test_missing_and_lying_fields(field: str, value: object) -> None:
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
        ({"model_type": "nemotron_h"}, "Mamba"),
        ({"hybrid_override_pattern": "M*"}, "Mamba"),
        ({"compress_ratios": [4]}, "compressed"),
    ],
)
def test_contradictions(change: dict[str, Any], word: str) -> None:
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


def write(folder: Path, config: object, size: int | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    if size is not None:
        index = {"metadata": {"total_size": size}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return folder


def test_a_folder_with_its_index(tmp_path: Path) -> None:
    shape = add_model.read(str(write(tmp_path, DENSE, 1_192_135_096)))
    assert shape.checkpoint_bytes == 1_192_135_096


def test_a_config_of_other_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="belongs to another model"):
        add_model.read(str(write(tmp_path, DENSE, 61_000_000_000)))


def test_a_repository_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "hub" / "models--Some--Model" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    write(folder, DENSE)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert add_model.read("Some/Model").name == "Some/Model"
    with pytest.raises(ConfigError, match="not in the local cache"):
        add_model.read("Some/Other")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100_000])
def test_files_that_are_no_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        add_model.read(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8"])
def test_a_config_in_any_unicode_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "config.json").write_bytes(json.dumps(DENSE).encode(encoding))
    (tmp_path / "model.safetensors.index.json").write_bytes(
        json.dumps({"metadata": {"total_size": 1_192_135_096}}).encode(encoding)
    )
    assert add_model.read(str(tmp_path)).checkpoint_bytes == 1_192_135_096


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"\xef\xbb\xbf", b"\xef\xbb\xbf{", b"\x89PNG\r\n", b"\xff" * 9])
def test_bytes_that_are_no_json_get_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        add_model.read(str(tmp_path))
    assert "config.json: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_catalogue_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(dump_model(hf_config.parse("My/Own", DENSE)), encoding)
    assert known_models(path)["My/Own"].total_params == 596_049_920


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no config"):
        add_model.read(str(tmp_path))
    with pytest.raises(ConfigError, match="no such file"):
        add_model.read(str(tmp_path / "nothing" / "here"))
