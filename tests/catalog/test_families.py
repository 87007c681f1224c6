"""Counts of every family of transformers against its own, or the refusal of a family.

benchmarks/planner/families.py writes ``families.json`` from transformers: for each family a config, its weights,
and every change of a single field that changes the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.catalog import harmless_fields, hf_config
from appliance.catalog.config_fields import chain
from appliance.catalog.families import FAMILIES
from appliance.catalog.family import REFUSED, SAME_AS
from appliance.catalog.shape import Attention, Mla
from appliance.errors import ConfigError
from appliance.planner import kv_cache

TRUTH: dict[str, dict[str, Any]] = {
    family: entry
    for family, entry in json.loads(Path(__file__).with_name("families.json").read_text("utf-8"))[
        "families"
    ].items()
    if "config" in entry
}
KNOWN = sorted(TRUTH.keys() & FAMILIES.keys())
NESTED = sorted(family for family, entry in TRUTH.items() if "text_config" in entry["config"])


def count(config: dict[str, Any]) -> int | str:
    """Return the planner's count, or its error."""
    try:
        return hf_config.parse("m", config).total_params
    except ConfigError as error:
        return str(error)


READ = [family for family in KNOWN if isinstance(count(TRUTH[family]["config"]), int)]


def test_at_least_ninety_families_are_read_and_two_hundred_tried() -> None:
    assert len(TRUTH) >= 200
    assert len(READ) >= 90


@pytest.mark.parametrize("family", sorted(TRUTH))
def test_a_family_is_counted_exactly_or_refused(family: str) -> None:
    entry = TRUTH[family]
    counted = count(entry["config"])
    if family in READ:
        assert counted == entry["params"]
    elif isinstance(counted, int):
        assert counted == pytest.approx(entry["params"], rel=0.01)


@pytest.mark.parametrize("family", KNOWN)
def test_a_field_that_changes_the_weights_changes_the_count_or_refuses(family: str) -> None:
    entry = TRUTH[family]
    for change in entry.get("changes", []):
        counted = count({**entry["config"], **change["config"]})
        if isinstance(counted, int):
            assert counted == pytest.approx(change["params"], rel=1e-5), change["field"]
        else:
            assert any(field in counted for field in [*entry["config"], *change["config"]]), counted


@pytest.mark.parametrize("family", sorted(TRUTH))
def test_no_field_that_changes_the_weights_is_called_harmless(family: str) -> None:
    changing = {change["field"] for change in TRUTH[family].get("changes", [])}
    # Fields of a vision tower or of a classifier's head change parts that the planner does not count.
    known = changing if family in FAMILIES else set()
    assert not {field for field in known if harmless_fields.is_harmless(field)}
    if family in FAMILIES:
        assert not changing & set(FAMILIES[family].harmless)


SET_BY_HAND = {"bloom", "dots1", "glm4_moe", "hunyuan_v1_dense", "hunyuan_v1_moe", "nemotron"}
"""Families whose classes build no model from their own values alone; the configs of the table set some."""


@pytest.mark.parametrize("family", [family for family in READ if family not in SET_BY_HAND])
def test_a_field_missing_from_a_nested_model_has_the_value_of_its_class(family: str) -> None:
    entry = TRUTH[family]
    outer = {
        "model_type": "llava",
        "vision_config": {},
        "tie_word_embeddings": entry["config"].get("tie_word_embeddings"),
    }
    fields = {change["field"] for change in entry["changes"]} - {
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
    }
    for field in sorted(fields):
        text = {key: value for key, value in entry["config"].items() if key != field}
        counted = count({**outer, "text_config": text})
        if isinstance(counted, int):
            assert counted == entry["params"], field
        else:
            assert field in counted or "contradict" in counted or "layer" in counted, counted


SIZES = [
    "num_foo_layers",
    "foo_intermediate_size",
    "moe_extra",
    "extra_hidden_size",
    "n_sparse_experts",
    "use_double_mlp",
    "kv_sharing_interval",
    "max_context_window",
    "conv_width",
    "memory_layers",
]


