"""Numbers and names of cards."""

from __future__ import annotations

import pytest

from appliance.errors import UsageError
from appliance.planner.hardware import parse_cards


@pytest.mark.parametrize("text", ["0x RTX 5090", "-1x RTX 5090", "65x RTX 5090", "", "2x Voodoo"])
def test_an_impossible_number_or_name_of_cards_is_rejected(text: str) -> None:
    with pytest.raises(UsageError):
        parse_cards(text)


@pytest.mark.parametrize(
    "text", ["2x H100", "2\u00d7H100", "2 \u00d7 H100", "2*H100", "2\u00d7NVIDIA H100 80GB HBM3", "H100,H100"]
)
def test_a_number_of_cards_is_parsed(text: str) -> None:
    assert [card.name for card in parse_cards(text)] == ["H100 SXM 80GB"] * 2


@pytest.mark.parametrize("text", ["0\u00d7H100", "2 H100", "2÷H100"])
def test_an_impossible_number_of_cards_is_rejected(text: str) -> None:
    with pytest.raises(UsageError):
        parse_cards(text)
