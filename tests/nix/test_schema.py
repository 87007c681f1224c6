"""The options of `appliance.settings` and the power of cards come from the contract and from the catalogue."""

from __future__ import annotations

import json

import pytest

from appliance.catalog.cards import cards, find_card
from appliance.contract.model import Site
from appliance.errors import UsageError
from tests.nix import checker

DRIVER_NAMES = [
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
    "NVIDIA GeForce RTX 5090",
    "NVIDIA A100-SXM4-80GB",
    "NVIDIA H100 80GB HBM3",
]
UNKNOWN_NAMES = ["RTX PRO 6000 Max-Q Server", "RTX 5090 Ti", "Edition"]


def test_schema_is_current() -> None:
    schema = json.loads((checker.ROOT / "modules/schema.json").read_text())
    assert schema == Site.model_json_schema(), "stale: run `make options-doc`"


def test_nix_finds_the_same_cards_as_the_planner() -> None:
    names = [name for card in cards().values() for name in (card.name, *card.aliases)]
    names += DRIVER_NAMES + UNKNOWN_NAMES
    found = checker.expression(
        "lib.genAttrs (builtins.fromJSON "
        + checker.string(json.dumps(names))
        + ") (import (root + /modules/gpu/cards.nix) { inherit lib; }).power"
    )
    for name in names:
        try:
            card = find_card(name)
        except UsageError:
            assert found[name] is None, name
        else:
            power = found[name]
            assert power is not None, name
            assert (power["min"], power["max"], power["tdp"]) == (
                card.min_power_w,
                card.max_power_w,
                card.tdp_w,
            ), name


@pytest.mark.parametrize("name", UNKNOWN_NAMES)
def test_an_unknown_card_is_not_found(name: str) -> None:
    with pytest.raises(UsageError):
        find_card(name)


def test_an_unknown_key_stops_the_evaluation() -> None:
    message = checker.failure(
        "(import (root + /modules/schema.nix) { inherit lib; format.type = lib.types.str; })"
        '.section "Engine" { replica = { }; }'
    )
    assert "schema.json has no Engine.replica; run `make options-doc`" in message
