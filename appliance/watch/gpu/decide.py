"""Decides what follows from an observation. Pure: state and observation are the input, a decision is the result.

Heat, by card. "hot" is a margin of 3 K or less, "warm" of 10 K or less, "cool" of more than 15 K. A card without a
margin has 88, 80 and 75 °C.

| rung | event | next rung |
|---|---|---|
| none | warm at two looks in a row | fans |
| fans | hot, and the fans had their time | watts, one step of 50 W |
| watts | hot, and the last step had its time | one step more |
| watts | the same at the card's floor | drain |
| drain | hot for ten more minutes | degraded |
| degraded, drain | cool for five minutes | watts |
| watts | cool for five more minutes | one step less; without steps, fans |
| fans | cool for five more minutes | none |

Errors, by card. "needs" is the larger recovery of all its errors: a reset (its engines restart) or a reboot.

| stage | event | next stage |
|---|---|---|
| none | an error that engines do not survive, or the card is missing | drained |
| drained | its requests have ended, or had 30 s; needs a reset; restarts are left | restarted |
| drained | the same, without restarts left | drained, needs a reboot |
| drained | the same, needs a reboot, and one is allowed now | rebooting |
| drained | the same, no reboot left, a cold cycle is armed and left | cold cycle |
| drained | the same, nothing left | degraded |
| restarted | its engines are up for a minute; a rank of another host's engine counts as up | none |
| restarted | an error, or its engines do not start in time | drained, needs a reboot |
| rebooting, cold cycle | a new boot | proving |
| rebooting, cold cycle | the machine still runs after 15 min | degraded |
| proving | it is listed without an error for a minute, and its engines are up or had 15 min | none |
| proving | an error | drained, needs a reboot |
| degraded | a new boot | proving |

A reboot is allowed with mains power, outside a trial boot, at most twice a day. The state with its count must be
written first. In the first ten minutes after a boot that this program requested, no reboot is allowed.

Hung replicas: the gateway has taken a replica down because it generated no token in time.

| stage | event | next stage |
|---|---|---|
| none | down for a timeout | suspected |
| suspected | down for other reasons, or up | none |
| suspected | 60 s have passed; restarts are left | restarting |
| suspected | 60 s have passed; no restart is left | left as it is; its cards need a reboot |
| restarting | up for a while | none |
| restarting | not up in time | suspected |
| left as it is | up | none |

Without ``act`` there are no actions and no targets; a report contains the action that would have followed. An error
is degraded at once, and it ends after half an hour without a further one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from appliance.catalog.xids import Recovery, Xid, XidClass
from appliance.engines.argv import unit_name
from appliance.system.nvidia_smi import ClocksEventReason
from appliance.watch.gpu.card_reader import CardReading
from appliance.watch.gpu.state import (
    COLD_CYCLES_A_DAY,
    DAY_S,
    HOUR_S,
    REBOOTS_A_DAY,
    RESTARTS_AN_HOUR,
    STEP_W,
    CardFault,
    CardState,
    ColdCycle,
    FaultStage,
    HangStage,
    Heat,
    HeatLevel,
    Observation,
    RebootMachine,
    ReplicaHang,
    ReplicaView,
    RestartEngine,
    Rung,
    WatchAction,
    WatchConfig,
    WatchDecision,
    WatchReport,
    WatchState,
    WatchTargets,
)

LOOKS = 2
"""Looks in a row that confirm heat or a missing card; one may be a mistake."""

FANS_WARM, FANS_HOT = 80, 100
"""Speeds of the fans in percent."""

PROVING_S = 900.0
"""Seconds after which engines that are down keep no card in proof: it is listed, and has no errors."""

HARD_THROTTLE = ClocksEventReason.HARDWARE_THERMAL_SLOWDOWN | ClocksEventReason.HARDWARE_POWER_BRAKE

OURS = "gpu-watch: "
"""Begin of each reason for which this program drains a replica."""


def heat_level(reading: CardReading) -> HeatLevel:
    """Return the level of a card: by its margin, or by its temperature if it reports no margin."""
    if reading.margin_c is not None:
        value, hot, warm, cool = -reading.margin_c, -3.0, -10.0, -15.0
    elif reading.temperature_c is not None:
        value, hot, warm, cool = reading.temperature_c, 88.0, 80.0, 75.0
    else:
        return HeatLevel.HOLD
    if value >= hot:
        return HeatLevel.HOT
    if value >= warm:
        return HeatLevel.WARM
    return HeatLevel.COOL if value < cool else HeatLevel.HOLD


def targets(state: WatchState, config: WatchConfig) -> WatchTargets:
    """Return what has to hold in this state; nothing unless the watchdog acts."""
    if not config.act:
        return WatchTargets()
    fans, watts, reasons = {}, {}, dict[int, str]()
    for index, card in state.cards.items():
        heat, fault = card.heat, card.fault
        if heat.rung >= Rung.FANS and config.fans:
            fans[index] = FANS_HOT if heat.hot else FANS_WARM
        if heat.steps and index in config.ranges:
            allowed = config.ranges[index]
            watts[index] = max(allowed.floor, allowed.limit - heat.steps * STEP_W)
        if heat.rung >= Rung.DRAIN:
            reasons[index] = f"{OURS}card {index} is too hot"
        if fault is not None and fault.stage is not FaultStage.PROVING:
            reasons[index] = f"{OURS}card {index}: {fault.cause}"[:200]
    drains = {}
    for name, replica in config.replicas.items():
        hang = state.hangs.get(name)
        if hang is not None and hang.stage is HangStage.RESTARTING:
            drains[name] = f"{OURS}the engine generated no token in time and restarts"
        for card_index in replica.cards:
            if card_index in reasons:
                drains[name] = reasons[card_index]
    return WatchTargets(fans, watts, drains)


def decide(state: WatchState, seen: Observation, config: WatchConfig) -> WatchDecision:
    """Return the state after ``seen``, and the actions and notices that follow from it."""
    work = _Work(_at(state, seen, config), seen, config)
    work.look()
    for one in seen.xids:
        work.handle_xid(one.xid, one.card)
    work.watch_driver()
    work.watch_hangs()
    for index in sorted(work.cards):
        work.advance_fault(index)
    return work.decision()


def _at(state: WatchState, seen: Observation, config: WatchConfig) -> WatchState:
    """Return ``state`` at the time of ``seen``: in its boot, without entries that are too old to count."""
    now = seen.now
    state = replace(
        state,
        clock=now,
        restarts={
            name: recent for name, times in state.restarts.items() if (recent := _recent(times, now, HOUR_S))
        },
        reboots=_recent(state.reboots, now, DAY_S),
        cold_cycles=_recent(state.cold_cycles, now, DAY_S),
        noted={key: at for key, at in state.noted.items() if now - at < DAY_S},
    )
    if state.boot_id == seen.boot_id and state.acting == config.act:
        return state
    # A mode that begins acts on what it sees itself, like a new boot.
    cards = {}
    for index, card in state.cards.items():
        # A notice of heat that has not ended stays open: the ladder begins with the fans, and ends as usual.
        heat = Heat()
        if card.heat.hot:
            heat = Heat(Rung.FANS, changed_at=now, hot=True, exhausted=card.heat.exhausted)
        fault = card.fault and replace(card.fault, stage=FaultStage.PROVING, stage_at=now, seen_at=now)
        cards[index] = CardState(heat=heat, fault=fault)
    hangs = {
        name: ReplicaHang(HangStage.LEFT, now)
        for name, hang in state.hangs.items()
        if hang.stage is not HangStage.SUSPECTED
    }
    state = replace(state, acting=config.act, cards=cards, hangs=hangs)
    if state.boot_id == seen.boot_id:
        return state
    left = state.leaving_at is not None
    return replace(state, boot_id=seen.boot_id, own_boot=left, leaving_at=None, xids={}, driver_hangs_since=None)


def _recent(times: Iterable[float], now: float, span_s: float) -> tuple[float, ...]:
    return tuple(at for at in times if now - at < span_s)


@dataclass
class _Work:
    """One decision while it is made."""

    state: WatchState
    seen: Observation
    config: WatchConfig
    cards: dict[int, CardState] = field(init=False)
    hangs: dict[str, ReplicaHang] = field(init=False)
    actions: list[WatchAction] = field(default_factory=list)
    reports: list[WatchReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cards = {index: self.state.cards.get(index, CardState()) for index in self.config.cards} | {
            index: card for index, card in self.state.cards.items() if index not in self.config.cards
        }
        self.hangs = {name: hang for name, hang in self.state.hangs.items() if name in self.config.replicas}

    def decision(self) -> WatchDecision:
        state = replace(self.state, cards=self.cards, hangs=self.hangs)
        return WatchDecision(state, tuple(self.actions), tuple(self.reports))

    # The looks at the cards.

    def look(self) -> None:
        if self.seen.look_error:
            self._note_once("card-watch", "nvidia-smi", f"the cards cannot be read: {self.seen.look_error}.", "")
        if self.seen.cards is None:
            return
        readings = {reading.index: reading for reading in self.seen.cards}
        for index in sorted(self.cards.keys() | readings.keys()):
            card = self.cards.get(index, CardState())
            reading = readings.get(index)
            if reading is not None:
                self.cards[index] = self._seen_card(card, reading)
            elif index in self.config.cards:
                self.cards[index] = replace(card, missing_looks=card.missing_looks + 1)
                if card.missing_looks + 1 == LOOKS:
                    self._fault(index, Recovery.REBOOT, "the driver does not list it")

    def _seen_card(self, card: CardState, reading: CardReading) -> CardState:
        index = reading.index
        if reading.remap_failure:
            self._note("card-memory", index, "a row of its memory has no spare: replace the card soon")
        if (reading.ecc_uncorrected or 0) > (card.ecc_uncorrected or 0) and card.ecc_uncorrected is not None:
            text = f"{reading.ecc_uncorrected} uncorrected memory errors in this boot"
            self._note("card-ecc", index, f"{text}: if the number grows, replace the card")
        if reading.throttle & HARD_THROTTLE:
            brake = bool(reading.throttle & ClocksEventReason.HARDWARE_POWER_BRAKE)
            cause, fix = (
                ("the power supply", "check the PSU and its cables") if brake else ("heat", "check the air flow")
            )
            self._note("card-throttles", index, f"its hardware lowers the clock because of {cause}: {fix}")
        card = replace(
            card,
            missing_looks=0,
            ecc_uncorrected=reading.ecc_uncorrected,
            recovery=reading.recovery,
            heat=self._heat(card.heat, reading),
        )
        before = self.cards.get(index, CardState()).recovery
        if reading.recovery not in (before, Recovery.NONE):
            self.cards[index] = card
            self._fault(index, reading.recovery, f"the driver requests a {reading.recovery}")
            card = self.cards[index]
        return card

    # Heat.

    def _heat(self, heat: Heat, reading: CardReading) -> Heat:
        level, index = heat_level(reading), reading.index
        cool_since = heat.cool_since if heat.cool_since is not None else self.seen.now
        warm = level in (HeatLevel.WARM, HeatLevel.HOT)
        heat = replace(
            heat,
            warm_looks=heat.warm_looks + 1 if warm else 0,
            cool_since=cool_since if level is HeatLevel.COOL else None,
        )
        if level is HeatLevel.COOL:
            return self._cooler(heat, reading)
        if level is HeatLevel.HOT and not heat.hot and heat.warm_looks >= LOOKS:
            heat = replace(heat, hot=True)
            text = f"card {index} is hot ({_figures(reading)})."
            if self.config.act:
                self._report("card-hot", index, f"{text} {_sentence(self._means(index))}.")
            else:
                self._report("card-hot", index, f"{text} Report only: it would act: {self._means(index)}.")
        raised = self._hotter(heat, level, index)
        if raised.rung is Rung.DEGRADED and not raised.exhausted:
            raised = replace(raised, exhausted=True)
            text = (
                f"card {index} stays hot without requests ({_figures(reading)}): check the fans and the air flow."
            )
            self._report("card-hot", index, text)
        return raised

    def _means(self, index: int) -> str:
        fans = "raise the fans, then " if self.config.fans else ""
        watts = "lower the power limit, then " if index in self.config.ranges else ""
        return f"{fans}{watts}stop new requests to its replicas"

    def _hotter(self, heat: Heat, level: HeatLevel, index: int) -> Heat:  # noqa: PLR0911 - one for each row
        timing, now = self.config.timing, self.seen.now
        passed = now - heat.changed_at
        if heat.rung is Rung.NONE:
            raise_fans = heat.warm_looks >= LOOKS
            return replace(heat, rung=Rung.FANS, changed_at=now) if raise_fans else heat
        if level is not HeatLevel.HOT:
            return heat
        left = self._steps(index) - heat.steps
        if heat.rung is Rung.FANS and passed >= (timing.fans_s if self.config.fans else 0):
            return replace(heat, rung=Rung.WATTS, steps=heat.steps + min(left, 1), changed_at=now)
        if heat.rung is Rung.WATTS and passed >= timing.step_s:
            if left > 0:
                return replace(heat, steps=heat.steps + 1, changed_at=now)
            return replace(heat, rung=Rung.DRAIN, changed_at=now)
        if heat.rung is Rung.DRAIN and passed >= timing.stays_hot_s:
            return replace(heat, rung=Rung.DEGRADED, changed_at=now)
        return heat

    def _steps(self, index: int) -> int:
        allowed = self.config.ranges.get(index)
        return 0 if allowed is None else -(-(allowed.limit - allowed.floor) // STEP_W)

    def _cooler(self, heat: Heat, reading: CardReading) -> Heat:
        now = self.seen.now
        since = max(heat.cool_since or now, heat.changed_at)
        if heat.rung is Rung.NONE or now - since < self.config.timing.cool_s:
            return heat
        if heat.rung >= Rung.DRAIN:
            return replace(heat, rung=Rung.WATTS, changed_at=now)
        if heat.rung is Rung.WATTS:
            fewer = max(heat.steps - 1, 0)
            return replace(heat, rung=Rung.WATTS if fewer else Rung.FANS, steps=fewer, changed_at=now)
        if heat.hot:
            text = f"card {reading.index} is cool again ({_figures(reading)})."
            self._report("card-hot", reading.index, text, ended=True)
        return Heat()

    # Errors.

    def handle_xid(self, xid: Xid, index: int | None) -> None:
        key = f"{'?' if index is None else index}:{xid.number}"
        self.state = replace(self.state, xids={**self.state.xids, key: self.state.xids.get(key, 0) + 1})
        cause, kind = f"Xid {xid.number}", xid.xid_class
        if kind in (XidClass.PROGRAM, XidClass.COUNT):
            return
        needs = {
            XidClass.RESTART: Recovery.RESET,
            XidClass.RESET: Recovery.RESET,
            XidClass.LOST: Recovery.REBOOT,
            XidClass.VERDICT: xid.verdict,
        }.get(kind)
        if needs is not None and index is not None:
            if needs is not Recovery.NONE:
                self._fault(index, needs, cause)
        elif needs is not Recovery.NONE:
            where = f"the card at {xid.bus}" if index is None else f"card {index}"
            advice = {
                XidClass.PLUG: "check its power plug",
                XidClass.REPLACE: "its memory has no spare rows: replace it",
            }.get(kind, "`appliance doctor --only xid` shows its meaning")
            self._note_once("card-xid", where, f"{where} logged {cause}: {xid.text[:120]}; {advice}.", key)

    def _fault(self, index: int, needs: Recovery, cause: str) -> None:
        card, now = self.cards.get(index, CardState()), self.seen.now
        fault = card.fault
        if fault is None:
            stage = FaultStage.DRAINED if self.config.act else FaultStage.DEGRADED
            fault = CardFault(cause, needs, stage, now, now)
            self._report("card-lost", index, self._fault_text(index, fault))
        elif fault.stage in (FaultStage.RESTARTED, FaultStage.PROVING):
            # The restart or the reboot did not help.
            stage = FaultStage.DRAINED if self.config.act else FaultStage.DEGRADED
            fault = CardFault(cause, Recovery.REBOOT, stage, now, now)
        else:
            needs = Recovery.REBOOT if Recovery.REBOOT in (needs, fault.needs) else Recovery.RESET
            fault = replace(fault, needs=needs, seen_at=now)
        self.cards[index] = replace(card, fault=fault)

    def _fault_text(self, index: int, fault: CardFault) -> str:
        replicas = ", ".join(self._replicas_of(index)) or "no replica"
        steps = "stop new requests to it" + (
            ", then restart its engines" if fault.needs is Recovery.RESET else ", then reboot the machine"
        )
        text = f"card {index} failed: {fault.cause}. It serves {replicas}."
        if self.config.act:
            return f"{text} {_sentence(steps)}."
        return f"{text} Report only: it would {steps}."

    def advance_fault(self, index: int) -> None:
        fault = self.cards[index].fault
        if fault is None:
            return
        match fault.stage:
            case FaultStage.DRAINED:
                self._drained(index, fault)
            case FaultStage.RESTARTED:
                self._restarted(index, fault)
            case FaultStage.REBOOTING | FaultStage.COLD_CYCLE:
                if self.seen.now - fault.stage_at >= self.config.timing.leave_s:
                    self.state = replace(self.state, leaving_at=None)
                    self._degrade(index, fault, "the machine still runs after the request to go down")
            case FaultStage.PROVING:
                self._proving(index, fault)
            case FaultStage.DEGRADED:
                quiet = self.seen.now - fault.seen_at >= self.config.timing.quiet_s
                if not self.config.act and quiet and self._listed(index) and self._up(index):
                    self._recovered(index, "has logged no further error")

    def _drained(self, index: int, fault: CardFault) -> None:
        timing, passed = self.config.timing, self.seen.now - fault.stage_at
        if not self.config.act:
            self._degrade(index, fault, "report only")
            return
        running = sum(view.in_flight for view in self._views(index))
        if passed < timing.burst_s or (running and passed < timing.drain_s) or self.state.leaving_at is not None:
            return
        if self.seen.on_battery:
            # The engines may be off to save the battery: a restart would start them.
            return
        if fault.needs is Recovery.RESET:
            if self._restart(self._loaded(index)):
                self._stage(index, fault, FaultStage.RESTARTED)
                return
            fault = replace(fault, needs=Recovery.REBOOT, cause=f"{fault.cause}, again after restarts")
            self.cards[index] = replace(self.cards[index], fault=fault)
        self._leave(index, fault)

    def _leave(self, index: int, fault: CardFault) -> None:
        """Reboot or cold cycle, if that is allowed now; degrade if none is left."""
        now, reason = self.seen.now, f"card {index}: {fault.cause}"
        reboots_left = len(self.state.reboots) < REBOOTS_A_DAY
        cold_left = self.config.cold_cycle and len(self.state.cold_cycles) < COLD_CYCLES_A_DAY
        if not reboots_left and not cold_left:
            text = f"{REBOOTS_A_DAY} reboots a day did not help"
            self._degrade(
                index, fault, f"{text}: power the machine off for a minute, then check slot, cable and PSU"
            )
            return
        if self.state.own_boot and self.seen.uptime_s < self.config.timing.early_s:
            return
        waits = self._waits()
        if waits:
            text = f"{reason}. A reboot would help and waits: {waits}."
            self._note_once("card-waits", f"card {index}", text, waits)
        elif reboots_left:
            self.state = replace(self.state, reboots=(*self.state.reboots, now), leaving_at=now)
            self._stage(index, fault, FaultStage.REBOOTING)
            self.actions.append(RebootMachine(reason))
        else:
            self.state = replace(self.state, cold_cycles=(*self.state.cold_cycles, now), leaving_at=now)
            self._stage(index, fault, FaultStage.COLD_CYCLE)
            self.actions.append(ColdCycle(reason))

    def _waits(self) -> str:
        """Return the reason for which the machine must not go down now; empty if it may."""
        if not self.seen.durable:
            return "its count cannot be written to disk"
        return "a new generation is on trial" if self.seen.on_trial else ""

    def _restarted(self, index: int, fault: CardFault) -> None:
        timing, passed = self.config.timing, self.seen.now - fault.stage_at
        if self.seen.replicas is None and not self._only_ranks(index):
            return
        if self.seen.on_battery:
            self._stage(index, fault, FaultStage.RESTARTED)
        elif self._up(index):
            if passed >= timing.settle_s:
                self._recovered(index, "works again after a restart of its engines")
        elif passed >= self._start_s(index):
            text = f"{fault.cause}, and its engines do not start"
            self.cards[index] = replace(
                self.cards[index],
                fault=CardFault(text, Recovery.REBOOT, FaultStage.DRAINED, self.seen.now, self.seen.now),
            )

    def _proving(self, index: int, fault: CardFault) -> None:
        passed = self.seen.now - max(fault.stage_at, fault.seen_at)
        if not self._listed(index) or passed < self.config.timing.settle_s:
            return
        if self._up(index) or passed >= PROVING_S:
            self._recovered(index, "works again after a reboot")

    def _recovered(self, index: int, text: str) -> None:
        self.cards[index] = replace(self.cards[index], fault=None)
        self._report("card-lost", index, f"card {index} {text}.", ended=True)

    def _degrade(self, index: int, fault: CardFault, why: str) -> None:
        self._stage(index, fault, FaultStage.DEGRADED)
        self._report("card-lost", index, f"card {index} stays out of service: {fault.cause}; {why}.")

    def _stage(self, index: int, fault: CardFault, stage: FaultStage) -> None:
        fault = replace(fault, stage=stage, stage_at=self.seen.now)
        self.cards[index] = replace(self.cards[index], fault=fault)

    # The driver.

    def watch_driver(self) -> None:
        now, since = self.seen.now, self.state.driver_hangs_since
        if not self.seen.driver_hangs:
            if self.state.driver_noted:
                self.reports.append(WatchReport("card-lost", "driver", "the driver responds again.", ended=True))
            self.state = replace(self.state, driver_hangs_since=None, driver_noted=False)
            return
        since = now if since is None else since
        if not self.state.driver_noted:
            text = "nvidia-smi hangs inside the driver: the cards cannot be watched. If engines are down, reboot."
            self.reports.append(WatchReport("card-lost", "driver", text))
        self.state = replace(self.state, driver_hangs_since=since, driver_noted=True)
        if now - since >= self.config.timing.driver_s:
            for index in sorted(self.config.cards):
                views = self._views(index)
                if self.cards[index].fault is None and any(view.loaded and not view.up for view in views):
                    self._fault(index, Recovery.REBOOT, "the driver hangs and its engine is down")

    # Hung replicas.

    def watch_hangs(self) -> None:
        for name, view in (self.seen.replicas or {}).items():
            replica = self.config.replicas.get(name)
            if replica is None:
                continue
            faulty = any(self.cards.get(index, CardState()).fault is not None for index in replica.cards)
            hang = self._hang(name, view, self.hangs.get(name), faulty=faulty and self.config.act)
            if hang is None:
                self.hangs.pop(name, None)
            else:
                self.hangs[name] = hang

    def _hang(  # noqa: PLR0911 - one for each row
        self, name: str, view: ReplicaView, hang: ReplicaHang | None, *, faulty: bool
    ) -> ReplicaHang | None:
        timing, now = self.config.timing, self.seen.now
        if hang is None:
            return ReplicaHang(HangStage.SUSPECTED, now) if view.timed_out and not faulty else None
        if hang.stage is HangStage.SUSPECTED:
            if not view.timed_out or faulty:
                return None
            if self.seen.on_battery:
                return replace(hang, stage_at=now)
            return hang if now - hang.stage_at < timing.hang_s else self._hung(name)
        if view.up or not view.loaded:
            since = now if hang.up_since is None else hang.up_since
            if now - since < min(timing.settle_s, 10.0):
                return replace(hang, up_since=since)
            self.reports.append(
                WatchReport("engine-hung", name, f"engine {name} generates tokens again.", ended=True)
            )
            return None
        hang = replace(hang, up_since=None)
        if self.seen.on_battery:
            return replace(hang, stage_at=now)
        late = now - hang.stage_at >= self.config.replicas[name].start_timeout_s + timing.start_margin_s
        if hang.stage is HangStage.RESTARTING and late and not faulty:
            return self._hung(name, again=True)
        return hang

    def _hung(self, name: str, *, again: bool = False) -> ReplicaHang:
        text = f"engine {name} accepts requests and generated no token for a minute."
        now = self.seen.now
        if not self.config.act:
            self.reports.append(WatchReport("engine-hung", name, f"{text} Report only: it would be restarted."))
            return ReplicaHang(HangStage.LEFT, now)
        if self._restart([name]):
            if not again:
                self.reports.append(WatchReport("engine-hung", name, f"{text} It restarts."))
            return ReplicaHang(HangStage.RESTARTING, now)
        limit = f"{RESTARTS_AN_HOUR} restarts in an hour did not help"
        self.reports.append(
            WatchReport("engine-hung", name, f"{text} {limit}: see journalctl -u {unit_name(name)}.")
        )
        for index in self.config.replicas[name].cards:
            self._fault(index, Recovery.REBOOT, f"engine {name} hangs; {limit}")
        return ReplicaHang(HangStage.LEFT, now)

    # Helpers.

    def _restart(self, names: Iterable[str]) -> bool:
        """Restart these replicas if each has a restart left; return whether."""
        views, now = self.seen.replicas or {}, self.seen.now
        # The gateway has unloaded the others meanwhile: there is nothing to restart.
        names = [name for name in names if name not in views or views[name].loaded]
        restarts = self.state.restarts
        if any(len(restarts.get(name, ())) >= RESTARTS_AN_HOUR for name in names):
            return False
        self.state = replace(self.state, restarts={**restarts, **{n: (*restarts.get(n, ()), now) for n in names}})
        self.actions += [RestartEngine(name) for name in names]
        return True

    def _replicas_of(self, index: int) -> list[str]:
        return [name for name, replica in self.config.replicas.items() if index in replica.cards]

    def _views(self, index: int) -> list[ReplicaView]:
        known: Mapping[str, ReplicaView] = self.seen.replicas or {}
        return [known[name] for name in self._replicas_of(index) if name in known]

    def _loaded(self, index: int) -> list[str]:
        """Return the replicas of a card that are loaded; all of them if the gateway does not respond."""
        known = self.seen.replicas
        return [n for n in self._replicas_of(index) if known is None or n not in known or known[n].loaded]

    def _up(self, index: int) -> bool:
        if self.seen.replicas is None:
            return self._only_ranks(index)
        return all(view.up or not view.loaded for view in self._views(index))

    def _only_ranks(self, index: int) -> bool:
        """Return whether the gateway of another host has the state of all that uses a card."""
        found = [self.config.replicas[name] for name in self._replicas_of(index)]
        return bool(found) and all(replica.is_rank for replica in found)

    def _listed(self, index: int) -> bool:
        return self.cards[index].missing_looks == 0 and not self.seen.driver_hangs

    def _start_s(self, index: int) -> float:
        starts = [self.config.replicas[name].start_timeout_s for name in self._replicas_of(index)]
        return max(starts, default=0.0) + self.config.timing.start_margin_s

    def _report(self, kind: str, index: int, text: str, *, ended: bool = False) -> None:
        self.reports.append(WatchReport(kind, f"card {index}", text, ended))

    def _note(self, kind: str, index: int, text: str) -> None:
        self._note_once(kind, f"card {index}", f"card {index}: {text}.", "")

    def _note_once(self, kind: str, subject: str, text: str, detail: str) -> None:
        """Report something without an end, at most once a day."""
        key = f"{kind} {subject} {detail}"
        if key not in self.state.noted:
            self.state = replace(self.state, noted={**self.state.noted, key: self.seen.now})
            self.reports.append(WatchReport(kind, subject, text))


def _figures(reading: CardReading) -> str:
    parts = []
    if reading.temperature_c is not None:
        parts.append(f"{reading.temperature_c:.0f} °C")
    if reading.margin_c is not None:
        parts.append(f"margin {reading.margin_c:.0f} K")
    if reading.power_w is not None:
        parts.append(f"{reading.power_w:.0f} W")
    if reading.fan_ratio is not None:
        parts.append(f"fans {reading.fan_ratio:.0%}")
    return ", ".join(parts)


def _sentence(text: str) -> str:
    return f"The watchdog will {text}"
