"""Results of a turn that are removed, the oldest first."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.assistant.turns.results_fit import REMOVED, without_oldest_results


def result(size: int) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "c", "content": "x" * size}


CALL: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": []}
MESSAGES = [{"role": "user", "content": "u" * 900}, result(900), CALL, result(800), CALL, result(700)]


@pytest.mark.parametrize(("excess", "removed"), [(1, [3]), (740, [3]), (800, [3, 5]), (10_000, [3, 5])])
def test_the_oldest_results_of_the_turn_are_removed(excess: float, removed: list[int]) -> None:
    found = without_oldest_results(MESSAGES, 2, excess)
    assert found is not None
    assert [index for index, one in enumerate(found) if one["content"] == REMOVED] == removed
    assert [one for index, one in enumerate(found) if index not in removed] == [
        one for index, one in enumerate(MESSAGES) if index not in removed
    ]
    assert len(str(MESSAGES[3]["content"])) == 800, "the given messages remain"


def test_without_a_result_of_the_turn_nothing_can_be_removed() -> None:
    assert without_oldest_results(MESSAGES[:2], 2, 100) is None
    again = without_oldest_results(MESSAGES, 2, 10_000)
    assert again is not None
    assert without_oldest_results(again, 2, 1) is None
