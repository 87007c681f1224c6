"""The placement of models on cards: predicts and compares every useful division of the cards, recommends one.

Pure. A plan starts from one candidate per model: a single card, a shard, experts in RAM, the processor or an AMD
card. Its units are placed on machines; spare cards serve the model with the highest need. The result is measured by
its headroom: how many times the demand it carries within the SLO.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import expm1

from appliance.contract.card_memory import GIB
from appliance.errors import UsageError
from appliance.planner import host_ram
from appliance.planner.across_hosts import hosts_advice, prefer_one_host
from appliance.planner.candidates import Candidate, find_candidates, predict_at
from appliance.planner.demand import Demand, check_demand
from appliance.planner.hardware import HardwareSpec
from appliance.planner.suggest import suggest_change
from appliance.planner.throughput import Prediction

COMFORT = 1.5
"""Headroom above which more headroom does not count: bursts of 1.5 times the demand are carried."""
MAX_CANDIDATES = 5
"""Candidates per model that are combined; the rest has both less speed and less capacity."""
MAX_COMBINATIONS = 4000

Place = tuple[tuple[str, tuple[int, ...]], ...]
"""The cards of one unit: its machines in the order of its ranks, each with the positions of its cards there."""


@dataclass(frozen=True, slots=True)
class Placement:
    """``replicas`` units of one candidate, each on its place."""

    candidate: Candidate
    places: tuple[Place, ...]
    headroom: float
    """How many times its demand the model carries within the SLO."""
    load: float
    """Requests in flight per replica under the demand."""
    prediction: Prediction | None
    """The prediction for users under the demand; None without decoding on cards."""

    @property
    def replicas(self) -> int:
        """Number of units."""
        return len(self.places)


@dataclass(frozen=True, slots=True)
class Plan:
    """A placement of all models."""

    parts: tuple[Placement, ...]
    headroom: float
    """Headroom of the tightest model."""
    spare_cards: int
    resilient: bool
    """Whether every model survives the loss of one card."""

    @property
    def writable(self) -> bool:
        """Whether the site's contract can express every part."""
        return all(part.candidate.writable for part in self.parts)

    @property
    def title(self) -> str:
        """``2 x TP4 planner + 4 x 1 card coder``."""
        return " + ".join(
            f"{part.replicas} x {part.candidate.title} {part.candidate.model.name}" for part in self.parts
        )

    @property
    def tpot_ms(self) -> float:
        """The slowest model's time per token under the demand."""
        return max((part.prediction.tpot_ms for part in self.parts if part.prediction is not None), default=0.0)

    @property
    def ttft_ms(self) -> float:
        """The slowest model's time to first token under the demand."""
        return max((part.prediction.ttft_ms for part in self.parts if part.prediction is not None), default=0.0)

    @property
    def context_room(self) -> float:
        """Chats of the full context that the tightest model's replicas hold together."""
        rooms = [
            part.candidate.memory.sequences(part.candidate.model.context) * part.replicas
            for part in self.parts
            if part.candidate.memory is not None and not part.candidate.model.shape.pooling
        ]
        return min(rooms, default=0.0)


@dataclass(frozen=True, slots=True)
class Advice:
    """The recommended plan with its reasons, and the alternatives."""

    best: Plan
    reasons: tuple[str, ...]
    alternatives: tuple[tuple[Plan, str], ...]
    """Plans, each with the respect in which it is best."""
    plans_compared: int


def advise(machines: tuple[HardwareSpec, ...], demand: Demand) -> Advice:
    """Return the best plan for ``demand`` on ``machines``; :class:`UsageError` if none fits."""
    check_demand(machines, demand)
    plans = enumerate_plans(machines, demand)
    if not plans:
        raise UsageError(_nothing_fits(machines, demand))
    plans.sort(key=_merit, reverse=True)
    best = plans[0]
    return Advice(
        best=best,
        reasons=tuple(_reasons(best, plans, machines, demand)),
        alternatives=_alternatives(plans),
        plans_compared=len(plans),
    )


