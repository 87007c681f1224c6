"""State, observations and decisions of the watchdog. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TypeAlias

import msgspec

from appliance.catalog.xids import Recovery, Xid
from appliance.watch.card_power import PowerRange
from appliance.watch.gpu.card_reader import CardReading


class Rung(IntEnum):
    """Steps of the ladder, as the metric ``appliance_gpu_rung`` has them."""

    NONE = 0
    FANS = 1
    WATTS = 2
    DRAIN = 3
    RESTART = 4
    REBOOT = 5
    COLD_CYCLE = 6
    DEGRADED = 7


class HeatLevel(StrEnum):
    """Temperature of a card, compared with its limits."""

    COOL = "cool"
    HOLD = "hold"
    """Between cool and warm, or unknown: nothing changes."""
    WARM = "warm"
    HOT = "hot"


class Heat(msgspec.Struct, frozen=True):
    """The ladder of a card against heat."""

    rung: Rung = Rung.NONE
    steps: int = 0
    """Steps by which its power limit is lowered."""
    changed_at: float = 0.0
    """Time of the last change of rung or steps."""
    warm_looks: int = 0
    """Looks in a row at which it was warm or hot."""
    cool_since: float | None = None
    hot: bool = False
    """Whether it was hot since the ladder began: a notice was sent, and the fans run at full speed."""
    exhausted: bool = False
    """Whether no step was left since the ladder began: a second notice was sent."""


class FaultStage(StrEnum):
    """Progress of the work on a card with an error."""

    DRAINED = "drained"
    RESTARTED = "restarted"
    REBOOTING = "rebooting"
    PROVING = "proving"
    """The machine has booted since; the card has to prove itself."""
    COLD_CYCLE = "cold-cycle"
    DEGRADED = "degraded"
    """Nothing more is done: the card stays without requests until the next boot."""


FAULT_RUNGS = {
    FaultStage.DRAINED: Rung.DRAIN,
    FaultStage.RESTARTED: Rung.RESTART,
    FaultStage.REBOOTING: Rung.REBOOT,
    FaultStage.PROVING: Rung.REBOOT,
    FaultStage.COLD_CYCLE: Rung.COLD_CYCLE,
    FaultStage.DEGRADED: Rung.DEGRADED,
}


class CardFault(msgspec.Struct, frozen=True):
    """An error of a card that its engines do not survive."""

    cause: str
    needs: Recovery
    stage: FaultStage
    stage_at: float
    """Time at which the stage began."""
    seen_at: float
    """Time of the last error."""


class CardState(msgspec.Struct, frozen=True):
    """The memory of one card."""

    heat: Heat = Heat()
    fault: CardFault | None = None
    missing_looks: int = 0
    """Looks in a row at which the driver did not list it."""
    recovery: Recovery = Recovery.NONE
    ecc_uncorrected: int | None = None

    @property
    def rung(self) -> Rung:
        """The higher one of both ladders."""
        return max(self.heat.rung, Rung.NONE if self.fault is None else FAULT_RUNGS[self.fault.stage])


class HangStage(StrEnum):
    """Progress of the work on a replica that accepts requests and generates nothing."""

    SUSPECTED = "suspected"
    RESTARTING = "restarting"
    LEFT = "left"
    """Left as it is: nothing more is done."""


class ReplicaHang(msgspec.Struct, frozen=True):
    """A replica that hangs, or is suspected to."""

    stage: HangStage
    stage_at: float
    up_since: float | None = None


class WatchState(msgspec.Struct, frozen=True, kw_only=True):
    """All that the watchdog remembers, over its own restarts and over reboots.

    All times are of one clock that counts the seconds for which the watchdog has run, over all boots. The wall
    clock may jump at a boot, and budgets per day must not.
    """

    clock: float = 0.0
    boot_id: str = ""
    acting: bool = False
    """Whether the watchdog acted when it wrote the state."""
    own_boot: bool = False
    """Whether this boot follows a reboot that the watchdog requested."""
    leaving_at: float | None = None
    """Time at which it requested a reboot or a cold cycle of this boot."""
    cards: dict[int, CardState] = {}
    hangs: dict[str, ReplicaHang] = {}
    buses: dict[str, int] = {}
    """Index of each card by its address, from the last look that showed all cards."""
    restarts: dict[str, tuple[float, ...]] = {}
    reboots: tuple[float, ...] = ()
    cold_cycles: tuple[float, ...] = ()
    noted: dict[str, float] = {}
    """Times of notices without an end, by what they are about."""
    xids: dict[str, int] = {}
    """Errors in this boot, by ``CARD:XID``; the card is ``?`` if its address is not known."""
    driver_hangs_since: float | None = None
    driver_noted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Durations in seconds. Tests with real processes shorten them."""

    fans_s: float = 20.0
    """Fans at a higher speed, before the power limit is lowered."""
    step_s: float = 20.0
    """Between two steps of the power limit."""
    cool_s: float = 300.0
    """Cool, before one step back."""
    stays_hot_s: float = 600.0
    """Hot without requests, before it is reported as not in control."""
    burst_s: float = 5.0
    """One failure logs several errors."""
    drain_s: float = 30.0
    """For the running requests of a card with an error."""
    settle_s: float = 60.0
    """Without an error after a restart or a reboot, before the card is trusted again."""
    start_margin_s: float = 60.0
    """In addition to the start timeout of an engine."""
    hang_s: float = 60.0
    """Without a token, after the gateway has taken a replica down for a timeout."""
    driver_s: float = 120.0
    """The driver hangs and an engine is down, before the machine reboots."""
    quiet_s: float = 1800.0
    """Without an error, before a report ends that nothing was done about."""
    early_s: float = 600.0
    """After a boot that the watchdog requested, in which it requests no further one."""
    leave_s: float = 900.0
    """In which the machine has to go down after a request."""


HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
RESTARTS_AN_HOUR = 3
REBOOTS_A_DAY = 2
COLD_CYCLES_A_DAY = 1
STEP_W = 50


@dataclass(frozen=True, slots=True)
class WatchedReplica:
    """A replica of this host: the cards that it uses, and the limit of its start in seconds."""

    cards: tuple[int, ...]
    start_timeout_s: float = 600.0
    is_rank: bool = False
    """Whether it is a further rank of an engine that another host serves: no gateway of this host has its state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchConfig:
    """The permissions of the watchdog, and the parts that it watches."""

    act: bool
    fans: bool = False
    cold_cycle: bool = False
    cards: frozenset[int] = frozenset()
    """Indices of the cards that this host should have."""
    ranges: Mapping[int, PowerRange] = field(default_factory=dict)
    replicas: Mapping[str, WatchedReplica] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica as the gateway sees it."""

    up: bool
    loaded: bool = True
    timed_out: bool = False
    """Whether it is down because it generated no token in time: its process may hang."""
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class SeenXid:
    """An error in the kernel's log."""

    xid: Xid
    card: int | None
    """Its card; ``None`` if the address is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """All that the watchdog sees at one moment."""

    now: float
    """Seconds of the clock of :class:`WatchState`."""
    boot_id: str
    uptime_s: float
    cards: tuple[CardReading, ...] | None = None
    """A new look; ``None`` if there is none since the last observation."""
    look_error: str = ""
    """Why there is no look, if nvidia-smi failed; a hang is not such a failure."""
    driver_hangs: bool = False
    xids: tuple[SeenXid, ...] = ()
    replicas: Mapping[str, ReplicaView] | None = None
    """``None`` if the gateway does not respond."""
    on_battery: bool = False
    on_trial: bool = False
    durable: bool = True
    """Whether the state can be written to disk."""


@dataclass(frozen=True, slots=True)
class RestartEngine:
    """Restart the unit of a replica."""

    replica: str


@dataclass(frozen=True, slots=True)
class RebootMachine:
    """Reboot the machine."""

    reason: str


@dataclass(frozen=True, slots=True)
class ColdCycle:
    """Power the machine off, and on again by its clock."""

    reason: str


WatchAction: TypeAlias = RestartEngine | RebootMachine | ColdCycle


@dataclass(frozen=True, slots=True)
class WatchReport:
    """A notice without its time."""

    kind: str
    subject: str
    text: str
    ended: bool = False


@dataclass(frozen=True, slots=True)
class WatchDecision:
    """The next state, and what follows once."""

    state: WatchState
    actions: tuple[WatchAction, ...] = ()
    reports: tuple[WatchReport, ...] = ()


@dataclass(frozen=True, slots=True)
class WatchTargets:
    """Settings that have to hold as long as the state stays: applied again whenever they do not."""

    fans: Mapping[int, int] = field(default_factory=dict)
    """Speed of the fans in percent by card; a card without an entry keeps the driver's own control."""
    watts: Mapping[int, int] = field(default_factory=dict)
    """Power limits by card."""
    drains: Mapping[str, str] = field(default_factory=dict)
    """Reasons for which replicas get no new requests."""
