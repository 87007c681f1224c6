"""Predictions for Qwen3-30B-A3B in bf16 at batch 1, 64 and 256, written down before anybody measures them."""

from __future__ import annotations

import json
from pathlib import Path

from appliance.catalog.cards import find_card
from appliance.planner.models import parse_model
from appliance.planner.throughput import predict
from appliance.planner.workload import Workload

CARDS = ("H100 SXM 80GB", "H200 SXM 141GB", "RTX PRO 6000 Blackwell Workstation")


def main() -> None:
    shape, dtype = parse_model("Qwen/Qwen3-30B-A3B")
    points = []
    for card in CARDS:
        for batch in (1, 64, 256):
            one = Workload(
                card=find_card(card),
                shape=shape,
                precision=dtype,
                input=1024,
                output=256,
                concurrency=batch,
            )
            found = predict(one)
            points.append(
                {
                    "gpu": card,
                    "model": shape.name,
                    "dtype": dtype.name,
                    "input_tokens": 1024,
                    "output_tokens": 256,
                    "concurrency": batch,
                    "output_tok_s": round(found.output_tok_s, 1),
                    "low": round(found.low, 1),
                    "high": round(found.high, 1),
                    "tpot_ms": round(found.tpot_ms, 2),
                    "running": round(found.running, 1),
                    "limit": found.limit,
                }
            )
            print(points[-1])
    where = Path(__file__).with_name("qwen3_30b_predicted.json")
    where.write_text(json.dumps({"what": "vLLM, closed loop; predicted, not measured", "points": points}, indent=1))


if __name__ == "__main__":
    main()
