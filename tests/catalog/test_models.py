"""Catalog files of models."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.catalog import hf_config
from appliance.catalog.models import dump_model, known_models, read_model, shipped_models
from appliance.catalog.shape import Attention, LinearAttention, Mla, Moe, Shape

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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_catalog_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(dump_model(hf_config.parse("My/Own", DENSE)), encoding)
    assert known_models(path)["My/Own"].total_params == 596_049_920


def test_every_figure_of_a_card_has_a_source() -> None:
    for file, key in (("gpus.toml", "gpus"), ("cpus.toml", "cpus")):
        table = tomllib.loads(resources.files("appliance.catalog").joinpath(file).read_text("utf-8"))[key]
        for name, figures in table.items():
            for figure, value in figures.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    pytest.fail(f"{name}.{figure} has no source")
                if isinstance(value, dict):
                    assert value["source"], (name, figure)
    assert all(shape.source for shape in shipped_models().values())


shapes = st.builds(
    Shape,
    name=st.just("any"),
    hidden=st.sampled_from([256, 1024, 4096]),
    layers=st.integers(4, 60),
    vocab=st.integers(1000, 200_000),
    max_context=st.just(32768),
    tied=st.booleans(),
    full=st.one_of(
        st.builds(
            Attention,
            heads=st.sampled_from([8, 16, 32]),
            kv_heads=st.sampled_from([1, 2, 4, 8]),
            head_dim=st.sampled_from([64, 128]),
        ),
        st.builds(
            Mla,
            heads=st.sampled_from([8, 16]),
            q_rank=st.sampled_from([0, 512]),
            kv_rank=st.just(512),
            nope_dim=st.just(128),
            rope_dim=st.just(64),
            v_dim=st.just(128),
        ),
    ),
    linear=st.builds(
        LinearAttention,
        key_heads=st.just(8),
        value_heads=st.just(16),
        key_dim=st.just(128),
        value_dim=st.just(128),
        conv=st.just(4),
    ),
    linear_layers=st.integers(0, 3),
    dense_width=st.integers(0, 8192),
    dense_layers=st.integers(0, 4),
    moe=st.one_of(
        st.none(),
        st.builds(Moe, experts=st.integers(8, 128), per_token=st.integers(1, 8), width=st.just(256)),
    ),
)


@given(shapes)
def test_a_written_model_is_read_back(shape: Shape) -> None:
    table = tomllib.loads(dump_model(shape))["models"]["any"]
    assert read_model("any", table) == shape
