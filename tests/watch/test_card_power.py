"""Power limits of the cards: the lowest wish of all agents."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.contract.model import Gpu
from appliance.errors import StoreError
from appliance.watch import card_power
from appliance.watch.card_power import CardPower, PowerRange, apply_limits, effective, power_ranges, read_wishes
from tests.conftest import wait_until

RANGES = {0: PowerRange(150, 450), 1: PowerRange(300, 600)}


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a nvidia-smi that keeps one file per card, and refuses a card that has a file ``refuse-N``."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\n[ "$1 $3" = "-i -pl" ] || exit 9\n'
        f'[ -e {tmp_path}/refuse-$2 ] && echo "not permitted" && exit 4\n'
        f"echo $4 > {tmp_path}/card-$2\necho $2 $4 >> {tmp_path}/calls\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    return tmp_path


def limits(driver: Path) -> dict[int, int]:
    return {int(file.name[5:]): int(file.read_text()) for file in driver.glob("card-*")}


def test_the_range_of_a_card_is_from_the_catalog_and_the_site() -> None:
    name = "RTX PRO 6000 Blackwell Workstation"
    gpus = [
        Gpu(index=0, model=name, memory_mib=97887, power_limit_w=450),
        Gpu(index=1, model=name, memory_mib=97887),
        Gpu(index=2, model="a card of next year", memory_mib=97887),
    ]
    assert power_ranges(gpus) == {0: PowerRange(150, 450), 1: PowerRange(150, 600)}


@pytest.mark.parametrize(
    ("wishes", "limits"),
    [
        ([], {0: 450, 1: 600}),
        ([{0: 300}], {0: 300, 1: 600}),
        ([{0: 300}, {0: 200, 1: 400}], {0: 200, 1: 400}),
        ([{0: 900}], {0: 450, 1: 600}),
        ([{0: 1, 1: 1}], {0: 150, 1: 300}),
        ([{7: 200}], {0: 450, 1: 600}),
    ],
)
def test_the_limit_is_the_lowest_wish_within_the_range(
    wishes: list[dict[int, int]], limits: dict[int, int]
) -> None:
    assert effective(wishes, RANGES) == limits


@given(st.lists(st.dictionaries(st.integers(0, 3), st.integers(1, 1000)), max_size=4))
def test_no_wish_raises_a_limit(wishes: list[dict[int, int]]) -> None:
    for number in range(len(wishes)):
        fewer = effective(wishes[:number] + wishes[number + 1 :], RANGES)
        assert all(watts <= fewer[card] for card, watts in effective(wishes, RANGES).items())
    assert all(RANGES[c].floor <= watts <= RANGES[c].limit for c, watts in effective(wishes, RANGES).items())


def test_two_agents_keep_the_lower_limit(driver: Path) -> None:
    heat, mains = CardPower(RANGES, driver / "wishes"), CardPower(RANGES, driver / "wishes")
    heat.wish("gpu-watch", {0: 400})
    assert heat.apply(30)
    assert limits(driver) == {0: 400, 1: 600}
    mains.wish("power", {0: 200, 1: 300})
    assert mains.apply(30)
    assert limits(driver) == {0: 200, 1: 300}
    # The other agent raises its own wish, and then nothing, while the first one still limits.
    heat.wish("gpu-watch", {})
    assert heat.apply(30)
    assert limits(driver) == {0: 200, 1: 300}
    mains.wish("power", {})
    assert mains.apply(30)
    assert limits(driver) == {0: 450, 1: 600}


def test_a_limit_that_another_process_changed_is_set_again(driver: Path) -> None:
    power = CardPower(RANGES, driver / "wishes")
    assert power.apply(30)
    calls = (driver / "calls").read_text()
    assert power.apply(30)
    assert (driver / "calls").read_text() == calls
    (driver / "card-0").write_text("600")
    power.observed(0, 600)
    assert power.apply(30)
    assert limits(driver)[0] == 450


def test_a_card_that_refuses_does_not_delay_the_others(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (driver / "refuse-0").touch()
    power = CardPower(RANGES, driver / "wishes")
    assert not power.apply(30)
    assert power.failures == {0: "not permitted"}
    assert limits(driver) == {1: 600}
    (driver / "refuse-0").unlink()
    monkeypatch.setattr(card_power, "RETRY_S", 0.0)
    assert power.apply(30)
    assert power.failures == {}


def test_ticks_never_block(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nvidia-smi that hangs costs its timeout, in the background."""
    (driver / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 600\n")
    monkeypatch.setattr(card_power, "TIMEOUT_S", 0.2)
    power = CardPower({0: PowerRange(150, 450)}, driver / "wishes")

    def failed() -> bool:
        power.tick()
        return bool(power.failures)

    wait_until(failed, "the timeout")
    assert power.failures == {0: "nvidia-smi timed out"}
    assert power.applied == {}


def test_without_nvidia_smi_the_reason_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    power = CardPower({0: PowerRange(150, 450)}, tmp_path / "wishes")
    assert not power.apply(5)
    assert power.failures == {0: "nvidia-smi is not installed"}


def test_a_damaged_wish_stops_every_change(driver: Path) -> None:
    """Its limit is unknown, so no limit is raised."""
    wishes = driver / "wishes"
    card_power.record_wish(wishes, "power", {0: 200})
    assert read_wishes(wishes) == {"power": {0: 200}}
    (wishes / "power.json").write_text('{"0": "')
    with pytest.raises(StoreError, match=r"power\.json is damaged .*; delete it"):
        apply_limits(wishes, RANGES, 5)
    assert limits(driver) == {}
