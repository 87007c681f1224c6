"""Errors of NVIDIA's aiconfigurator and of this planner, on the measurements that both predict.

Usage, with an interpreter that has aiconfigurator 0.12 and this repository on its path:
``PYTHONPATH=. python benchmarks/planner/compare_aiconfigurator.py [--limit 300]``. Rows are compared if
aiconfigurator has their card, engine, model, precision and mode. Rows with drafts or weights in RAM are not. This
planner's errors are held out by source; aiconfigurator has its own measurements of kernels.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from math import log
from pathlib import Path

import aiconfigurator_core
from aiconfigurator.cli.api import cli_estimate

from appliance.catalog.shipped import MEASUREMENTS
from appliance.planner import evaluate
from appliance.planner.workload import Workload
from tools import calibrate

SYSTEMS = {
    "A100 SXM 80GB": "a100_sxm",
    "H100 SXM 80GB": "h100_sxm",
    "H200 SXM 141GB": "h200_sxm",
    "B200 SXM 180GB": "b200_sxm",
    "B300 SXM 288GB": "b300_sxm",
    "GB300 288GB": "gb300",
    "RTX PRO 6000 Blackwell Server": "rtx_pro_6000_server",
}
BACKENDS = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "trtllm"}
GEMMS = {"bf16": "bfloat16", "fp8": "fp8_block", "nvfp4": "nvfp4", "int4": "int4_wo", "awq-int4": "int4_wo"}
MODES = {"served", "burst", "offline"}
CONFIGS = {
    path.name.removesuffix("_config.json").replace("--", "/", 1)
    for path in (Path(aiconfigurator_core.__file__).parent / "model_configs").glob("*_config.json")
}
"""Models whose config.json aiconfigurator has; it fetches those of others."""


def comparable(run: Workload) -> bool:
    """Return whether aiconfigurator has the card, the engine and the precision of ``run``."""
    known = (
        run.shape.name in CONFIGS
        and run.card.name in SYSTEMS
        and run.engine in BACKENDS
        and run.precision.name in GEMMS
    )
    return known and run.mode in MODES and not run.draft_tokens and run.cpu is None and not run.prefix_hit


def estimate(run: Workload, running: float) -> float:
    """Return aiconfigurator's output rate of ``run`` in tok/s over all replicas."""
    layout = run.layout
    batch = max(1, round(running / (layout.tp if layout.attention_dp else 1)))
    shards = layout.tp if run.shape.moe else 1
    found = cli_estimate(
        run.shape.name,
        SYSTEMS[run.card.name],
        backend_name=BACKENDS[run.engine],
        isl=max(1, round(run.input)),
        osl=max(2, round(run.output)),
        batch_size=batch,
        tp_size=1 if layout.attention_dp else layout.tp,
        pp_size=layout.pp,
        attention_dp_size=layout.tp if layout.attention_dp else 1,
        moe_tp_size=1 if layout.ep else shards,
        moe_ep_size=shards if layout.ep else 1,
        gemm_quant_mode=GEMMS[run.precision.name],
        moe_quant_mode=GEMMS[run.precision.name] if run.shape.moe else None,
        kvcache_quant_mode="fp8" if run.precision.kv_bytes == 1 else "bfloat16",
    )
    seconds = (found.ttft + (run.output - 1) * found.tpot) / 1e3
    return running * run.output / seconds * min(layout.replicas, run.concurrency)


def figures(name: str, errors: Sequence[float]) -> str:
    """Return a row of a Markdown table with the rows, the median and the 90 % quantile of ``errors``."""
    size = sorted(map(abs, errors))
    median, p90 = evaluate.quantile(size, 0.5), evaluate.quantile(size, 0.9)
    bias = evaluate.quantile(sorted(errors), 0.5)
    return f"| {name} | {len(size)} | {median:.3f} | {p90:.3f} | {bias:+.2f} |"


def main() -> None:
    """Print both errors over the rows that aiconfigurator predicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=1000, help="rows to try, in the order of the table")
    limit = parser.parse_args().limit
    logging.disable(logging.CRITICAL)
    data = calibrate.samples(evaluate.read(MEASUREMENTS))
    held = calibrate.cross_validate(data, lambda sample: sample.source)
    chosen = [(s, float(e)) for s, e in zip(data, held, strict=True) if comparable(s.workload)]
    ours, theirs, refused = [], [], Counter[str]()
    for sample, error in chosen[:: max(1, len(chosen) // limit)][:limit]:
        try:
            rate = estimate(sample.workload, sample.terms.running)
        except (ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError, OSError) as reason:
            refused[type(reason).__name__] += 1
            print(sample.workload.shape.name, sample.workload.card.name, str(reason)[:120], file=sys.stderr)
            continue
        theirs.append(log(rate / sample.truth))
        ours.append(error)
        print(f"{sample.row['origin']} {error:+.2f} {theirs[-1]:+.2f}", file=sys.stderr, flush=True)
    print(f"{len(theirs)} of {len(data)} rows are compared, {refused.total()} of {len(chosen)} are refused")
    print(figures("this planner, source held out", ours))
    print(figures("aiconfigurator 0.12", theirs))


if __name__ == "__main__":
    main()
