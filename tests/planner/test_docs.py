"""Figures of docs/planner.md against those of the code."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from appliance.catalog.shipped import MEASUREMENTS
from appliance.planner import evaluate
from appliance.planner.constants import Constants, calibrated

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "planner.md").read_text("utf-8")


def test_the_table_of_constants_has_the_calibrated_values() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", TEXT, re.MULTILINE))
    assert rows == {
        entry.name: f"{getattr(calibrated(), entry.name):.3g}" for entry in dataclasses.fields(Constants)
    }


def test_the_fitted_errors_are_those_of_the_code() -> None:
    results = evaluate.evaluate(evaluate.read(MEASUREMENTS))
    summary = evaluate.summarise(results)
    assert f"| fitted to all | {len(results)} | {summary.median:.3f} | {summary.p90:.3f} |" in TEXT


def test_the_drawings_exist() -> None:
    for name in re.findall(r"\]\((img/[^)]+)\)", TEXT):
        assert (ROOT / "docs" / name).read_text("utf-8").startswith("<svg")
