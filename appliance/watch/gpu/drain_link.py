"""The link to the gateway: the state of the replicas, and the drains that this program wants.

A thread of its own, because a gateway that does not respond must not stop the watch.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.errors import RequestError, StartError
from appliance.gateway import control_client
from appliance.watch.gpu.decide import OURS
from appliance.watch.gpu.state import ReplicaView

LOG = logging.getLogger(__name__)

INTERVAL_S = 2.0
"""Seconds between two looks; a new drain does not wait for the next one."""

TIMED_OUT = "in time"
"""Part of the gateway's reason for a replica that accepted a canary and generated nothing."""


def parse_views(status: Mapping[str, Any]) -> dict[str, ReplicaView]:
    """Return the replicas in a status of the gateway."""
    return {
        name: ReplicaView(
            up=engine["state"] == "up",
            loaded=engine["state"] != "not loaded",
            timed_out=engine["state"] == "down" and TIMED_OUT in engine["why"],
            in_flight=engine["in_flight"],
        )
        for name, engine in status["engines"].items()
    }


def changes(wanted: Mapping[str, str], status: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the drains to set (a reason) and to end (``None``) by replica.

    A drain with another origin, such as an operator, is neither replaced nor ended.
    """
    found: dict[str, str | None] = {}
    for name, engine in status["engines"].items():
        reason, ours = engine["draining"], wanted.get(name)
        if reason is None:
            if ours is not None:
                found[name] = ours
        elif reason.startswith(OURS) and reason != ours:
            found[name] = ours
    return found


class DrainLink:
    """Reads the replicas of the gateway with the data ``folder``, and keeps the wanted drains in force."""

    def __init__(self, folder: Path, *, interval_s: float = INTERVAL_S) -> None:
        self._folder = folder
        self._interval_s = interval_s
        self._wanted: dict[str, str] = {}
        self._views: Mapping[str, ReplicaView] | None = None
        self._wake = threading.Event()
        self._ended = False
        self._error = ""
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)

    @property
    def views(self) -> Mapping[str, ReplicaView] | None:
        """The replicas at the last look; ``None`` if the gateway did not respond."""
        return self._views

    def start(self) -> None:
        """Begin to watch the gateway."""
        self._thread.start()

    def want(self, drains: Mapping[str, str]) -> None:
        """Replace the wanted drains: reasons by replica."""
        if drains != self._wanted:
            self._wanted = dict(drains)
            self._wake.set()

    def close(self) -> None:
        """End the watch, without waiting for a gateway that does not respond. Drains stay in force."""
        self._ended = True
        self._wake.set()
        self._thread.join(1.0)

    def look(self) -> Mapping[str, ReplicaView] | None:
        """Look once, and make the wanted changes; return the replicas."""
        error = ""
        try:
            status = control_client.status(self._folder)
            for name, reason in changes(self._wanted, status).items():
                if reason is None:
                    control_client.undrain(self._folder, name)
                    LOG.info("%s gets requests again", name)
                else:
                    control_client.drain(self._folder, name, reason)
                    LOG.warning("%s gets no new requests: %s", name, reason.removeprefix(OURS))
            self._views = parse_views(status)
        except (StartError, RequestError) as failure:
            error, self._views = str(failure), None
        if error != self._error:
            if error:
                LOG.warning("the gateway cannot be watched: %s", error)
            else:
                LOG.info("the gateway responds")
            self._error = error
        return self._views

    def _run(self) -> None:
        while not self._ended:
            self._wake.clear()
            self.look()
            self._wake.wait(self._interval_s)
