"""Counts of parameters and bytes against the published figures of 28 models, and their arithmetic."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given

from appliance.catalog.models import shipped_models
from appliance.catalog.shape import Shape
from appliance.planner import precision
from tests.catalog.shapes import SHAPES

TEXT = (Path(__file__).parent / "published_models.csv").read_text("utf-8")
PUBLISHED = list(csv.DictReader(TEXT.splitlines()))


@pytest.mark.parametrize("row", PUBLISHED, ids=[row["model"] for row in PUBLISHED])
def test_counts_equal_the_published_ones(row: dict[str, str]) -> None:
    shape = shipped_models()[row["model"]]
    assert f"{shape.total_params / 1e9:.3f}" == row["total_params_b"]
    assert f"{shape.active_params / 1e9:.3f}" == row["active_params_b"]
    assert shape.kv_bytes_per_token() == int(row["kv_bytes_per_token_bf16"])
    assert shape.state_bytes_per_sequence == int(row["linear_state_bytes_per_seq"])
    assert shape.max_context == int(row["max_context"])
    size = shape.checkpoint_bytes or precision.weights(shape, precision.parse(shape.native)).total
    assert f"{size / 1e9:.2f}" == row["checkpoint_gb"]


def test_the_table_has_28_models() -> None:
    assert len(PUBLISHED) == 28


@pytest.mark.parametrize(
    ("name", "params"),
    [
        # The published count is without the routing bias, a buffer of 58 layers x 256.
        ("deepseek-ai/DeepSeek-V3", 671_026_404_352 + 58 * 256),
        ("deepseek-ai/DeepSeek-V2-Lite", 15_706_484_224),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-2-7B", 6_738_415_616),
        ("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704),
    ],
)
def test_counts_of_further_families_are_exact(name: str, params: int) -> None:
    assert shipped_models()[name].total_params == params


@given(SHAPES)
def test_parts_add_up_and_active_weights_are_at_most_all(shape: Shape) -> None:
    assert 0 < shape.active_params <= shape.total_params
    assert (shape.active_params == shape.total_params) == (
        shape.moe is None or shape.moe_layers == 0 or shape.moe.per_token == shape.moe.experts
    )
    bf16 = precision.weights(shape, precision.parse("bf16"))
    assert bf16.total == 2 * shape.total_params
    assert precision.weights(shape, precision.parse("fp8")).total < bf16.total


def test_the_cache_of_a_sliding_layer_stops_at_its_window() -> None:
    shape = shipped_models()["openai/gpt-oss-120b"]
    assert shape.kv_bytes_of(100) == 100 * shape.kv_bytes_per_token()
    assert shape.kv_bytes_of(100_000) < 0.51 * 100_000 * shape.kv_bytes_per_token()