def enumerate_plans(machines: tuple[HardwareSpec, ...], demand: Demand) -> list[Plan]:
    """Return every plan that fits, one per combination of candidates."""
    lists = []
    for model in demand.models:
        found: list[Candidate] = []
        for machine in dict.fromkeys(machines):
            equal = sum(other.cards == machine.cards for other in machines)
            found += [
                candidate
                for candidate in find_candidates(model, machine, demand, machines=equal)
                if candidate not in found
            ]
        lists.append(_prune(prefer_one_host(found)))
    plans = []
    loads: Loads = {}
    cards = sum(len(machine.cards) for machine in machines)
    for chosen in itertools.islice(itertools.product(*lists), MAX_COMBINATIONS):
        if sum(candidate.cards for candidate in chosen) > cards:
            continue
        plan = _place(chosen, machines, demand, loads=loads)
        if plan is not None:
            plans.append(plan)
    return plans


def _prune(found: list[Candidate]) -> list[Candidate]:
    """Return the candidates to combine: best per card, best alone, cheapest; at most :data:`MAX_CANDIDATES`."""
    kept: list[Candidate] = []
    orders = (
        lambda candidate: -candidate.requests_per_s / max(candidate.cards, 0.25),
        lambda candidate: -candidate.alone_tok_s,
        lambda candidate: candidate.cards,
        lambda candidate: -candidate.requests_per_s,
    )
    for place in range(len(found)):
        for order in orders:
            candidate = sorted(found, key=order)[place]
            if candidate not in kept and len(kept) < MAX_CANDIDATES:
                kept.append(candidate)
    return kept


class _FreeResources:
    """Free cards and RAM of every machine during the placement of units."""

    def __init__(self, machines: tuple[HardwareSpec, ...]) -> None:
        self.machines = machines
        self.free = {machine.name: list(range(len(machine.cards))) for machine in machines}
        self.busy: set[str] = set()
        self.ram = {machine.name: host_ram.SYSTEM_GIB * GIB for machine in machines}

    def place(self, candidate: Candidate) -> Place | None:
        """Take cards for one unit on the machines with the fewest sufficient cards, and return its place.

        None if too few machines have room.
        """
        need = candidate.layout.cards_per_replica // candidate.layout.hosts if candidate.card is not None else 0
        fits = []
        for machine in self.machines:
            if candidate.kind == "experts in RAM" and machine.name in self.busy:
                # A second one would halve the RAM bandwidth of the first.
                continue
            if self.ram[machine.name] + candidate.ram_bytes / candidate.layout.hosts > machine.ram_gib * GIB:
                continue
            usable = [index for index in self.free[machine.name] if machine.cards[index] == candidate.card]
            if len(usable) >= need:
                fits.append((len(usable), machine.name, tuple(usable[:need])))
        if len(fits) < candidate.layout.hosts:
            return None
        fits.sort()
        taken = fits[: candidate.layout.hosts]
        for _, name, cards in taken:
            self.free[name] = [index for index in self.free[name] if index not in cards]
            self.ram[name] += candidate.ram_bytes / candidate.layout.hosts
            if candidate.kind == "experts in RAM":
                self.busy.add(name)
        return tuple((name, cards) for _, name, cards in taken)

    @property
    def spare(self) -> int:
        """Number of free cards."""
        return sum(len(free) for free in self.free.values())


Loads = dict[tuple[int, int], tuple[float, Prediction | None]]
"""Results by (candidate, replicas): the same unit is part of many combinations."""


