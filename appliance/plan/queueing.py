"""Discrete-event simulation of people and automations in front of the predicted engine.

Pure and seeded. Chats are a closed population: each thinks, sends, reads the answer, thinks again. Automations come on
top, as a Poisson stream, in bursts, or in n8n's batches. A replica prefills one prompt at a time and decodes all its
running requests together, each at the speed the roofline gives for that many; beyond its slots requests wait in line.

Decoding is kept in virtual time: while ``n`` requests run, the clock of tokens advances by ``1 / tpot(n)`` per second,
so that a request ends when that clock has advanced by its answer's length, whatever joins or leaves meanwhile. One
request then costs a handful of heap operations, and a million take well under a minute.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from math import log
from random import Random
from typing import Literal

from appliance.errors import UsageError

ARRIVE, PREFILLED, FINISHED = 0, 1, 2

Pattern = Literal["none", "poisson", "bursts", "n8n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A pool of equal replicas, as the roofline sees one of them."""

    replicas: int
    slots: int
    """Requests one replica runs at once: its KV cache or its --max-num-seqs."""
    tpot_s: tuple[float, ...]
    """Seconds per token with n running, index n; index 0 unused."""
    prefill_s_per_token: float
    first_s: float
    """Fixed part of the time to a first token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Who asks. Lengths are exponential around their means, at least one token."""

    users: int = 100
    chats: int = 200
    think_s: float = 60.0
    prompt: float = 2000.0
    answer: float = 400.0
    pattern: Pattern = "none"
    rate: float = 0.0
    """Requests per second of the automations, on average."""
    batch: int = 20
    """Requests of one burst or one n8n run, all at once."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the simulation saw. Times in seconds."""

    requests: int
    seconds: float
    ttft: tuple[float, float, float]
    """p50, p95, p99."""
    tpot: tuple[float, float, float]
    chats_inside: int
    """Chats of which at least 95 % of requests held the SLO."""
    users_inside: int
    """Users all of whose chats did."""
    requests_inside: float
    """Share of all requests that held the SLO."""
    longest_queue: int


@dataclass(slots=True)
class _Replica:
    running: int = 0
    clock: float = 0.0
    at: float = 0.0
    prefill_until: float = 0.0
    version: int = 0
    waiting: deque[tuple[float, int, float, float]] = field(default_factory=deque)
    ends: list[tuple[float, int, float, float, float]] = field(default_factory=list)


