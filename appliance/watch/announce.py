"""Announces a planned absence of this host to the dead man's switch on the VPS.

Best effort: an announcement saves the operator an alarm, and nothing at home depends on it.
"""

from __future__ import annotations

import json
import math
from enum import StrEnum

from appliance.errors import ApplianceError, StartError
from appliance.system.http_request import NO_RESPONSE, send_request

TIMEOUT_S = 3.0
"""Limit of an announcement, in seconds. The host may have little time left on its battery."""
MAX_PLANNED_S = 7 * 86400.0


class AnnouncedKind(StrEnum):
    """The event that a host announces."""

    ON_BATTERY = "on-battery"
    """Mains failed. The host runs on, but the router and the line may be without power."""
    GOING_DOWN = "going-down"
    """The host shuts down and stays off until mains return or the operator starts it."""
    REBOOT = "reboot"
    """The host reboots."""
    BACK = "back"
    """The announced absence has ended."""


def announce(url: str, kind: str, *, planned_s: float = 0.0, timeout_s: float = TIMEOUT_S) -> None:
    """Announce ``kind`` (:class:`AnnouncedKind`) to the switch at ``url``, such as ``http://10.77.0.2:9097``.

    ``planned_s`` is the planned length of the absence in seconds, 0 if it is unknown. The switch limits the silence
    that follows from it. An announcement may be repeated: the newest one counts. It takes ``timeout_s`` at most.

    Raises :class:`StartError`, and no other error, if the switch did not accept it.

    Example::

        announce("http://10.77.0.2:9097", "on-battery", planned_s=600)
    """
    place = f"the dead man's switch at {url}"
    try:
        body = json.dumps({"kind": AnnouncedKind(kind), "planned_s": _planned(planned_s)}).encode()
        # The limit is for each wait: one for the connection, one for the response.
        response = send_request(url, "/announce", method="POST", body=body, direct=True, timeout_s=timeout_s / 2)
    except NO_RESPONSE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise StartError(f"{place} did not respond ({reason}); an absence may cause an alarm") from None
    except (ApplianceError, ValueError) as error:
        raise StartError(f"{place} got no announcement: {error}") from None
    if response.status != 200:
        text = response.body[:200].decode(errors="replace").strip()
        raise StartError(f"{place} refused `{kind}` with HTTP {response.status}: {text}")


def _planned(seconds: float) -> float:
    """Return a length that JSON and the switch accept."""
    return min(max(seconds, 0.0), MAX_PLANNED_S) if math.isfinite(seconds) else MAX_PLANNED_S