def _place(
    chosen: tuple[Candidate, ...], machines: tuple[HardwareSpec, ...], demand: Demand, *, loads: Loads
) -> Plan | None:
    """Return the plan with one candidate per model, None if they do not fit; ``loads`` is the cache of results."""
    free = _FreeResources(machines)
    places: list[list[Place]] = [[] for _ in chosen]
    for index in sorted(range(len(chosen)), key=lambda index: -chosen[index].cards):
        place = free.place(chosen[index])
        if place is None:
            return None
        places[index].append(place)
    while True:
        # A further unit serves the model with the least headroom that can use one.
        order = sorted(range(len(chosen)), key=lambda index: _headroom(chosen[index], len(places[index]), demand))
        for index in order:
            if chosen[index].card is None or chosen[index].kind == "vulkan":
                continue
            if chosen[index].model.shape.pooling and _headroom(chosen[index], len(places[index]), demand) > COMFORT:
                continue
            place = free.place(chosen[index])
            if place is not None:
                places[index].append(place)
                break
        else:
            break
    parts = []
    for candidate, units in zip(chosen, places, strict=True):
        key = (id(candidate), len(units))
        if key not in loads:
            loads[key] = _under_load(candidate, len(units), demand)
        load, prediction = loads[key]
        parts.append(
            Placement(
                candidate=candidate,
                places=tuple(units),
                headroom=_headroom(candidate, len(units), demand),
                load=load,
                prediction=prediction,
            )
        )
    resilient = all(part.replicas > 1 or part.candidate.card is None for part in parts)
    return Plan(
        parts=tuple(parts),
        headroom=min(part.headroom for part in parts),
        spare_cards=free.spare,
        resilient=resilient,
    )


def _headroom(candidate: Candidate, replicas: int, demand: Demand) -> float:
    wanted = demand.requests_per_s * candidate.model.share
    return candidate.requests_per_s * replicas / wanted if wanted > 0 else float("inf")


def _under_load(candidate: Candidate, replicas: int, demand: Demand) -> tuple[float, Prediction | None]:
    """Return the requests in flight per replica under the demand, and the prediction for them.

    The number follows from Little's law by fixed-point iteration.
    """
    if candidate.workload is None or candidate.model.shape.pooling:
        return 0.0, None
    chats = demand.chats * candidate.model.share / replicas
    flight = 1.0
    prediction = predict_at(candidate, flight)
    # Iterate from below, where every step increases the number: a chat's cycle grows with the running requests.
    for _ in range(12):
        assert prediction is not None  # noqa: S101
        seconds = prediction.ttft_ms / 1e3 + candidate.model.response * prediction.tpot_ms / 1e3
        wanted = max(1.0, chats * seconds / (seconds + demand.think_s))
        if wanted < flight * 1.02:
            break
        flight = wanted
        prediction = predict_at(candidate, flight)
    return flight, prediction


def _merit(plan: Plan) -> tuple[float, ...]:
    """Return the criteria by which plans are compared, most important first.

    1. The headroom of the tightest model, up to :data:`COMFORT`.
    2. The headroom of all models, each up to :data:`COMFORT`.
    3. Few cards for embeddings that the processor can carry.
    4. The capacity that remains after the loss of a card (many small replicas).
    5. The speed for users.
    6. The headroom of the tightest model without a limit.
    """
    parts = plan.parts
    capped = sum(min(part.headroom, COMFORT) for part in parts)
    pooling = sum(part.candidate.cards * part.replicas for part in parts if part.candidate.model.shape.pooling)
    left = sum(
        (1.0 - 1.0 / part.replicas) * part.candidate.model.share
        for part in parts
        if part.candidate.card is not None
    )
    speed = sum(
        part.candidate.model.share / part.prediction.tpot_ms for part in parts if part.prediction is not None
    )
    return (
        round(min(plan.headroom, COMFORT), 1),
        round(capped, 1),
        -pooling,
        round(left, 2),
        speed,
        plan.headroom,
    )


