"""The watchdog's decisions over every sequence of events: budgets hold, notices pair up, rungs rise one by one."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from appliance.watch.gpu.decide import OURS
from appliance.watch.gpu.state import (
    DAY_S,
    HOUR_S,
    REBOOTS_A_DAY,
    RESTARTS_AN_HOUR,
    ColdCycle,
    FaultStage,
    RebootMachine,
    ReplicaView,
    RestartEngine,
    Rung,
    WatchState,
)
from tests.watch.gpu.scenes import CONFIG, Scene, verdict, xid

XIDS = st.sampled_from([8, 13, 31, 48, 63, 64, 74, 79, 94, 109, 119, 158, 999])
WORDS = st.sampled_from(["None", "GPU Reset Required", "Node Reboot Required", "Drain and Reset"])
CARDS = st.sampled_from([0, 1, None])
VIEWS = st.builds(
    ReplicaView, up=st.booleans(), loaded=st.booleans(), timed_out=st.booleans(), in_flight=st.integers(0, 2)
)
WAITS = st.sampled_from([1.0, 10.0, 61.0, 400.0, 2000.0, 30_000.0])


class WatchMachine(RuleBasedStateMachine):
    """A machine on which everything happens in any order."""

    @initialize(act=st.booleans(), cold=st.booleans())
    def begin(self, act: bool, cold: bool) -> None:
        self.scene = Scene(config=replace(CONFIG, act=act, cold_cycle=cold))
        self.reboots: list[float] = []
        self.cold_cycles: list[float] = []
        self.restarts: dict[str, list[float]] = {}
        self.open: Counter[tuple[str, str]] = Counter()
        self.rungs: dict[int, Rung] = {}
        self.goes_down = True

    def observe(self, *seen: object) -> None:
        scene, more = self.scene, self.scene.more
        boot = scene.boot
        made = scene.see(*seen)  # type: ignore[arg-type]
        # The state survives its own file.
        scene.state = msgspec.json.decode(msgspec.json.encode(made.state), type=WatchState)
        assert scene.state == made.state
        for action in made.actions:
            assert scene.config.act
            assert not more.get("on_battery")
            if isinstance(action, RestartEngine):
                self.restarts.setdefault(action.replica, []).append(scene.now)
                view = (scene.views or {}).get(action.replica)
                assert view is None or view.loaded
                continue
            assert not more.get("on_trial")
            assert more.get("durable", True)
            if isinstance(action, RebootMachine):
                assert not scene.state.own_boot or scene.now - scene.booted >= 600
                self.reboots.append(scene.now)
            else:
                assert isinstance(action, ColdCycle)
                assert scene.config.cold_cycle
                # Reboots were tried first.
                assert len([at for at in self.reboots if scene.now - at < DAY_S]) == REBOOTS_A_DAY
                self.cold_cycles.append(scene.now)
        assert sum(not isinstance(one, RestartEngine) for one in made.actions) <= 1
        for report in made.reports:
            key = (report.kind, report.subject)
            assert report.text.endswith(".")
            if report.ended:
                assert self.open[key] > 0, f"{key} ends without a begin"
                self.open[key] = 0
            elif report.kind in ("card-hot", "card-lost", "engine-hung"):
                self.open[key] += 1
                # The begin, and the end of what can be done.
                assert self.open[key] <= 2 or not scene.config.act or report.kind == "card-lost"
        for index, card in scene.state.cards.items():
            before = self.rungs.get(index, Rung.NONE)
            rises = card.heat.rung - before
            assert rises <= 1 or (before, card.heat.rung) == (Rung.DRAIN, Rung.DEGRADED), (before, card.heat.rung)
            self.rungs[index] = card.heat.rung
        leaves = [one for one in made.actions if not isinstance(one, RestartEngine)]
        if leaves and self.goes_down:
            scene.reboot()
            self.rungs = {}
        assert scene.boot - boot <= 1

    @rule(number=XIDS, card=CARDS)
    def logs(self, number: int, card: int | None) -> None:
        self.observe(xid(number, card))

    @rule(words=WORDS, card=st.sampled_from([0, 1]))
    def requests(self, words: str, card: int) -> None:
        self.observe(verdict(words, card))

    @rule(card=st.sampled_from([0, 1]), margin=st.sampled_from([-2.0, 2.0, 8.0, 13.0, 30.0]))
    def warms(self, card: int, margin: float) -> None:
        self.scene.margins[card] = margin
        self.observe()

    @rule(card=st.sampled_from([0, 1]))
    def vanishes(self, card: int) -> None:
        self.scene.margins.pop(card, None)
        self.observe()
        self.observe()

    @rule(views=st.none() | st.fixed_dictionaries({"chat.0": VIEWS, "chat.1": VIEWS, "embed": VIEWS}))
    def serves(self, views: dict[str, ReplicaView] | None) -> None:
        self.scene.views = views
        self.observe()

    @rule(wait=WAITS, looks=st.integers(1, 5))
    def waits(self, wait: float, looks: int) -> None:
        for _ in range(looks):
            self.scene.now += wait / looks
            self.observe()

    @rule(name=st.sampled_from(["on_battery", "on_trial", "driver_hangs"]), value=st.booleans())
    def changes(self, name: str, value: bool) -> None:
        self.scene.more[name] = value
        if name == "driver_hangs":
            self.scene.more.pop("cards", None)
            if value:
                self.scene.more["cards"] = None
        self.observe()

    @rule(durable=st.booleans())
    def fills_the_disk(self, durable: bool) -> None:
        self.scene.more["durable"] = durable
        self.observe()

    @rule()
    def reboots_by_hand(self) -> None:
        self.scene.reboot()
        self.rungs = {}
        self.observe()

    @rule(value=st.booleans())
    def obeys(self, value: bool) -> None:
        self.goes_down = value

    @invariant()
    def budgets_hold(self) -> None:
        if not hasattr(self, "scene"):
            return
        now = self.scene.now
        for times, span_s, most in (
            (self.reboots, DAY_S, REBOOTS_A_DAY),
            (self.cold_cycles, DAY_S, 1),
            *((times, HOUR_S, RESTARTS_AN_HOUR) for times in self.restarts.values()),
        ):
            for first in times:
                assert len([at for at in times if first <= at < first + span_s]) <= most
        assert all(at <= now for at in itertools.chain(self.reboots, self.cold_cycles))

    @invariant()
    def targets_follow_the_state(self) -> None:
        if not hasattr(self, "scene"):
            return
        scene, wanted = self.scene, self.scene.targets
        if not scene.config.act:
            assert (wanted.fans, wanted.watts, wanted.drains) == ({}, {}, {})
            return
        for index, watts in wanted.watts.items():
            assert scene.config.ranges[index].floor <= watts < scene.config.ranges[index].limit
        assert all(reason.startswith(OURS) for reason in wanted.drains.values())
        for name, replica in scene.config.replicas.items():
            faults = [scene.state.cards[i].fault for i in replica.cards if i in scene.state.cards]
            if any(fault is not None and fault.stage is not FaultStage.PROVING for fault in faults):
                assert name in wanted.drains


WatchMachine.TestCase.settings = settings(
    max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestWatchdog = WatchMachine.TestCase
