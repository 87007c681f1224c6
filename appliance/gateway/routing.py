"""Resolves names to models, selects replicas and holds waiting requests: one :class:`Service` per model.

The pure parts are :mod:`~appliance.gateway.fair_queue`, :mod:`~appliance.gateway.hash_ring` and
:mod:`~appliance.gateway.breaker`; this module connects them with the replicas and their connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from appliance.contract.model import Gateway, Role, Site
from appliance.contract.violation import suggest
from appliance.engines.argv import EngineReplica, replicas
from appliance.engines.probe import CanaryRequest, canary_of
from appliance.errors import (
    EngineDrainedError,
    EngineUnavailableError,
    InternalError,
    NotFoundError,
    QueueFullError,
    RateLimitError,
    RequestError,
)
from appliance.gateway.breaker import Breaker
from appliance.gateway.fair_queue import FairQueue
from appliance.gateway.hash_ring import SLACK, Ring, bound
from appliance.gateway.paths import INFERENCE, MEDIA
from appliance.gateway.swap_policy import wait_ends
from appliance.http1.client import Pool
from appliance.http1.writer import WriteCoalescer

LOG = logging.getLogger(__name__)

TASKS = {
    "/v1/embeddings": "embed",
    "/v1/rerank": "rerank",
    "/v1/score": "rerank",
    "/v1/audio/transcriptions": "transcribe",
    "/v1/audio/translations": "transcribe",
    "/v1/audio/speech": "speech",
    "/v1/images/generations": "image",
}
"""The task that an endpoint requires of a model; all other endpoints require ``generate``."""

ANY_TASK = frozenset({"/tokenize", "/detokenize"})
"""Endpoints that every model serves."""

ENDPOINT_BY_TASK = {
    "embed": "/v1/embeddings",
    "rerank": "/v1/rerank",
    "generate": "/v1/chat/completions",
    "transcribe": "/v1/audio/transcriptions",
    "speech": "/v1/audio/speech",
    "image": "/v1/images/generations",
}
"""The endpoint that an error message suggests for a model of a task."""

DRAINED_RETRY_S = 30
"""``Retry-After`` of a model whose replicas are all drained, in seconds."""

SMOOTHING = 0.1
"""Weight of the newest gap between two finished requests in the mean that predicts waiting times."""


def served_paths(router: Router) -> frozenset[str]:
    """Return the paths of inference of this site: those of audio and images need a model of their task."""
    tasks = {service.task for service in router.services.values()}
    return frozenset(path for path in INFERENCE if path not in MEDIA or TASKS[path] in tasks)


class Waiter(Protocol):
    """A request as its service uses it: the queue's ticket, and the two ends of its wait."""

    user: str
    key_id: str
    weight: float
    size: int
    chat_key: bytes | None

    def granted(self, replica: Replica) -> None:
        """Start on ``replica``, which has a slot for it; :meth:`Service.release` returns the slot."""

    def refused(self, error: RequestError) -> None:
        """End with ``error``: there will be no slot."""


@dataclass(slots=True, eq=False)
class Replica:
    """The state of one replica in the gateway."""

    name: str
    model: str
    task: str
    slots: int
    pool: Pool
    breaker: Breaker
    served_name: str = ""
    """The name of the model at a server of kind http; empty if it has the site's own name."""
    foreign: bool = False
    """Whether its server is of kind http: its streams may have other line ends and spaces than vLLM's."""
    canary: CanaryRequest | None = None
    """The request that tests it; ``None`` for that of its task."""
    canary_timeout_s: float | None = None
    """Timeout of that request in seconds; ``None`` for that of the gateway."""
    resident: bool = True
    """Whether its engine is loaded; the swap controller changes it for on-demand engines."""
    drained: str | None = None
    """Why it is drained: it gets no new request, and its running ones finish; ``None`` if it is not."""
    in_flight: int = 0
    """Sequences of this gateway that it runs: a request for four choices counts four times."""
    last_token: float = 0.0
    """Loop time at which it last generated a token."""
    last_used: float = 0.0
    """Loop time at which its last request ended."""
    canary_s: float | None = None
    """Seconds that its last canary token took; ``None`` before the first one."""

    @property
    def up(self) -> bool:
        """Whether it is loaded and works, drained or not."""
        return self.resident and self.breaker.up

    @property
    def open(self) -> bool:
        """Whether it may get new requests."""
        return self.drained is None and self.resident and self.breaker.up

    @property
    def load(self) -> float:
        """The share of its slots in use."""
        return self.in_flight / self.slots


