"""Which on-demand engine is loaded, and which one makes room for it. Pure: time is given, nothing is done here.

Taking whatever comes next (first come, first served) loads and unloads for every other request; serving the
loaded model as long as anybody asks for it starves the others. So a model stays for at least
``min_residency_s``, goes at once when nobody uses it, and else when ``batch`` more of its requests began, or the
other one waited ``max_wait_s``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from appliance.contract.model import Swap

State = Literal["stopped", "asleep", "loading", "ready", "draining", "failed"]

RETRY_S = 60.0
"""Seconds after a failed load before a request may try the same engine again."""

Memory = Mapping[str, float]
"""What is taken, by card (or host, for engines on the CPU), in shares or GiB: any unit that a budget has too."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """One engine as the policy sees it. Times are seconds of one clock."""

    name: str
    state: State
    since: float
    awake: Memory
    asleep: Memory = field(default_factory=dict)
    on_demand: bool = True
    waiting: int = 0
    oldest: float | None = None
    in_flight: int = 0
    last_used: float = 0.0
    begun: int = 0
    """Requests of it that began while another engine was waited for."""


@dataclass(frozen=True, slots=True)
class LoadEngine:
    """Load ``name``; ``victims`` are drained and unloaded first. Without any it is loaded beside the others."""

    name: str
    victims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do; look again at ``until``, or when something happens."""

    until: float | None = None


def wait_ends(since: float, max_wait_s: float, swapped_s: float, swap_until: float | None) -> float:
    """Return the time at which a request's wait ends at the latest.

    The request waits ``since`` then, of which swaps to its model took ``swapped_s`` seconds: those do not count
    against ``max_wait_s``. While such a swap is in progress, its own deadline ``swap_until`` is the bound instead.
    """
    return since + max_wait_s + swapped_s if swap_until is None else swap_until


def decide(
    engines: Sequence[EngineState], budget: Memory, rules: Swap, now: float, wanted: str | None = None
) -> LoadEngine | Wait:
    """The next step. ``wanted`` is an engine that a person asked for: no residency or batch protects the others."""
    if any(engine.state in ("loading", "draining") for engine in engines):
        return Wait()
    later: list[float] = []
    for target in _candidates(engines, wanted):
        if target.state == "failed" and target.name != wanted and now < target.since + RETRY_S:
            later.append(target.since + RETRY_S)
            continue
        victims = _victims(engines, target, budget)
        if victims is None:
            continue
        ready = max((_free_at(victim, target, rules, now) for victim in victims), default=now)
        if target.name == wanted or ready <= now:
            return LoadEngine(target.name, tuple(victim.name for victim in victims))
        later.append(ready)
    return Wait(min(later, default=None))


def fits(engines: Sequence[EngineState], budget: Memory) -> bool:
    """Whether what ``engines`` take now is within ``budget``."""
    return all(amount <= budget[place] + 1e-9 for place, amount in taken(engines).items())


def taken(engines: Sequence[EngineState]) -> dict[str, float]:
    """What ``engines`` take now, by place."""
    total: dict[str, float] = {}
    for engine in engines:
        for place, amount in _held(engine).items():
            total[place] = total.get(place, 0.0) + amount
    return total


def _held(engine: EngineState) -> Memory:
    if engine.state in ("ready", "loading", "draining"):
        return engine.awake
    return engine.asleep if engine.state == "asleep" else {}


def _candidates(engines: Sequence[EngineState], wanted: str | None) -> list[EngineState]:
    """Engines to load: the one asked for, then those waited for, the longest wait first."""
    idle = [engine for engine in engines if engine.state in ("stopped", "asleep", "failed")]
    asked = [engine for engine in idle if engine.name == wanted]
    waited = [engine for engine in idle if engine.waiting and engine.name != wanted]
    return asked + sorted(waited, key=lambda engine: engine.oldest if engine.oldest is not None else 0.0)


def _victims(engines: Sequence[EngineState], target: EngineState, budget: Memory) -> list[EngineState] | None:
    """The fewest engines to unload for ``target``, unused ones and long unused ones first; ``None``: never fits."""
    room = dict(budget)
    for engine in engines:
        if engine is not target:
            for place, amount in _held(engine).items():
                room[place] = room.get(place, 0.0) - amount
    victims: list[EngineState] = []

    def lacking() -> set[str]:
        return {place for place, amount in target.awake.items() if amount > room.get(place, 0.0) + 1e-9}

    ready = [engine for engine in engines if engine.on_demand and engine.state == "ready"]
    for engine in sorted(ready, key=lambda e: (e.in_flight + e.waiting > 0, e.last_used)):
        short = lacking()
        if short & engine.awake.keys():
            victims.append(engine)
            for place, amount in engine.awake.items():
                room[place] += amount - engine.asleep.get(place, 0.0)
    if lacking():
        return None
    # A large one taken later may have made an earlier one's leaving needless.
    for engine in tuple(victims):
        freed = {place: amount - engine.asleep.get(place, 0.0) for place, amount in engine.awake.items()}
        for place, amount in freed.items():
            room[place] -= amount
        if lacking():
            for place, amount in freed.items():
                room[place] += amount
        else:
            victims.remove(engine)
    return victims


def _free_at(victim: EngineState, target: EngineState, rules: Swap, now: float) -> float:
    """When ``victim`` may go for ``target``: when idle or its batch is through, by the wait at the latest."""
    stays = victim.since + rules.min_residency_s
    if not victim.in_flight and not victim.waiting:
        return stays
    if victim.begun >= rules.batch:
        return stays
    waited_since = now if target.oldest is None else target.oldest
    return max(stays, waited_since + rules.max_wait_s)
