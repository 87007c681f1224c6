"""The links of the agent that can block: the gateway, canaries of engines, announcements. Each has a thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from appliance.contract.model import Site
from appliance.engines.argv import EngineReplica, started_replicas
from appliance.engines.probe import probe_token
from appliance.errors import ApplianceError
from appliance.gateway import control_client
from appliance.watch.announce import announce
from appliance.watch.power.policy import ENDING, PAUSED

LOG = logging.getLogger(__name__)

RETRY_AFTER_S = 60.0
"""``Retry-After`` of the requests that the paused gateway rejects."""
CANARY_S = 10.0
"""Seconds that an engine has for the token after its start."""


class Link:
    """A thread that calls :meth:`step` at once after each :meth:`wake`, and every ``period_s`` seconds."""

    def __init__(self, name: str, period_s: float) -> None:
        self._period_s = period_s
        self._event = threading.Event()
        self._problem = ""
        self._ended = False
        self._name = name
        # A daemon: a peer that does not respond must not delay the end of the agent.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self, seconds: float) -> None:
        """End the thread after its present step, and wait for that for at most ``seconds``."""
        self._ended = True
        self._event.set()
        self._thread.join(seconds)

    def wake(self) -> None:
        """Call the step now."""
        self._event.set()

    def step(self) -> None:
        """Do the work once; raises :class:`ApplianceError`, which the log has once."""

    def _run(self) -> None:
        while not self._ended:
            try:
                self.step()
            except ApplianceError as error:
                if str(error) != self._problem:
                    LOG.warning("%s: %s", self._name, error)
                self._problem = str(error)
            else:
                self._problem = ""
            self._event.wait(self._period_s)
            self._event.clear()


class GatewayLink(Link):
    """Pauses the gateway with a reason, or resumes it.

    A pause is repeated, because a restart of the gateway ends it. Only a pause of this agent is ended.
    """

    def __init__(self, folder: Path, period_s: float = 2.0) -> None:
        super().__init__("the gateway", period_s)
        self._folder = folder
        self._wanted: str | None = None
        self.in_flight: int | None = None
        """Requests that run in the paused gateway; ``None`` while it is not known to be paused."""
        self.states: Mapping[str, str] = {}
        """State of each replica by its name, as the gateway reports it; empty if it does not respond."""

    def want(self, reason: str | None) -> None:
        """Pause the gateway for ``reason``, or resume it."""
        if reason != self._wanted:
            self._wanted, self.in_flight = reason, None
            self.wake()

    def step(self) -> None:
        """Bring the gateway into the wanted state."""
        wanted = self._wanted
        try:
            if wanted is not None:
                response = control_client.pause(self._folder, wanted, RETRY_AFTER_S)
                self.in_flight = int(response["in_flight"]) if wanted == self._wanted else None
            status = control_client.status(self._folder)
            self.states = {name: str(engine["state"]) for name, engine in status["engines"].items()}
            if wanted is None and status.get("paused") in (PAUSED, ENDING):
                control_client.resume(self._folder)
        except ApplianceError:
            self.in_flight, self.states = None, {}
            raise


class EngineCanaries(Link):
    """Requests a token from each engine that was started again, until all have generated one."""

    def __init__(self, site: Site, host: str, period_s: float = 1.0) -> None:
        super().__init__("the canaries", period_s)
        self._site = site
        self._replicas = {one.name: one for one in started_replicas(site) if one.engine.host == host}
        self._wanted: tuple[str, ...] = ()
        self._passed: frozenset[str] = frozenset()

    def on_demand(self, name: str) -> bool:
        """Return whether the gateway starts this replica itself."""
        replica = self._replicas.get(name)
        return replica is not None and replica.engine.residency == "on-demand"

    def want(self, names: Sequence[str]) -> None:
        """Probe these replicas; an empty list ends it and forgets the results."""
        wanted = tuple(name for name in names if name in self._replicas)
        if wanted != self._wanted:
            self._wanted, self._passed = wanted, frozenset()
            self.wake()

    @property
    def passed(self) -> bool:
        """Whether each wanted replica has generated a token."""
        return self._passed.issuperset(self._wanted)

    def step(self) -> None:
        """Probe the replicas that have not passed."""
        wanted = self._wanted
        for name in wanted:
            if name not in self._passed and not self._reason(self._replicas[name]) and wanted is self._wanted:
                self._passed |= {name}

    def _reason(self, replica: EngineReplica) -> str:
        model = replica.engine.model
        return probe_token(replica.url, model, self._site.models[model].task, CANARY_S)


class Announcements(Link):
    """Announces the outage to the dead man's switch, repeatedly while it lasts."""

    def __init__(self, url: str, period_s: float = 60.0, send: Callable[..., None] = announce) -> None:
        super().__init__("the announcement", period_s)
        self._url = url
        self._send = send
        self._kind = ""
        self._planned_s = 0.0

    @property
    def pending(self) -> bool:
        """Whether an announcement was made whose end was not."""
        return bool(self._kind)

    def want(self, kind: str, planned_s: float) -> None:
        """Announce ``kind`` now and until it changes; ``back`` is announced until it was accepted."""
        changed, self._planned_s = kind != self._kind, planned_s
        self._kind = kind
        if changed:
            self.wake()

    def step(self) -> None:
        """Send the announcement."""
        kind = self._kind
        if kind:
            self._send(self._url, kind, planned_s=self._planned_s)
            if kind == "back" and self._kind == kind:
                self._kind = ""