@dataclass(frozen=True, slots=True)
class RequestWait:
    """The wait of one request, by the loop's time."""

    since: float
    swapped_s: float
    """Total seconds of swaps to its model before it began to wait."""


@dataclass(eq=False)
class Service:
    """A model: its replicas, and the requests that wait for them."""

    model: str
    task: str
    context: int
    replicas: list[Replica]
    queue: FairQueue[Waiter]
    max_waiting_per_user: int
    affinity_load: float
    on_demand: bool
    notice: Callable[[], None]
    """Called when a request begins to wait for a model that is not loaded, and when one of its requests ends."""
    cap_tokens: bool
    """Whether a token limit over the context is reduced to the context."""
    full: Callable[[], bool]
    """Returns whether the maximum of requests wait, over all models."""
    ring: Ring = field(init=False)
    by_name: dict[str, Replica] = field(init=False)
    gap_s: float = 0.0
    """Mean seconds between two finished requests while others wait; 0 before the first gap."""
    begun: int = 0
    """Requests that got a slot so far."""
    blocked: tuple[float, str] | None = None
    """Loop time until which requests are rejected because the model could not be loaded, and the reason."""
    loading_until: float | None = None
    """Loop time at which the swap to this model ends at the latest; ``None`` unless one is in progress."""
    _loading_since: float = 0.0
    _swapped_s: float = 0.0
    _finished_at: float = 0.0
    _waits: dict[int, RequestWait] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ring = Ring([replica.name for replica in self.replicas])
        self.by_name = {replica.name: replica for replica in self.replicas}

    @property
    def free(self) -> int:
        """The number of free slots on open replicas."""
        free = 0
        for replica in self.replicas:
            # As in `Replica.open`, without its call.
            if (
                replica.drained is None
                and replica.resident
                and replica.breaker.up
                and replica.in_flight < replica.slots
            ):
                free += replica.slots - replica.in_flight
        return free

    @property
    def served(self) -> bool:
        """Whether any replica is open."""
        return any(replica.open for replica in self.replicas)

    @property
    def drained(self) -> bool:
        """Whether every replica is drained, loaded or not."""
        return all(replica.drained is not None for replica in self.replicas)

    @property
    def oldest_wait(self) -> float | None:
        """The loop time at which the longest-waiting request began to wait."""
        return min((wait.since for wait in self._waits.values()), default=None)

    @contextmanager
    def swapping(self, clock: Callable[[], float], within_s: float) -> Iterator[None]:
        """Mark the time of a swap to this model, ``within_s`` seconds at most, whether it succeeds or fails.

        A model that other engines serve meanwhile needs no mark: its requests wait for a slot.
        """
        if self.served:
            yield
            return
        self._loading_since = clock()
        self.loading_until = self._loading_since + within_s
        try:
            yield
        finally:
            self._swapped_s = self._swap_clock(clock())
            self.loading_until = None

    def overdue(self, waiter: Waiter, max_wait_s: float, now: float) -> QueueFullError | None:
        """Return the error for ``waiter`` if it has waited too long: for a slot, or for the swap to its model."""
        wait = self._waits.get(id(waiter))
        if wait is None:
            return None
        swapped_s = self._swap_clock(now) - wait.swapped_s
        if now <= wait_ends(wait.since, max_wait_s, swapped_s=swapped_s, swap_until=self.loading_until):
            return None
        if self.loading_until is None:
            message = f"No engine was free within {max_wait_s:g} s; try again shortly"
        else:
            within_s = self.loading_until - self._loading_since
            message = f"{self.model} was not loaded within {within_s:g} s; try again shortly"
        return QueueFullError(message, code="queue_timeout", retry_after=self.wait_s(1))

    def submit(self, waiter: Waiter, now: float) -> int:
        """Start ``waiter`` now, or add it to the queue.

        Returns:
            Its position in the queue, 0 if it started.

        Raises:
            EngineDrainedError: Every replica is drained.
            EngineUnavailableError: No replica is up.
            RateLimitError: Too many requests of its user wait.
            QueueFullError: Too many requests wait in all.
        """
        free = self.free
        if free <= 0 and not self.served:
            if not self.on_demand or self.drained:
                raise self.down()
            if self.loading_until is None and self.blocked is not None and now < self.blocked[0]:
                raise EngineUnavailableError(self.blocked[1], retry_after=self.blocked[0] - now)
        if self.queue.enter(waiter, free):
            self._start(waiter)
            return 0
        if self.queue.waiting_of(waiter.user) >= self.max_waiting_per_user:
            message = f"{self.max_waiting_per_user} of your requests wait already; let some of them finish"
            raise RateLimitError(message, code="queue_full", retry_after=self.wait_s(1))
        if self.full():
            wait = self.wait_s(self.queue.waiting)
            raise QueueFullError("The service and its queue are full; try again shortly", retry_after=wait)
        position = self.queue.wait(waiter)
        self._waits[id(waiter)] = RequestWait(now, self._swap_clock(now))
        if not self.served:
            self.notice()
        return position

    def leave(self, waiter: Waiter) -> None:
        """Remove ``waiter`` from the queue, if it is there."""
        if self._waits.pop(id(waiter), None) is not None:
            self.queue.leave(waiter)

    def release(self, replica: Replica, waiter: Waiter, now: float) -> None:
        """Release the slots of ``waiter``, which ended on ``replica``, and start the next request."""
        replica.in_flight -= waiter.size
        replica.last_used = now
        self.queue.finish(waiter)
        if self.queue.waiting:
            if self._finished_at:
                gap = now - self._finished_at
                self.gap_s += SMOOTHING * (gap - self.gap_s) if self.gap_s else gap
            self._finished_at = now
            self.pump()
        else:
            self._finished_at = 0.0
        if self.on_demand:
            self.notice()

    def move(self, waiter: Waiter, old: Replica, tried: set[str]) -> Replica | None:
        """Move ``waiter``, which failed on ``old``, to another open replica; return it, or ``None`` without one.

        Failover may exceed the replica's slots; a running request must not be queued again. Nothing new starts
        there until as many requests have ended.

        Args:
            waiter: The request.
            old: The replica that failed.
            tried: Names of the replicas that failed on this request.
        """
        others = [replica for replica in self.replicas if replica.open and replica.name not in tried]
        if not others:
            return None
        new = min(others, key=lambda replica: replica.load)
        old.in_flight -= waiter.size
        new.in_flight += waiter.size
        return new

    def pump(self) -> None:
        """Start as many waiting requests as there are free slots."""
        while (waiter := self.queue.next(self.free)) is not None:
            self._waits.pop(id(waiter), None)
            self._start(waiter)

    def refuse(self, error: RequestError) -> None:
        """Reject all waiting requests with ``error``."""
        for waiter in self.queue.tickets():
            self.leave(waiter)
            waiter.refused(error)

    def went_down(self) -> None:
        """Reject all waiting requests if the replica that failed or was drained was the last open one.

        Requests for a model on demand may wait for a load, unless all its replicas are drained.
        """
        if not self.served and (not self.on_demand or self.drained):
            self.refuse(self.down())

    def drain(self, replica: Replica, reason: str) -> None:
        """Send no new request to ``replica`` because of ``reason``; its running requests finish."""
        replica.drained = reason
        self.went_down()

    def undrain(self, replica: Replica) -> None:
        """Send requests to ``replica`` again, and start those that wait."""
        replica.drained = None
        self.pump()

    def down(self) -> EngineUnavailableError | EngineDrainedError:
        """Return the error of a model without an open replica, with the reason if drains are the only cause."""
        drained = [replica for replica in self.replicas if replica.drained is not None]
        if drained and all(replica.drained is not None or not replica.resident for replica in self.replicas):
            reasons = "; ".join(dict.fromkeys(str(replica.drained) for replica in drained))
            message = f"{self.model} accepts no new requests: {reasons}"
            return EngineDrainedError(message, retry_after=DRAINED_RETRY_S)
        return EngineUnavailableError(f"No engine of {self.model} is up; try again shortly", retry_after=2)

    def wait_s(self, position: int) -> float:
        """Return the seconds until a slot after ``position`` requests, from the recent gaps between ends."""
        return max(1.0, position * self.gap_s)

    def _swap_clock(self, now: float) -> float:
        """Return the seconds that swaps to this model have taken until ``now``."""
        return self._swapped_s + (now - self._loading_since if self.loading_until is not None else 0.0)

    def _start(self, waiter: Waiter) -> None:
        """Grant a slot to ``waiter``, which the queue counts as running, or reject it if that fails."""
        try:
            replica = self._pick(waiter.chat_key)
        except Exception:
            # The caller is the end of another request, which must not fail for this one.
            LOG.exception("the selection of a replica failed")
            self.queue.finish(waiter)
            waiter.refused(InternalError("The gateway failed on this request; its log has the reason"))
            return
        replica.in_flight += waiter.size
        self.begun += 1
        waiter.granted(replica)

    def _pick(self, key: bytes | None) -> Replica:
        """Return the chat's own replica unless it is much busier than the mean, else the least loaded one."""
        replicas = self.replicas
        if len(replicas) == 1:
            return replicas[0]
        if key is not None:
            own = self.by_name[self.ring.order(key)[0]]
            if own.open and own.in_flight < own.slots // SLACK:
                return own
        room = [r for r in replicas if r.open and r.in_flight < r.slots]
        if len(room) == 1:
            return room[0]
        if key is not None:
            total = sum(replica.in_flight for replica in room)
            for name in self.ring.order(key):
                replica = self.by_name[name]
                if replica in room and replica.in_flight < bound(
                    total, len(room), replica.slots, self.affinity_load
                ):
                    return replica
        return min(room, key=lambda replica: (replica.load, replica.last_used))