@pytest.mark.parametrize("family", READ)
@pytest.mark.parametrize("value", [8, True, [1, 2], None, 0])
def test_an_unknown_field_is_refused_and_named(family: str, value: object) -> None:
    config = TRUTH[family]["config"]
    for field in SIZES:
        counted = count({**config, field: value})
        assert isinstance(counted, str), field
        assert field in counted


@given(
    st.sampled_from(READ), st.from_regex(r"[a-z]{2,9}_(size|layers|heads|dim|experts|rank|window)", fullmatch=True)
)
def test_any_unknown_name_is_refused(family: str, field: str) -> None:
    config = TRUTH[family]["config"]
    spellings = {name for names in FAMILIES[family].names.values() for name in names}
    if field in config or field in spellings or harmless_fields.is_harmless(field):
        return
    before, counted = count(config), count({**config, field: 7})
    assert isinstance(counted, str) or counted != before or field in harmless_fields.ONLY


@given(st.sampled_from(READ), st.sampled_from(sorted(harmless_fields.HARMLESS)))
def test_a_harmless_field_changes_nothing(family: str, field: str) -> None:
    config = TRUTH[family]["config"]
    if field in {"dtype", "torch_dtype", "model_type"} or field in FAMILIES[family].only:
        return
    assert count({**config, field: 7}) == count(config)


NESTED_READ = [family for family in NESTED if isinstance(count(TRUTH[family]["config"]), int)]


@pytest.mark.parametrize("family", NESTED_READ)
def test_an_unknown_field_outside_a_nested_model_is_refused_and_named(family: str) -> None:
    config = TRUTH[family]["config"]
    for field in SIZES:
        counted = count({**config, field: 8})
        assert isinstance(counted, str)
        assert field in counted


def test_nested_models_are_read() -> None:
    assert len(NESTED_READ) >= 25


TEXT = {**TRUTH["qwen3"]["config"]}


@pytest.mark.parametrize(
    "wrapped",
    [
        {"model_type": "qwen3_vl", "text_config": TEXT},
        {"model_type": "internvl_chat", "llm_config": TEXT},
        {"model_type": "deepseek_vl_v2", "language_config": TEXT},
        {"model_type": "qwen3_omni_moe", "thinker_config": {"model_type": "x", "text_config": TEXT}},
        {"model_type": "some_vla", "vlm_config": {"model_type": "y", "llm_config": TEXT}},
    ],
    ids=lambda wrapped: str(wrapped["model_type"]),
)
def test_a_text_model_is_found_at_any_depth(wrapped: dict[str, Any]) -> None:
    assert count({**wrapped, "vision_config": {"hidden_size": 1152}}) == TRUTH["qwen3"]["params"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "a", "text_config": TEXT, "llm_config": TEXT}, "text_config and llm_config"),
        ({"model_type": "a", "decoder": TEXT}, "model_type 'a'"),
        ({"model_type": "llama", "decoder": TEXT}, "has no hidden_size"),
        ({"model_type": "a", "text_config": {**TEXT, "model_type": "b"}}, "model_type 'b'"),
        ({"model_type": "a", "text_config": {**TEXT, "num_foo_layers": 3}}, "text_config.num_foo_layers = 3"),
        ({**TEXT, "model_type": None}, "has no model_type"),
        ({"peft_type": "LORA", "model_type": "qwen3"}, "belongs to an adapter; take the model's own file"),
        ({"model_type": "gemma3_text", "hidden_size": 2304, "num_hidden_layers": 26}, "has no vocab_size"),
        ({**TEXT, "num_attention_heads": 32, "n_head": 16}, "n_head"),
        ({**TRUTH["qwen3_moe"]["config"], "num_experts": 4, "num_local_experts": 8}, "contradict each other"),
    ],
)
def test_a_field_that_is_not_understood_is_named(config: dict[str, Any], words: str) -> None:
    counted = count(config)
    assert isinstance(counted, str)
    assert words in counted
    assert "adapter" not in counted or "peft_type" in config