def simulate(
    engine: Engine, load: Load, requests: int, *, seed: int = 1, ttft_slo_s: float = 2.0, tpot_slo_s: float = 0.1
) -> Outcome:
    """``requests`` requests from the first on; the same seed gives the same outcome."""
    if requests < 1 or requests > 10_000_000:
        raise UsageError(f"{requests} requests cannot be simulated; nearest valid: {min(max(requests, 1), 10_000_000)}")
    if load.chats < 1 and load.rate <= 0:
        raise UsageError("nobody asks anything: name chats or a rate of automations")
    random = Random(seed).random  # noqa: S311
    prefill_token, first, slots = engine.prefill_s_per_token, engine.first_s, engine.slots
    tpot_table = engine.tpot_s
    last = len(tpot_table) - 1
    replicas = [_Replica() for _ in range(engine.replicas)]
    events: list[tuple[float, int, int, int, float, float, float]] = []
    sequence = 0

    def exponential(mean: float) -> float:
        return -mean * log(1.0 - random())

    # (time, order, kind, replica or chat, arrival, prompt, answer); `order` breaks ties, so that runs repeat exactly.
    for chat in range(load.chats):
        heappush(events, (exponential(load.think_s), sequence, ARRIVE, chat, 0.0, 0.0, 0.0))
        sequence += 1
    automation = -1
    if load.pattern != "none" and load.rate > 0:
        heappush(events, (exponential(1.0 / load.rate), sequence, ARRIVE, automation, 0.0, 0.0, 0.0))
        sequence += 1
    ttfts, tpots = array("d"), array("d")
    good = [0] * (load.chats + 1)
    total = [0] * (load.chats + 1)
    started = done = longest = waiting_now = 0
    now = 0.0

    def advance(replica: _Replica) -> None:
        if replica.running:
            replica.clock += (now - replica.at) / tpot_table[min(replica.running, last)]
        replica.at = now

    def schedule(index: int, replica: _Replica) -> None:
        nonlocal sequence
        replica.version += 1
        if replica.ends:
            left = max(0.0, replica.ends[0][0] - replica.clock) * tpot_table[min(replica.running, last)]
            heappush(events, (now + left, sequence, FINISHED, index, float(replica.version), 0.0, 0.0))
            sequence += 1

    def start(index: int, replica: _Replica, request: tuple[float, int, float, float]) -> None:
        nonlocal sequence
        arrival, chat, prompt, answer = request
        replica.running += 1
        begin = max(now, replica.prefill_until)
        replica.prefill_until = begin + prompt * prefill_token
        heappush(events, (replica.prefill_until + first, sequence, PREFILLED, index * 16777216 + chat + 1, arrival, 0.0, answer))
        sequence += 1

    def arrive(chat: int) -> None:
        nonlocal started, longest, waiting_now
        started += 1
        request = (now, chat, 1.0 + exponential(load.prompt - 1.0), 1.0 + exponential(max(load.answer - 1.0, 0.01)))
        index = min(range(len(replicas)), key=lambda place: replicas[place].running + len(replicas[place].waiting))
        replica = replicas[index]
        if replica.running < slots:
            advance(replica)
            start(index, replica, request)
            schedule(index, replica)
        else:
            replica.waiting.append(request)
            waiting_now += 1
            longest = max(longest, waiting_now)

    while events and done < requests:
        now, _, kind, who, arrival, _, answer = heappop(events)
        if kind == FINISHED:
            replica = replicas[who]
            if arrival != replica.version:
                continue  # the batch changed since; a newer entry stands in the heap
            advance(replica)
            _, chat, asked, begun, length = heappop(replica.ends)
            replica.running -= 1
            ttft, tpot = begun - asked, (now - begun) / length
            ttfts.append(ttft)
            tpots.append(tpot)
            done += 1
            total[chat] += 1
            good[chat] += ttft <= ttft_slo_s and tpot <= tpot_slo_s
            if replica.waiting:
                waiting_now -= 1
                start(who, replica, replica.waiting.popleft())
            schedule(who, replica)
            if chat >= 0 and chat < load.chats:
                heappush(events, (now + exponential(load.think_s), sequence, ARRIVE, chat, 0.0, 0.0, 0.0))
                sequence += 1
        elif kind == PREFILLED:
            index, chat = who // 16777216, who % 16777216 - 1
            replica = replicas[index]
            advance(replica)
            heappush(replica.ends, (replica.clock + answer, chat, arrival, now, answer))
            schedule(index, replica)
        elif who == automation:
            size = 1 if load.pattern == "poisson" else load.batch
            for _ in range(size):
                arrive(load.chats)
            # n8n runs on a timer; the others come at random.
            gap = size / load.rate
            later = gap if load.pattern == "n8n" else exponential(gap)
            heappush(events, (now + later, sequence, ARRIVE, automation, 0.0, 0.0, 0.0))
            sequence += 1
        else:
            arrive(who)
    inside = [total[chat] > 0 and good[chat] >= 0.95 * total[chat] for chat in range(load.chats)]
    silent = [total[chat] == 0 for chat in range(load.chats)]
    users = max(1, min(load.users, load.chats)) if load.chats else 0
    happy = sum(
        all(inside[chat] or silent[chat] for chat in range(user, load.chats, users)) for user in range(users)
    )
    return Outcome(
        done,
        now,
        _percentiles(ttfts),
        _percentiles(tpots),
        sum(one or quiet for one, quiet in zip(inside, silent, strict=True)),
        happy,
        sum(good) / max(1, sum(total)),
        longest,
    )


def breaking_point(
    engine: Engine, load: Load, *, seed: int = 1, ttft_slo_s: float = 2.0, tpot_slo_s: float = 0.1, requests: int = 6000
) -> int:
    """Open chats at which the SLO breaks: more than 5 % of requests miss it. To within a twentieth."""
    def holds(chats: int) -> bool:
        outcome = simulate(
            engine, replace(load, chats=chats), max(requests, 6 * chats), seed=seed, ttft_slo_s=ttft_slo_s, tpot_slo_s=tpot_slo_s
        )
        return outcome.requests_inside >= 0.95

    low, high = 0, max(8, load.chats)
    while high < 20_000 and holds(high):
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
