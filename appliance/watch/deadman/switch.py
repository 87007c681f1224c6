"""The running switch: its state, its notices and its metrics. The threads of the process share one object."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from appliance.errors import InvalidRequestError, StoreError
from appliance.notices.notice import Notice
from appliance.notices.outbox import Outbox
from appliance.notices.pending import PendingNotices
from appliance.watch.announce import MAX_PLANNED_S, AnnouncedKind
from appliance.watch.deadman import state_file
from appliance.watch.deadman.policy import (
    HomeLook,
    ReadyState,
    SwitchLimits,
    SwitchState,
    announced,
    beaten,
    looked,
)

LOG = logging.getLogger(__name__)

KIND = "home-silent"
"""Kind of the notices. Each of them pages, by the bot of the VPS alone."""
UNSENT_S = 900.0
"""Age of an unsent notice, in seconds, from which on the switch cannot reach the operator."""
EVALUATED_AT = "evaluated_at"
"""Annotation with the time at which Prometheus evaluated the alert: it proves that each beat is a new one."""


class DeadMansSwitch:
    """The switch for the host ``home``. Its methods may be called in any thread."""

    def __init__(
        self,
        home: str,
        *,
        limits: SwitchLimits,
        outbox: Outbox,
        state: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home = home
        self._limits = limits
        self._outbox = outbox
        self._pending = PendingNotices(outbox)
        self._file = state
        self._clock = clock
        self._lock = threading.Lock()
        self._state = state_file.read(state, self._clocks(), limits)
        self._kept = _kept(self._state)
        self._unwritable = False
        self._look: HomeLook | None = None
        self._looked_at = 0.0
        self._beaten = False
        self._evaluated: str | None = None
        if self._state.announcement is not None or self._state.alarm is not None:
            LOG.info("continues with %s and %s", self._state.alarm, self._state.announcement)

    def look(self, look: HomeLook) -> None:
        """Take in a look at the host; put the notices that follow from it."""
        with self._lock:
            before = self._look
            self._look, self._looked_at = look, time.time()
            self._state, messages = looked(
                self._state, look, now=self._clock(), limits=self._limits, home=self._home
            )
            if before is None or before.ready is not look.ready:
                LOG.info("%s: /ready: %s", self._home, look.detail)
            # First the notice, then the state: after a power cut between them it is repeated, not lost.
            for message in messages:
                LOG.warning("%s", message.text)
                self._pending.put(Notice(KIND, self._home, message.text, time.time(), message.ended, page=True))
            self._pending.flush()
            self._save()

    def beat(self, body: bytes) -> bool:
        """Take in a beat, the body of a webhook of Alertmanager or nothing; return whether it counts.

        Raises :class:`InvalidRequestError` if the body is not such a webhook.
        """
        status, evaluated = parse_beat(body)
        with self._lock:
            if status != "firing" or (evaluated is not None and evaluated == self._evaluated):
                # Alertmanager runs, and Prometheus has not evaluated the alert since: not a new beat.
                LOG.debug("a beat does not count: %s", status)
                return False
            self._evaluated = evaluated
            self._beaten = True
            self._state = beaten(self._state, self._clock())
            return True

    def announce(self, body: bytes) -> float:
        """Take in an announcement, a JSON object; return the seconds for which the switch is quiet at most.

        Raises :class:`InvalidRequestError` if it is not valid.
        """
        kind, planned_s = parse_announcement(body)
        with self._lock:
            now = self._clock()
            self._state = announced(self._state, kind, planned_s=planned_s, now=now, limits=self._limits)
            quiet_s = self._state.announcement.until - now if self._state.announcement is not None else 0.0
            LOG.info("%s announced %s, planned for %.0f s: quiet for %.0f s", self._home, kind, planned_s, quiet_s)
            self._save()
            return quiet_s

    def healthy(self) -> bool:
        """Return whether the host is not silent and the operator can be reached, for the outside ping."""
        with self._lock:
            if self._state.alarm is not None or not self._pending.flush():
                return False
        try:
            waiting = self._outbox.waiting()
        except StoreError:
            return False
        return not waiting or time.time() - _put_at(waiting[0]) < UNSENT_S

    def metrics(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        with self._lock:
            look, now = self._look, self._clock()
            handshake = None if look is None else look.handshake_age_s
            values = {
                "last_look_timestamp_seconds": (self._looked_at, "Time of the last look; 0 before the first."),
                "home_alive": (float(self._state.alarm is None), "0 while the switch has an active alarm."),
                "handshake_age_seconds": (
                    math.nan if handshake is None else handshake,
                    "Time since the last handshake with the host; NaN if it is unknown.",
                ),
                "beat_age_seconds": (
                    now - self._state.beat if self._beaten else math.nan,
                    "Time since the last beat of the host's monitoring; NaN before the first.",
                ),
                "ready": (
                    float(look is not None and look.ready is ReadyState.SERVING),
                    "1 if /ready of the gateway was 200 through the tunnel.",
                ),
                "notices_waiting": (self._waiting(), "Notices of the switch that are not sent yet."),
            }
        registry = CollectorRegistry()
        for name, (value, text) in values.items():
            Gauge(f"appliance_deadman_{name}", text, registry=registry).set(value)
        return generate_latest(registry)

    def _waiting(self) -> float:
        try:
            return float(len(self._outbox.waiting()) + (0 if self._pending.flush() else 1))
        except StoreError:
            return math.nan

    def _clocks(self) -> state_file.Clocks:
        return state_file.Clocks(self._clock(), time.time())

    def _save(self) -> None:
        """Write the state if it changed; a full disk stops nothing."""
        kept = _kept(self._state)
        if kept == self._kept:
            return
        try:
            state_file.write(self._file, self._state, self._clocks())
        except StoreError as error:
            if not self._unwritable:
                LOG.warning("the state of the switch is not saved: %s", error)
            self._unwritable = True
            return
        self._kept, self._unwritable = kept, False


def _kept(state: SwitchState) -> tuple[object, object]:
    return state.alarm, state.announcement


def _put_at(file: Path) -> float:
    """Return the time of a notice's file in seconds since the epoch; the outbox names files by it."""
    digits = file.name.partition("-")[0]
    return int(digits) / 1e9 if digits.isdecimal() else 0.0


