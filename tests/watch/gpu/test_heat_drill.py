"""The drill for heat: it passes with the watchdog's decisions, and names each reaction that is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.watch.gpu import heat_drill
from appliance.watch.gpu.decide import targets
from appliance.watch.gpu.heat_drill import run_heat_drill
from appliance.watch.gpu.state import WatchConfig, WatchState, WatchTargets
from tests.watch.gpu.scenes import CONFIG


def test_the_watchdog_reacts_to_heat() -> None:
    drill = run_heat_drill(replace(CONFIG, act=False))
    assert drill.failed == ()
    assert drill.steps == (
        "card 0: a notice, fans 100 %, 150 W, no new requests for chat.0",
        "card 1: a notice, fans 100 %, 300 W, no new requests for chat.1",
    )


def test_a_host_without_control_of_fans_and_power_still_drains() -> None:
    drill = run_heat_drill(replace(CONFIG, fans=False, ranges={}))
    assert drill.failed == ()
    assert drill.steps[0] == "card 0: a notice, no new requests for chat.0"


def test_a_host_without_cards_fails() -> None:
    assert run_heat_drill(WatchConfig(act=False)).failed == ("this host has no cards",)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("watts", "its power limit does not fall to 150 W"),
        ("fans", "its fans stay as they are"),
        ("drains", "chat.0: it gets new requests on a hot card"),
    ],
)
def test_a_reaction_that_is_lost_is_named(lost: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:

    def without(state: WatchState, config: WatchConfig) -> WatchTargets:
        return replace(targets(state, config), **{lost: {}})

    monkeypatch.setattr(heat_drill, "targets", without)
    assert any(message in text for text in run_heat_drill(CONFIG).failed)


def test_a_reaction_that_stays_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heat_drill, "targets", lambda *_: WatchTargets(watts={0: 150, 1: 300}))
    failed = run_heat_drill(CONFIG).failed
    assert "something stays changed after the cards have cooled down" in failed
    assert "report-only mode changes something" in failed
