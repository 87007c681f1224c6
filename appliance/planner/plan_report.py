"""Everything a full plan says, gathered once for the terminal, JSON and the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.contract.card_memory import GIB
from appliance.planner.candidates import at
from appliance.planner.demand import Demand
from appliance.planner.hardware import HardwareSpec
from appliance.planner.placement import Advice, Placement, Plan, advise
from appliance.planner.simulated_engine import engine_of
from appliance.planner.simulation import OfferedLoad, Pattern, SimulationOutcome, breaking_point, simulate
from appliance.planner.what_if import Change, changes

SIMULATED = 5_000
"""Requests per model in a plan's simulation; `--simulate N` takes more."""
CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256)
N8N_BATCH = 20
"""Requests of one n8n run, over all models."""
N8N_RATE_SHARE = 0.2
"""Automations of n8n, as a share of what the chats ask, on top of it."""


@dataclass(frozen=True, slots=True)
class QueueEstimate:
    """One model's simulation."""

    work: str
    outcome: SimulationOutcome
    breaks_at: int
    """Open chats of this model beyond which one request in twenty misses the SLO."""


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A whole plan."""

    machines: tuple[HardwareSpec, ...]
    demand: Demand
    advice: Advice
    queues: tuple[QueueEstimate, ...]
    changes: tuple[Change, ...]


def answer(
    machines: tuple[HardwareSpec, ...],
    demand: Demand,
    *,
    requests: int = SIMULATED,
    seed: int = 1,
    pattern: Pattern = "n8n",
) -> PlanReport:
    """Topology, simulation of the recommended one, and what changes would bring."""
    advice = advise(machines, demand)
    queues = []
    for part in advice.best.parts:
        engine = engine_of(part)
        chats = round(demand.chats * part.option.work.share)
        if engine is None or chats < 1:
            continue
        load = OfferedLoad(
            users=max(1, min(chats, round(demand.users * part.option.work.share))),
            chats=chats,
            think_s=demand.think_s,
            prompt=part.option.work.prompt,
            answer=part.option.work.answer,
            pattern=pattern,
            batch=max(1, round(N8N_BATCH * part.option.work.share)),
            rate=N8N_RATE_SHARE * chats / demand.think_s if pattern != "none" else 0.0,
        )
        limits = {"ttft_slo_s": demand.ttft_slo_s, "tpot_slo_s": demand.tpot_slo_s}
        outcome = simulate(engine, load, requests, seed=seed, **limits)
        breaks = breaking_point(engine, load, seed=seed, requests=1500, **limits)
        queues.append(QueueEstimate(part.option.work.name, outcome, breaks))
    return PlanReport(machines, demand, advice, tuple(queues), tuple(changes(machines, demand)))


def curve(part: Placement) -> list[dict[str, float]]:
    """Throughput and time per token of all replicas over the requests in flight, with the interval's ends."""
    points = []
    for per_replica in CURVE:
        if part.option.point is None or part.option.work.shape.pooling:
            break
        prediction = at(part.option, per_replica)
        assert prediction is not None  # noqa: S101
        if prediction.running < per_replica * 0.99:
            break
        points.append(
            {
                "in_flight": float(per_replica * part.replicas),
                "tok_s": prediction.output_tok_s * part.replicas,
                "low": prediction.low * part.replicas,
                "high": prediction.high * part.replicas,
                "tpot_ms": prediction.tpot_ms,
                "ttft_ms": prediction.ttft_ms,
            }
        )
    return points


def memory_bars(plan: Plan) -> list[dict[str, Any]]:
    """Per card: whose it is, and GiB of weights, working space, KV cache and what stays free."""
    bars = []
    for part in plan.parts:
        memory = part.option.memory
        if memory is None or part.option.card is None:
            continue
        bars += [
            {
                "card": f"{machine} {card}",
                "model": part.option.work.name,
                "total": memory.total / GIB,
                "weights": memory.weights / GIB,
                "working": memory.overhead / GIB,
                "kv": max(memory.kv, 0.0) / GIB,
                "kv_tokens": memory.kv_tokens,
            }
            for machine, cards in part.places
            for card in cards
        ]
    return bars


def as_json(answer: PlanReport) -> dict[str, Any]:
    """The plan as plain data."""
    best = answer.advice.best
    return {
        "machines": [
            {"name": machine.name, "cards": [card.name for card in machine.cards], "ram_gib": machine.ram_gib}
            for machine in answer.machines
        ],
        "demand": {
            "users": answer.demand.users,
            "chats": answer.demand.chats,
            "think_s": answer.demand.think_s,
            "ttft_slo_s": answer.demand.ttft_slo_s,
            "tpot_slo_s": answer.demand.tpot_slo_s,
            "prefix_hit": answer.demand.prefix_hit,
        },
        "recommended": plan_json(best),
        "reasons": list(answer.advice.reasons),
        "looked_at": answer.advice.looked_at,
        "alternatives": [{**plan_json(plan), "best_at": what} for plan, what in answer.advice.alternatives],
        "simulation": [
            {
                "model": queue.work,
                "requests": queue.outcome.requests,
                "ttft_s": dict(zip(("p50", "p95", "p99"), queue.outcome.ttft, strict=True)),
                "tpot_s": dict(zip(("p50", "p95", "p99"), queue.outcome.tpot, strict=True)),
                "chats": queue.outcome.chats,
                "users": queue.outcome.users,
                "chats_inside": queue.outcome.chats_inside,
                "users_inside": queue.outcome.users_inside,
                "requests_inside": queue.outcome.requests_inside,
                "longest_queue": queue.outcome.longest_queue,
                "breaks_at_chats": queue.breaks_at,
            }
            for queue in answer.queues
        ],
        "changes": [
            {"what": change.what, "plan": plan_json(change.plan) if change.plan is not None else None}
            for change in answer.changes
        ],
        "memory": memory_bars(best),
        "curves": {part.option.work.name: curve(part) for part in best.parts if part.option.point is not None},
    }


def plan_json(plan: Plan) -> dict[str, Any]:
    """One topology as plain data."""
    return {
        "title": plan.title,
        "headroom": plan.headroom,
        "spare_cards": plan.spare_cards,
        "resilient": plan.resilient,
        "tpot_ms": plan.tpot_ms,
        "ttft_ms": plan.ttft_ms,
        "chats_of_full_context": plan.context_room,
        "parts": [
            {
                "model": part.option.work.name,
                "shape": part.option.work.shape.name,
                "precision": part.option.point.precision.name
                if part.option.point
                else part.option.work.precision.name,
                "layout": part.option.title,
                "replicas": part.replicas,
                "cards": [{"machine": machine, "cards": list(cards)} for machine, cards in part.places],
                "headroom": part.headroom,
                "limit": part.option.limit,
                "in_flight_per_replica": part.load,
                "tok_s": _rates(part),
                "alone_tok_s": part.option.alone_tok_s,
            }
            for part in plan.parts
        ],
    }


def _rates(part: Placement) -> dict[str, float] | None:
    now = part.now
    if now is None:
        return None
    count = part.replicas
    return {"expected": now.output_tok_s * count, "low": now.low * count, "high": now.high * count}
