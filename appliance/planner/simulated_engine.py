"""The engine of the simulation, from a placement."""

from __future__ import annotations

from itertools import pairwise
from math import exp

from appliance.planner.candidates import predict_at
from appliance.planner.constants import calibrated
from appliance.planner.placement import Placement
from appliance.planner.roofline import prefill_latency, prefill_time
from appliance.planner.simulation import SimulatedEngine
from appliance.planner.throughput import kv_capacity

MAX_SLOTS = 512


def simulated_engine(part: Placement) -> SimulatedEngine | None:
    """Return the engine of ``part``; None without token-by-token responses from cards (embeddings, the processor).

    The time per token between the predicted numbers of running requests is interpolated.
    """
    workload = part.candidate.workload
    if workload is None or part.candidate.memory is None or part.candidate.model.shape.pooling:
        return None
    k = calibrated()
    slots = int(min(workload.max_sequences or MAX_SLOTS, MAX_SLOTS))
    if workload.engine != "llamacpp":
        slots = max(1, min(slots, int(kv_capacity(workload, part.candidate.memory))))
    knots: list[tuple[int, float]] = []
    count, slower = 1, 1.0
    while True:
        prediction = predict_at(part.candidate, count)
        assert prediction is not None  # noqa: S101
        knots.append((count, prediction.tpot_ms / 1e3))
        if count == 1:
            slower = exp(-prediction.shift)
        if count >= slots:
            break
        count = min(slots, max(count + 1, int(count * 1.5)))
    table = [knots[0][1]]
    for (low, fast), (high, slow) in pairwise(knots):
        table += [fast + (slow - fast) * (n - low) / (high - low) for n in range(low, high)]
    table.append(knots[-1][1])
    per_token = slower * prefill_time(workload, workload.input, k) / max(workload.input, 1.0)
    first = max(0.0, slower * prefill_latency(workload, workload.input, k) - per_token * workload.input)
    return SimulatedEngine(
        replicas=part.replicas, slots=slots, tpot_s=tuple(table), prefill_s_per_token=per_token, first_s=first
    )
