"""Catalog files of models."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given

from appliance.catalog import hf_config
from appliance.catalog.models import dump_model, known_models, read_model, shipped_models
from appliance.catalog.shape import Shape
from tests.catalog.configs import DENSE
from tests.catalog.shapes import SHAPES


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


@given(SHAPES)
def test_a_written_model_is_read_back(shape: Shape) -> None:
    table = tomllib.loads(dump_model(shape))["models"]["any"]
    assert read_model("any", table) == shape
