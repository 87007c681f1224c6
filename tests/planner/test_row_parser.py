"""Cards, models and conditions of a row of measurements."""

from __future__ import annotations

import pytest

from appliance.errors import UsageError
from appliance.planner import evaluate, row_parser
from tests.planner.rows import ROW


def test_the_shape_of_an_unknown_model_is_guessed_from_its_name() -> None:
    (result,) = evaluate.evaluate([{**ROW, "model": "Brandnew-40B-A4B"}])
    assert result.predicted is not None
    assert "guessed" in result.assumed[0]
    known = next(iter(evaluate.evaluate([ROW])))
    assert result.high is not None
    assert known.high is not None
    assert known.predicted is not None
    assert result.high / result.predicted > known.high / known.predicted
    shape = row_parser.guess("Foo-30B-A3B")
    assert shape is not None
    assert shape.total_params == pytest.approx(30e9, rel=0.3)
    assert shape.active_params == pytest.approx(3e9, rel=0.5)


@pytest.mark.parametrize(
    ("change", "card"),
    [
        ({"gpu": "NVIDIA H100 80GB HBM3"}, "H100 SXM 80GB"),
        ({"gpu": "2x RTX 5090 32GB", "dtype": "4-bit"}, "RTX 5090"),
        ({"gpu": "NVIDIA RTX PRO 6000 Blackwell Server Edition"}, "RTX PRO 6000 Blackwell Server"),
        ({"gpu": "A100-SXM-80GB", "dtype": "GPTQ-Int4"}, "A100 SXM 80GB"),
    ],
)
def test_a_card_is_found_by_a_common_name(change: dict[str, str], card: str) -> None:
    assert row_parser.parse_row({**ROW, **change}).card.name == card


@pytest.mark.parametrize(
    ("columns", "check"),
    [
        ({"pp": "4", "tp": "1"}, lambda workload: workload.layout.pp == 4),
        ({"tp": "2", "pp": "2", "attention_dp": "1"}, lambda workload: workload.layout.attention_dp),
        ({"kv": "fp8"}, lambda workload: workload.precision.kv_bytes == 1.0),
        ({"speculation": "mtp", "draft_tokens": "2"}, lambda workload: workload.accepted is None),
        (
            {"speculation": "eagle", "draft_tokens": "3", "accepted": "2.5"},
            lambda workload: workload.accepted == 2.5,
        ),
        ({"accepted": "2.5"}, lambda workload: (workload.draft_tokens, workload.accepted) == (0, 1.0)),
        ({"mode": "decode", "input_tokens": "0"}, lambda workload: workload.input == 0),
        ({"mode": "burst", "requests": "1000", "uneven": "1"}, lambda workload: workload.requests == 1000),
        ({"date": "2025-11"}, lambda workload: workload.years_old == pytest.approx(1.0)),
        ({"date": "2027-01"}, lambda workload: workload.years_old == 0.0),
        ({"max_sequences": "16"}, lambda workload: workload.max_sequences == 16),
        ({"notes": "MTP num_speculative_tokens=2; pp=4"}, lambda workload: workload.draft_tokens == 0),
    ],
)
def test_conditions_are_columns_and_text_is_not_read(columns: dict[str, str], check: object) -> None:
    assert callable(check)
    assert check(row_parser.parse_row({**ROW, "gpu_count": "4", **columns}))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"mode": "fast"}, "mode = 'fast' is not one of"),
        ({"speculation": "magic", "draft_tokens": "2"}, "speculation = 'magic' is not one of"),
        ({"date": "March"}, "date = 'March' is not a month"),
        ({"input_tokens": "-5"}, "input_tokens = -5 is negative"),
    ],
)
def test_an_impossible_column_is_refused_by_name(columns: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        row_parser.parse_row({**ROW, **columns})
