"""Decides which on-demand engine is loaded, and which ones are unloaded for it. Pure: the caller supplies the time.

First come, first served loads and unloads for every other request; serving the loaded model while it has requests
starves the others. So a model stays loaded for at least ``min_residency_s``. After that it is unloaded at once if
it is unused, else after ``batch`` more of its requests began or the other model's request waited ``max_wait_s``.

One rule decides, the first that applies:

| # | state | decision |
|---|---|---|
| 1 | an engine loads or drains | wait: one transition at a time |
| 2 | an operator requested an engine | load it, whatever runs in its place |
| 3 | requests wait for longer than ``max_wait_s`` | load for them, the longest wait first |
| 4 | other requests wait | load for them, the highest priority first |
| 5 | a user of an unloaded model has appeared | load it, if the engines in its place are unused |
| 6 | the default model is not loaded | load it, once the engines in its place are unused for ``return_s`` |
| 7 | an engine except the default is unused for ``unload_idle_s`` | unload it |
| 8 | none of these | wait for the next of these times |

A failed engine is skipped for :data:`RETRY_S`, except by rule 2.
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
"""Memory by card (or host, for engines on the CPU), in shares or GiB: any unit that the budget has, too."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """One engine as the policy's input. Times are seconds of one clock."""

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
    """Requests of it that began while requests for another engine waited."""
    priority: int = 0
    default: bool = False
    """Whether it serves the model to which the site returns."""
    expected: bool = False
    """Whether a user has appeared whose last request was for it."""
    drained: bool = False
    """Whether every replica of it is drained: it is not loaded, for a request nor for an operator."""


@dataclass(frozen=True, slots=True)
class LoadEngine:
    """The decision to load ``name``, after ``victims`` are drained and unloaded; none if the memory suffices."""

    name: str
    victims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnloadEngine:
    """The decision to unload ``name``, which is unused."""

    name: str


@dataclass(frozen=True, slots=True)
class Wait:
    """The decision to wait until ``until``, or until something changes."""

    until: float | None = None


def wait_ends(since: float, max_wait_s: float, swapped_s: float, swap_until: float | None) -> float:
    """Return the time at which a request's wait ends at the latest.

    Args:
        since: Time at which the wait began.
        max_wait_s: Longest wait in seconds outside swaps.
        swapped_s: Seconds of the wait in which swaps to the request's model were in progress; they do not count.
        swap_until: Deadline of a swap in progress, which is the bound instead; ``None`` without a swap.
    """
    return since + max_wait_s + swapped_s if swap_until is None else swap_until


def decide(
    engines: Sequence[EngineState], budget: Memory, rules: Swap, now: float, wanted: str | None = None
) -> LoadEngine | UnloadEngine | Wait:
    """Return the next step.

    Args:
        engines: All engines.
        budget: Memory of all cards and hosts.
        rules: The site's rules of swapping.
        now: Time in seconds.
        wanted: An engine that an operator requested: residency and batch do not protect the others from it.
    """
    if any(engine.state in ("loading", "draining") for engine in engines):
        return Wait()
    later: list[float] = []
    for target in _candidates(engines, wanted, rules, now):
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
    for target in [] if later else _unrequested(engines):
        load = _at_leisure(engines, target, budget, rules=rules, now=now)
        if isinstance(load, LoadEngine):
            return load
        later += [load.until] if load.until is not None else []
    idle = _idle_unload(engines, rules, now)
    if isinstance(idle, UnloadEngine):
        return idle
    later += [idle.until] if idle.until is not None else []
    return Wait(min(later, default=None))


def _idle_unload(engines: Sequence[EngineState], rules: Swap, now: float) -> UnloadEngine | Wait:
    """Return the unload of an engine that is unused for long enough, else the time of the next one."""
    if rules.unload_idle_s is None:
        return Wait()
    due = [
        (max(engine.since, engine.last_used) + rules.unload_idle_s, engine.name)
        for engine in engines
        if engine.on_demand and engine.state == "ready" and not engine.default and _unused(engine)
    ]
    if not due:
        return Wait()
    until, name = min(due)
    return UnloadEngine(name) if until <= now else Wait(until)


def _unused(engine: EngineState) -> bool:
    return not engine.in_flight and not engine.waiting


def _unrequested(engines: Sequence[EngineState]) -> list[EngineState]:
    """Return engines to load without a request: those whose users have appeared, then the default one."""
    idle = [engine for engine in engines if engine.state in ("stopped", "asleep", "failed") and not engine.drained]
    return [e for e in idle if e.expected] + [e for e in idle if e.default and not e.expected]


def _at_leisure(
    engines: Sequence[EngineState], target: EngineState, budget: Memory, *, rules: Swap, now: float
) -> LoadEngine | Wait:
    """Return the load of ``target`` if it disturbs no request, else the time at which it may."""
    if target.state == "failed" and now < target.since + RETRY_S:
        return Wait(target.since + RETRY_S)
    victims = _victims(engines, target, budget)
    if victims is None or not all(map(_unused, victims)):
        return Wait()
    rest = 0.0 if target.expected else rules.return_s
    free = [max(v.since + rules.min_residency_s, max(v.since, v.last_used) + rest) for v in victims]
    ready = max(free, default=now)
    if ready > now:
        return Wait(ready)
    return LoadEngine(target.name, tuple(victim.name for victim in victims))


def fits(engines: Sequence[EngineState], budget: Memory) -> bool:
    """Return whether the memory of ``engines`` is within ``budget``."""
    return all(amount <= budget[place] + 1e-9 for place, amount in taken(engines).items())


def taken(engines: Sequence[EngineState]) -> dict[str, float]:
    """Return the memory that ``engines`` occupy now, by place."""
    total: dict[str, float] = {}
    for engine in engines:
        for place, amount in _held(engine).items():
            total[place] = total.get(place, 0.0) + amount
    return total


def _held(engine: EngineState) -> Memory:
    if engine.state in ("ready", "loading", "draining"):
        return engine.awake
    return engine.asleep if engine.state == "asleep" else {}


def _candidates(engines: Sequence[EngineState], wanted: str | None, rules: Swap, now: float) -> list[EngineState]:
    """Return engines to load: the requested one, then those with waiting requests.

    Waits longer than ``max_wait_s`` are first, the longest one before the others. Priorities order the rest.

    A drained engine would serve no request and is not loaded.
    """
    idle = [engine for engine in engines if engine.state in ("stopped", "asleep", "failed") and not engine.drained]
    requested = [engine for engine in idle if engine.name == wanted]
    waited = [engine for engine in idle if engine.waiting and engine.name != wanted]

    def order(engine: EngineState) -> tuple[int, float]:
        oldest = engine.oldest if engine.oldest is not None else 0.0
        overdue = now >= oldest + rules.max_wait_s
        return (-101 if overdue else -engine.priority, oldest)

    return requested + sorted(waited, key=order)


def _victims(engines: Sequence[EngineState], target: EngineState, budget: Memory) -> list[EngineState] | None:
    """Return the fewest engines to unload for ``target``, unused ones first; ``None`` if it never fits.

    Among unused engines, the longest unused one is first.
    """
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
    # A large engine added later may make an earlier one needless.
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
    """Return when ``victim`` may be unloaded for ``target``: if it is idle or its batch is complete, else by the
    wait."""
    stays = victim.since + rules.min_residency_s
    if _unused(victim):
        return stays
    if victim.begun >= rules.batch:
        return stays
    waited_since = now if target.oldest is None else target.oldest
    return max(stays, waited_since + rules.max_wait_s)
