"""The power agent: looks at the UPS once a second, decides, and brings the machine into the state that follows.

Nothing in the loop waits for another program: the links that can block have threads, and systemctl and nvidia-smi
are bounded children. A second agent continues where the first one ended, from the files in ``run``, which a reboot
empties.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec.structs import replace

from appliance.errors import StoreError
from appliance.notices.notice import Notice
from appliance.notices.pending import PendingNotices
from appliance.system import files
from appliance.system.bounded_child import BoundedChild
from appliance.system.metrics_file import write_metrics
from appliance.system.service_manager import notify
from appliance.system.stopping import Stop
from appliance.watch.card_power import CardPower
from appliance.watch.power.engine_units import EngineUnits
from appliance.watch.power.links import Announcements, EngineCanaries, GatewayLink, Link
from appliance.watch.power.metrics import registry
from appliance.watch.power.policy import (
    GOING_DOWN,
    PowerDecision,
    PowerLook,
    PowerOrders,
    PowerPhase,
    PowerState,
    PowerTimings,
    decide,
    orders,
)
from appliance.watch.power.reading import UpsReading, from_variables
from appliance.watch.power.upsd_client import UpsdClient, UpsError

LOG = logging.getLogger(__name__)

RUN = Path("/run/appliance-power")
STATE = Path("/var/lib/appliance-power")
POWER_OFF = ("upsmon", "-c", "fsd")
POWER_OFF_S = 60.0
"""Seconds that the command which powers off may take."""
METRICS_S = 5.0
FRESH_S = 120.0
"""Age in seconds up to which the supply that an earlier agent saw still counts."""
END_S = 3.0
"""Seconds that each link has to finish when the agent ends."""
AGENT = "power"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class PublicPowerState(msgspec.Struct, frozen=True):
    """The file ``state`` in :data:`RUN`, for other agents: old if ``at`` is more than some seconds ago."""

    on_battery: bool
    phase: PowerPhase
    at: float
    """Seconds of CLOCK_BOOTTIME at the last look."""


class OutageRecord(msgspec.Struct, frozen=True):
    """A shutdown because of an outage, so that the next boot can report its end."""

    boot_id: str
    at: float
    """Unix time."""


@dataclass(frozen=True, slots=True)
class PowerFolders:
    """Folders of the agent: ``run`` ends with the boot, ``state`` does not. ``metrics`` is a file, or ``None``."""

    run: Path = RUN
    state: Path = STATE
    metrics: Path | None = None


@dataclass(frozen=True, slots=True)
class PowerParts:
    """The parts of the machine that the agent changes; a part that a host does not have is ``None``."""

    units: EngineUnits
    gateway: GatewayLink | None = None
    canaries: EngineCanaries | None = None
    announcements: Announcements | None = None
    cards: CardPower | None = None
    minimum: dict[int, int] | None = None
    """Minimum watts by card."""
    power_off: Sequence[str] = POWER_OFF

    @property
    def links(self) -> list[Link]:
        """Return the links of this host."""
        return [link for link in (self.gateway, self.canaries, self.announcements) if link is not None]


def boottime() -> float:
    """Return the seconds since boot, suspended time included: the clock of all agents."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class PowerAgent:
    """One agent. :meth:`run` is its loop, :meth:`tick` one look."""

    def __init__(
        self,
        client: UpsdClient,
        parts: PowerParts,
        notices: PendingNotices,
        *,
        folders: PowerFolders,
        timings: PowerTimings,
        boot_id: Path = BOOT_ID,
    ) -> None:
        self._client = client
        self._parts = parts
        self._notices = notices
        self._folders = folders
        self._timings = timings
        self._boot_id = boot_id
        self._power_off = BoundedChild()
        self._problems: dict[str, str] = {}
        self._wish: dict[int, int] | None = None
        self._metrics_at = 0.0
        self.state = self._resumed()

    def run(self, stop: Stop, interval_s: float = 1.0) -> None:
        """Look every ``interval_s`` seconds until ``stop`` is requested.

        An agent that ends changes nothing: on mains there is nothing to undo, and in an outage its successor
        continues.
        """
        for link in self._parts.links:
            link.start()
        self._report_boot()
        notify("READY=1")
        due = time.monotonic()
        while not stop.requested:
            self.tick()
            notify("WATCHDOG=1")
            due = max(due + interval_s, time.monotonic())
            stop.wait(max(0.0, due - time.monotonic()))
        self._client.close()
        self._parts.units.cancel()
        for link in self._parts.links:
            link.end(END_S)

    def tick(self) -> PowerDecision:
        """Look once, and begin whatever follows."""
        ups, problem = self._read()
        at = boottime()
        look = PowerLook(at, ups, problem, self._in_flight(), self._engines_ready())
        before, made = self.state, decide(self.state, look, self._timings)
        self.state = made.state
        if made.state.phase is not before.phase:
            LOG.warning("power: %s, was %s", made.state.phase.value, before.phase.value)
        if made.power_off:
            self._end_machine()
        self._apply(orders(made.state), ups)
        now = time.time()
        for message in made.messages:
            LOG.warning("%s: %s", message.kind, message.text)
            self._notices.put(Notice(message.kind, "UPS", message.text, now, message.ended))
        self._notices.flush()
        # Last, so that an agent that is killed before it makes its successor decide and report the same again.
        if made.state != before:
            self._save("memory.json", made.state)
        self._save("state", PublicPowerState(made.state.on_battery, made.state.phase, at))
        if before.phase is not PowerPhase.GOING_DOWN and made.state.phase is PowerPhase.GOING_DOWN:
            self._record_end(now)
        elif before.phase is PowerPhase.GOING_DOWN and made.state.phase is not PowerPhase.GOING_DOWN:
            (self._folders.state / "outage.json").unlink(missing_ok=True)
        self._write_metrics(ups, now, changed=made.state.phase is not before.phase)
        return made

    def _read(self) -> tuple[UpsReading | None, str]:
        try:
            reading = from_variables(self._client.variables())
        except UpsError as error:
            self._problem("ups", str(error))
            return None, str(error)
        self._problem("ups", "")
        return reading, ""

    def _in_flight(self) -> int | None:
        gateway = self._parts.gateway
        return 0 if gateway is None else gateway.in_flight

    def _engines_ready(self) -> bool:
        """Return whether each engine that was stopped generates tokens, and the gateway uses it."""
        units, canaries, gateway = self._parts.units, self._parts.canaries, self._parts.gateway
        states = {} if gateway is None else gateway.states
        if self.state.phase is not PowerPhase.RETURNING:
            if canaries is not None:
                canaries.want(())
            return False
        if canaries is not None:
            # The gateway that was restarted meanwhile loads these itself.
            unloaded = [name for name in units.replicas if states.get(name) == "not loaded"]
            units.forget_replicas([name for name in unloaded if canaries.on_demand(name)])
        if not units.ready:
            return False
        if canaries is not None:
            canaries.want(units.replicas)
            if not canaries.passed:
                return False
        return not any(states.get(name) == "down" for name in units.replicas)

    def _apply(self, wanted: PowerOrders, ups: UpsReading | None) -> None:
        parts = self._parts
        self._watts(minimum=wanted.minimum_watts)
        if parts.gateway is not None:
            parts.gateway.want(wanted.pause)
        if self.state.phase in (PowerPhase.MAINS, PowerPhase.BATTERY):
            parts.units.forget()
        parts.units.tick(off=wanted.engines == "off")
        if parts.announcements is not None:
            self._announce(parts.announcements, ups)

    def _watts(self, *, minimum: bool) -> None:
        cards = self._parts.cards
        if cards is None:
            return
        wish = dict(self._parts.minimum or {}) if minimum else {}
        try:
            if wish != self._wish:
                cards.wish(AGENT, wish)
                self._wish = wish
            cards.tick()
        except StoreError as error:
            self._problem("watts", str(error))
        else:
            self._problem("watts", "")

    def _announce(self, announcements: Announcements, ups: UpsReading | None) -> None:
        phase = self.state.phase
        runtime_s = ups.runtime_s if ups is not None and ups.runtime_s is not None else 0.0
        if phase is PowerPhase.GOING_DOWN:
            announcements.want(GOING_DOWN, 0.0)
        elif phase is not PowerPhase.MAINS:
            announcements.want("on-battery", runtime_s)
        elif announcements.pending:
            announcements.want("back", 0.0)

    def _end_machine(self) -> None:
        if self._power_off.poll() is None and self._power_off.busy:
            return
        argv = list(self._parts.power_off)
        LOG.critical("power: %s", " ".join(argv))
        self._power_off.start(argv, timeout_s=POWER_OFF_S)

    def _record_end(self, now: float) -> None:
        try:
            boot_id = self._boot_id.read_text().strip()
            files.replace(
                self._folders.state / "outage.json", msgspec.json.encode(OutageRecord(boot_id, now)).decode()
            )
        except (OSError, StoreError) as error:
            self._problem("record", f"the shutdown is not recorded: {error}")

    def _report_boot(self) -> None:
        """Report the end of a shutdown that the last boot recorded, and remove the record."""
        file = self._folders.state / "outage.json"
        try:
            content = files.read(file)
            if content is None:
                return
            record = msgspec.json.decode(content, type=OutageRecord)
            if record.boot_id == self._boot_id.read_text().strip():
                return
            file.unlink(missing_ok=True)
        except (OSError, StoreError, msgspec.DecodeError) as error:
            self._problem("record", f"the record of the last shutdown cannot be used: {error}")
            return
        now = time.time()
        off = max(0.0, now - record.at) / 60
        text = f"The machine runs again after the power cut; it was off for {off:.0f} min."
        self._notices.put(Notice(GOING_DOWN, "UPS", text, now, ended=True))

    def _resumed(self) -> PowerState:
        """Return the state of the agent before this one, without a supply that it saw too long ago."""
        state, at = self._load(), boottime()
        public = read_public(self._folders.run)
        if public is None or public[1] > FRESH_S:
            state = replace(
                state, on_battery=False, supply_since=at, low_since=None, short_since=None, unreachable_since=None
            )
        if self._parts.units.stopped and state.phase in (PowerPhase.MAINS, PowerPhase.BATTERY):
            # The memory was lost, the list of stopped engines was not.
            state = replace(state, phase=PowerPhase.RETURNING, since=at)
        return state

    def _load(self) -> PowerState:
        file = self._folders.run / "memory.json"
        try:
            content = files.read(file)
            return PowerState() if content is None else msgspec.json.decode(content, type=PowerState)
        except (StoreError, msgspec.DecodeError) as error:
            LOG.warning("%s is damaged (%s); the agent begins anew", file, error)
            return PowerState()

    def _save(self, name: str, value: msgspec.Struct) -> None:
        try:
            files.make_folder(self._folders.run)
            files.replace(self._folders.run / name, msgspec.json.encode(value).decode())
        except StoreError as error:
            self._problem(name, str(error))
        else:
            self._problem(name, "")

    def _write_metrics(self, ups: UpsReading | None, now: float, *, changed: bool) -> None:
        file = self._folders.metrics
        if file is None or (not changed and time.monotonic() < self._metrics_at):
            return
        self._metrics_at = time.monotonic() + METRICS_S
        try:
            write_metrics(file, registry(self.state, ups, now))
        except StoreError as error:
            self._problem("metrics", str(error))
        else:
            self._problem("metrics", "")

    def _problem(self, about: str, text: str) -> None:
        """Log a problem once, and its end."""
        before = self._problems.get(about, "")
        if text and text != before:
            LOG.warning("%s", text)
        elif before and not text:
            LOG.info("%s: no problem any more", about)
        self._problems[about] = text


def read_public(run: Path, now: Callable[[], float] = boottime) -> tuple[PublicPowerState, float] | None:
    """Return the public state in ``run`` and its age in seconds; ``None`` if there is none that can be read."""
    try:
        content = files.read(run / "state")
        state = None if content is None else msgspec.json.decode(content, type=PublicPowerState)
    except (StoreError, msgspec.DecodeError):
        return None
    return None if state is None else (state, now() - state.at)
