"""The committed page and plots of the gateway benchmark: their figures are those of the results."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.gateway import report

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gateway"


def test_the_page_and_the_plots_are_those_of_the_results(tmp_path: Path) -> None:
    results = json.loads((FOLDER / "results.json").read_text())
    report.write(results, tmp_path)
    for name in ("README.md", "plain.svg", "chunks.svg", "memory.svg"):
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text(), f"{name} is outdated; run make bench"


def test_a_missing_measurement_is_a_dash() -> None:
    empty = {"subjects": {"gateway": {"version": "1", "measures": {}}}, "own": {}}
    assert "| - / - |" in report.table(empty)
    failed = {"subjects": {"litellm": {"version": "2", "measures": {}, "failed": "no | route"}}, "own": {}}
    assert "did not run: no / route" in report.table(failed)