def test_gemma_3_is_read_as_published() -> None:
    """The file does not state vocabulary, heads and their width; the class has them."""
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }
    shape = hf_config.parse("google/gemma-3-4b-it", config)
    assert shape.total_params == 3_880_263_168
    assert (shape.sliding_layers, shape.full_layers) == (29, 5)
    assert shape.full.kv_values() == 2 * 4 * 256
    assert shape.max_context == 131072


@pytest.mark.parametrize(
    ("config", "sparse"),
    [
        ({"mlp_only_layers": [0, 3]}, 6),
        ({"mlp_only_layers": [0, 3], "decoder_sparse_step": 2}, 3),
        ({"decoder_sparse_step": 3}, 2),
    ],
)
def test_layers_without_experts_equal_those_of_the_engine(config: dict[str, Any], sparse: int) -> None:
    assert hf_config.parse("m", {**TRUTH["qwen3_moe"]["config"], **config}).moe_layers == sparse


@pytest.mark.parametrize(
    ("family", "config", "sliding"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 6}, 2),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 6}, 0),
        ("exaone4", {"sliding_window": 64, "sliding_window_pattern": "LLLG"}, 6),
        ("exaone4", {"sliding_window": None}, 0),
        ("gemma2", {}, 4),
        ("gemma3_text", {"sliding_window_pattern": 4}, 6),
        ("cwm", {}, 6),
        ("phi3", {"sliding_window": 2047}, 8),
        ("mistral", {"sliding_window": 4096}, 8),
    ],
)
def test_sliding_layers_of_a_file_without_layer_types(family: str, config: dict[str, Any], sliding: int) -> None:
    base = {key: value for key, value in TRUTH[family]["config"].items() if key != "layer_types"}
    base.pop("_sliding_window_pattern", None)
    assert hf_config.parse("m", {**base, **config}).sliding_layers == sliding


LLAMA4 = TRUTH["llama4_text"]["config"]


@pytest.mark.parametrize(
    ("config", "chunked", "sparse"),
    [
        ({}, 6, 8),
        ({"layer_types": None, "no_rope_layers": None}, 6, 8),
        ({"layer_types": None, "no_rope_layers": None, "no_rope_layer_interval": 2}, 4, 8),
        ({"layer_types": None, "no_rope_layers": [0] + [1] * 7}, 7, 8),
        ({"attention_chunk_size": None}, 0, 8),
        ({"attention_chunk_size": 131072}, 0, 8),
        ({"moe_layers": None, "interleave_moe_layer_step": 2}, 6, 4),
        ({"moe_layers": [1, 3], "interleave_moe_layer_step": None}, 6, 2),
    ],
)
def test_chunks_and_experts_of_llama_4(config: dict[str, Any], chunked: int, sparse: int) -> None:
    shape = hf_config.parse("m", {**LLAMA4, **config})
    assert (shape.sliding_layers, shape.moe_layers) == (chunked, sparse)
    if shape.sliding is not None:
        assert (shape.sliding.window, shape.sliding.chunked) == (8192, True)


def test_every_fourth_layer_of_llama_4_is_full_from_the_fourth_on() -> None:
    few = {"num_hidden_layers": 6, "layer_types": None, "no_rope_layers": None, "moe_layers": None}
    assert hf_config.parse("m", {**LLAMA4, **few}).full_layers == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"no_rope_layers": [2] * 8}, "no_rope_layers = [2"),
        ({"no_rope_layers": [1] * 7}, "no_rope_layers names 7 layers"),
        ({"layer_types": ["full_attention"] * 8}, "layer_types"),
        ({"moe_layers": 3}, "moe_layers = 3"),
    ],
)
def test_a_contradiction_in_llama_4_is_named(config: dict[str, Any], words: str) -> None:
    assert words in str(count({**LLAMA4, **config}))


GLM_DSA = {key: value for key, value in TRUTH["glm_moe_dsa"]["config"].items() if key != "indexer_types"}
SHARED = ["full", "full", *["shared", "shared", "full"] * 30][: GLM_DSA["num_hidden_layers"]]


