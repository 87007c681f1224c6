"""The power policy: its table, false alarms, and properties over random outages."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.watch.power.policy import (
    PowerDecision,
    PowerLook,
    PowerMessage,
    PowerOrders,
    PowerPhase,
    PowerState,
    PowerTimings,
    decide,
    kinds,
    orders,
)
from appliance.watch.power.reading import UpsReading, from_variables

TIMES = PowerTimings()
START, END = ("on-battery", False), ("on-battery", True)
OPEN = PowerOrders(minimum_watts=False, pause=None, engines="on")


def ups(status: str, **figures: float) -> UpsReading:
    return UpsReading(frozenset(status.split()), **figures)


class Outage:
    """A policy under test: :meth:`run` shows it one UPS for some seconds, a look per second."""

    def __init__(self) -> None:
        self.state = PowerState()
        self.at = 1000.0
        self.messages: list[PowerMessage] = []
        self.power_offs = 0
        self.phases = [PowerPhase.MAINS]

    def run(
        self, reading: UpsReading | str | None, seconds: int, *, in_flight: int | None = 0, ready: bool = True
    ) -> PowerDecision:
        """Look once a second; a text is a status."""
        shown = ups(reading) if isinstance(reading, str) else reading
        made = PowerDecision(self.state)
        for _ in range(seconds):
            self.at += 1
            made = decide(self.state, PowerLook(self.at, shown, "upsd is down", in_flight, ready), TIMES)
            self.state = made.state
            self.messages.extend(made.messages)
            self.power_offs += made.power_off
            if made.state.phase is not self.phases[-1]:
                self.phases.append(made.state.phase)
        return made

    def now(self) -> tuple[PowerPhase, str]:
        return self.state.phase, orders(self.state).engines


@pytest.fixture
def outage() -> Outage:
    one = Outage()
    one.run("OL", 5)
    return one


def test_an_outage_from_its_begin_to_its_end(outage: Outage) -> None:
    outage.run("OB", 1)
    assert orders(outage.state) == PowerOrders(minimum_watts=True, pause=None, engines="on")
    assert kinds(outage.messages) == [START]
    outage.run("OB", 11, in_flight=3)
    assert outage.now() == (PowerPhase.DRAINING, "on")
    assert orders(outage.state).pause is not None
    outage.run("OB", 5, in_flight=0)
    assert outage.now() == (PowerPhase.IDLE, "off")
    outage.run("OL", 29)
    assert outage.now()[0] is PowerPhase.IDLE
    outage.run("OL", 5, ready=False)
    assert outage.now() == (PowerPhase.RETURNING, "on")
    outage.run("OL", 2, ready=True)
    assert orders(outage.state) == OPEN
    assert (kinds(outage.messages), outage.power_offs) == ([START, END], 0)
    assert "17 s on battery" in outage.messages[-1].text


def test_requests_that_do_not_finish_stop_the_engines_at_a_limit(outage: Outage) -> None:
    outage.run("OB", 12 + int(TIMES.drain_s) - 3, in_flight=1)
    assert outage.now()[0] is PowerPhase.DRAINING
    outage.run("OB", 3, in_flight=1)
    assert outage.now()[0] is PowerPhase.IDLE


def test_unknown_requests_count_as_running_ones(outage: Outage) -> None:
    outage.run("OB", 60, in_flight=None)
    assert outage.now()[0] is PowerPhase.DRAINING


def test_short_cuts_pause_nothing_and_are_summed_in_one_message(outage: Outage) -> None:
    for _ in range(20):
        outage.run("OB", 5)
        assert orders(outage.state).minimum_watts
        outage.run("OL", 5)
        assert orders(outage.state) == OPEN
    outage.run("OL", int(TIMES.quiet_s))
    assert kinds(outage.messages) == [START, END]
    assert "20 cuts, 100 s on battery" in outage.messages[-1].text
    assert set(outage.phases) == {PowerPhase.MAINS, PowerPhase.BATTERY}


def test_a_long_cut_after_short_ones_is_reported(outage: Outage) -> None:
    outage.run("OB", 5)
    outage.run("OL", 5)
    outage.run("OB", 30)
    assert kinds(outage.messages) == [START, START]


def test_mains_that_flickers_starts_no_engine(outage: Outage) -> None:
    outage.run("OB", 30)
    for _ in range(10):
        outage.run("OL", 25)
        outage.run("OB", 5)
    assert outage.phases[-1] is PowerPhase.IDLE


def test_a_cut_while_the_engines_start_stops_them_only_after_the_same_time(outage: Outage) -> None:
    outage.run("OB", 30)
    outage.run("OL", 40, ready=False)
    assert outage.now()[0] is PowerPhase.RETURNING
    outage.run("OB", 5, ready=False)
    assert outage.now() == (PowerPhase.DRAINING, "on")
    outage.run("OB", 10, ready=False)
    assert orders(outage.state).engines == "off"


def test_engines_that_do_not_start_are_reported_and_the_gateway_opens(outage: Outage) -> None:
    outage.run("OB", 30)
    outage.run("OL", int(TIMES.stable_s + TIMES.start_s) + 5, ready=False)
    assert orders(outage.state) == OPEN
    assert ("power-engines", False) in kinds(outage.messages)


@pytest.mark.parametrize(
    ("reading", "after_s"),
    [
        pytest.param(ups("OB LB"), TIMES.low_s, id="low"),
        pytest.param(ups("OB", runtime_s=100), TIMES.short_s, id="runtime"),
        pytest.param(ups("OB", charge=0.1), TIMES.short_s, id="charge"),
        pytest.param(None, TIMES.deadtime_s, id="unreachable"),
    ],
)
def test_a_battery_that_ends_powers_off_once(outage: Outage, reading: UpsReading | None, after_s: float) -> None:
    outage.run("OB", 2)
    outage.run(reading, int(after_s))
    assert outage.power_offs == 0
    outage.run(reading, 20)
    assert (outage.power_offs, outage.state.phase) == (1, PowerPhase.GOING_DOWN)
    assert kinds(outage.messages) == [START, ("going-down", False)]
    assert orders(outage.state).engines == "off"


def test_a_machine_that_does_not_go_down_is_powered_off_again(outage: Outage) -> None:
    outage.run("OB LB", 150)
    assert outage.power_offs == 3
    assert kinds(outage.messages) == [START, ("going-down", False)]


def test_the_order_of_another_machine_is_announced_and_not_repeated(outage: Outage) -> None:
    outage.run("OL FSD", 100)
    assert (outage.state.phase, outage.power_offs) == (PowerPhase.GOING_DOWN, 0)
    assert kinds(outage.messages) == [("going-down", False)]


def test_a_machine_that_stays_up_on_mains_serves_again(outage: Outage) -> None:
    outage.run("OB LB", 10)
    outage.run("OL FSD", int(TIMES.abandon_s) + 60)
    assert orders(outage.state) == OPEN
    assert outage.power_offs == 1
    outage.run("OL", 5)
    outage.run("OL FSD", 5)
    assert outage.now()[0] is PowerPhase.GOING_DOWN


@pytest.mark.parametrize(
    "status",
    [
        "OL DISCHRG",
        "OB CAL LB",
        "OB TEST",
        "OL CAL DISCHRG LB",
        "OFF",
        "BYPASS",
        "OL LB",
        "ALARM",
        "OL OVER TRIM",
        "",
    ],
)
def test_a_false_outage_changes_nothing(outage: Outage, status: str) -> None:
    outage.run(ups(status, charge=0.95), 50)
    assert (outage.state.phase, outage.messages, outage.power_offs) == (PowerPhase.MAINS, [], 0)
    assert orders(outage.state) == OPEN


def test_a_low_battery_for_a_moment_is_ignored(outage: Outage) -> None:
    for _ in range(10):
        outage.run("OB LB", 4)
        outage.run("OB", 2)
    assert outage.power_offs == 0


def test_a_runtime_at_full_load_for_a_moment_is_ignored(outage: Outage) -> None:
    """The UPS estimates the runtime at the load before the cards had minimum watts."""
    outage.run(ups("OB", runtime_s=60), 10)
    outage.run(ups("OB", runtime_s=900), 60)
    assert outage.power_offs == 0


def test_an_unreachable_ups_on_mains_is_one_message_each_way(outage: Outage) -> None:
    outage.run(None, 5000)
    assert kinds(outage.messages) == [("ups-unreachable", False)]
    assert "upsd is down" in outage.messages[0].text
    outage.run("OL", 5)
    assert kinds(outage.messages)[1:] == [("ups-unreachable", True)]
    assert (outage.state.phase, outage.power_offs) == (PowerPhase.MAINS, 0)


def test_engines_return_although_the_ups_is_lost_after_mains_returned(outage: Outage) -> None:
    outage.run("OB", 30)
    outage.run("OL", 2)
    outage.run(None, 40)
    assert orders(outage.state) == OPEN


def test_a_low_battery_at_boot_means_minimum_watts_until_it_is_charged() -> None:
    one = Outage()
    one.run(ups("OL CHRG", charge=0.1), 5)
    assert orders(one.state) == PowerOrders(minimum_watts=True, pause=None, engines="on")
    one.run(ups("OL CHRG", charge=0.45), 5)
    assert orders(one.state).minimum_watts
    one.run(ups("OL CHRG", charge=0.5), 1)
    assert (orders(one.state), one.messages) == (OPEN, [])


def test_a_battery_that_never_charges_does_not_slow_the_service_for_good() -> None:
    one = Outage()
    one.run(ups("OL", charge=0.1), int(TIMES.charging_max_s) + 5)
    assert orders(one.state) == OPEN


@pytest.mark.parametrize(
    ("reading", "text"), [(ups("OL RB"), "new battery"), (ups("OL LB", charge=1.0), "lowChargePercent")]
)
def test_a_battery_with_a_problem_is_reported_once(outage: Outage, reading: UpsReading, text: str) -> None:
    outage.run(reading, 50)
    assert outage.messages == []
    outage.run(reading, 500)
    assert kinds(outage.messages) == [("ups-battery", False)]
    assert text in outage.messages[0].text
    outage.run("OL", 1)
    assert kinds(outage.messages)[1:] == [("ups-battery", True)]


@pytest.mark.parametrize("runtime", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_figure_that_is_not_valid_is_unknown(runtime: str) -> None:
    reading = from_variables({"ups.status": " OB  LB", "battery.runtime": runtime, "battery.charge": "140"})
    assert reading == UpsReading(frozenset({"OB", "LB"}), charge=1.0)


class RandomOutages(RuleBasedStateMachine):
    """Any sequence of readings, waits and restarts of the agent."""

    def __init__(self) -> None:
        super().__init__()
        self.state = PowerState()
        self.at = 0.0
        self.reading: UpsReading | None = ups("OL")
        self.last_known = "OL"
        self.in_flight: int | None = 0
        self.ready = True
        self.messages: list[PowerMessage] = []
        self.idle_since: float | None = None

    def look(self, seconds: float) -> None:
        self.at += seconds
        before = self.state
        made = decide(self.state, PowerLook(self.at, self.reading, "?", self.in_flight, self.ready), TIMES)
        if made.power_off:
            assert self.last_known == "OB", "power off on mains"
            assert made.state.phase is PowerPhase.GOING_DOWN
        down = [message for message in made.messages if message.kind == "going-down" and not message.ended]
        assert len(down) == (made.state.phase is PowerPhase.GOING_DOWN and before.phase is not made.state.phase)
        if made.state.phase is PowerPhase.IDLE and before.phase is not PowerPhase.IDLE:
            assert self.last_known == "OB", "engines off on mains"
        self.state = made.state
        self.messages.extend(made.messages)

    @rule(seconds=st.sampled_from([0.2, 1, 1, 3, 8, 12, 40]), looks=st.integers(1, 8))
    def wait(self, seconds: float, looks: int) -> None:
        for _ in range(looks):
            self.look(seconds)

    @rule(
        status=st.sampled_from(["OL", "OB", "OB LB", "OL LB", "OB FSD", "OL FSD", "OB CAL", "OFF", "RB OL", ""]),
        charge=st.none() | st.floats(0, 1),
        runtime=st.none() | st.floats(1, 2000),
    )
    def change(self, status: str, charge: float | None, runtime: float | None) -> None:
        self.reading = UpsReading(frozenset(status.split()), charge, runtime)
        if "OL" in status or "CAL" in status:
            self.last_known = "OL"
        elif "OB" in status:
            self.last_known = "OB"
        self.look(1)

    @rule()
    def lose(self) -> None:
        self.reading = None

    @rule(in_flight=st.none() | st.integers(0, 2), ready=st.booleans())
    def engines(self, in_flight: int | None, ready: bool) -> None:
        self.in_flight, self.ready = in_flight, ready

    @rule()
    def restart(self) -> None:
        """The next process continues with the written state."""
        self.state = msgspec.json.decode(msgspec.json.encode(self.state), type=PowerState)

    @precondition(lambda self: self.state.phase is not PowerPhase.GOING_DOWN)
    @rule()
    def mains_stays(self) -> None:
        """Mains that stays brings everything back, whatever happened before, and ends each episode."""
        self.return_to_mains(TIMES.stable_s + TIMES.start_s + 60)

    @rule()
    def mains_stays_for_long(self) -> None:
        self.return_to_mains(TIMES.abandon_s + TIMES.stable_s + TIMES.start_s + 60)

    def return_to_mains(self, seconds: float) -> None:
        self.reading, self.last_known = ups("OL", charge=1.0), "OL"
        for _ in range(int(seconds / 5) + 1):
            self.look(5)
        assert orders(self.state) == OPEN
        for _ in range(int(TIMES.quiet_s / 5) + 1):
            self.look(5)
        assert self.state.episode is None
        outages = kinds(message for message in self.messages if message.kind == "on-battery")
        assert not outages or outages[-1] == END
        assert all(one != END or before == START for before, one in zip([None, *outages], outages, strict=False))
        conditions = [message for message in self.messages if message.kind.startswith("ups-")]
        assert not conditions or conditions[-1].ended

    @invariant()
    def the_gateway_is_paused_only_in_an_outage(self) -> None:
        wanted = orders(self.state)
        assert (wanted.engines == "off") <= (wanted.pause is not None)
        assert (wanted.pause is not None) <= wanted.minimum_watts


RandomOutages.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestRandomOutages = RandomOutages.TestCase
