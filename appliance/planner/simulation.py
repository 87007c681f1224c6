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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import takewhile
from math import inf, log
from operator import ge
from random import Random
from typing import Literal

from appliance.errors import UsageError

MAX_REQUESTS = 10_000_000

MAX_CHATS_TRIED = 20_000
"""Largest number of chats that the search for the breaking point tries beyond the open ones."""

CHECKED_EVERY = 512
"""Events between two checks whether a trial has failed."""

PROBED = (1.1, 0.95, 0.85, 0.5)
"""Shares of the capacity at which the search for the breaking point begins, until a trial holds.

In 17 plans the SLO held up to 0.87 to 1.02 of the capacity, if it held at all.
"""

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
    """Requests in a slot: those whose prompt is prefilled or waits for it, and those that decode."""
    clock: float = 0.0
    at: float = 0.0
    prefill_until: float = 0.0
    waiting: deque[_Request] = field(default_factory=deque)
    prefills: deque[tuple[float, int, float, float]] = field(default_factory=deque)
    """Prompts in their order: end of the prefill, chat, arrival, tokens of the response."""
    ends: list[tuple[float, int, float, float, float]] = field(default_factory=list)
    """Heap of decoding requests: end on the token clock, chat, arrival, start of decoding, tokens."""


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
    while not run.complete:
        run.advance(CHECKED_EVERY)
    return run.outcome()


