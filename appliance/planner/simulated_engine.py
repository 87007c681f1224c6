"""The queueing simulation's engine, from a placed option."""

from __future__ import annotations

from itertools import pairwise

from appliance.planner.candidates import at
from appliance.planner.constants import calibrated
from appliance.planner.placement import Placement
from appliance.planner.roofline import prefill_latency, prefill_time
from appliance.planner.simulation import SimulatedEngine
from appliance.planner.throughput import room_for

MAX_SLOTS = 512


def engine_of(part: Placement) -> SimulatedEngine | None:
    """None for options nobody waits on token by token (embeddings, the processor)."""
    point = part.option.point
    if point is None or part.option.memory is None or part.option.work.shape.pooling:
        return None
    k = calibrated()
    slots = int(min(point.max_sequences or MAX_SLOTS, MAX_SLOTS))
    if point.engine != "llamacpp":
        slots = max(1, min(slots, int(room_for(point, part.option.memory))))
    knots: list[tuple[int, float]] = []
    count = 1
    while True:
        answer = at(part.option, count)
        assert answer is not None  # noqa: S101
        knots.append((count, answer.tpot_ms / 1e3))
        if count >= slots:
            break
        count = min(slots, max(count + 1, int(count * 1.5)))
    table = [knots[0][1]]
    for (low, fast), (high, slow) in pairwise(knots):
        table += [fast + (slow - fast) * (n - low) / (high - low) for n in range(low, high)]
    table.append(knots[-1][1])
    per_token = prefill_time(point, point.input, k) / max(point.input, 1.0)
    first = max(0.0, prefill_latency(point, point.input, k) - per_token * point.input)
    return SimulatedEngine(
        replicas=part.replicas, slots=slots, tpot_s=tuple(table), prefill_s_per_token=per_token, first_s=first
    )
