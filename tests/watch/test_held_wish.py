"""A wish that ends with its process: withdrawn, released by a kill, and refused twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import StartError
from appliance.watch.card_power import CardPower, HeldWish, PowerRange, read_wishes
from tests.conftest import ROOT
from tests.watch.test_card_power import driver, limits

__all__ = ["driver"]

RANGES = {0: PowerRange(150, 450)}

HOLD = """
import sys
from pathlib import Path
from appliance.watch.card_power import HeldWish
with HeldWish(Path(sys.argv[1]), "bench") as wish:
    wish.set({0: 200})
    print("held", flush=True)
    sys.stdin.read()
"""


def held_by_a_process(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_wish_of_a_killed_process_is_not_in_effect_any_more(driver: Path) -> None:
    folder = driver / "wishes"
    agent = CardPower(RANGES, folder)
    process = held_by_a_process(folder)
    try:
        assert agent.apply(30)
        assert limits(driver) == {0: 200}
        with (
            pytest.raises(StartError, match=f"process {process.pid} limits the cards already"),
            HeldWish(folder, "bench"),
        ):
            pass
        assert read_wishes(folder) == {"bench": {0: 200}}
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert read_wishes(folder) == {}
    assert agent.apply(30)
    assert limits(driver) == {0: 450}
    with HeldWish(folder, "bench"):
        assert read_wishes(folder) == {"bench": {}}


def test_a_wish_is_withdrawn_at_the_end_and_can_be_held_again(tmp_path: Path) -> None:
    for watts in (200, 300):
        with HeldWish(tmp_path, "bench") as wish:
            wish.set({0: watts})
            assert read_wishes(tmp_path) == {"bench": {0: watts}}
        assert read_wishes(tmp_path) == {}


def test_an_error_in_the_block_withdraws_it_as_well(tmp_path: Path) -> None:
    def fail() -> None:
        with HeldWish(tmp_path, "bench") as wish:
            wish.set({0: 200})
            raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        fail()
    assert read_wishes(tmp_path) == {}


def test_wishes_of_agents_have_no_holder_and_stay(tmp_path: Path) -> None:
    power = CardPower(RANGES, tmp_path)
    power.wish("power", {0: 150})
    with HeldWish(tmp_path, "bench") as wish:
        wish.set({0: 300})
        assert read_wishes(tmp_path) == {"bench": {0: 300}, "power": {0: 150}}
    assert read_wishes(tmp_path) == {"power": {0: 150}}