@pytest.mark.parametrize(
    ("config", "shared"),
    [
        ({}, 0),
        ({"index_topk_freq": 1, "index_skip_topk_offset": 3}, 0),
        ({"indexer_types": SHARED}, SHARED.count("shared")),
        ({"index_topk_pattern": "".join(kind[0].upper() for kind in SHARED)}, SHARED.count("shared")),
        ({"index_topk_freq": 3, "index_skip_topk_offset": 2}, SHARED.count("shared")),
        ({"index_topk_freq": 3, "indexer_types": SHARED}, SHARED.count("shared")),
    ],
)
def test_layers_that_share_an_index_have_none(config: dict[str, Any], shared: int) -> None:
    shape = hf_config.parse("m", {**GLM_DSA, **config})
    assert shape.shared_index_layers == shared
    assert isinstance(shape.full, Mla)
    each = shape.full.index_params(shape.hidden)
    assert shape.total_params == hf_config.parse("m", GLM_DSA).total_params - shared * each
    # vLLM caches 128 numbers of FP8 and an fp32 scale per token and index.
    values = shape.layers * (512 + 64) * 2
    assert shape.kv_bytes_per_token() == values + (shape.layers - shared) * 132


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"indexer_types": ["full"] * 3}, "indexer_types names 3 layers"),
        ({"indexer_types": ["half"] * GLM_DSA["num_hidden_layers"]}, "indexer_types"),
        ({"indexer_types": SHARED, "index_topk_freq": 4}, "indexer_types"),
        ({"index_topk_pattern": "FS"}, "index_topk_pattern = 'FS'"),
        ({"index_topk_freq": 0}, "index_topk_freq = 0"),
    ],
)
def test_a_contradiction_about_indexes_is_named(config: dict[str, Any], words: str) -> None:
    assert words in str(count({**GLM_DSA, **config}))


MIMO = TRUTH["mimo_v2_flash"]["config"]
PATTERN = [0, 1, 1, 1, 1, 0, 1, 1]


def test_sliding_layers_may_have_heads_of_their_own() -> None:
    shape = hf_config.parse("m", MIMO)
    stated = {
        "swa_num_attention_heads": 64,
        "swa_num_key_value_heads": 8,
        "swa_head_dim": 192,
        "swa_v_head_dim": 128,
        "hybrid_layer_pattern": PATTERN,
    }
    assert hf_config.parse("m", {**MIMO, **stated}) == shape
    assert hf_config.parse("m", {**MIMO, **stated, "layer_types": None}) == shape
    assert isinstance(shape.full, Attention)
    assert shape.sliding is not None
    assert (shape.full.kv_values(), shape.sliding.kv_values()) == (4 * (192 + 128), 8 * (192 + 128))
    assert (shape.full.sinks, shape.sliding.sinks) == (False, True)
    narrow = hf_config.parse("m", {**MIMO, "swa_num_key_value_heads": 4})
    assert shape.total_params - narrow.total_params == 6 * 4 * (192 + 128) * 4096


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"layer_types": None}, "has no hybrid_layer_pattern"),
        ({"hybrid_layer_pattern": [1] * 8}, "hybrid_layer_pattern"),
        ({"hybrid_layer_pattern": [2] * 8, "layer_types": None}, "hybrid_layer_pattern = [2"),
        ({"attention_chunk_size": 64}, "contradict each other"),
        ({"add_full_attention_sink_bias": True}, "add_full_attention_sink_bias"),
        ({"swa_num_key_value_heads": 5}, "does not divide 64 heads"),
        ({"n_shared_experts": 1}, "n_shared_experts"),
    ],
)
def test_a_contradiction_about_kinds_of_layers_is_named(config: dict[str, Any], words: str) -> None:
    assert words in str(count({**MIMO, **config}))


STEP = TRUTH["step3p7"]["config"]


def test_gates_per_head_follow_the_heads_of_each_kind() -> None:
    text = STEP["text_config"]
    assert count(STEP) == TRUTH["step3p7"]["params"]
    other = {**text, "per_layer_config": {"0": {"num_attention_heads": 32}}}
    assert "per_layer_config" in str(count({**STEP, "text_config": other}))


M3 = TRUTH["minimax_m3_vl_text"]["config"]
OLDER = {
    "use_sparse_attention": True,
    "sparse_attention_freq": [0, 0, 0, 1, 1, 1, 1, 1],
    "sparse_num_index_heads": 4,
    "sparse_index_dim": 128,
    "sparse_block_size": 128,
    "sparse_topk_blocks": 16,
    "sparse_score_type": "max",
}