def _reasons(best: Plan, plans: list[Plan], machines: tuple[HardwareSpec, ...], demand: Demand) -> list[str]:
    tight = min(best.parts, key=lambda part: part.headroom)
    carries = f"carries {best.headroom:.1f} times the demand within {demand.tpot_slo_s * 1e3:.0f} ms per token"
    found = [f"It {carries}; {tight.candidate.model.name} is the tightest, limited by {tight.candidate.limit}."]
    if best.headroom < 1.0:
        found[0] = (
            f"No plan meets the whole demand: the best one carries {best.headroom:.2f} times of it; "
            f"{tight.candidate.model.name} is limited by {tight.candidate.limit}."
        )
    for part in best.parts:
        candidate = part.candidate
        if part.prediction is not None:
            count, prediction = part.replicas, part.prediction
            found.append(
                f"{candidate.model.name}: {part.load:.0f} responses at once per replica, each "
                f"{1e3 / prediction.tpot_ms:.0f} tok/s; "
                f"{prediction.output_tok_s * count:.0f} in all (80 %: {prediction.low * count:.0f} to "
                f"{prediction.high * count:.0f})."
            )
            if prediction.shift:
                found.append(
                    f"{candidate.model.name}: measurements of this machine change the predicted rate by "
                    f"{expm1(prediction.shift):+.0%}."
                )
        others = [
            other for plan in plans for other in plan.parts
            if other.candidate.model.name == candidate.model.name and other.candidate.title != candidate.title
        ]  # fmt: skip
        if candidate.card is not None and others and not candidate.model.shape.pooling:
            rival = max(others, key=lambda other: other.candidate.requests_per_s / max(other.candidate.cards, 0.25))
            mine = candidate.requests_per_s / max(candidate.cards, 1) * candidate.model.response
            its = rival.candidate.requests_per_s / max(rival.candidate.cards, 1) * candidate.model.response
            found.append(
                f"{candidate.model.name} as {candidate.title} gives {mine:.0f} tok/s per card within the SLO, "
                f"{rival.candidate.title} {its:.0f}."
            )
    found.append(
        "It survives the loss of one card."
        if best.resilient
        else "The loss of one card stops a model until the model is moved."
    )
    found += hosts_advice([part.candidate for part in best.parts], machines)
    return found


def _alternatives(plans: list[Plan]) -> tuple[tuple[Plan, str], ...]:
    """Return the plans that are best in some respect, the recommended one first."""
    titles: dict[str, tuple[Plan, list[str]]] = {}

    def note(plan: Plan, what: str) -> None:
        titles.setdefault(plan.title, (plan, []))[1].append(what)

    note(plans[0], "recommended")
    note(max(plans, key=lambda plan: plan.headroom), "most throughput")
    note(min(plans, key=lambda plan: plan.tpot_ms or 1e9), "fastest single responses")
    note(max(plans, key=lambda plan: plan.context_room), "most long chats at once")
    note(max(plans, key=lambda plan: (plan.spare_cards, plan.headroom)), "fewest cards")
    resilient = [plan for plan in plans if plan.resilient]
    if resilient:
        note(max(resilient, key=lambda plan: plan.headroom), "survives a lost card")
    # Further plans only if they differ in a generating model, not in the place of embeddings.
    seen = {_layouts(plan) for plan, _ in titles.values()}
    for plan in plans[1:]:
        if len(titles) < 6 and _layouts(plan) not in seen:
            seen.add(_layouts(plan))
            note(plan, "next")
    return tuple((plan, ", ".join(what)) for plan, what in titles.values())


def _layouts(plan: Plan) -> str:
    return " + ".join(
        f"{part.replicas} x {part.candidate.title.removesuffix(' EP')}"
        for part in plan.parts
        if not part.candidate.model.shape.pooling
    )


def _nothing_fits(machines: tuple[HardwareSpec, ...], demand: Demand) -> str:
    for model in demand.models:
        if not any(find_candidates(model, machine, demand, machines=len(machines)) for machine in machines):
            return suggest_change(model, machines, demand)
    count = sum(len(machine.cards) for machine in machines)
    names = ", ".join(model.name for model in demand.models)
    return (
        f"{count} cards do not hold {names} all at once; take a smaller or quantised model or another card, or let "
        'the models take turns: residency = "on-demand" (examples/one-card-swap.toml)'
    )
