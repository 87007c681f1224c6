"""Cards, models and conditions of a row of measurements."""

from __future__ import annotations

import pytest

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
    ("notes", "check"),
    [
        ("pp=4", lambda workload: workload.layout.pp == 4),
        (
            "offline max load; layout DEP2,PP2",
            lambda workload: workload.layout.attention_dp and workload.layout.tp == 2,
        ),
        ("kv fp8", lambda workload: workload.precision.kv_bytes == 1.0),
        ("MTP num_speculative_tokens=2", lambda workload: workload.draft_tokens == 2 and workload.accepted > 1),
        ("no MTP", lambda workload: workload.draft_tokens == 0),
        ("accept length 2.50", lambda workload: workload.accepted == 2.5),
        ("tg128", lambda workload: workload.input == 0),
        ("ShareGPT 1000 prompts", lambda workload: workload.requests == 1000),
    ],
)
def test_conditions_are_read_from_notes(notes: str, check: object) -> None:
    row = {**ROW, "gpu_count": "4", "notes": notes}
    assert callable(check)
    assert check(row_parser.parse_row(row))