def test_layers_with_an_index_read_the_blocks_that_it_chooses() -> None:
    shape = hf_config.parse("m", M3)
    older = {key: value for key, value in M3.items() if key != "layer_types" and not key.startswith("index_")}
    assert hf_config.parse("m", {**older, "sparse_attention_config": OLDER}) == shape
    assert (shape.full_layers, shape.sliding_layers) == (5, 3)
    assert shape.full.index_top == 2048
    # vLLM keeps 128 numbers of 16 bits per token and index.
    assert shape.kv_bytes_per_token() == 8 * 2 * 4 * 128 * 2 + 5 * 256
    plain = hf_config.parse("m", {**M3, "layer_types": ["full_attention"] * 8})
    assert shape.total_params - plain.total_params == 5 * (6144 * 5 * 128 + 2 * 128)
    assert plain.index_bytes_per_token == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"layer_types": ["sliding_attention"] * 8}, "layer_types = 'sliding_attention'"),
        (
            {"layer_types": None, "sparse_attention_config": {**OLDER, "sparse_attention_freq": [1]}},
            "attention_freq",
        ),
        ({"sparse_attention_config": {**OLDER, "sparse_score_type": "mean"}}, "sparse_score_type = 'mean'"),
        ({"sparse_attention_config": {**OLDER, "sparse_memory": 8}}, "sparse_memory = 8"),
        ({"index_topk_blocks": 0}, "index_topk_blocks = 0"),
        ({"moe_intermediate_size": 1536}, "contradict each other"),
    ],
)
def test_an_index_that_is_not_understood_is_named(config: dict[str, Any], words: str) -> None:
    assert words in str(count({**M3, **config}))


KIMI = TRUTH["kimi_linear"]["config"]
KIMI_OLDER = {
    "layer_types": None,
    "linear_attn_config": {
        "full_attn_layers": [5],
        "kda_layers": [1, 2, 3, 4, 6, 7, 8],
        "head_dim": 128,
        "num_heads": 32,
        "short_conv_kernel_size": 4,
    },
}


def test_kimi_delta_attention_has_a_state_of_fixed_size() -> None:
    shape = hf_config.parse("m", KIMI)
    assert hf_config.parse("m", {**KIMI, **KIMI_OLDER}) == shape
    assert hf_config.parse("m", {**KIMI, "layer_types": None}) == shape
    assert (shape.linear_layers, shape.full_layers) == (7, 1)
    assert shape.state_bytes_per_sequence == 7 * (32 * 128 * 128 * 4 + 3 * 32 * 128 * 3 * 2)
    last = {"full_attn_layers": [4, 8], "kda_layers": [1, 2, 3, 5, 6, 7]}
    assert hf_config.parse("m", {**KIMI, "layer_types": None, "linear_attn_config": last}).full_layers == 2
    # Latent attention next to recurrent layers has pages of at least 128 tokens in vLLM.
    page = 128 * (512 + 64) * 2
    assert kv_cache.layout(shape).page_bytes == -(-(shape.state_bytes_per_sequence // 7) // page) * page


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"kda_layers": [1, 2]}, "full_attn_layers"),
        ({"full_attn_layers": [1], "kda_layers": [1, 2, 3, 4, 5, 6, 7, 8]}, "full_attn_layers = [1]"),
        ({"num_heads": 0}, "linear_num_heads = 0"),
        ({"use_full_rank_gate": True}, "linear_attn_config.use_full_rank_gate = True"),
    ],
)
def test_a_delta_attention_that_is_not_understood_is_named(table: dict[str, Any], words: str) -> None:
    assert words in str(count({**KIMI, "layer_types": None, "linear_attn_config": table}))


def test_every_name_has_a_family() -> None:
    assert all(chain(kind)[-1] in FAMILIES for kind in SAME_AS)
    assert not [
        family for family in FAMILIES for prefix in REFUSED if family.startswith(prefix) and family == prefix
    ]
