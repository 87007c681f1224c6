"""The fit of a llama.cpp server whose experts are partly in RAM: what stays on its cards, and what the RAM holds.

Pure. ``n-cpu-moe = N`` keeps the experts of the first N layers in RAM. The other experts, the dense weights and the
KV cache of all slots are on the cards.
"""

from __future__ import annotations

from math import ceil

from appliance.catalog.shape import Shape
from appliance.contract.card_memory import GIB, MIB, WORKING_SPACE, budget
from appliance.contract.model import Engine, Host
from appliance.contract.violation import Violation
from appliance.planner import precision
from appliance.planner.precision import Precision


def layers_in_ram(engine: Engine, shape: Shape) -> int:
    """Return the number of layers whose experts are in RAM."""
    if engine.options.get("cpu-moe"):
        return shape.moe_layers
    stated = engine.options.get("n-cpu-moe")
    return min(stated, shape.moe_layers) if isinstance(stated, int) and stated > 0 else 0


def bytes_in_ram(engine: Engine, shape: Shape, dtype: Precision) -> float:
    """Return the bytes of the experts in RAM of one replica."""
    experts = precision.weights(shape, dtype).experts
    return experts * layers_in_ram(engine, shape) / max(1, shape.moe_layers)


def fewest_layers_in_ram(engine: Engine, shape: Shape, dtype: Precision, host: Host) -> int | None:
    """Return the smallest ``n-cpu-moe`` with which the rest fits the cards; ``None`` if none does."""
    cards = [gpu for gpu in host.gpus if gpu.index in engine.cards(0)]
    room = sum(budget(gpu.memory_mib * MIB, engine.gpu_memory_utilization) - WORKING_SPACE for gpu in cards)
    parts = precision.weights(shape, dtype)
    slots = shape.kv_bytes_per_token(dtype.kv_bytes) * engine.context * engine.concurrency
    free = room - parts.dense - slots
    if free < 0 or shape.moe_layers == 0:
        return None
    return max(0, ceil(shape.moe_layers * (1 - free / parts.experts)))


def card_violation(place: str, engine: Engine, shape: Shape, dtype: Precision, host: Host) -> Violation | None:
    """Return the violation of an engine at ``place`` whose rest does not fit its cards."""
    fewest = fewest_layers_in_ram(engine, shape, dtype, host)
    if fewest is None:
        dense = precision.weights(shape, dtype).dense / GIB
        what = (
            f"{dense:.1f} GiB of dense weights and the KV cache of {engine.concurrency} slots do not fit its cards"
        )
        return Violation(place, what, "lower context or concurrency, or raise gpu_memory_utilization")
    stated = layers_in_ram(engine, shape)
    if stated >= fewest:
        return None
    what = f"the experts of {stated} layers in RAM leave more on the cards than fits"
    return Violation(f"{place}.options", what, f"set n-cpu-moe = {fewest} or more")
