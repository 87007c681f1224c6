"""The watchdog's decisions, row by row of the tables of appliance/watch/gpu/decide.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from appliance.catalog.xids import APPLICATION_XIDS
from appliance.system.nvidia_smi import ClocksEventReason
from appliance.watch.gpu.decide import heat_level
from appliance.watch.gpu.state import (
    ColdCycle,
    FaultStage,
    HangStage,
    HeatLevel,
    RebootMachine,
    ReplicaView,
    RestartEngine,
    Rung,
    WatchedReplica,
)
from tests.watch.gpu.scenes import CONFIG, DOWN, HUNG, UP, Scene, reading, verdict, xid

REPORT_ONLY = replace(CONFIG, act=False)
HOT = ("card-hot", "card 0", False)
COOL = ("card-hot", "card 0", True)
LOST = ("card-lost", "card 0", False)
WORKS = ("card-lost", "card 0", True)


# Heat.


@pytest.mark.parametrize(
    ("margin", "temperature", "level"),
    [
        (3, 60, HeatLevel.HOT), (-2, 60, HeatLevel.HOT), (10, 95, HeatLevel.WARM), (15, 95, HeatLevel.HOLD),
        (16, 95, HeatLevel.COOL), (None, 88, HeatLevel.HOT), (None, 80, HeatLevel.WARM), (None, 75, HeatLevel.HOLD),
        (None, 74, HeatLevel.COOL), (None, None, HeatLevel.HOLD),
    ],
)  # fmt: skip
def test_the_level_of_a_card(margin: float | None, temperature: float | None, level: HeatLevel) -> None:
    assert heat_level(reading(0, margin, temperature_c=temperature)) is level


def test_a_hot_card_gets_fans_then_less_power_then_no_requests_and_back_step_by_step() -> None:
    """Case 1: margin 12 → 2, with one notice each way."""
    scene = Scene(margins={0: 12.0, 1: 30.0})
    scene.watch(60)
    assert (scene.card(0).rung, scene.reported()) == (Rung.NONE, [])
    scene.margins[0] = 8.0
    scene.see(after=5)
    assert scene.card(0).rung is Rung.NONE
    scene.see(after=5)
    assert scene.targets.fans == {0: 80}
    scene.watch(600)
    assert (scene.card(0).rung, scene.reported()) == (Rung.FANS, [])
    scene.margins[0] = 2.0
    seen = []
    for _ in range(200):
        scene.see(after=5)
        seen.append((scene.card(0).rung, scene.targets.watts.get(0)))
        if scene.card(0).rung is Rung.DRAIN:
            break
    watts = list(dict.fromkeys(w for rung, w in seen if rung is Rung.WATTS))
    assert watts == [400, 350, 300, 250, 200, 150]
    assert scene.targets.fans == {0: 100}
    assert scene.targets.drains == {"chat.0": "gpu-watch: card 0 is too hot"}
    assert scene.reported() == [HOT]
    scene.margins[0] = 30.0
    back = []
    for _ in range(1000):
        scene.see(after=5)
        back.append((scene.card(0).rung, scene.targets.watts.get(0)))
        if scene.card(0).rung is Rung.NONE:
            break
    assert list(dict.fromkeys(back)) == [
        (Rung.DRAIN, 150), (Rung.WATTS, 150), (Rung.WATTS, 200), (Rung.WATTS, 250), (Rung.WATTS, 300),
        (Rung.WATTS, 350), (Rung.WATTS, 400), (Rung.FANS, None), (Rung.NONE, None),
    ]  # fmt: skip
    assert scene.reported() == [COOL]
    assert scene.targets.drains == {}


def test_a_card_between_cool_and_warm_keeps_its_rung() -> None:
    scene = Scene(margins={0: 2.0, 1: 30.0})
    scene.watch(40)
    before = scene.card(0).heat.steps
    assert before > 0
    scene.margins[0] = 13.0
    scene.watch(3600)
    assert scene.card(0).heat.steps == before
    scene.margins[0] = 30.0
    scene.watch(200)
    scene.margins[0] = 13.0
    scene.see(after=5)
    scene.margins[0] = 30.0
    scene.watch(200)
    assert scene.card(0).heat.steps == before


def test_heat_at_one_look_only_changes_nothing() -> None:
    scene = Scene()
    for _ in range(20):
        scene.margins[0] = 1.0
        scene.see(after=5)
        scene.margins[0] = 30.0
        scene.see(after=5)
    assert scene.card(0).rung is Rung.NONE
    assert scene.reported() == []


def test_heat_that_swings_around_a_limit_has_one_notice() -> None:
    scene = Scene()
    for number in range(100):
        scene.margins[0] = 2.0 if number % 7 < 4 else 17.0
        scene.see(after=5)
    assert scene.reported() == [HOT]


def test_a_card_that_stays_hot_without_requests_is_degraded_and_no_reboot_follows() -> None:
    scene = Scene(margins={0: 0.0, 1: 30.0})
    scene.watch(3600)
    assert scene.card(0).rung is Rung.DEGRADED
    assert scene.reported() == [HOT, HOT]
    assert scene.taken() == []


def test_a_card_without_a_known_range_is_drained_without_less_power() -> None:
    scene = Scene(config=replace(CONFIG, ranges={}), margins={0: 0.0, 1: 30.0})
    scene.watch(120)
    assert scene.targets.drains
    assert scene.targets.watts == {}


def test_heat_in_report_only_has_a_notice_and_no_target() -> None:
    scene = Scene(config=REPORT_ONLY, margins={0: 0.0, 1: 30.0})
    scene.watch(600)
    assert "Report only: it would act: raise the fans, then lower" in scene.reports[0].text
    assert scene.reported() == [HOT]
    assert (scene.targets.fans, scene.targets.watts, scene.targets.drains) == ({}, {}, {})


def test_a_heat_notice_ends_after_a_reboot() -> None:
    scene = Scene(margins={0: 0.0, 1: 30.0})
    scene.watch(30)
    scene.reboot()
    scene.margins[0] = 30.0
    scene.watch(600)
    assert scene.reported() == [HOT, COOL]


# Errors of the driver.


@pytest.mark.parametrize("number", [*sorted(APPLICATION_XIDS), 63, 92, 160])
def test_errors_of_programs_are_counted_only(number: int) -> None:
    scene = Scene()
    scene.see(xid(number), xid(number))
    assert scene.state.xids == {f"0:{number}": 2}
    assert (scene.reported(), scene.taken(), scene.targets.drains) == ([], [], {})


def test_a_lost_card_is_drained_at_once_and_the_others_stay() -> None:
    """Case 2: Xid 79, then 13."""
    scene = Scene()
    scene.see(xid(79), cards=None)
    assert scene.targets.drains == {"chat.0": "gpu-watch: card 0: Xid 79"}
    assert scene.reported() == [LOST]
    scene.see(xid(13), cards=None)
    assert scene.reported() == []
    scene.see(after=6, cards=None)
    assert scene.taken() == [RebootMachine("card 0: Xid 79")]
    assert scene.reported() == []


def test_a_lost_card_finishes_its_requests_first() -> None:
    scene = Scene(views={"chat.0": ReplicaView(up=True, in_flight=3), "chat.1": UP})
    scene.see(xid(79), cards=None)
    scene.see(after=20, cards=None)
    assert scene.taken() == []
    scene.see(after=11, cards=None)
    assert scene.taken() == [RebootMachine("card 0: Xid 79")]


@pytest.mark.parametrize("number", [8, 46, 48, 62, 94, 95, 109, 110, 119, 120, 140, 143, 156, 158])
def test_a_card_with_an_error_gets_new_engines(number: int) -> None:
    scene = Scene()
    scene.see(xid(number))
    assert scene.targets.drains.keys() == {"chat.0"}
    scene.see(after=6)
    assert scene.taken() == [RestartEngine("chat.0")]
    scene.views = {"chat.0": DOWN, "chat.1": UP}
    scene.watch(300)
    assert scene.targets.drains.keys() == {"chat.0"}
    scene.views = {"chat.0": UP, "chat.1": UP}
    scene.watch(60)
    assert (scene.targets.drains, scene.card(0).fault) == ({}, None)
    assert scene.reported() == [LOST, WORKS]


def test_an_engine_over_two_cards_restarts_once() -> None:
    wide = replace(CONFIG, replicas={"wide": CONFIG.replicas["chat.0"].__class__((0, 1))})
    scene = Scene(config=wide, views={"wide": UP})
    scene.see(xid(119, 0), xid(119, 1))
    scene.see(after=6)
    assert scene.taken().count(RestartEngine("wide")) >= 1
    assert scene.targets.drains.keys() == {"wide"}


RANKS = replace(CONFIG, replicas={"wide.rank1": WatchedReplica((0, 1), is_rank=True)})


@pytest.mark.parametrize("views", [None, {"other": UP}])
def test_a_rank_of_another_hosts_engine_restarts_and_its_card_recovers(
    views: Mapping[str, ReplicaView] | None,
) -> None:
    """The host of a rank has no gateway, or one that does not know the engine."""
    scene = Scene(config=RANKS, views=views)
    scene.see(xid(119))
    assert "It serves wide.rank1." in scene.reports[0].text
    scene.watch(30)
    assert scene.taken() == [RestartEngine("wide.rank1")]
    assert scene.reported() == [LOST]
    scene.watch(120)
    assert scene.reported() == [WORKS]
    assert scene.taken() == []


def test_a_rank_whose_restarts_do_not_help_needs_a_reboot() -> None:
    scene = Scene(config=RANKS, views=None)
    scene.see(xid(119))
    scene.watch(30)
    scene.see(xid(119))
    scene.watch(60)
    assert [type(one) for one in scene.taken()] == [RestartEngine, RebootMachine]


def test_an_engine_that_is_not_loaded_is_not_started() -> None:
    scene = Scene(views={"chat.0": ReplicaView(up=False, loaded=False), "chat.1": UP})
    scene.see(xid(119))
    scene.watch(120)
    assert scene.taken() == []
    assert scene.card(0).fault is None


@pytest.mark.parametrize(
    ("words", "action"),
    [
        ("Node Reboot Required", RebootMachine),
        ("GPU Reset Required", RestartEngine),
        ("Drain P2P", RestartEngine),
        ("None", None),
    ],
)
def test_the_verdict_of_the_driver_decides(words: str, action: type | None) -> None:
    scene = Scene()
    scene.see(verdict(words))
    scene.see(after=6)
    assert [type(one) for one in scene.taken()] == ([action] if action else [])


def test_a_verdict_outranks_the_table() -> None:
    """119 alone restarts engines; the driver requests a reboot."""
    scene = Scene()
    scene.see(xid(119), verdict("Node Reboot Required"))
    scene.see(after=6)
    assert [type(one) for one in scene.taken()] == [RebootMachine]


def test_nvidia_smi_reports_the_same_verdict() -> None:
    scene = Scene()
    scene.see(cards=(reading(0, recovery="reboot"), reading(1)))
    scene.see(after=6, cards=(reading(0, recovery="reboot"), reading(1)))
    assert [type(one) for one in scene.taken()] == [RebootMachine]


def test_a_missing_card_needs_two_looks() -> None:
    scene = Scene()
    scene.see(cards=(reading(1),))
    assert scene.reported() == []
    scene.see(cards=(reading(1),))
    assert scene.targets.drains.keys() == {"chat.0"}
    assert scene.reported() == [LOST]


def test_repeated_errors_lead_to_two_reboots_a_cold_cycle_and_then_to_nothing_more() -> None:
    """Case 3: 119 and 154, again after each boot."""
    scene = Scene()
    taken = []
    for _ in range(6):
        scene.see(xid(119), verdict("Node Reboot Required"))
        scene.watch(700)
        new = [type(one) for one in scene.taken()]
        taken += new
        if new:
            scene.reboot()
    assert taken == [RebootMachine, RebootMachine, ColdCycle]
    fault = scene.card(0).fault
    assert fault is not None
    assert fault.stage is FaultStage.DEGRADED
    assert scene.targets.drains.keys() == {"chat.0"}
    assert scene.reported() == [LOST, LOST]


def test_without_an_armed_cold_cycle_two_reboots_are_all() -> None:
    scene = Scene(config=replace(CONFIG, cold_cycle=False))
    taken = []
    for _ in range(5):
        scene.see(verdict("Node Reboot Required"))
        scene.watch(700)
        new = [type(one) for one in scene.taken()]
        taken += new
        if new:
            scene.reboot()
    assert taken == [RebootMachine, RebootMachine]


def test_a_budget_of_reboots_is_new_after_a_day_of_running() -> None:
    scene = Scene(config=replace(CONFIG, cold_cycle=False))
    for _ in range(2):
        scene.see(verdict("Node Reboot Required"))
        scene.watch(700)
        scene.reboot()
        scene.watch(700)
    assert len(scene.taken()) == 2
    scene.watch(86400, step=600)
    scene.see(verdict("Node Reboot Required"))
    scene.watch(60)
    assert len(scene.taken()) == 1


def test_a_card_that_works_after_a_reboot_ends_its_notice() -> None:
    scene = Scene()
    scene.see(xid(79))
    scene.see(after=6)
    assert len(scene.taken()) == 1
    scene.reboot()
    scene.see()
    assert scene.targets.drains == {}
    scene.views = {"chat.0": DOWN, "chat.1": UP}
    scene.watch(300)
    assert scene.reported() == [LOST]
    scene.views = {"chat.0": UP, "chat.1": UP}
    scene.watch(10)
    assert scene.reported() == [WORKS]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"on_battery": True}, ""),
        ({"on_trial": True}, "a new generation is on trial"),
        ({"durable": False}, "its count cannot be written to disk"),
    ],
)
def test_a_reboot_waits(more: dict[str, object], reason: str) -> None:
    scene = Scene()
    scene.see(xid(79), cards=None)
    for _ in range(100):
        scene.see(after=60, cards=None, **more)
    assert scene.taken() == []
    waits = [one for one in scene.reports if one.kind == "card-waits"]
    assert [reason in one.text for one in waits] == ([True] if reason else [])
    assert scene.targets.drains.keys() == {"chat.0"}
    scene.see(after=5, cards=None)
    assert len(scene.taken()) == 1


def test_no_second_reboot_within_ten_minutes_of_the_first() -> None:
    scene = Scene()
    scene.see(xid(79), cards=None)
    scene.see(after=6, cards=None)
    assert len(scene.taken()) == 1
    scene.reboot()
    scene.see(xid(79), cards=None)
    for _ in range(59):
        scene.see(after=10, cards=None)
    assert scene.taken() == []
    for _ in range(2):
        scene.see(after=10, cards=None)
    assert len(scene.taken()) == 1


def test_a_first_reboot_may_follow_a_boot_of_the_operator_at_once() -> None:
    scene = Scene(booted=1000.0)
    scene.see(xid(79), cards=None)
    scene.see(after=6, cards=None)
    assert len(scene.taken()) == 1


def test_a_machine_that_does_not_go_down_is_reported() -> None:
    scene = Scene()
    scene.see(xid(79), cards=None)
    scene.see(after=6, cards=None)
    for _ in range(100):
        scene.see(after=30, cards=None)
    assert [type(one) for one in scene.taken()] == [RebootMachine]
    assert "still runs after the request" in scene.reports[-1].text
    assert scene.reported() == [LOST, LOST]


def test_two_cards_that_fail_together_reboot_once() -> None:
    scene = Scene()
    scene.see(xid(79, 0), xid(79, 1), cards=None)
    for _ in range(20):
        scene.see(after=6, cards=None)
    assert len(scene.taken()) == 1
    assert scene.reported() == [LOST, ("card-lost", "card 1", False)]


def test_an_error_after_a_restart_needs_a_reboot() -> None:
    scene = Scene()
    scene.see(xid(119))
    scene.see(after=6)
    scene.see(xid(119), after=20)
    scene.see(after=6)
    assert [type(one) for one in scene.taken()] == [RestartEngine, RebootMachine]
    assert scene.reported() == [LOST]


def test_an_engine_that_does_not_start_again_needs_a_reboot() -> None:
    scene = Scene()
    scene.see(xid(119))
    scene.see(after=6)
    scene.views = {"chat.0": DOWN, "chat.1": UP}
    scene.watch(700)
    assert [type(one) for one in scene.taken()] == [RestartEngine, RebootMachine]


def test_engines_that_are_off_during_a_power_cut_are_neither_started_nor_a_reason() -> None:
    scene = Scene()
    scene.see(xid(119))
    scene.see(after=6)
    assert len(scene.taken()) == 1
    scene.views = {"chat.0": DOWN, "chat.1": DOWN}
    scene.more = {"on_battery": True}
    scene.watch(3600)
    scene.more = {}
    scene.watch(300)
    assert scene.taken() == []
    scene.views = {"chat.0": UP, "chat.1": UP}
    scene.watch(60)
    assert scene.reported() == [LOST, WORKS]


def test_a_gateway_that_does_not_respond_causes_no_reboot() -> None:
    scene = Scene()
    scene.see(xid(119))
    scene.see(after=6)
    scene.views = None
    scene.watch(3600)
    assert [type(one) for one in scene.taken()] == [RestartEngine]


def test_an_error_in_report_only_ends_when_nothing_follows() -> None:
    scene = Scene(config=REPORT_ONLY)
    scene.see(xid(79))
    assert "Report only: it would stop new requests to it, then reboot the machine" in scene.reports[0].text
    scene.watch(1700)
    assert scene.reported() == [LOST]
    scene.watch(200)
    assert scene.reported() == [WORKS]
    assert scene.taken() == []


def test_a_mode_that_begins_to_act_does_not_act_on_an_old_report() -> None:
    scene = Scene(config=REPORT_ONLY)
    scene.see(xid(79))
    scene.config = CONFIG
    scene.see(after=5)
    assert scene.targets.drains == {}
    scene.watch(120)
    assert scene.reported() == [LOST, WORKS]


@pytest.mark.parametrize(
    ("number", "card", "kind", "text"),
    [
        (54, 0, "card-xid", "check its power plug"),
        (64, 0, "card-xid", "replace it"),
        (74, 0, "card-xid", "appliance doctor --only xid"),
        (999, 0, "card-xid", "appliance doctor --only xid"),
        (79, None, "card-xid", "the card at 0000:01:00"),
    ],
)
def test_other_errors_are_reported_once_a_day(number: int, card: int | None, kind: str, text: str) -> None:
    scene = Scene()
    for _ in range(10):
        scene.see(xid(number, card), after=60)
    assert [one.kind for one in scene.reports] == [kind]
    assert text in scene.reports[0].text
    assert scene.targets.drains == {}
    assert scene.taken() == []


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"throttle": ClocksEventReason.HARDWARE_POWER_BRAKE}, "card-throttles"),
        ({"throttle": ClocksEventReason.HARDWARE_THERMAL_SLOWDOWN}, "card-throttles"),
        ({"throttle": ClocksEventReason.SOFTWARE_POWER_CAP}, None),
        ({"remap_failure": True}, "card-memory"),
        ({"ecc_uncorrected": 3}, "card-ecc"),
        ({"ecc_uncorrected": 1}, None),
    ],
)
def test_figures_of_a_card_are_reported_once_a_day(more: dict[str, object], kind: str | None) -> None:
    scene = Scene()
    scene.see(cards=(reading(0, ecc_uncorrected=1), reading(1)))
    for _ in range(10):
        scene.see(after=60, cards=(reading(0, 30.0, **more), reading(1)))
    assert [one.kind for one in scene.reports] == ([kind] if kind else [])


# The driver, and hung replicas.


def test_a_driver_that_hangs_has_one_notice_each_way_and_no_action_while_engines_serve() -> None:
    scene = Scene()
    for _ in range(100):
        scene.see(after=10, cards=None, driver_hangs=True)
    scene.see(after=10)
    assert scene.reported() == [("card-lost", "driver", False), ("card-lost", "driver", True)]
    assert scene.taken() == []


def test_a_driver_that_hangs_under_a_dead_engine_needs_a_reboot() -> None:
    scene = Scene(views={"chat.0": DOWN, "chat.1": UP})
    for _ in range(20):
        scene.see(after=10, cards=None, driver_hangs=True)
    assert [type(one) for one in scene.taken()] == [RebootMachine]


def test_a_replica_without_tokens_restarts_and_returns() -> None:
    """Case 5."""
    scene = Scene(views={"chat.0": HUNG, "chat.1": UP})
    scene.watch(55)
    assert (scene.taken(), scene.reported(), scene.targets.drains) == ([], [], {})
    scene.watch(10)
    assert scene.taken() == [RestartEngine("chat.0")]
    assert scene.targets.drains.keys() == {"chat.0"}
    assert scene.reported() == [("engine-hung", "chat.0", False)]
    scene.views = {"chat.0": DOWN, "chat.1": UP}
    scene.watch(300)
    scene.views = {"chat.0": UP, "chat.1": UP}
    scene.watch(30)
    assert scene.targets.drains == {}
    assert scene.reported() == [("engine-hung", "chat.0", True)]
    assert scene.taken() == []


@pytest.mark.parametrize("view", [DOWN, UP, ReplicaView(up=False, loaded=False)])
def test_a_replica_that_is_down_for_other_reasons_is_left_to_its_unit(view: ReplicaView) -> None:
    scene = Scene(views={"chat.0": view, "chat.1": UP})
    scene.watch(3600)
    assert (scene.taken(), scene.reported()) == ([], [])


def test_a_replica_that_hangs_again_and_again_restarts_three_times_an_hour_and_then_its_card_needs_a_reboot() -> (
    None
):
    scene = Scene(
        views={"chat.0": HUNG, "chat.1": UP}, config=replace(CONFIG, timing=replace(CONFIG.timing, hang_s=5))
    )
    for _ in range(400):
        scene.see(after=5)
        if any(isinstance(one, RebootMachine) for one in scene.actions):
            break
        restarted = scene.state.hangs.get("chat.0")
        # It is up for a while after each restart.
        up = restarted is not None and restarted.stage is HangStage.RESTARTING
        scene.views = {"chat.0": UP if up else HUNG, "chat.1": UP}
    assert [type(one) for one in scene.taken()] == [RestartEngine] * 3 + [RebootMachine]


def test_an_engine_without_a_card_is_left_after_three_restarts() -> None:
    scene = Scene(views={"embed": HUNG})
    scene.watch(3500)
    assert scene.taken() == [RestartEngine("embed")] * 3
    assert scene.state.hangs["embed"].stage is HangStage.LEFT
    assert scene.targets.drains == {}
    scene.views = {"embed": UP}
    scene.watch(60)
    assert [one for one in scene.reported() if one[2]] == [("engine-hung", "embed", True)]


def test_a_hang_during_a_power_cut_waits_for_the_mains() -> None:
    scene = Scene(views={"chat.0": HUNG, "chat.1": UP}, more={"on_battery": True})
    scene.watch(3600)
    assert scene.taken() == []
    scene.more = {}
    scene.watch(70)
    assert scene.taken() == [RestartEngine("chat.0")]


def test_a_hang_in_report_only_is_reported() -> None:
    scene = Scene(config=REPORT_ONLY, views={"chat.0": HUNG, "chat.1": UP})
    scene.watch(3600)
    assert "Report only: it would be restarted" in scene.reports[0].text
    assert scene.reported() == [("engine-hung", "chat.0", False)]
    scene.views = {"chat.0": UP, "chat.1": UP}
    scene.watch(60)
    assert scene.reported() == [("engine-hung", "chat.0", True)]
    assert scene.taken() == []