class Simulation:
    """The state of one simulation.

    Two kinds of events follow each other: the arrivals, a heap, and the next event of each replica in ``due``. The
    latter is the end of a prefill or of a response. A replica computes it anew whenever its batch changes.
    """

    __slots__ = (
        "arrivals",
        "closed",
        "done",
        "due",
        "engine",
        "good",
        "in_flight",
        "load",
        "longest",
        "missed",
        "now",
        "random",
        "replicas",
        "scales",
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
        self.scales = (max(load.prompt - 1.0, 0.01), max(load.response - 1.0, 0.01))
        self.replicas = [_Replica() for _ in range(engine.replicas)]
        self.due = [inf] * engine.replicas
        self.in_flight = [0] * engine.replicas
        """Requests of each replica, the waiting ones included."""
        self.ttfts, self.tpots = array("d"), array("d")
        # The last place counts the requests of automations.
        self.good, self.total = [0] * (load.chats + 1), [0] * (load.chats + 1)
        self.now, self.waiting, self.longest = 0.0, 0, 0
        self.wanted, self.done, self.missed, self.closed = wanted, 0, 0, False
        self.arrivals = [(self._exponential(load.think_s), chat) for chat in range(load.chats)]
        if load.pattern != "none" and load.rate > 0:
            self.arrivals.append((self._exponential(1.0 / load.rate), load.chats))
        heapify(self.arrivals)

    @property
    def complete(self) -> bool:
        """Whether the wanted requests have finished."""
        return self.done >= self.wanted

    @property
    def requests_inside(self) -> float:
        """Share of the finished requests within the SLO."""
        return (self.done - self.missed) / max(1, self.done)

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

    def advance(self, events: int) -> None:
        """Process at most ``events`` events, until the wanted requests have finished."""
        arrivals, due, replicas, table = self.arrivals, self.due, self.replicas, self.table
        for _ in range(events):
            if self.done >= self.wanted:
                return
            soonest = min(due)
            if arrivals and arrivals[0][0] < soonest:
                self.now, chat = heappop(arrivals)
                if chat == self.load.chats:
                    self._automation()
                else:
                    self._arrive(chat)
                continue
            self.now = soonest
            index = due.index(soonest)
            replica = replicas[index]
            replica.clock += (soonest - replica.at) / table[replica.running]
            replica.at = soonest
            if replica.prefills and replica.prefills[0][0] == soonest:
                _, chat, arrival, response = replica.prefills.popleft()
                heappush(replica.ends, (replica.clock + response, chat, arrival, soonest, response))
            else:
                self._finish(index, replica)
            self._schedule(index, replica)

    def _exponential(self, mean: float) -> float:
        return -mean * log(1.0 - self.random())

    def _schedule(self, index: int, replica: _Replica) -> None:
        """Set the next event of ``replica``: the end of a prefill, or of a response if the batch stays."""
        due = replica.prefills[0][0] if replica.prefills else inf
        if replica.ends:
            left = replica.ends[0][0] - replica.clock
            end = self.now + left * self.table[replica.running] if left > 0.0 else self.now
            due = min(due, end)
        self.due[index] = due

    def _start(self, replica: _Replica, request: _Request) -> None:
        arrival, chat, prompt, response = request
        replica.running += 1
        begin = max(replica.prefill_until, self.now)
        replica.prefill_until = begin + prompt * self.engine.prefill_s_per_token
        # Prompts of one replica end in their order, because each follows the one before.
        replica.prefills.append((replica.prefill_until + self.engine.first_s, chat, arrival, response))

    def _arrive(self, chat: int) -> None:
        prompt_scale, response_scale = self.scales
        prompt = 1.0 - prompt_scale * log(1.0 - self.random())
        response = 1.0 - response_scale * log(1.0 - self.random())
        fewest = min(self.in_flight)
        index = self.in_flight.index(fewest)
        replica = self.replicas[index]
        self.in_flight[index] += 1
        if fewest < self.engine.slots:
            if replica.running:
                replica.clock += (self.now - replica.at) / self.table[replica.running]
            replica.at = self.now
            self._start(replica, (self.now, chat, prompt, response))
            self._schedule(index, replica)
        else:
            replica.waiting.append((self.now, chat, prompt, response))
            self.waiting += 1
            self.longest = max(self.longest, self.waiting)
            if self.waiting >= self.wanted:
                # All wanted requests have arrived.
                self.closed = True
                self.arrivals.clear()

    def _automation(self) -> None:
        load = self.load
        size = 1 if load.pattern == "poisson" else load.batch
        for _ in range(size):
            self._arrive(load.chats)
        if self.closed:
            return
        # n8n runs on a timer; the other patterns are random.
        gap = size / load.rate
        heappush(self.arrivals, (self.now + (gap if load.pattern == "n8n" else self._exponential(gap)), load.chats))

    def _finish(self, index: int, replica: _Replica) -> None:
        _, chat, arrival, begun, length = heappop(replica.ends)
        replica.running -= 1
        self.in_flight[index] -= 1
        ttft, tpot = begun - arrival, (self.now - begun) / length
        self.ttfts.append(ttft)
        self.tpots.append(tpot)
        self.done += 1
        self.total[chat] += 1
        if ttft <= self.slo[0] and tpot <= self.slo[1]:
            self.good[chat] += 1
        else:
            self.missed += 1
        if replica.waiting:
            self.waiting -= 1
            self._start(replica, replica.waiting.popleft())
        if chat < self.load.chats and not self.closed:
            heappush(self.arrivals, (self.now - self.load.think_s * log(1.0 - self.random()), chat))

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
            requests_inside=self.requests_inside,
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
    have missed the SLO, or have waited longer than it. If a population holds, smaller ones hold as well. So the
    first trials are near the capacity and decide on most others.
    """
    good, bad = 0, MAX_CHATS_TRIED * 2

    def holds(chats: int) -> bool:
        wanted = max(requests, min(6 * chats, MAX_PER_TRIAL))
        slo = {"ttft_slo_s": ttft_slo_s, "tpot_slo_s": tpot_slo_s}
        run = Simulation(engine, replace(load, chats=chats), wanted, seed=seed, **slo)
        allowed = int(0.05 * wanted)
        while not run.complete:
            run.advance(CHECKED_EVERY)
            if run.will_miss(allowed):
                return False
        return run.requests_inside >= 0.95

    def tried(chats: int) -> bool:
        nonlocal good, bad
        if good < chats < bad:
            good, bad = (chats, bad) if holds(chats) else (good, chats)
        return chats <= good

    capacity = chats_at_capacity(engine, load, tpot_slo_s)
    for share in PROBED:
        # A number that the search itself would try, so that its result stays the same.
        if tried(_largest(partial(ge, share * capacity), first=load.chats)):
            break
    return _largest(tried, first=load.chats)


def _largest(holds: Callable[[int], bool], *, first: int) -> int:
    """Return the largest number for which ``holds`` is true, to within a twentieth, by doubling and halving."""
    low, high = 0, max(8, first)
    while high < MAX_CHATS_TRIED and holds(high):
        low, high = high, high * 2
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def chats_at_capacity(engine: SimulatedEngine, load: OfferedLoad, tpot_slo_s: float) -> float:
    """Return the chats that keep every replica as full as the SLO permits, if no queue ever formed; 0 if none do.

    Little's law: with n requests running, n / (seconds of one) end per second. A chat sends one in each cycle of
    thinking and waiting for the response.
    """
    table = engine.tpot_s[1 : engine.slots + 1]
    running = sum(1 for _ in takewhile(lambda tpot: tpot <= tpot_slo_s, table))
    if not running:
        return 0.0
    prefill = load.prompt * engine.prefill_s_per_token
    seconds = prefill + engine.first_s + load.response * table[running - 1]
    rate = min(running / seconds, 1.0 / prefill if prefill > 0 else inf) * engine.replicas
    automated = load.rate if load.pattern != "none" else 0.0
    return max(0.0, rate - automated) * (load.think_s + seconds)


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    if not values:
        return (0.0, 0.0, 0.0)
    ordered = sorted(values)
    last = len(ordered) - 1
    return (ordered[last // 2], ordered[int(last * 0.95)], ordered[int(last * 0.99)])
