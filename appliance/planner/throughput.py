"""Throughput and latency for clients, from step times: output tok/s, TTFT and TPOT of a closed loop of requests.

Pure. ``concurrency`` requests are always in flight. A replica runs as many as its KV cache and its slots hold; the
rest waits. During one request every other running request is prefilled once. So a cycle is the decode steps of one
response plus the prefills of all running requests.
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
    """The expected throughput with the ends of its 80 % interval, and the expected latency."""

    output_tok_s: float
    low: float
    high: float
    ttft_ms: float
    tpot_ms: float
    running: float
    """Requests decoding at once, over all replicas."""
    limit: str
    """Limit of the throughput: memory bandwidth, arithmetic, launches, links, host, KV cache."""
    step: DecodeStep
    memory: CardMemory
    assumed: tuple[str, ...]


def predict(workload: Workload, k: Constants | None = None) -> Prediction:
    """Return the prediction for the closed loop of ``workload``, with the calibrated constants by default.

    Raises :class:`~appliance.errors.UsageError` for an impossible workload.
    """
    check_workload(workload)
    k = k or calibrated()
    memory = card_memory(
        workload.card,
        workload.shape,
        workload.precision,
        layout=workload.layout,
        utilization=workload.utilization,
        sequences=workload.max_sequences,
    )
    layout = workload.layout
    busy = min(float(layout.replicas), workload.concurrency)
    offered = max(1.0, workload.concurrency / layout.replicas)
    slots = float(workload.max_sequences or default_sequences(workload.card))
    if workload.engine == "tensorrt-llm":
        slots = max(slots, 2048.0)
    room = kv_capacity(workload, memory)
    running = max(1.0, min(offered, slots, room))
    context = workload.input + workload.output / 2.0
    step = decode_step(workload, k, batch=running, context=context)
    prompt = prefill_time(workload, workload.input, k)
    steps = workload.output / workload.accepted
    decode = steps * step.total
    prefills = running * prompt
    if workload.decode_only:
        rate, tpot = running / step.total * workload.accepted, step.total / workload.accepted
    else:
        alone = prefill_latency(workload, workload.input, k)
        cycle = decode + max(prefills, alone)
        if workload.requests is not None:
            cycle *= 1.0 + k.drain * min(1.0, running * busy / workload.requests)
        rate = running * workload.output / cycle
        tpot = (cycle - alone) / workload.output if running > 1 else step.total / workload.accepted
    rate *= busy
    first = prefill_latency(workload, workload.input, k)
    ttft = first + max(0.0, min(running, offered) - 1) * prompt / 2
    if offered > running:
        ttft += (offered - running) / running * steps * step.total
    if offered > running * 1.01 and room <= running * 1.01:
        limit = "KV cache"
    elif prefills > decode:
        limit = "prefill arithmetic"
    else:
        limit = _longest_part(step)
    low, high = interval(workload)
    return Prediction(
        output_tok_s=rate,
        low=rate * exp(low),
        high=rate * exp(high),
        ttft_ms=ttft * 1e3,
        tpot_ms=tpot * 1e3,
        running=running * busy,
        limit=limit,
        step=step,
        memory=memory,
        assumed=workload.assumed,
    )


def kv_capacity(workload: Workload, memory: CardMemory) -> float:
    """Return the requests of ``workload`` that the KV cache of one replica holds, on average over their growth.

    A published run is accepted even if the weights do not fit by this calculation: then one request runs.
    """
    if workload.engine == "llamacpp" or workload.decode_only:
        return max(1.0, workload.concurrency)
    average = workload.input + workload.output / 2.0
    return max(1.0, memory.sequences(average)) * (workload.layout.tp if workload.layout.attention_dp else 1)


def interval_class(workload: Workload) -> str:
    """Return the class of the interval of a prediction: the fewer conditions are stated, the wider."""
    if workload.cpu is not None or workload.shape.approximate:
        return "far"
    if workload.assumed:
        return "assumed"
    return "single" if workload.layout.cards == 1 else "several"


def interval(workload: Workload) -> tuple[float, float]:
    """Return the logarithms to add for the low and the high end."""
    table = intervals()
    return table.get(interval_class(workload)) or table.get("all") or (-0.5, 0.5)


def _longest_part(step: DecodeStep) -> str:
    parts = {
        "memory bandwidth": step.memory,
        "arithmetic": step.compute,
        "kernel launches": step.floor,
        "links between cards": step.communication,
        "host": step.host,
    }
    return max(parts, key=lambda name: parts[name])
