"""``appliance notify serve``: sends the notices of a machine, and accepts the alerts of Alertmanager.

A lock in the outbox refuses a second process. There are three threads: the main thread sends, and the webhook puts
alerts into the outbox. The third one ends a wait for Telegram when the process has to stop.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge

from appliance.errors import StartError, StoreError
from appliance.notices.outbox import Outbox
from appliance.system import files, lock_file
from appliance.system.metrics_file import write_metrics
from appliance.system.stopping import Stop, listening
from appliance.watch import alert_webhook
from appliance.watch.courier import Courier, DeliveryCounts
from appliance.watch.telegram_bot import TelegramBot

LOG = logging.getLogger(__name__)

LOCK = "courier.lock"
TICK_S = 1.0
STATUS_S = 15.0
"""Seconds after which metrics and status are written again although nothing changed."""
STOP_S = 5.0
"""Seconds that a request to Telegram may take after the process has to stop."""
STATUS = Path("/run/appliance-notify/status.json")
"""The state of the service, readable for every user: it has no text of a notice."""


class NotifyStatus(msgspec.Struct, frozen=True):
    """The state of the service at ``at``; all times are in seconds since the epoch."""

    at: float
    waiting: int
    """Notices in the outbox, and in a message whose end is uncertain."""
    due_since: float | None
    """Time of the oldest notice that should have been sent; ``None`` if each waits for the next digest only."""
    refused: int
    """Notices that were set aside."""
    problem: str = ""
    """Why the last attempt failed."""
    misconfigured: bool = False
    """Whether the problem needs a change of the configuration."""


@dataclass(frozen=True, slots=True)
class NotifySettings:
    """The arguments of ``serve``; ``port`` is that of the webhook, 0 for none."""

    outbox: Path
    token_file: Path
    chat: str
    host: str
    api: str
    port: int
    digest_hour: int
    metrics: Path | None = None
    status: Path | None = None


def serve(settings: NotifySettings, token: str) -> int:
    """Send notices until SIGTERM or SIGINT; return the exit code.

    Raises :class:`StartError` if another process serves the same outbox or the port is taken.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    bot = TelegramBot(token, settings.chat, api=settings.api)
    outbox = Outbox(settings.outbox)
    files.make_folder(outbox.folder)
    with _only_sender(outbox.folder), listening() as stop:
        courier = Courier(outbox, bot, host=settings.host, digest_hour=settings.digest_hour)
        courier.open()
        with _webhook(outbox, settings.port), _ends_waits(bot, stop):
            LOG.info("sending the notices of %s", outbox.folder)
            _loop(courier, stop, settings)
    LOG.info("stopped by %s; %d notices wait", stop.reason, len(courier.waiting()) + len(courier.in_flight()))
    return 0


def _loop(courier: Courier, stop: Stop, settings: NotifySettings) -> None:
    report = StatusReport(settings.metrics, settings.status)
    failure = ""
    while True:
        # Also after a request to stop: the last notices may be about the shutdown itself.
        last = stop.requested
        try:
            courier.tick(time.monotonic(), datetime.now().astimezone())
            report.write(status_of(courier, time.time()), courier.counts, time.monotonic())
            failure = ""
        except StoreError as error:
            if str(error) != failure:
                LOG.error("%s", error)  # noqa: TRY400
            failure = str(error)
        if last:
            return
        stop.wait(TICK_S)


def status_of(courier: Courier, now: float) -> NotifyStatus:
    """Return the state of ``courier`` at ``now``, in seconds since the epoch. Raises :class:`StoreError`."""
    return NotifyStatus(
        at=now,
        waiting=len(courier.waiting()) + len(courier.in_flight()),
        due_since=courier.due_since(datetime.fromtimestamp(now).astimezone()),
        refused=courier.refused(),
        problem=courier.problem,
        misconfigured=courier.misconfigured,
    )


class StatusReport:
    """The metrics file and the status file. A file that cannot be written stops nothing; the log has it once."""

    def __init__(self, metrics: Path | None, status: Path | None) -> None:
        self._metrics = metrics
        self._status = status
        self._written: tuple[object, ...] = ()
        self._at_s = float("-inf")
        self._failures: set[str] = set()

    def write(self, status: NotifyStatus, counts: DeliveryCounts, now_s: float) -> None:
        """Write both files if ``status`` or ``counts`` changed, or after :data:`STATUS_S`."""
        now = (msgspec.structs.replace(status, at=0.0), counts.sent, counts.failures, counts.refused)
        if now == self._written and now_s - self._at_s < STATUS_S:
            return
        self._written, self._at_s = now, now_s
        try:
            if self._status is not None:
                # Without fsync: the folder is in memory.
                draft = self._status.with_name(f".{self._status.name}.new")
                draft.write_bytes(msgspec.json.encode(status))
                draft.chmod(0o644)
                draft.rename(self._status)
            if self._metrics is not None:
                write_metrics(self._metrics, registry(status, counts))
        except (OSError, StoreError) as error:
            if str(error) not in self._failures:
                LOG.warning("the state of the service cannot be written: %s", error)
            self._failures.add(str(error))


def registry(status: NotifyStatus, counts: DeliveryCounts) -> CollectorRegistry:
    """Return the metrics of the service."""
    found = CollectorRegistry()
    waits = 0.0 if status.due_since is None else max(0.0, status.at - status.due_since)
    for name, text, value in (
        ("waiting", "Notices that wait, those for the digest included.", float(status.waiting)),
        ("oldest_seconds", "Age of the oldest notice that is due and not sent.", waits),
        ("last_look_timestamp_seconds", "Time of the last look into the outbox.", status.at),
    ):
        Gauge(f"appliance_notify_{name}", text, registry=found).set(value)
    for name, text, value in (
        ("sent", "Messages that were accepted.", counts.sent),
        ("failures", "Attempts to send that failed.", counts.failures),
        ("refused", "Notices that were set aside.", counts.refused),
    ):
        Counter(f"appliance_notify_{name}", text, registry=found).inc(value)
    return found


@contextmanager
def _only_sender(folder: Path) -> Iterator[None]:
    try:
        lock = lock_file.take(folder / LOCK)
    except lock_file.HeldError as held:
        other = f"process {held.note['pid']}" if "pid" in held.note else "another process"
        raise StartError(
            f"{other} sends the notices of {folder} already: `systemctl status appliance-notify`"
        ) from None
    try:
        try:
            lock.note()
        except StoreError:
            # On a full disk the lock holds without its note.
            LOG.debug("the lock has no note")
        yield
    finally:
        lock.release()


@contextmanager
def _webhook(outbox: Outbox, port: int) -> Iterator[None]:
    if not port:
        yield
        return
    server = alert_webhook.listen(outbox, "127.0.0.1", port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def _ends_waits(bot: TelegramBot, stop: Stop) -> Iterator[None]:
    """End a wait for Telegram :data:`STOP_S` after ``stop``. That message is repeated with a mark."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if stop.wait(1.0) and not ended.wait(STOP_S):
                bot.abort()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
