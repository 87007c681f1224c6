"""The agent in outages of a real UPS of NUT, with a real gateway and engine: cases 7, 8, 9 and 11."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from appliance.gateway import control_client
from appliance.watch.power.policy import ENDING, PAUSED
from tests.watch.power.host import PowerHost, held_message, paused, release

pytestmark = pytest.mark.timeout(600)
START, END = ("on-battery", False), ("on-battery", True)


def test_an_outage_stops_the_engines_and_brings_them_back(host: PowerHost) -> None:
    """Case 8: minimum watts, 503 with the reason, running requests finish, engines off and back, one token."""
    responses: list[Any] = []
    request = threading.Thread(
        target=lambda: responses.append(host.chat(messages=held_message(), max_tokens=10, stream=True))
    )
    host.start()
    host.until(lambda: host.watts() == [400], "the limit of the site is set")
    host.until(lambda: host.chat().status == 200, "the service serves")
    request.start()
    host.until(
        lambda: bool(responses) or control_client.status(host.service.data)["in_flight"] == 1, "the request runs"
    )
    assert not responses, responses
    host.nut.set(ups_status="OB DISCHRG")
    host.until(lambda: host.watts() == [400, 150], "minimum watts are set")
    host.until(lambda: paused(host.service) == PAUSED, "the gateway is paused")
    rejected = host.chat()
    assert rejected.status == 503
    assert PAUSED in rejected.json["error"]["message"]
    assert int(rejected.headers["retry-after"]) >= 1
    host.reach("draining")
    release(host)
    request.join(60)
    assert [response.status for response in responses] == [200]
    host.reach("idle")
    host.until(
        lambda: host.calls("systemctl") == ["systemctl stop --no-block appliance-engine-chat.service"], "stop"
    )
    host.until(lambda: not host.engine_runs(), "the engine stops")
    assert host.metric("appliance_power_on_battery") == 1
    host.nut.set(ups_status="OL CHRG")
    host.reach("mains")
    host.until(lambda: host.chat().status == 200, "a request is served")
    assert host.calls("systemctl")[1:] == [
        "systemctl reset-failed appliance-engine-chat.service",
        "systemctl start --no-block appliance-engine-chat.service",
    ]
    host.until(lambda: host.watts() == [400, 150, 400], "full watts are set")
    host.until(lambda: host.notices() == [START, END], "the end is reported")
    assert host.calls("upsmon") == []
    assert host.end() == 0


def test_short_cuts_change_only_the_watts(host: PowerHost) -> None:
    """Case 7: no drain, one notice at the begin and one with the sum."""
    host.changes = {"pause_after_s": 60.0}
    host.start()
    for _ in range(3):
        host.nut.set(ups_status="OB")
        host.reach("battery")
        host.nut.set(ups_status="OL")
        host.reach("mains")
    host.until(lambda: host.notices() == [START, END], "the sum is reported")
    assert "cuts" in host.texts()[-1]["text"]
    assert host.chat().status == 200
    assert (host.calls("systemctl"), host.calls("upsmon")) == ([], [])
    assert 150 in host.watts()
    host.until(lambda: host.watts()[-1] == 400, "full watts are set")


def test_a_low_battery_shuts_down_once(host: PowerHost) -> None:
    """Case 9: the notice, the pause with its reason, and one call of upsmon."""
    host.start()
    host.nut.set(ups_status="OB")
    host.reach("battery", "draining", "idle")
    host.nut.set(ups_status="OB LB", battery_charge="10")
    host.reach("going-down")
    host.until(lambda: host.calls("upsmon") == ["upsmon -c fsd"], "upsmon is called")
    host.until(lambda: paused(host.service) == ENDING, "the gateway is paused with the reason")
    host.until(lambda: not host.engine_runs(), "the engine stops")
    assert host.notices() == [START, ("going-down", False)]
    record = json.loads((host.folder / "state" / "outage.json").read_text())
    assert record["boot_id"]
    assert host.end() == 0
    # The next boot reports the end; an agent that is restarted in the same boot does not.
    host.start()
    assert host.notices() == [START, ("going-down", False)]
    host.end()
    (host.folder / "state" / "outage.json").write_text(json.dumps(record | {"boot_id": "another"}))
    for file in (host.folder / "run").iterdir():
        file.unlink()
    host.nut.set(ups_status="OL", battery_charge="60")
    host.start()
    host.until(lambda: host.notices()[-1] == ("going-down", True), "the end is reported")
    assert host.calls("upsmon") == ["upsmon -c fsd"]
    assert not (host.folder / "state" / "outage.json").exists()


def test_a_short_runtime_shuts_down(host: PowerHost) -> None:
    host.nut.set(ups_status="OB", battery_runtime="60")
    host.start()
    host.until(lambda: host.calls("upsmon") == ["upsmon -c fsd"], "upsmon is called")
    assert "60 s of runtime" in host.texts()[-1]["text"]


def test_a_lost_driver_on_mains_is_reported_and_nothing_else(host: PowerHost) -> None:
    """Case 11, first half."""
    host.start()
    host.nut.stop("driver")
    try:
        host.until(lambda: host.notices() == [("ups-unreachable", False)], "the lost UPS is reported")
        host.until(lambda: host.metric("appliance_power_ups_connected") == 0, "the metric follows")
        assert host.chat().status == 200
    finally:
        host.nut.start_driver()
    host.until(lambda: host.notices()[-1] == ("ups-unreachable", True), "its return is reported")
    assert (host.phase(), host.calls("upsmon"), host.calls("systemctl")) == ("mains", [], [])


def test_a_lost_driver_on_battery_shuts_down_after_a_time(host: PowerHost) -> None:
    """Case 11, second half."""
    host.start()
    host.nut.set(ups_status="OB")
    host.reach("battery", "draining", "idle")
    host.nut.stop("driver")
    try:
        host.until(lambda: host.calls("upsmon") == ["upsmon -c fsd"], "upsmon is called")
        host.until(lambda: "unreachable" in host.texts()[-1]["text"], "the message has the reason")
    finally:
        host.nut.start_driver()
