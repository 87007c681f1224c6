"""``appliance power``: status, drill, and command lines that are not valid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.contract.load import validate
from appliance.errors import ConfigError
from appliance.watch.power.drill import Drill, DrillRow
from appliance.watch.power.engine_units import EngineUnits, active_units
from appliance.watch.power.reading import UpsReading
from tests.conftest import a_site
from tests.ports import free_port
from tests.watch.power.nut import Nut

pytestmark = pytest.mark.timeout(300)


def test_the_status_shows_the_ups_and_that_no_agent_runs(
    nut: Nut, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["power", "status", "--port", str(nut.port), "--run", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^charge +100%$", shown, re.MULTILINE)
    assert "the agent does not run" in shown
    (tmp_path / "state").write_text('{"on_battery": false, "phase": "mains", "at": 0}')
    assert main(["power", "status", "--port", str(nut.port), "--run", str(tmp_path), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["status"], table["supply"], table["runtime_s"]) == (["OL"], "mains", 900.0)
    assert re.fullmatch(r"mains \d+ s ago; the agent does not run", table["phase"])


def test_the_drill_ends_at_a_charge(nut: Nut, capsys: pytest.CaptureFixture[str]) -> None:
    nut.set(ups_status="OB", battery_charge="40")
    try:
        assert main(["power", "drill", "--port", str(nut.port), "--until", "0.5"]) == 0
    finally:
        nut.set(ups_status="OL", battery_charge="100")
    assert "on battery" in capsys.readouterr().out


def test_the_drill_waits_for_the_plug_for_a_time(nut: Nut, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", "drill", "--port", str(nut.port), "--wait", "100ms", "--every", "50ms"]) == 2
    assert "--wait" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["serve", "--set", "drain_s"], "NAME=NUMBER"),
        (["serve", "--set", "drain=5"], "'drain' is not a valid limit"),
        (["serve", "--set", "drain_s=-1"], "0 or more"),
        (["serve", "--set", "drain_s=nan"], "0 or more"),
    ],
)
def test_arguments_that_are_not_valid(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", *words]) == 2
    assert text in capsys.readouterr().err


def test_a_status_without_upsd(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", "status", "--port", str(free_port())]) == 1
    assert "systemctl status upsd" in capsys.readouterr().err


def test_a_drill_measures_the_runtime_of_a_full_battery() -> None:
    drill = Drill(until=0.5)
    for at, charge in ((0, 1.0), (60, 0.9), (120, 0.8)):
        assert not drill.add(DrillRow(at, UpsReading(frozenset({"OB"}), charge=charge, load=0.3)))
    assert drill.add(DrillRow(180, UpsReading(frozenset({"OL"}))))
    assert "120 s on battery at a mean load of 30%" in drill.summary()
    assert "some 600 s" in drill.summary()


@pytest.mark.parametrize("rows", [[], [(0, None)], [(0, 1.0), (60, 1.0)]])
def test_a_drill_that_measured_nothing_reports_that(rows: list[tuple[float, float | None]]) -> None:
    drill = Drill(until=0.5)
    for at, charge in rows:
        drill.add(DrillRow(at, UpsReading(frozenset({"OB"}), charge=charge)))
    assert re.search("nothing was measured|not known|measure for longer", drill.summary())


@pytest.mark.parametrize(
    ("ups", "limits", "text"),
    [
        ({"watts": 900}, [450, 450], "set power_limit_w = 235 or less"),
        ({"watts": 900}, [450, None], "no power_limit_w"),
        ({"watts": 500}, [100, 100], "take a larger UPS"),
        ({"watts": 0}, [100], "hosts.here.ups.watts"),
        ({"watts": 900, "reserve_s": 5}, [100], "hosts.here.ups.reserve_s"),
        ({"watts": 900, "host_watts": 800}, [100], "take a larger UPS"),
    ],
)
def test_cards_that_do_not_fit_the_ups(
    ups: dict[str, int], limits: list[int | None], text: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        validate("site", site_with(ups, limits, tmp_path))
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("ups", "limits"), [({"watts": 900}, [235, 235]), ({"watts": 900}, [450]), ({"watts": 900}, [])]
)
def test_cards_that_fit_the_ups(ups: dict[str, int], limits: list[int], tmp_path: Path) -> None:
    assert validate("site", site_with(ups, [*limits], tmp_path)).hosts["here"].ups is not None


def site_with(ups: dict[str, int], limits: list[int | None], folder: Path) -> dict[str, object]:
    gpus = [
        {"index": index, "model": "RTX PRO 6000 Blackwell Workstation", "memory_mib": 97887}
        | ({} if limit is None else {"power_limit_w": limit})
        for index, limit in enumerate(limits)
    ]
    return a_site(8000, 8101, folder, hosts={"here": {"memory_gib": 8, "gpus": gpus, "ups": ups}})


def test_the_units_that_run_or_start() -> None:
    blocks = [
        "Id=a.service\nActiveState=active",
        "Id=b.service\nActiveState=inactive",
        "ActiveState=active",
        "Id=c.service\nActiveState=inactive\nJob=17",
        "Id=d.service\nActiveState=deactivating\nJob=18",
        "Id=e.service\nActiveState=failed",
    ]
    assert active_units("\n\n".join(blocks)) == {"a.service", "c.service"}
    assert active_units("") == frozenset()


def test_a_damaged_list_of_stopped_engines_stops_nothing(tmp_path: Path) -> None:
    file = tmp_path / "engines.json"
    file.write_text("{")
    units = EngineUnits(file)
    assert (units.stopped, units.ready) == ((), True)