@dataclass(frozen=True, slots=True)
class Route:
    """The target of a name: a model, directly or through a role."""

    name: str
    service: Service
    role: Role | None


class Router:
    """The services and routes of a site; ``keys`` are those of servers of kind http, by the replica's name."""

    def __init__(
        self,
        site: Site,
        coalescer: WriteCoalescer,
        notice: Callable[[], None] = lambda: None,
        keys: Mapping[str, str] | None = None,
    ) -> None:
        gateway = site.gateway
        keys = keys or {}
        # Each replica counts as up until the first canary, after one interval, or a request fails.
        now = asyncio.get_running_loop().time()
        self.replicas = [
            Replica(
                name=replica.name,
                model=replica.engine.model,
                task=site.models[replica.engine.model].task,
                slots=replica.engine.slots,
                pool=_pool(gateway, replica, coalescer, keys.get(replica.name, "")),
                served_name=replica.engine.served_name or "",
                foreign=not replica.engine.is_started,
                canary=canary_of(replica.engine, site.models[replica.engine.model].task),
                canary_timeout_s=replica.engine.canary_within_s(gateway.canary_timeout_s),
                breaker=Breaker(gateway.breaker_failures),
                resident=replica.engine.residency == "always",
                last_token=now,
            )
            for replica in replicas(site)
        ]
        self._max_waiting = gateway.queue.max_waiting
        self.services: dict[str, Service] = {}
        for name, model in site.models.items():
            mine = [replica for replica in self.replicas if replica.model == name]
            if mine:
                engines = [engine for engine in site.engines.values() if engine.model == name]
                self.services[name] = Service(
                    model=name,
                    task=model.task,
                    context=max(engine.context for engine in engines),
                    replicas=mine,
                    queue=FairQueue(gateway.queue.headroom),
                    max_waiting_per_user=gateway.queue.max_waiting_per_user,
                    affinity_load=gateway.tuning.affinity_load,
                    on_demand=all(engine.residency == "on-demand" for engine in engines),
                    notice=notice,
                    cap_tokens=model.cap_max_tokens,
                    full=self._full,
                )
        self.routes = {name: Route(name, service, None) for name, service in self.services.items()}
        for name, role in site.roles.items():
            self.routes[name] = Route(name, self.services[role.model], role)

    def named(self, name: str) -> Route:
        """Return the route of the model or role ``name``; raises :class:`NotFoundError` with the nearest name."""
        route = self.routes.get(name)
        if route is None:
            hint = suggest(name[:80], list(self.routes))
            message = f"The model `{name[:80]}` does not exist; {hint}"
            raise NotFoundError(message, code="model_not_found", param="model")
        return route

    def find(self, name: str, endpoint: str) -> Route:
        """Return the route of ``name``; raises :class:`NotFoundError` if it does not serve ``endpoint``."""
        route = self.routes.get(name) or self.named(name)
        task = route.service.task
        if task != TASKS.get(endpoint, "generate") and endpoint not in ANY_TASK:
            message = (
                f"The model `{name}` does not serve {endpoint}: its task is {task}; "
                f"use it with {ENDPOINT_BY_TASK[task]}"
            )
            raise NotFoundError(message, code="model_not_found", param="model")
        return route

    def service_of(self, replica: Replica) -> Service:
        """Return the service of the model of ``replica``."""
        return self.services[replica.model]

    def close(self) -> None:
        """Close all connections to engines."""
        for replica in self.replicas:
            replica.pool.close()

    @property
    def waiting(self) -> int:
        """The number of waiting requests, over all models."""
        return sum(service.queue.waiting for service in self.services.values())

    def _full(self) -> bool:
        return self.waiting >= self._max_waiting


def _pool(gateway: Gateway, replica: EngineReplica, coalescer: WriteCoalescer, key: str) -> Pool:
    return Pool(
        replica.port,
        coalescer,
        address=replica.engine.address or "127.0.0.1",
        key=key,
        connect_timeout_s=gateway.tuning.connect_timeout_s,
        first_byte_timeout_s=gateway.first_byte_timeout_s,
        stall_timeout_s=gateway.stall_timeout_s,
    )
