"""The grid: its order, and the values that an engine excludes."""

from __future__ import annotations

import pytest

from appliance.bench.grid import BenchCell, BenchGrid, EngineBounds, cells_of, numbers
from appliance.errors import UsageError

SMALL = BenchGrid(batches=(1, 0), inputs=(100,), contexts=(500,), output=50)


def test_the_limit_changes_least_often_and_loads_precede_contexts() -> None:
    grid = BenchGrid(batches=(4, 1), inputs=(100,), powers=(300, 600), contexts=(500,), output=50, swaps=("b",))
    cells, skipped = cells_of(grid, EngineBounds(1000, 8))
    assert [cell.name for cell in cells] == [
        "load: 1 x 100 tokens, 600 W",
        "load: 4 x 100 tokens, 600 W",
        "load: 1 x 100 tokens, 300 W",
        "load: 4 x 100 tokens, 300 W",
        "context: 1 x 500 tokens",
        "swap to b",
    ]
    assert skipped == []


def test_the_largest_batch_is_a_share_of_the_sequences() -> None:
    cells, _ = cells_of(SMALL, EngineBounds(1000, 16, share=0.25))
    assert [cell.batch for cell in cells if cell.kind == "load"] == [1, 4]
    cells, skipped = cells_of(BenchGrid(batches=(1, 8), inputs=(100,), contexts=()), EngineBounds(1000, 16, 0.25))
    assert [cell.batch for cell in cells] == [1]
    assert skipped == ["batch 8: the engine and the share allow 4"]


def test_prompts_that_exceed_the_context_are_skipped_with_the_reason() -> None:
    cells, skipped = cells_of(SMALL, EngineBounds(500, 4))
    assert [cell.kind for cell in cells] == ["load", "load"]
    assert skipped == ["context 500: with 50 tokens of output it exceeds 500"]


def test_a_small_batch_sends_more_requests_of_each_user() -> None:
    assert [BenchCell("load", batch=batch).rounds for batch in (1, 5, 64)] == [16, 4, 3]


def test_a_list_of_numbers() -> None:
    assert numbers("1, 4,max", "--batch", most=64, words=("max",)) == (1, 4, 0)
    assert numbers("", "--power", most=600) == ()


@pytest.mark.parametrize("text", ["0", "65", "-1", "1.5", "four", "max"])
def test_an_invalid_number_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=f"--batch: '{text}' is not a whole number from 1 to 64"):
        numbers(f"1,{text}", "--batch", most=64)
