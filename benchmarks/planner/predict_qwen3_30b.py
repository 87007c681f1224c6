"""Predictions for Qwen3-30B-A3B in bf16 at batch 1, 64 and 256, recorded before any measurement."""

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
            workload = Workload(
                card=find_card(card),
                shape=shape,
                precision=dtype,
                input=1024,
                output=256,
                concurrency=batch,
            )
            prediction = predict(workload)
            points.append(
                {
                    "gpu": card,
                    "model": shape.name,
                    "dtype": dtype.name,
                    "input_tokens": 1024,
                    "output_tokens": 256,
                    "concurrency": batch,
                    "output_tok_s": round(prediction.output_tok_s, 1),
                    "low": round(prediction.low, 1),
                    "high": round(prediction.high, 1),
                    "tpot_ms": round(prediction.tpot_ms, 2),
                    "running": round(prediction.running, 1),
                    "limit": prediction.limit,
                }
            )
            print(points[-1])
    path = Path(__file__).with_name("qwen3_30b_predicted.json")
    path.write_text(json.dumps({"what": "vLLM, closed loop; predicted, not measured", "points": points}, indent=1))


if __name__ == "__main__":
    main()
