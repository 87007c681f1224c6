"""The smallest change with which a model that does not fit would fit."""

from __future__ import annotations

import dataclasses

from appliance.contract.card_memory import GIB
from appliance.planner import precision
from appliance.planner.candidates import find_candidates
from appliance.planner.demand import Demand
from appliance.planner.hardware import HardwareSpec
from appliance.planner.models import ModelDemand

LADDER = ("fp8", "awq-int4", "nvfp4")


def suggest_change(model: ModelDemand, machines: tuple[HardwareSpec, ...], demand: Demand) -> str:
    """Return one line: the model that does not fit, and the smallest change with which it would."""
    size = precision.weights(model.shape, model.precision).total / GIB
    cards = ", ".join(f"{len(machine.cards)} x {machine.cards[0].name}" for machine in machines if machine.cards)
    start = f"{model.name}: {size:.0f} GiB of {model.precision.name} weights and {model.context} tokens of context "
    start += f"do not fit {cards or 'a machine without cards'}"
    for dtype in LADDER:
        smaller = dataclasses.replace(model, precision=precision.parse(dtype))
        if any(find_candidates(smaller, machine, demand) for machine in machines):
            return f"{start}; nearest that fits: {model.shape.name} in {dtype}"
    context = model.context
    while context > 2048 and context > model.prompt + model.response:
        context //= 2
        shorter = dataclasses.replace(
            model, context=context, prompt=min(model.prompt, context / 2), response=min(model.response, context / 4)
        )
        if any(find_candidates(shorter, machine, demand) for machine in machines):
            return f"{start}; nearest that fits: a context of {context}"
    for machine in machines:
        for count in (2, 4, 8):
            if machine.cards and count > len(machine.cards):
                grown = dataclasses.replace(machine, cards=(machine.cards[0],) * count)
                if find_candidates(model, grown, demand):
                    return f"{start}; nearest that fits: {count} cards"
    return f"{start}; nearest that fits: a smaller model"
