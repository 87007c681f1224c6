"""From step times to what a client sees: output tok/s, TTFT and TPOT of a closed loop of requests.

Pure. ``concurrency`` requests are always in flight; a replica runs as many as its KV cache and its slots
hold, the rest wait. Over one request's life every other running request is prefilled once, so a cycle is the
decode steps of one answer plus the prefills of all that run beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

from appliance.planner.constants import Constants, calibrated, intervals
from appliance.planner.memory import CardMemory, card_memory, default_sequences
from appliance.planner.roofline import DecodeStep, decode_step, prefill_latency, prefill_time
from appliance.planner.workload import Workload, check_workload


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the planner expects, with the ends of an 80 % interval for the throughput."""

    output_tok_s: float
    low: float
    high: float
    ttft_ms: float
    tpot_ms: float
    running: float
    """Requests decoding at once, over all replicas."""
    limit: str
    """What limits throughput: memory bandwidth, arithmetic, launches, links, host, KV cache."""
    step: DecodeStep
    memory: CardMemory
    assumed: tuple[str, ...]


def predict(point: Workload, k: Constants | None = None) -> Prediction:
    """The closed loop of ``point``; :class:`~appliance.errors.UsageError` where it cannot be."""
    check_workload(point)
    k = k or calibrated()
    memory = card_memory(
        point.card,
        point.shape,
        point.precision,
        point.layout,
        utilization=point.utilization,
        sequences=point.max_sequences,
    )
    layout = point.layout
    busy = min(float(layout.replicas), point.concurrency)
    asked = max(1.0, point.concurrency / layout.replicas)
    slots = float(point.max_sequences or default_sequences(point.card))
    if point.engine == "tensorrt-llm":
        slots = max(slots, 2048.0)
    room = room_for(point, memory)
    running = max(1.0, min(asked, slots, room))
    context = point.input + point.output / 2.0
    step = decode_step(point, running, context, k)
    prompt = prefill_time(point, point.input, k)
    steps = point.output / point.accepted
    decode = steps * step.total
    prefills = running * prompt
    if point.decode_only:
        rate, tpot = running / step.total * point.accepted, step.total / point.accepted
    else:
        alone = prefill_latency(point, point.input, k)
        cycle = decode + max(prefills, alone)
        if point.requests is not None:
            cycle *= 1.0 + k.drain * min(1.0, running * busy / point.requests)
        rate = running * point.output / cycle
        tpot = (cycle - alone) / point.output if running > 1 else step.total / point.accepted
    rate *= busy
    first = prefill_latency(point, point.input, k)
    ttft = first + max(0.0, min(running, asked) - 1) * prompt / 2
    if asked > running:
        ttft += (asked - running) / running * steps * step.total
    low, high = interval(point)
    return Prediction(
        rate,
        rate * exp(low),
        rate * exp(high),
        ttft * 1e3,
        tpot * 1e3,
        running * busy,
        _limit(step, decode, prefills, running, asked, room),
        step,
        memory,
        point.assumed,
    )


def room_for(point: Workload, memory: CardMemory) -> float:
    """Requests of this point that the KV cache of one replica holds, on average over their growth.

    Published runs are taken as true even where our account says the weights do not fit: then one request
    runs.
    """
    if point.engine == "llamacpp" or point.decode_only:
        return max(1.0, point.concurrency)
    average = point.input + point.output / 2.0
    return max(1.0, memory.sequences(average)) * (point.layout.tp if point.layout.attention_dp else 1)


def answer_class(point: Workload) -> str:
    """Which interval an answer gets: the less the question said, the wider."""
    if point.cpu is not None or point.shape.approximate:
        return "far"
    if point.assumed:
        return "assumed"
    return "single" if point.layout.cards == 1 else "several"


def interval(point: Workload) -> tuple[float, float]:
    """Logarithms to add for the low and the high end."""
    table = intervals()
    return table.get(answer_class(point)) or table.get("all") or (-0.5, 0.5)


def _limit(step: DecodeStep, decode: float, prefills: float, running: float, asked: float, room: float) -> str:
    if asked > running * 1.01 and room <= running * 1.01:
        return "KV cache"
    if prefills > decode:
        return "prefill arithmetic"
    parts = {
        "memory bandwidth": step.memory,
        "arithmetic": step.compute,
        "kernel launches": step.floor,
        "links between cards": step.communication,
        "host": step.host,
    }
    return max(parts, key=lambda name: parts[name])
