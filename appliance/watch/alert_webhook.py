"""The webhook for Alertmanager: each alert of a group becomes one notice in the outbox.

It responds 200 after the notices are on disk, and 503 if they cannot be written. Alertmanager then retries. It also
repeats alerts that still fire, and groups of which one alert changed. The tag of a notice identifies the event, so
that each event is sent once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from appliance.errors import InvalidRequestError, StartError, StoreError
from appliance.notices.notice import Notice
from appliance.notices.outbox import Outbox

LOG = logging.getLogger(__name__)

PATH = "/alerts"
MAX_BYTES = 1_000_000
READ_S = 10.0
"""Limit of each wait for a part of a request, in seconds."""
IGNORED = frozenset({"Watchdog"})
"""Alerts that are not for people: the beat of the dead man's switch."""
EVENTS = frozenset({"BudgetNearlyUsed", "BudgetUsed"})
"""Alerts on an event, which ends by itself: their end is not reported."""
SUBJECT_LABELS = (
    "agent", "card", "engine", "model", "pool", "repository", "step", "ups", "unit", "name", "mountpoint", "device",
    "job", "user", "period",
)  # fmt: skip
"""Labels that name the subject of an alert; ``instance`` does if it has none of them."""


class FiringAlert(msgspec.Struct, frozen=True, rename="camel"):
    """One alert in a request of Alertmanager (version 4 of its webhook)."""

    labels: dict[str, str]
    annotations: dict[str, str] = {}
    status: str = "firing"
    starts_at: str = ""
    ends_at: str = ""
    fingerprint: str = ""


class AlertGroup(msgspec.Struct, frozen=True, rename="camel"):
    """A request of Alertmanager."""

    alerts: list[FiringAlert]
    truncated_alerts: int = 0


def notices_of(body: bytes, now: float) -> list[tuple[str, Notice]]:
    """Return tag and notice of each alert in ``body``; ``now`` replaces a missing time, in seconds since the epoch.

    Raises :class:`InvalidRequestError` if ``body`` is not a request of Alertmanager.
    """
    try:
        group = msgspec.json.decode(body, type=AlertGroup)
    except msgspec.DecodeError as error:
        raise InvalidRequestError(f"not a request of Alertmanager: {error}") from None
    found = [(_tag(alert), _notice(alert, now)) for alert in group.alerts if _is_reported(alert)]
    if group.truncated_alerts and found:
        number = group.truncated_alerts
        text = f"{number} more alerts of this group were not passed on: see the list of Alertmanager"
        kind = found[0][1].kind
        key = f"{kind} {number} {'.'.join(sorted(tag for tag, _ in found))}"
        more = Notice(kind=kind, subject="more", text=text, at=now, page=found[0][1].page)
        found.append((f"alert_{_digest(key)}", more))
    return found


def _is_reported(alert: FiringAlert) -> bool:
    name = alert.labels.get("alertname")
    return name not in IGNORED and not (name in EVENTS and alert.status == "resolved")


def _notice(alert: FiringAlert, now: float) -> Notice:
    ended = alert.status == "resolved"
    kind = alert.labels.get("alertname", "alert")
    text = alert.annotations.get("summary") or alert.annotations.get("description") or kind
    fix = alert.annotations.get("fix")
    return Notice(
        kind=kind,
        subject=_subject(alert.labels),
        text=f"{text}\nFix: {fix}" if fix and not ended else text,
        at=_seconds(alert.ends_at if ended else alert.starts_at, now),
        ended=ended,
        page=alert.labels.get("severity") == "page",
    )


def _subject(labels: dict[str, str]) -> str:
    found = [f"{name} {labels[name]}" for name in SUBJECT_LABELS if labels.get(name)]
    return ", ".join(found) or labels.get("instance", "")


def _tag(alert: FiringAlert) -> str:
    identity = alert.fingerprint or json.dumps(sorted(alert.labels.items()))
    return f"alert_{_digest(f'{identity} {alert.starts_at} {alert.status}')}"


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:24]


def _seconds(stamp: str, now: float) -> float:
    """Return the time ``stamp`` (RFC 3339); ``now`` if it is missing. Alertmanager writes year 1 for "not yet"."""
    try:
        at = datetime.fromisoformat(stamp).timestamp()
    except (ValueError, OverflowError):
        return now
    return at if at > 0 else now


class _WebhookServer(ThreadingHTTPServer):
    daemon_threads = True
    # After a restart, connections of the earlier process must not occupy the port.
    allow_reuse_address = True

    def handle_error(self, *_: object) -> None:
        """Log a connection that failed; Alertmanager retries."""
        LOG.info("a connection to the webhook failed: %s", sys.exception())


def listen(outbox: Outbox, host: str, port: int, clock: Callable[[], float] = time.time) -> ThreadingHTTPServer:
    """Return a server that listens on ``host`` and ``port`` and puts alerts into ``outbox``.

    Its ``serve_forever`` serves until ``shutdown``. Raises :class:`StartError` if the port cannot be used.
    """

    class AlertRequest(BaseHTTPRequestHandler):
        timeout = READ_S

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length", ""))
            except ValueError:
                self.respond(411, "a request needs Content-Length")
                return
            if self.path != PATH:
                self.respond(404, f"the path is {PATH}")
            elif not 0 <= length <= MAX_BYTES:
                self.respond(413, f"a request has at most {MAX_BYTES} bytes")
            else:
                self.respond(*_accept(outbox, self.rfile.read(length), clock()))

        def respond(self, status: int, text: str) -> None:
            content = f"{text}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Log nothing: each notice is logged when it is sent."""

    try:
        return _WebhookServer((host, port), AlertRequest)
    except OSError as error:
        raise StartError(
            f"port {port} of {host} cannot be used ({error.strerror}); set another appliance.notify.webhookPort"
        ) from None


def _accept(outbox: Outbox, body: bytes, now: float) -> tuple[int, str]:
    """Put the alerts in ``body`` into ``outbox``; return the response's status and text."""
    try:
        found = notices_of(body, now)
    except InvalidRequestError as error:
        LOG.warning("a request to the webhook was rejected: %s", error)
        return 400, str(error)
    try:
        for tag, notice in found:
            outbox.put(notice, tag=tag)
    except StoreError as error:
        LOG.warning("alerts were not accepted: %s", error)
        return 503, str(error)
    return 200, f"{len(found)} notices"
