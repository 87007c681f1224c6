"""Errors over the public measurements against their limits, and rows that are refused with one line each."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.catalog.shipped import MEASUREMENTS
from appliance.errors import ConfigError
from appliance.planner import evaluate
from appliance.planner.evaluate import RowResult
from tests.planner.rows import ROW

ROWS = evaluate.read(MEASUREMENTS)
RESULTS = evaluate.evaluate(ROWS)


def test_every_row_is_predicted() -> None:
    assert [result.refused for result in RESULTS if result.refused] == []
    assert len(RESULTS) == 887


def test_errors_rank_and_coverage_are_within_their_limits() -> None:
    summary = evaluate.summarise(RESULTS)
    assert summary.median is not None
    assert summary.median <= 0.15
    assert summary.p90 is not None
    assert summary.p90 <= 0.56
    assert summary.inside is not None
    assert 0.80 <= summary.inside <= 0.92
    assert summary.rank is not None
    assert summary.rank >= 0.85


def test_the_owners_case_is_predicted_within_an_eighth() -> None:
    """Qwen3-30B-A3B in bf16 on one RTX PRO 6000, batches 1, 4, 8 and 16."""
    own = [result for result in RESULTS if "polygraph" in result.row["source"] and result.row["input_tokens"]]
    assert sorted(result.row["concurrency"] for result in own) == ["1", "16", "4", "8"]
    for result in own:
        assert abs(result.error or 9.0) <= 0.13, result.row["concurrency"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpu": "Voodoo 2"}, "card 'Voodoo 2' is not in the catalog"),
        ({"gpu": ""}, "gpu is empty"),
        ({"model": "Mystery"}, "model 'Mystery' is not in the catalog"),
        ({"model": ""}, "model is empty"),
        ({"dtype": "fp7"}, "precision 'fp7' does not exist"),
        ({"concurrency": "many"}, "is not a number"),
        ({"gpu_count": "0"}, ""),
        ({"gpu_count": "100000"}, "is out of range"),
        ({"tp": "3"}, "does not divide"),
        ({"concurrency": "-7"}, ""),
        ({"output_tokens": "0"}, ""),
    ],
)
def test_an_unusual_row_is_refused_or_predicted(change: dict[str, str], words: str) -> None:
    (result,) = evaluate.evaluate([{**ROW, **change}])
    if words:
        assert result.refused is not None
        assert words in result.refused
        assert "\n" not in result.refused
    else:
        assert result.refused or result.predicted


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "gpu,model,output_tok_s\n"])
def test_a_file_without_measurements_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        evaluate.read(path)
    assert "\n" not in str(caught.value)


def test_rank_correlation_of_small_examples() -> None:
    def result(truth: float, predicted: float) -> RowResult:
        return RowResult(row={}, line=2, truth=truth, predicted=predicted)

    assert evaluate.spearman([result(1, 10), result(2, 20), result(3, 30)]) == pytest.approx(1)
    assert evaluate.spearman([result(1, 30), result(2, 20), result(3, 10)]) == pytest.approx(-1)
    assert evaluate.spearman([result(1, 5), result(2, 5), result(3, 5)]) == 0
    assert evaluate.spearman([result(1, 1), result(2, 2)]) is None
    swapped = [result(100, 102.5), result(101.5, 101), result(200, 200)]
    assert evaluate.spearman(swapped) == pytest.approx(0.5)
    assert evaluate.spearman(swapped, evaluate.REPEAT_NOISE) == pytest.approx(1)
    assert evaluate.spearman([result(100, 1), result(101, 2), result(102, 3)], evaluate.REPEAT_NOISE) is None
    far = [result(100, 120), result(102, 100), result(200, 200)]
    assert evaluate.spearman(far, evaluate.REPEAT_NOISE) == pytest.approx(3**0.5 / 2)
