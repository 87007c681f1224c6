"""Times of one prediction and of a plan of five models on eight cards: ``python benchmarks/planner/timing.py``.

The plan has three chat models, an embedder and a reranker. Times are CPU seconds of this process, the best of
several runs. A prediction has 2 ms, a plan 2 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from appliance.catalog.cards import find_card
from appliance.catalog.processors import find_cpu
from appliance.planner.demand import Demand
from appliance.planner.hardware import HardwareSpec, parse_cards
from appliance.planner.models import ModelDemand, parse_model
from appliance.planner.placement import advise
from appliance.planner.plan_report import make_report
from appliance.planner.throughput import predict
from appliance.planner.workload import Workload

CARD = "RTX PRO 6000 Blackwell Server"
SHARES = {
    "Qwen/Qwen3-30B-A3B": 0.5,
    "Qwen/Qwen3-32B:fp8": 0.2,
    "Qwen/Qwen3-Coder-30B-A3B-Instruct:fp8": 0.1,
    "Qwen/Qwen3-Embedding-0.6B": 0.1,
    "Qwen/Qwen3-Reranker-0.6B": 0.1,
}


def best(function: Callable[[], object], runs: int) -> float:
    """Return the CPU seconds of the fastest of ``runs`` calls, after one call that fills the caches."""
    function()
    times = []
    for _ in range(runs):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def demand() -> Demand:
    """Return the load of 100 users on the five models of :data:`SHARES`."""
    models = []
    for text, share in SHARES.items():
        shape, dtype = parse_model(text)
        tokens = (500.0, 1.0, 8192) if shape.pooling else (2000.0, 400.0, 16384)
        models.append(
            ModelDemand(
                name=text,
                shape=shape,
                precision=dtype,
                share=share,
                prompt=tokens[0],
                response=tokens[1],
                context=tokens[2],
            )
        )
    return Demand(users=100, chats=200, think_s=60.0, models=tuple(models))


def main() -> None:
    """Print both times."""
    shape, dtype = parse_model("Qwen/Qwen3-30B-A3B")
    card = find_card(CARD)
    run = Workload(card=card, shape=shape, precision=dtype, input=2000.0, output=400.0, concurrency=16.0)
    machine = HardwareSpec(name="gpu", cards=parse_cards(f"8x {CARD}"), ram_gib=512, cpu=find_cpu("EPYC 9355"))
    load = demand()
    print(f"one prediction: {best(lambda: predict(run), 200) * 1e3:.2f} ms")
    print(f"placement of five models on eight cards: {best(lambda: advise((machine,), load), 3):.2f} s")
    print(f"the same with simulated queues: {best(lambda: make_report((machine,), load), 3):.2f} s")


if __name__ == "__main__":
    main()
