"""The alerts of the operator's page: from Alertmanager on this host, or else the notices that wait for the digest.

| configured | the page shows |
|---|---|
| Alertmanager | the alerts that fire, or the reason why it did not respond |
| notices alone | the notices in the outbox; pages are sent at once and leave it |
| neither | that alerts are not configured |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.admin.operator.tables import AlertRow, alert_rows, notice_rows
from appliance.errors import StoreError
from appliance.notices.notice import Notice
from appliance.notices.outbox import Outbox
from appliance.system import files
from appliance.system.http_request import NO_RESPONSE, send_request

URL_VARIABLE = "APPLIANCE_ALERTMANAGER_URL"
"""Address of Alertmanager on this host; the unit has it if monitoring is enabled."""
OUTBOX_VARIABLE = "APPLIANCE_NOTICES_DIR"
"""The outbox of notices; the unit has it if notices are enabled."""

PATH = "/api/v2/alerts?active=true&silenced=false&inhibited=false"
TIMEOUT_S = 3.0
MOST_NOTICES = 500
"""Notices that one page reads at most, the newest ones."""


@dataclass(frozen=True, slots=True)
class ShownAlerts:
    """The alerts of a page."""

    rows: list[AlertRow]
    text: str = ""
    """Name of a text, such as ``no_alerts``."""
    error: str = ""
    """The reason why the alerts could not be read."""


@dataclass(frozen=True, slots=True)
class AlertSource:
    """The place of the alerts: the address of Alertmanager, or the folder of the notices."""

    alertmanager: str | None
    outbox: Path | None

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> AlertSource:
        """Return the source that the unit's environment names."""
        folder = environment.get(OUTBOX_VARIABLE)
        return cls(environment.get(URL_VARIABLE) or None, Path(folder) if folder else None)

    def read(self) -> ShownAlerts:
        """Return the present alerts; an error is part of the result, so that the page shows all else."""
        if self.alertmanager is not None:
            return _fired(self.alertmanager)
        if self.outbox is not None:
            return _waiting(Outbox(self.outbox))
        return ShownAlerts([], "no_alertmanager")


def _fired(url: str) -> ShownAlerts:
    try:
        response = send_request(url, PATH, direct=True, timeout_s=TIMEOUT_S)
        if response.status != 200:
            return ShownAlerts([], error=f"Alertmanager: {response.status}")
        rows = alert_rows(response.json())
    except NO_RESPONSE as error:
        return ShownAlerts([], error=f"Alertmanager: {getattr(error, 'strerror', None) or type(error).__name__}")
    except (ValueError, TypeError, AttributeError):
        return ShownAlerts([], error="Alertmanager: the response is not a list of alerts")
    return ShownAlerts(rows, "" if rows else "no_alerts")


def _waiting(outbox: Outbox) -> ShownAlerts:
    try:
        contents = [files.read(file) for file in outbox.waiting()[-MOST_NOTICES:]]
    except StoreError as error:
        return ShownAlerts([], error=str(error))
    found = []
    for content in contents:
        if content is None:
            # The sender has taken it out.
            continue
        try:
            found.append(msgspec.json.decode(content, type=Notice))
        except msgspec.DecodeError:
            # The sender sets such a file aside and reports it.
            continue
    rows = notice_rows(found)
    return ShownAlerts(rows, "notices" if rows else "no_notices")
