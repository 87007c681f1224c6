"""The report of a plan: collected once for the terminal, JSON and the page."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from appliance.contract.card_memory import GIB
from appliance.planner.candidates import predict_at
from appliance.planner.demand import Demand
from appliance.planner.hardware import HardwareSpec
from appliance.planner.nearest import NearRun, as_plain, nearest
from appliance.planner.placement import Advice, Placement, Plan, advise
from appliance.planner.simulated_engine import simulated_engine
from appliance.planner.simulation import OfferedLoad, Pattern, SimulationOutcome, breaking_point, simulate
from appliance.planner.what_if import Change, changes

SIMULATED = 5_000
"""Requests per model in a plan's simulation; `--simulate N` takes more."""
CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256)
N8N_BATCH = 20
"""Requests of one n8n run, over all models."""
N8N_RATE_SHARE = 0.2
"""Requests of n8n's automations, as a share of the chats' requests and in addition to them."""


@dataclass(frozen=True, slots=True)
class QueueEstimate:
    """The simulation of one model."""

    model: str
    outcome: SimulationOutcome
    breaking_point: int
    """Open chats of this model beyond which one request in twenty misses the SLO."""


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A recommended plan with its alternatives, simulation and the effect of changes."""

    machines: tuple[HardwareSpec, ...]
    demand: Demand
    advice: Advice
    queues: tuple[QueueEstimate, ...]
    changes: tuple[Change, ...]
    near: dict[str, tuple[NearRun, ...]]
    """The public measurements nearest to each model under the demand."""


def make_report(
    machines: tuple[HardwareSpec, ...],
    demand: Demand,
    *,
    requests: int = SIMULATED,
    seed: int = 1,
    pattern: Pattern = "n8n",
) -> PlanReport:
    """Return the report for ``demand`` on ``machines``; ``requests`` are simulated per model.

    Raises :class:`~appliance.errors.UsageError` if no plan fits.
    """
    advice = advise(machines, demand)
    queues = []
    for part in advice.best.parts:
        engine = simulated_engine(part)
        chats = round(demand.chats * part.candidate.model.share)
        if engine is None or chats < 1:
            continue
        load = OfferedLoad(
            users=max(1, min(chats, round(demand.users * part.candidate.model.share))),
            chats=chats,
            think_s=demand.think_s,
            prompt=part.candidate.model.prompt,
            response=part.candidate.model.response,
            pattern=pattern,
            batch=max(1, round(N8N_BATCH * part.candidate.model.share)),
            rate=N8N_RATE_SHARE * chats / demand.think_s if pattern != "none" else 0.0,
        )
        limits = {"ttft_slo_s": demand.ttft_slo_s, "tpot_slo_s": demand.tpot_slo_s}
        outcome = simulate(engine, load, requests, seed=seed, **limits)
        limit = breaking_point(engine, load, seed=seed, requests=1500, **limits)
        queues.append(QueueEstimate(model=part.candidate.model.name, outcome=outcome, breaking_point=limit))
    return PlanReport(
        machines=machines,
        demand=demand,
        advice=advice,
        queues=tuple(queues),
        changes=tuple(changes(machines, demand)),
        near=near_parts(advice.best),
    )


def near_parts(plan: Plan) -> dict[str, tuple[NearRun, ...]]:
    """Return the public measurements nearest to each model of ``plan`` that decodes on cards, under its load."""
    return {
        part.candidate.model.name: nearest(
            dataclasses.replace(part.candidate.workload, concurrency=max(1.0, part.load))
        )
        for part in plan.parts
        if part.candidate.workload is not None and part.prediction is not None
    }


def curve(part: Placement) -> list[dict[str, float]]:
    """Return throughput and time per token of all replicas by requests in flight, with the interval's ends."""
    points = []
    for per_replica in CURVE:
        if part.candidate.workload is None or part.candidate.model.shape.pooling:
            break
        prediction = predict_at(part.candidate, per_replica)
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
    """Return for each card its model, and the GiB of weights, working space, KV cache and in total."""
    bars = []
    for part in plan.parts:
        memory = part.candidate.memory
        if memory is None or part.candidate.card is None:
            continue
        bars += [
            {
                "card": f"{machine} {card}",
                "model": part.candidate.model.name,
                "total": memory.total / GIB,
                "weights": memory.weights / GIB,
                "working": memory.overhead / GIB,
                "kv": max(memory.kv, 0.0) / GIB,
                "kv_tokens": memory.kv_tokens,
            }
            for place in part.places
            for machine, cards in place
            for card in cards
        ]
    return bars


def as_json(report: PlanReport) -> dict[str, Any]:
    """Return the report as plain data."""
    best = report.advice.best
    return {
        "machines": [
            {"name": machine.name, "cards": [card.name for card in machine.cards], "ram_gib": machine.ram_gib}
            for machine in report.machines
        ],
        "demand": {
            "users": report.demand.users,
            "chats": report.demand.chats,
            "think_s": report.demand.think_s,
            "ttft_slo_s": report.demand.ttft_slo_s,
            "tpot_slo_s": report.demand.tpot_slo_s,
            "prefix_hit": report.demand.prefix_hit,
        },
        "recommended": plan_json(best),
        "reasons": list(report.advice.reasons),
        "looked_at": report.advice.plans_compared,
        "alternatives": [{**plan_json(plan), "best_at": what} for plan, what in report.advice.alternatives],
        "simulation": [
            {
                "model": queue.model,
                "requests": queue.outcome.requests,
                "ttft_s": dict(zip(("p50", "p95", "p99"), queue.outcome.ttft, strict=True)),
                "tpot_s": dict(zip(("p50", "p95", "p99"), queue.outcome.tpot, strict=True)),
                "chats": queue.outcome.chats,
                "users": queue.outcome.users,
                "chats_inside": queue.outcome.chats_inside,
                "users_inside": queue.outcome.users_inside,
                "requests_inside": queue.outcome.requests_inside,
                "longest_queue": queue.outcome.longest_queue,
                "breaks_at_chats": queue.breaking_point,
            }
            for queue in report.queues
        ],
        "changes": [
            {"what": change.what, "plan": plan_json(change.plan) if change.plan is not None else None}
            for change in report.changes
        ],
        "memory": memory_bars(best),
        "nearest": {name: as_plain(found) for name, found in report.near.items()},
        "curves": {
            part.candidate.model.name: curve(part) for part in best.parts if part.candidate.workload is not None
        },
    }


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return one plan as plain data."""
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
                "model": part.candidate.model.name,
                "shape": part.candidate.model.shape.name,
                "precision": part.candidate.workload.precision.name
                if part.candidate.workload
                else part.candidate.model.precision.name,
                "layout": part.candidate.title,
                "replicas": part.replicas,
                "cards": [
                    {"machine": machine, "cards": list(cards)} for place in part.places for machine, cards in place
                ],
                "headroom": part.headroom,
                "limit": part.candidate.limit,
                "in_flight_per_replica": part.load,
                "tok_s": _rates(part),
                "alone_tok_s": part.candidate.alone_tok_s,
            }
            for part in plan.parts
        ],
    }


def _rates(part: Placement) -> dict[str, float] | None:
    now = part.prediction
    if now is None:
        return None
    count = part.replicas
    return {"expected": now.output_tok_s * count, "low": now.low * count, "high": now.high * count}
