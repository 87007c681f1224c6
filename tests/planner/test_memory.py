"""The parts of a card's memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.catalog.cards import find_card
from appliance.catalog.models import shipped_models
from appliance.planner.memory import card_memory
from appliance.planner.models import parse_model


@given(st.sampled_from(sorted(shipped_models())), st.sampled_from([0.5, 0.7, 0.92]))
def test_the_parts_of_a_cards_memory_add_up_to_its_budget(name: str, utilization: float) -> None:
    shape, dtype = parse_model(name)
    memory = card_memory(find_card("RTX PRO 6000"), shape, dtype, utilization=utilization)
    assert memory.weights + memory.overhead + memory.kv == pytest.approx(memory.budget)
    assert memory.budget <= memory.total


def test_one_card_has_room_for_about_300k_tokens_of_a_30b_in_bf16() -> None:
    shape, dtype = parse_model("Qwen/Qwen3-30B-A3B")
    memory = card_memory(find_card("RTX PRO 6000"), shape, dtype)
    assert 280_000 < memory.kv_tokens < 320_000
    assert memory.sequences(4096) == pytest.approx(memory.kv_tokens / 4096, rel=0.02)
