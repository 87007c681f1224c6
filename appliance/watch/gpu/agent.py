"""The watchdog: looks, decides, and applies what follows. Each step of its loop is short and never blocks."""

from __future__ import annotations

import logging
import select
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from msgspec.structs import replace as with_fields

from appliance.catalog.xids import Xid, same_slot
from appliance.engines.argv import unit_name
from appliance.errors import StoreError
from appliance.notices.notice import Notice
from appliance.notices.outbox import Outbox
from appliance.notices.pending import PendingNotices
from appliance.system import files
from appliance.system.bounded_child import BoundedChild
from appliance.system.service_manager import notify
from appliance.system.stopping import Stop
from appliance.watch.card_power import CardPower
from appliance.watch.gpu.card_reader import TIMEOUT_S, CardReader, CardReading, Look
from appliance.watch.gpu.decide import decide, targets
from appliance.watch.gpu.drain_link import DrainLink
from appliance.watch.gpu.fan_control import FanControl
from appliance.watch.gpu.kernel_log import KernelLog
from appliance.watch.gpu.memory import WatchPaths, essence, load_state, save_state
from appliance.watch.gpu.metrics import MetricsFile, registry
from appliance.watch.gpu.state import (
    Observation,
    RebootMachine,
    ReplicaView,
    RestartEngine,
    SeenXid,
    WatchAction,
    WatchConfig,
    WatchReport,
    WatchState,
)

LOG = logging.getLogger(__name__)

AGENT = "gpu-watch"

COLD_CYCLE_UNIT = "appliance-cold-cycle.service"
"""The unit that sets the alarm of the machine's clock and powers it off."""

COMMAND_S = 60.0
"""Seconds that a command of systemd may take."""

HANG_LOOKS = 2
"""Queries in a row without a response that count as a hang; a child that SIGKILL does not end counts at once."""

SAVE_S = 600.0
"""Seconds between two writes of a state whose clock alone has changed."""

UNMAPPED_S = 10.0
"""Seconds for which an error of an unknown address waits for the first look at the cards."""

RESTORE_S = 5.0
"""Seconds for the fans at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Seconds between two steps of the loop, and between two looks at the cards."""

    step_s: float = 1.0
    look_s: float = 3.0
    query_timeout_s: float = TIMEOUT_S


class CardStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One card for people, as ``appliance gpu-watch status`` prints it."""

    index: int
    rung: int
    cause: str = ""
    temperature_c: float | None = None
    margin_c: float | None = None
    power_w: float | None = None
    limit_w: float | None = None
    fan_ratio: float | None = None


class WatchStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The status file."""

    act: bool
    at: float
    """Seconds since the epoch."""
    driver_hangs: bool
    cards: tuple[CardStatus, ...]
    drains: dict[str, str]
    """Reasons by replica."""
    reboots_today: int


