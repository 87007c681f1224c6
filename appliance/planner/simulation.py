"""Discrete-event simulation of users and automations in front of the predicted engine.

Pure and seeded. Chats are a closed population: each thinks, sends a prompt, reads the response, thinks again.
Automations send further requests: as a Poisson stream, in bursts, or in n8n's batches. A replica prefills one
prompt at a time. It decodes all running requests together at the roofline's speed for their number; requests beyond
its slots wait in a queue.

Decoding runs in virtual time. While ``n`` requests run, the clock of tokens advances by ``1 / tpot(n)`` per second.
A request ends when that clock has advanced by the length of its response, even if other requests start or end
meanwhile. So one request costs a few heap operations, and a million requests take well under a minute.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from math import log
from random import Random
from typing import Literal

from appliance.errors import UsageError

ARRIVE, PREFILLED, FINISHED = 0, 1, 2

MAX_REQUESTS = 10_000_000

MAX_CHATS_TRIED = 20_000
"""Largest number of chats that the search for the breaking point tries beyond the open ones."""

CHECKED_EVERY = 512
"""Events between two checks whether a trial has failed."""

MAX_PER_TRIAL = 6 * MAX_CHATS_TRIED
"""Most requests of one trial of the breaking point, for any number of chats."""

Pattern = Literal["none", "poisson", "bursts", "n8n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedEngine:
    """A pool of equal replicas with the roofline's times."""

    replicas: int
    slots: int
    """Requests that one replica runs at once, limited by its KV cache or its --max-num-seqs."""
    tpot_s: tuple[float, ...]
    """Seconds per token with n running requests at index n; index 0 is not used."""
    prefill_s_per_token: float
    first_s: float
    """Fixed part of the time to a first token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedLoad:
    """The load of chats and automations. Lengths in tokens are exponential around their means, at least one."""

    users: int = 100
    chats: int = 200
    think_s: float = 60.0
    prompt: float = 2000.0
    response: float = 400.0
    pattern: Pattern = "none"
    rate: float = 0.0
    """Requests per second of the automations, on average."""
    batch: int = 20
    """Requests of one burst or one n8n run, all at once."""


@dataclass(frozen=True, slots=True)
class SimulationOutcome:
    """The results of a simulation. Times are in seconds."""

    requests: int
    seconds: float
    ttft: tuple[float, float, float]
    """p50, p95, p99."""
    tpot: tuple[float, float, float]
    chats: int
    users: int
    chats_inside: int
    """Chats with at least 95 % of their requests within the SLO."""
    users_inside: int
    """Users with all their chats inside."""
    requests_inside: float
    """Share of all requests within the SLO."""
    longest_queue: int
    """Longest queue, or a lower bound: once as many requests wait as are simulated, further ones are ignored."""


_Request = tuple[float, int, float, float]
"""Arrival, chat, tokens of the prompt, tokens of the response."""


@dataclass(slots=True)
class _Replica:
    """The state of one replica."""

    running: int = 0
    clock: float = 0.0
    at: float = 0.0
    prefill_until: float = 0.0
    version: int = 0
    waiting: deque[_Request] = field(default_factory=deque)
    ends: list[tuple[float, int, float, float, float]] = field(default_factory=list)
    """Heap of running requests: end on the token clock, chat, arrival, start of decoding, tokens."""


def simulate(
    engine: SimulatedEngine,
    load: OfferedLoad,
    requests: int,
    *,
    seed: int = 1,
    ttft_slo_s: float = 2.0,
    tpot_slo_s: float = 0.1,
) -> SimulationOutcome:
    """Return the outcome of ``requests`` requests from the first on; the same seed gives the same outcome.

    Once as many requests wait as are simulated, further ones change no result and are ignored. Raises
    :class:`UsageError` for a number of requests out of range, and for a load without requests.
    """
    if requests < 1 or requests > MAX_REQUESTS:
        nearest = min(max(requests, 1), MAX_REQUESTS)
        raise UsageError(f"{requests} requests to simulate are out of range; nearest valid: {nearest}")
    if load.chats < 1 and (load.rate <= 0 or load.pattern == "none"):
        raise UsageError("no load given; set --chats or an automation rate")
    run = Simulation(engine, load, requests, seed=seed, ttft_slo_s=ttft_slo_s, tpot_slo_s=tpot_slo_s)
    while run.events and run.done < requests:
        run.step()
    return run.outcome()


class Simulation:
    """The state of one simulation.

    Events are (time, order, kind, target, arrival or version, response). ``order`` decides ties, so that a run
    repeats exactly. ``target`` is the number of a chat, of a replica, or of both.
    """

    __slots__ = (
        "closed",
        "engine",
        "events",
        "good",
        "load",
        "longest",
        "missed",
        "now",
        "order",
        "random",
        "replicas",
        "slo",
        "table",
        "total",
        "tpots",
        "ttfts",
        "waiting",
        "wanted",
    )

    def __init__(
        self,
        engine: SimulatedEngine,
        load: OfferedLoad,
        wanted: int,
        *,
        seed: int = 1,
        ttft_slo_s: float = 2.0,
        tpot_slo_s: float = 0.1,
    ) -> None:
        self.engine, self.load, self.slo = engine, load, (ttft_slo_s, tpot_slo_s)
        # The table has an entry for every number of slots, so that a lookup needs no check of the index.
        table = engine.tpot_s
        self.table = table + (table[-1],) * max(0, engine.slots + 1 - len(table))
        self.random = Random(seed).random  # noqa: S311
        self.replicas = [_Replica() for _ in range(engine.replicas)]
        self.events: list[tuple[float, int, int, int, float, float]] = []
        self.ttfts, self.tpots = array("d"), array("d")
        # The last place counts the requests of automations.
        self.good, self.total = [0] * (load.chats + 1), [0] * (load.chats + 1)
        self.now, self.order, self.waiting, self.longest = 0.0, 0, 0, 0
        self.wanted, self.missed, self.closed = wanted, 0, False
        for chat in range(load.chats):
            self.order += 1
            self.events.append((self._exponential(load.think_s), self.order, ARRIVE, chat, 0.0, 0.0))
        heapify(self.events)
        if load.pattern != "none" and load.rate > 0:
            self._push(self._exponential(1.0 / load.rate), ARRIVE, load.chats)

    @property
    def done(self) -> int:
        """Finished requests."""
        return len(self.ttfts)

    def will_miss(self, allowed: int) -> bool:
        """Return whether more than ``allowed`` of the wanted requests have missed the SLO or will miss it.

        Requests that have waited longer than the SLO will miss it, and are served next.
        """
        left = allowed + 1 - self.missed
        if left <= 0:
            return True
        if self.done + self.engine.slots * len(self.replicas) + left > self.wanted:
            return False
        each = -(-left // len(self.replicas))
        overdue = self.now - self.slo[0]
        return all(len(one.waiting) >= each and one.waiting[each - 1][0] < overdue for one in self.replicas)

    def step(self) -> None:
        """Process the next event."""
        self.now, _, kind, target, extra, response = heappop(self.events)
        if kind == FINISHED:
            if extra == self.replicas[target].version:
                self._finish(target)
            # Otherwise the batch has changed, and the heap has a newer entry.
        elif kind == PREFILLED:
            index, chat = divmod(target, self.load.chats + 1)
            replica = self.replicas[index]
            self._advance(replica)
            heappush(replica.ends, (replica.clock + response, chat, extra, self.now, response))
            self._schedule(index, replica)
        elif target == self.load.chats:
            self._automation()
        else:
            self._arrive(target)

    def _push(self, time: float, kind: int, target: int, *, extra: float = 0.0, response: float = 0.0) -> None:
        self.order += 1
        heappush(self.events, (time, self.order, kind, target, extra, response))

    def _exponential(self, mean: float) -> float:
        return -mean * log(1.0 - self.random())

    def _advance(self, replica: _Replica) -> None:
        if replica.running:
            replica.clock += (self.now - replica.at) / self.table[replica.running]
        replica.at = self.now

    def _schedule(self, index: int, replica: _Replica) -> None:
        replica.version += 1
        if replica.ends:
            left = max(0.0, replica.ends[0][0] - replica.clock) * self.table[replica.running]
            self._push(self.now + left, FINISHED, index, extra=float(replica.version))

    def _start(self, index: int, replica: _Replica, request: _Request) -> None:
        arrival, chat, prompt, response = request
        replica.running += 1
        begin = max(self.now, replica.prefill_until)
        replica.prefill_until = begin + prompt * self.engine.prefill_s_per_token
        target = index * (self.load.chats + 1) + chat
        begin_decode = replica.prefill_until + self.engine.first_s
        self._push(begin_decode, PREFILLED, target, extra=arrival, response=response)

    def _arrive(self, chat: int) -> None:
        prompt = 1.0 + self._exponential(max(self.load.prompt - 1.0, 0.01))
        response = 1.0 + self._exponential(max(self.load.response - 1.0, 0.01))
        index, replica = min(enumerate(self.replicas), key=lambda one: one[1].running + len(one[1].waiting))
        if replica.running < self.engine.slots:
            self._advance(replica)
            self._start(index, replica, (self.now, chat, prompt, response))
            self._schedule(index, replica)
        else:
            replica.waiting.append((self.now, chat, prompt, response))
            self.waiting += 1
            self.longest = max(self.longest, self.waiting)
            if self.waiting >= self.wanted and not self.closed:
                self._close()

    def _close(self) -> None:
        """Stop arrivals: all wanted requests have arrived."""
        self.closed = True
        self.events = [event for event in self.events if event[2] != ARRIVE]
        heapify(self.events)

    def _automation(self) -> None:
        load = self.load
        size = 1 if load.pattern == "poisson" else load.batch
        for _ in range(size):
            self._arrive(load.chats)
        if self.closed:
            return
        # n8n runs on a timer; the other patterns are random.
        gap = size / load.rate
        self._push(self.now + (gap if load.pattern == "n8n" else self._exponential(gap)), ARRIVE, load.chats)

    def _finish(self, index: int) -> None:
        replica = self.replicas[index]
        self._advance(replica)
        _, chat, arrival, begun, length = heappop(replica.ends)
        replica.running -= 1
        ttft, tpot = begun - arrival, (self.now - begun) / length
        self.ttfts.append(ttft)
        self.tpots.append(tpot)
        self.total[chat] += 1
        inside = ttft <= self.slo[0] and tpot <= self.slo[1]
        self.good[chat] += inside
        self.missed += not inside
        if replica.waiting:
            self.waiting -= 1
            self._start(index, replica, replica.waiting.popleft())
        self._schedule(index, replica)
        if chat < self.load.chats and not self.closed:
            self._push(self.now + self._exponential(self.load.think_s), ARRIVE, chat)

    def outcome(self) -> SimulationOutcome:
        """Return the results so far. A chat without a response is not inside."""
        chats = self.load.chats
        inside = [self.total[chat] > 0 and self.good[chat] >= 0.95 * self.total[chat] for chat in range(chats)]
        users = min(self.load.users, chats)
        users_inside = sum(all(inside[user:chats:users]) for user in range(users))
        return SimulationOutcome(
            requests=self.done,
            seconds=self.now,
            ttft=_percentiles(self.ttfts),
            tpot=_percentiles(self.tpots),
            chats=chats,
            users=users,
            chats_inside=sum(inside),
            users_inside=users_inside,
            requests_inside=sum(self.good) / max(1, sum(self.total)),
            longest_queue=self.longest,
        )


def breaking_point(
    engine: SimulatedEngine,
    load: OfferedLoad,
    *,
    seed: int = 1,
    ttft_slo_s: float = 2.0,
    tpot_slo_s: float = 0.1,
    requests: int = 6000,
) -> int:
    """Return the most open chats with at most 5 % of requests outside the SLO, to within a twentieth.

    Each trial simulates six requests per chat, at most :data:`MAX_PER_TRIAL`. The rate of arrivals is that of the
    steady state from the start, so that large populations need no further round. A trial ends once enough requests
    have missed the SLO, or have waited longer than it.
    """

    def holds(chats: int) -> bool:
        wanted = max(requests, min(6 * chats, MAX_PER_TRIAL))
        slo = {"ttft_slo_s": ttft_slo_s, "tpot_slo_s": tpot_slo_s}
        run = Simulation(engine, replace(load, chats=chats), wanted, seed=seed, **slo)
        allowed = int(0.05 * wanted)
        while run.events and run.done < wanted:
            for _ in range(CHECKED_EVERY):
                if not run.events or run.done >= wanted:
                    break
                run.step()
            if run.will_miss(allowed):
                return False
        return run.outcome().requests_inside >= 0.95

    low, high = 0, max(8, load.chats)
    while high < MAX_CHATS_TRIED and holds(high):
        low, high = high, high * 2
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    if not values:
        return (0.0, 0.0, 0.0)
    ordered = sorted(values)
    last = len(ordered) - 1
    return (ordered[last // 2], ordered[int(last * 0.95)], ordered[int(last * 0.99)])