class _WebhookAlert(msgspec.Struct):
    status: str = "firing"
    annotations: dict[str, str] = {}


class _Webhook(msgspec.Struct):
    status: str = "firing"
    alerts: list[_WebhookAlert] = []


def parse_beat(body: bytes) -> tuple[str, str | None]:
    """Return the status of a webhook of Alertmanager, and the times at which its alerts were evaluated.

    An empty body is a beat as well. Raises :class:`InvalidRequestError` if it is not such a webhook.

    Example::

        parse_beat(b'{"status": "resolved", "alerts": []}') == ("resolved", None)
    """
    if not body.strip():
        return "firing", None
    try:
        webhook = msgspec.json.decode(body, type=_Webhook)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidRequestError(f"not a webhook of Alertmanager: {error}") from None
    times = sorted(alert.annotations[EVALUATED_AT] for alert in webhook.alerts if EVALUATED_AT in alert.annotations)
    return webhook.status, ",".join(times) if times else None


def parse_announcement(body: bytes) -> tuple[AnnouncedKind, float]:
    """Return the kind and the planned seconds of an announcement.

    Raises :class:`InvalidRequestError` if it is not valid.
    """
    try:
        table: Any = msgspec.json.decode(body)
        kind, planned_s = AnnouncedKind(table["kind"]), float(table.get("planned_s", 0.0))
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        kinds = ", ".join(AnnouncedKind)
        raise InvalidRequestError(
            f'not an announcement: send {{"kind": KIND, "planned_s": SECONDS}} with a KIND of {kinds}'
        ) from None
    if not 0 <= planned_s <= MAX_PLANNED_S:
        raise InvalidRequestError(f"planned_s: {planned_s} is not between 0 and {MAX_PLANNED_S:.0f} seconds")
    return kind, planned_s
