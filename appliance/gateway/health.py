"""Health of the replicas: each generates a canary token at intervals, and ``/ready`` reports the results."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from appliance.contract.model import Gateway
from appliance.engines.probe import canary, canary_passed
from appliance.errors import RequestError
from appliance.gateway.background import keep_going
from appliance.gateway.breaker import DownCause, cause_of
from appliance.gateway.routing import Replica, Router

LOG = logging.getLogger(__name__)

WATCH_S = 0.25
"""Seconds between two looks for replicas whose canary is due."""

SUSPECT_S = 1.0
"""Seconds between two canaries that failed requests cause.

A client that repeats a request which the engine cannot process must not fill the engine with canaries."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """The state of each replica: ``ready``, ``not loaded``, ``draining: <reason>`` or the reason of the failure."""

    ready: bool
    engines: dict[str, str]
    unserved: tuple[str, ...]
    """Models that are always loaded, and have no replica that is ready."""
    checked_at: float


class HealthMonitor:
    """Requests canary tokens: from the replicas that are due, or from all of them for ``/ready``."""

    def __init__(self, router: Router, gateway: Gateway) -> None:
        self._router = router
        self._interval_s = gateway.canary_interval_s
        self._timeout_s = gateway.canary_timeout_s
        self._cache_s = gateway.ready_cache_s
        self._last: Readiness | None = None
        self._lock = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._probes: dict[str, asyncio.Task[str]] = {}
        self._suspected_at: dict[str, float] = {}
        self._watch = self._loop.create_task(keep_going("the health check of the engines", self._probe_due))

    def close(self) -> None:
        """Cancel all canaries and start no further one."""
        self._watch.cancel()
        for task in self._probes.values():
            task.cancel()

    async def check(self) -> Readiness:
        """Return whether every model that is always loaded has a replica that generates tokens.

        The result is cached for ``ready_cache_s``, unless a replica has gone down or come up since.
        """
        async with self._lock:
            now = self._loop.time()
            last = self._last
            if last is None or now - last.checked_at > self._cache_s or self._contradicts(last):
                # The state of a drained replica does not depend on its canary, which may take the whole timeout.
                resident = [r for r in self._router.replicas if r.resident and r.drained is None]
                results = await asyncio.gather(*(self.probe(replica) for replica in resident))
                engines = {replica.name: result for replica, result in zip(resident, results, strict=True)}
                for replica in self._router.replicas:
                    if replica.drained is not None:
                        engines[replica.name] = _draining(replica)
                    elif not replica.resident:
                        engines[replica.name] = "not loaded"
                    elif replica.name not in engines:
                        # It was loaded or undrained meanwhile.
                        engines[replica.name] = "ready" if replica.breaker.up else replica.breaker.why
                up = {replica.model for replica in self._router.replicas if engines[replica.name] == "ready"}
                always = {s.model for s in self._router.services.values() if not s.on_demand}
                # If all models are loaded on demand and none is loaded yet, the first request loads one.
                loads = not resident and not all(s.drained for s in self._router.services.values())
                ready = always <= up and (bool(up) or loads)
                unserved = tuple(sorted(always - up))
                last = self._last = Readiness(ready, engines, unserved, self._loop.time())
            return last

    def _contradicts(self, last: Readiness) -> bool:
        """Return whether a replica has gone down, come up, or was drained or undrained since ``last``."""
        return any(
            (last.engines[replica.name] == "ready") is not replica.open
            if replica.drained is None
            else last.engines[replica.name] != _draining(replica)
            for replica in self._router.replicas
        )

    async def probe(self, replica: Replica) -> str:
        """Request a canary token from ``replica`` and report the result to its breaker.

        Returns:
            ``ready``, or the reason of the failure.
        """
        return await asyncio.shield(self._probes.get(replica.name) or self._begin(replica))

    def suspect(self, replica: Replica) -> None:
        """Request a canary token now: a request failed on ``replica``, which may be the request's own mistake."""
        now = self._loop.time()
        recent = replica.name in self._probes or now < self._suspected_at.get(replica.name, 0.0) + SUSPECT_S
        if replica.up and not recent:
            self._suspected_at[replica.name] = now
            self._begin(replica)

    def _begin(self, replica: Replica) -> asyncio.Task[str]:
        task = self._probes[replica.name] = self._loop.create_task(self._probe(replica))
        task.add_done_callback(lambda _: self._probes.pop(replica.name, None))
        return task

    async def _probe(self, replica: Replica) -> str:
        request = replica.canary or canary(replica.model, replica.task)
        sent_at = self._loop.time()
        cause: DownCause = "no-token"
        try:
            status, answer = await replica.pool.probe(
                request.path.encode(),
                request.body,
                replica.canary_timeout_s or self._timeout_s,
                method=request.method.encode(),
                content_type=request.content_type.encode(),
            )
            passed = canary_passed(status, answer, status_only=request.status_only)
            result = "ready" if passed else f"HTTP {status} without a token"
            if result == "ready":
                replica.canary_s = self._loop.time() - sent_at
        except RequestError as error:
            # A busy engine may delay a canary; tokens of other requests prove the same.
            result = "ready" if replica.last_token > sent_at else str(error)
            cause = cause_of(error)
        except Exception:
            # It counts as a failed canary; an error of the task itself would leave the replica without a result.
            LOG.exception("the canary of %s failed inside the gateway", replica.name)
            result = "its canary failed inside the gateway; see the log"
            cause = "gateway-error"
        now = self._loop.time()
        breaker = replica.breaker
        service = self._router.service_of(replica)
        if result == "ready":
            replica.last_token = now
            was_up = breaker.up
            breaker.succeeded()
            if not was_up:
                service.pump()
        elif breaker.up:
            if breaker.failed(result, now, cause=cause):
                service.went_down()
        else:
            breaker.probe_failed(result, now, cause=cause)
        return result

    async def _probe_due(self) -> None:
        await asyncio.sleep(WATCH_S)
        now = self._loop.time()
        for replica in self._router.replicas:
            if not replica.resident or replica.name in self._probes:
                continue
            breaker = replica.breaker
            due = breaker.probe_at if not breaker.up else replica.last_token + self._interval_s
            if now >= due:
                self._begin(replica)


def _draining(replica: Replica) -> str:
    """Return the state of a drained replica."""
    return f"draining: {replica.drained}"
