"""A simulated machine for the pure core: observations in, decisions out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from appliance.catalog.xids import Xid
from appliance.watch.card_power import PowerRange
from appliance.watch.gpu.card_reader import CardReading
from appliance.watch.gpu.decide import decide, targets
from appliance.watch.gpu.state import (
    CardState,
    Observation,
    ReplicaView,
    SeenXid,
    WatchAction,
    WatchConfig,
    WatchDecision,
    WatchedReplica,
    WatchReport,
    WatchState,
    WatchTargets,
)

CONFIG = WatchConfig(
    act=True,
    fans=True,
    cold_cycle=True,
    cards=frozenset({0, 1}),
    ranges={0: PowerRange(150, 450), 1: PowerRange(300, 450)},
    replicas={"chat.0": WatchedReplica((0,)), "chat.1": WatchedReplica((1,)), "embed": WatchedReplica(())},
)
UP = ReplicaView(up=True)
DOWN = ReplicaView(up=False)
HUNG = ReplicaView(up=False, timed_out=True)


def reading(index: int, margin: float | None = 30.0, **more: object) -> CardReading:
    """A healthy card with this margin."""
    card = CardReading(
        index=index,
        bus=f"00000000:{index}1:00.0",
        temperature_c=60.0,
        margin_c=margin,
        power_w=400.0,
        fan_ratio=0.53,
    )
    return replace(card, **more)  # type: ignore[arg-type]


def xid(number: int, card: int | None = 0, text: str = "pid=1, x") -> SeenXid:
    return SeenXid(Xid(f"0000:{card or 0}1:00", number, text), card)


def verdict(words: str, card: int = 0) -> SeenXid:
    return xid(154, card, f"GPU recovery action changed from 0x0 (None) to 0x2 ({words})")


@dataclass
class Scene:
    """A machine that the watchdog watches. Actions happen only if the test lets them happen."""

    config: WatchConfig = CONFIG
    state: WatchState = field(default_factory=WatchState)
    now: float = 1000.0
    booted: float = 0.0
    boot: int = 0
    views: Mapping[str, ReplicaView] | None = field(
        default_factory=lambda: {"chat.0": UP, "chat.1": UP, "embed": UP}
    )
    margins: dict[int, float] = field(default_factory=lambda: {0: 30.0, 1: 30.0})
    more: dict[str, object] = field(default_factory=dict)
    """Further fields of each observation."""
    actions: list[WatchAction] = field(default_factory=list)
    reports: list[WatchReport] = field(default_factory=list)

    def see(self, *xids: SeenXid, after: float = 0.0, **more: object) -> WatchDecision:
        """One observation, ``after`` seconds later."""
        self.now += after
        seen = Observation(
            now=self.now,
            boot_id=f"boot-{self.boot}",
            uptime_s=self.now - self.booted,
            cards=tuple(reading(index, margin) for index, margin in self.margins.items()),
            xids=xids,
            replicas=self.views,
        )
        made = decide(self.state, replace(seen, **{**self.more, **more}), self.config)  # type: ignore[arg-type]
        self.state = made.state
        self.actions += made.actions
        self.reports += made.reports
        return made

    def watch(self, seconds: float, step: float = 5.0) -> None:
        """Look every few seconds."""
        for _ in range(int(seconds // step)):
            self.see(after=step)

    def reboot(self) -> None:
        self.boot += 1
        self.now += 1
        self.booted = self.now

    def card(self, index: int) -> CardState:
        return self.state.cards[index]

    @property
    def targets(self) -> WatchTargets:
        return targets(self.state, self.config)

    def taken(self) -> list[WatchAction]:
        """The actions since the last call."""
        found, self.actions = self.actions, []
        return found

    def reported(self) -> list[tuple[str, str, bool]]:
        """Kind, subject and end of the notices since the last call."""
        found, self.reports = self.reports, []
        return [(one.kind, one.subject, one.ended) for one in found]
