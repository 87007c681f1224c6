"""The longest context against vLLM's own ModelConfig (recorded by benchmarks/planner/contexts.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.catalog import hf_config
from appliance.errors import ConfigError

CASES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("contexts.json").read_text("utf-8"))["cases"]
QWEN = CASES["plain"]["config"]


@pytest.mark.parametrize("name", CASES)
def test_the_context_equals_that_of_vllm(name: str) -> None:
    case = CASES[name]
    if case["context"] is None:
        with pytest.raises(ConfigError):
            hf_config.parse("m", case["config"])
    else:
        assert hf_config.parse("m", case["config"]).max_context == case["context"]


def test_the_table_has_every_kind() -> None:
    assert len(CASES) >= 90
    assert len({case["context"] for case in CASES.values()}) >= 10


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rope_scaling": {"rope_type": "spiral", "factor": 4.0}}, "rope_scaling has the type 'spiral'"),
        ({"rope_parameters": {"rope_type": "linear", "stretch": 4.0}}, "rope_parameters.stretch"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "rope_scaling.factor = '4'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "rope_scaling.factor = -1"),
        ({"rope_scaling": {"rope_type": "linear", "factor": True}}, "rope_scaling.factor = True"),
        ({"rope_scaling": [4.0]}, "rope_scaling = [4.0] is not a table"),
        ({"rope_scaling": {"rope_type": "linear", "type": "ntk", "factor": 2}}, "has two types (linear, ntk)"),
        ({"rope_parameters": {"full_attention": 3, "sliding_attention": {}}}, "is not a table"),
        ({"max_position_embeddings": None}, "has no max_position_embeddings"),
        ({"seq_length": "long"}, "seq_length = 'long'"),
        ({"max_context_window": 1 << 20}, "max_context_window"),
    ],
)
def test_a_scaling_that_is_not_understood_is_named(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hf_config.parse("m", {**QWEN, **more})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
