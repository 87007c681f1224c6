"""The power limits of a benchmark: those of the site are the range, and an agent must apply them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.bench.card_limit import CardLimit, check_powers, wish
from appliance.bench.host import BenchHost
from appliance.errors import StartError, UsageError
from appliance.system.stopping import Stop
from appliance.watch.card_power import PowerRange, read_wishes

RANGES = {0: PowerRange(150, 450)}


@pytest.mark.parametrize(
    ("powers", "cards", "message"),
    [
        ((300,), (), "this engine uses no cards"),
        ((500,), (0,), "--power 500: card 0 allows 150 to 450 W on this site; nearest: 450"),
        ((100,), (0,), "nearest: 150"),
        ((300,), (7,), "the catalog has no limits of card 7"),
    ],
)
def test_a_limit_out_of_the_range_of_the_site_is_refused(
    powers: Sequence[int], cards: Sequence[int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_powers(powers, cards, RANGES)
    check_powers((150, 450), (0,), RANGES)


def test_without_an_agent_a_limit_is_an_error_and_the_wish_is_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, A card, 580, 50, 450.00'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    host = BenchHost(tmp_path / "none", (0,))
    with wish(tmp_path / "wishes") as held:
        limit = CardLimit(host, (0,), held, apply_s=0.3)
        limit.set(450, Stop())
        assert read_wishes(tmp_path / "wishes") == {"bench": {0: 450}}
        with pytest.raises(StartError, match="no agent limits the cards to 300 W; start appliance-gpu-watch"):
            limit.set(300, Stop())
    assert read_wishes(tmp_path / "wishes") == {}


def test_a_look_at_a_host_without_a_gateway_has_the_reason(tmp_path: Path) -> None:
    look = BenchHost(tmp_path, ()).look(0)
    assert look.problem.startswith("no gateway responds on")
    assert look.temperature_c is None
