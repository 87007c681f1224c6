"""Weights of the catalog's models against those of their classes in transformers (benchmarks/planner/counts.py)."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from appliance.catalog import hf_config
from appliance.catalog.models import shipped_models

FOLDER = Path(__file__).parent


def names_and_counts(name: str) -> dict[str, int]:
    """Return the counted weights by model."""
    rows = csv.DictReader((FOLDER / name).read_text("utf-8").splitlines())
    return {row["model"]: int(row.get("params") or 0) for row in rows}


COUNTED = names_and_counts("counted_models.csv")
INEXACT = {
    "deepseek-ai/DeepSeek-V4-Flash": 0.006,
    "deepseek-ai/DeepSeek-V4-Pro": 0.005,
}
"""Models whose shape is approximate, with the largest relative difference."""


@pytest.mark.parametrize("name", sorted(COUNTED.keys() - INEXACT.keys()))
def test_a_model_has_the_weights_of_its_class(name: str) -> None:
    assert shipped_models()[name].total_params == COUNTED[name]


@pytest.mark.parametrize("name", sorted(INEXACT))
def test_an_approximate_model_is_near_its_class(name: str) -> None:
    ours = shipped_models()[name].total_params
    assert ours != COUNTED[name], f"{name} is exact now: remove it from INEXACT"
    assert ours == pytest.approx(COUNTED[name], rel=INEXACT[name])


NEW = json.loads((FOLDER / "counted_configs.json").read_text("utf-8"))


@pytest.mark.parametrize("entry", NEW, ids=[entry["model"] for entry in NEW])
def test_a_published_config_of_a_new_family_has_the_weights_of_its_class(entry: dict[str, Any]) -> None:
    assert hf_config.parse(entry["model"], entry["config"]).total_params == entry["params"]


def test_at_least_45_models_are_exact() -> None:
    published = names_and_counts("published_models.csv").keys()
    assert len(published | (COUNTED.keys() - INEXACT.keys())) >= 50
    assert len(NEW) >= 8