class GpuWatch:
    """The running watchdog.

    Args:
        config: Its permissions and the parts that it watches.
        paths: Its files.
        gateway: Data folder of the gateway; ``None`` on a host without one.
        any_facility: Accept messages of processes in the kernel's log, for tests.
    """

    def __init__(
        self,
        config: WatchConfig,
        *,
        paths: WatchPaths,
        gateway: Path | None,
        intervals: Intervals | None = None,
        any_facility: bool = False,
    ) -> None:
        self._config = config
        self._paths = paths
        self._intervals = intervals or Intervals()
        files.make_folder(paths.runtime)
        self._notices = PendingNotices(Outbox(paths.outbox))
        self._saved = self._load()
        self._state = self._saved
        self._boot_id = paths.boot_id()
        self._clock = self._state.clock - time.monotonic()
        self._saved_at = time.monotonic()
        self._save_failing = False
        self._log = KernelLog(paths.kmsg, paths.runtime / "kernel-log.json", any_facility=any_facility)
        self._reader = CardReader(timeout_s=self._intervals.query_timeout_s)
        self._look_at = 0.0
        self._cards: tuple[CardReading, ...] = ()
        self._looked_at = 0.0
        self._hangs = False
        self._timeouts = 0
        self._unmapped: deque[tuple[float, Xid]] = deque(maxlen=1000)
        self._power = CardPower(config.ranges, paths.wishes)
        self._wish: Mapping[int, int] | None = None
        self._wish_error = ""
        self._fans = FanControl(config.cards if config.act and config.fans else ())
        self._link = None if gateway is None else DrainLink(gateway)
        self._commands: deque[Sequence[str]] = deque()
        self._child = BoundedChild()
        self._running: Sequence[str] = ()
        self._metrics = MetricsFile(paths.metrics)

    def run(self, stop: Stop) -> None:
        """Watch until ``stop``; then return the fans to the driver's control."""
        if self._link is not None:
            self._link.start()
        notify("READY=1")
        LOG.info(
            "watching cards %s; %s", sorted(self._config.cards), "acting" if self._config.act else "report only"
        )
        try:
            while not stop.requested:
                began = time.monotonic()
                self.step()
                notify("WATCHDOG=1")
                left = max(0.05, began + self._intervals.step_s - time.monotonic())
                select.select([self._log.fileno(), stop.fileno()], [], [], left)
        finally:
            self.close()

    def step(self) -> None:
        """Look at all that has changed, decide, and apply the decision."""
        xids = self._new_xids()
        look = self._look()
        seen = Observation(
            now=self._now(),
            boot_id=self._boot_id,
            uptime_s=self._paths.uptime_s(),
            cards=None if look is None or look.error else look.cards,
            look_error=look.error if look is not None and not self._hangs else "",
            driver_hangs=self._hangs,
            xids=xids,
            replicas=self._views(),
            on_battery=self._paths.on_battery(),
            on_trial=self._paths.on_trial(),
        )
        if seen.cards is not None:
            self._learn(seen.cards)
        made = decide(self._state, seen, self._config)
        leaves = [action for action in made.actions if not isinstance(action, RestartEngine)]
        if leaves and not self._save(made.state):
            # Without a count on disk, each boot could request the next one.
            made = decide(self._state, replace(seen, durable=False), self._config)
        self._state = made.state
        # Before the state: a crash in between repeats a notice, and loses none.
        for report in made.reports:
            self._report(report)
        self._notices.flush()
        self._save_if_changed()
        self._log.save()
        for action in made.actions:
            self._begin(action)
        self._apply()
        self._run_command()
        if look is not None or self._hangs:
            self._publish()

    def close(self) -> None:
        """Restore the fans, and stop without waiting for a child that hangs. Drains and limits stay in force."""
        notify("STOPPING=1")
        if self._link is not None:
            self._link.close()
        if not self._hangs:
            self._fans.restore(RESTORE_S)
        self._reader.close()
        self._log.close()
        self._save(self._state)

    # Seeing.

    def _now(self) -> float:
        return self._clock + time.monotonic()

    def _look(self) -> Look | None:
        now = time.monotonic()
        look = self._reader.poll()
        if look is not None:
            self._timeouts = self._timeouts + 1 if look.timed_out else 0
            self._hangs = self._timeouts >= HANG_LOOKS
            if not look.error:
                self._cards, self._looked_at = look.cards, time.time()
        elif self._reader.hanging:
            self._hangs = True
        if now >= self._look_at:
            self._reader.begin()
            self._look_at = now + self._intervals.look_s
        return look

    def _learn(self, cards: Sequence[CardReading]) -> None:
        """Remember the addresses of the cards: after one is lost, its errors still have to find it."""
        if cards and (not self._config.cards or {card.index for card in cards} >= self._config.cards):
            buses = {card.bus: card.index for card in cards}
            if buses != self._state.buses:
                self._state = with_fields(self._state, buses=buses)

    def _new_xids(self) -> tuple[SeenXid, ...]:
        now = time.monotonic()
        self._unmapped.extend((now, xid) for xid in self._log.read())
        found, wait = [], deque[tuple[float, Xid]](maxlen=self._unmapped.maxlen)
        for at, xid in self._unmapped:
            card = next((index for bus, index in self._state.buses.items() if same_slot(bus, xid.bus)), None)
            if card is None and not self._state.buses and now - at < UNMAPPED_S:
                wait.append((at, xid))
            else:
                LOG.warning("card %s: Xid %d: %s", "?" if card is None else card, xid.number, xid.text[:200])
                found.append(SeenXid(xid, card))
        self._unmapped = wait
        return tuple(found)

    def _views(self) -> Mapping[str, ReplicaView] | None:
        return None if self._link is None else self._link.views

    # Remembering.

    def _load(self) -> WatchState:
        path = self._paths.state
        try:
            return load_state(path)
        except (StoreError, msgspec.DecodeError) as error:
            text = (
                f"{path} is damaged ({error}): the watchdog does not count earlier reboots and requests none today."
            )
            self._notices.put(Notice("card-watch", "state", text, time.time()))
            LOG.warning("%s", text)
            # A count that is not known counts as used up.
            return WatchState(reboots=(0.0, 0.0), cold_cycles=(0.0,))

    def _save(self, state: WatchState) -> bool:
        try:
            save_state(self._paths.state, state)
        except StoreError as error:
            if not self._save_failing:
                LOG.warning("the state cannot be written, so no reboot is requested: %s", error)
            self._save_failing = True
            return False
        self._save_failing = False
        self._saved, self._saved_at = state, time.monotonic()
        return True

    def _save_if_changed(self) -> None:
        old = time.monotonic() - self._saved_at >= SAVE_S
        if old or essence(self._state) != essence(self._saved):
            self._save(self._state)

    # Acting.

    def _report(self, report: WatchReport) -> None:
        LOG.warning("%s", report.text)
        self._notices.put(Notice(report.kind, report.subject, report.text, time.time(), report.ended))

    def _begin(self, action: WatchAction) -> None:
        if isinstance(action, RestartEngine):
            self._commands.append(("systemctl", "restart", "--no-block", unit_name(action.replica)))
        elif isinstance(action, RebootMachine):
            self._commands.append(("systemctl", "reboot", "--no-block"))
        else:
            self._commands.append(("systemctl", "start", "--no-block", COLD_CYCLE_UNIT))

    def _run_command(self) -> None:
        result = self._child.poll()
        if result is not None:
            words = " ".join(self._running)
            if result.ok:
                LOG.warning("%s", words)
            else:
                reason = "timed out" if result.timed_out else result.output.strip()[:200]
                LOG.error("%s failed: %s", words, reason)
        if self._commands and not self._child.busy:
            self._running = self._commands.popleft()
            self._child.start(self._running, timeout_s=COMMAND_S)

    def _apply(self) -> None:
        wanted = targets(self._state, self._config)
        if self._link is not None:
            self._link.want(wanted.drains)
        if not self._config.act:
            return
        self._fans.tick(wanted.fans)
        try:
            if wanted.watts != self._wish:
                self._power.wish(AGENT, wanted.watts)
                self._wish = wanted.watts
            self._power.tick()
            self._wish_error = ""
        except StoreError as error:
            if str(error) != self._wish_error:
                LOG.warning("%s", error)
            self._wish_error = str(error)

    def _publish(self) -> None:
        for card in self._cards:
            if card.limit_w is not None:
                self._power.observed(card.index, round(card.limit_w))
        metrics = registry(
            self._cards, self._state, looked_at=self._looked_at, hangs=self._hangs, act=self._config.act
        )
        self._metrics.write(metrics)
        status = msgspec.json.encode(self.status()).decode()
        try:
            files.replace(self._paths.runtime / "status.json", status)
        except StoreError as error:
            LOG.debug("%s", error)

    def status(self) -> WatchStatus:
        """Return the status for people."""
        readings = {card.index: card for card in self._cards}
        cards = []
        for index, one in sorted(self._state.cards.items()):
            reading = readings.get(index, CardReading(index=index, bus="", temperature_c=None))
            fault = one.fault
            cards.append(
                CardStatus(
                    index=index,
                    rung=one.rung,
                    cause=fault.cause if fault is not None else "heat" if one.heat.rung else "",
                    temperature_c=reading.temperature_c,
                    margin_c=reading.margin_c,
                    power_w=reading.power_w,
                    limit_w=reading.limit_w,
                    fan_ratio=reading.fan_ratio,
                )
            )
        return WatchStatus(
            act=self._config.act,
            at=self._looked_at,
            driver_hangs=self._hangs,
            cards=tuple(cards),
            drains=dict(targets(self._state, self._config).drains),
            reboots_today=len(self._state.reboots),
        )
