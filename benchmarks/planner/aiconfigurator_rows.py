"""Predictions of NVIDIA's aiconfigurator for the measurements that it supports, into ``aiconfigurator.csv``.

Usage, with an interpreter of a folder of its own that has aiconfigurator (:data:`VERSION`)::

    PYTHONPATH=. python benchmarks/planner/aiconfigurator_rows.py [--rows 50] [--seconds 60]

Each call continues the file: rows that it has are skipped. A row takes at most ``--seconds``. A row that
aiconfigurator refuses has the reason instead of a rate. ``compare_aiconfigurator.py`` reads the file.
"""

from __future__ import annotations

import argparse
import csv
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import aiconfigurator_core
from aiconfigurator.cli.api import cli_estimate
from aiconfigurator.sdk.perf_database import get_latest_database_version

from appliance.catalog.shipped import MEASUREMENTS
from appliance.planner import evaluate
from appliance.planner.workload import Workload
from tools import calibrate

VERSION = "0.12.0"
FILE = Path(__file__).parent / "aiconfigurator.csv"
COLUMNS = ("origin", "database", "weights", "predicted_tok_s", "refused")
SYSTEMS = {
    "A100 SXM 80GB": "a100_sxm",
    "H100 SXM 80GB": "h100_sxm",
    "H200 SXM 141GB": "h200_sxm",
    "B200 SXM 180GB": "b200_sxm",
    "B300 SXM 288GB": "b300_sxm",
    "GB300 288GB": "gb300",
    "L40S": "l40s",
    "RTX PRO 6000 Blackwell Server": "rtx_pro_6000_server",
}
BACKENDS = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "trtllm"}
WEIGHTS: dict[str, tuple[str | None, ...]] = {
    "bf16": ("bfloat16",),
    "fp8": ("fp8_block", "fp8"),
    "nvfp4": ("nvfp4",),
    "mxfp4": (None,),
    "awq-int4": ("int4_wo",),
}
"""Quantisations to try in turn by precision; None: that of the model's config."""
DENSE_FP8 = ("fp8", "fp8_block")
"""Those of FP8 in dense models. Rows rarely state the scales; aiconfigurator's errors are smaller in this order."""
SAME_SHAPE = {
    "Qwen/Qwen3-235B-A22B-Instruct-2507": "Qwen/Qwen3-235B-A22B",
    "Qwen/Qwen3.6-27B": "nvidia/Qwen3.6-27B-NVFP4",
    "Qwen/Qwen3.6-35B-A3B": "nvidia/Qwen3.6-35B-A3B-NVFP4",
    "deepseek-ai/DeepSeek-R1-0528": "deepseek-ai/DeepSeek-R1",
    "google/gemma-4-31B-it": "nvidia/Gemma-4-31B-IT-NVFP4",
    "meta-llama/Llama-3.3-70B-Instruct": "meta-llama/Meta-Llama-3.1-70B",
    "nvidia/Nemotron-3-Nano-30B-A3B": "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
}
"""Models of a shape whose config.json aiconfigurator has under another name."""
PHASES = {"served": "agg", "burst": "agg", "offline": "agg", "decode": "static_gen", "prefill": "static_ctx"}
CONFIGS = {
    path.name.removesuffix("_config.json").replace("--", "/", 1)
    for path in (Path(aiconfigurator_core.__file__).parent / "model_configs").glob("*_config.json")
}
"""Models whose config.json aiconfigurator has; it would fetch those of others."""


def is_supported(run: Workload) -> bool:
    """Return whether aiconfigurator has the card, engine, model and precision of ``run``, and its conditions.

    Drafts count with a stated acceptance only, because aiconfigurator has no usual one.
    """
    known = (
        SAME_SHAPE.get(run.shape.name, run.shape.name) in CONFIGS
        and run.card.name in SYSTEMS
        and run.engine in BACKENDS
        and run.precision.name in WEIGHTS
    )
    drafts = not run.draft_tokens or (run.drafts == "mtp" and run.accepted is not None)
    return known and drafts and run.mode in PHASES and run.cpu is None


@lru_cache
def database(system: str, backend: str) -> str:
    """Return the newest database of ``backend`` on ``system``; aiconfigurator takes seconds to find it."""
    found = get_latest_database_version(system=system, backend=backend)
    if found is None:
        raise ValueError(f"no database of {backend} on {system}")
    return str(found)


def estimate(sample: calibrate.CalibrationSample, weights: str | None) -> float:
    """Return aiconfigurator's rate of ``sample`` in tok/s over all replicas, with ``weights`` as quantisation."""
    run, running = sample.workload, sample.terms.running
    layout = run.layout
    ranks = layout.tp if layout.attention_dp else 1
    shards = layout.tp if run.shape.moe else 1
    system, backend = SYSTEMS[run.card.name], BACKENDS[run.engine]
    found = cli_estimate(
        SAME_SHAPE.get(run.shape.name, run.shape.name),
        system,
        mode=PHASES[run.mode],
        backend_name=backend,
        backend_version=database(system, backend),
        isl=max(1, round(run.input)),
        osl=max(2, round(run.output)),
        prefix=round(run.input * run.prefix_hit),
        batch_size=max(1, round(running / ranks)),
        tp_size=layout.tp // ranks,
        pp_size=layout.pp,
        attention_dp_size=ranks,
        moe_tp_size=1 if layout.ep else shards,
        moe_ep_size=shards if layout.ep else 1,
        gemm_quant_mode=weights,
        moe_quant_mode=weights if run.shape.moe else None,
        kvcache_quant_mode="fp8" if run.precision.kv_bytes == 1 else "bfloat16",
        nextn=run.draft_tokens,
        nextn_accepted=run.accepted - 1.0 if run.draft_tokens and run.accepted is not None else None,
    )
    if run.mode == "decode":
        return float(running / found.tpot * 1e3 * sample.terms.busy)
    if run.mode == "prefill":
        return float(run.input / found.ttft * 1e3 * sample.terms.busy)
    seconds = (found.ttft + (run.output - 1) * found.tpot) / 1e3
    return float(running * run.output / seconds * sample.terms.busy)


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise :class:`TimeoutError` in the block after ``seconds``."""

    def expire(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"no result within {seconds} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answer(sample: calibrate.CalibrationSample, seconds: int) -> dict[str, str]:
    """Return the row of ``sample`` in the file: the rate of the first quantisation that has data, or the reason."""
    run = sample.workload
    reasons = []
    dense_fp8 = run.precision.name == "fp8" and not run.shape.moe
    for weights in DENSE_FP8 if dense_fp8 else WEIGHTS[run.precision.name]:
        try:
            with limited(seconds):
                rate = estimate(sample, weights)
        # aiconfigurator raises its own errors, and those of its parts for shapes that its tables do not have.
        except (ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError, OSError) as reason:
            # Its messages contain the folder of the installation after " at ".
            reasons.append(f"{type(reason).__name__}: {reason}".splitlines()[0].split(" at /")[0][:120])
            continue
        fields = {"weights": weights or "", "predicted_tok_s": f"{rate:.4g}", "refused": ""}
        break
    else:
        fields = {"weights": "", "predicted_tok_s": "", "refused": reasons[0]}
    found = f"{SYSTEMS[run.card.name]} {database(SYSTEMS[run.card.name], BACKENDS[run.engine])}"
    return {"origin": sample.row["origin"] or "", "database": found, **fields}


def main() -> None:
    """Add rows to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000, help="rows to add in this call (%(default)s)")
    parser.add_argument("--seconds", type=int, default=60, help="longest time of a row (%(default)s)")
    args = parser.parse_args()
    if version("aiconfigurator") != VERSION:
        raise SystemExit(f"aiconfigurator is {version('aiconfigurator')}; install {VERSION}")
    logging.disable(logging.CRITICAL)
    done = set()
    if FILE.exists():
        with FILE.open(encoding="utf-8", newline="") as file:
            done = {row["origin"] for row in csv.DictReader(file)}
    samples = calibrate.samples(evaluate.read(MEASUREMENTS))
    wanted = [one for one in samples if is_supported(one.workload) and one.row["origin"] not in done]
    # Rows of one card and engine follow each other: they share a database.
    wanted.sort(key=lambda one: (one.workload.card.name, one.workload.engine, one.workload.shape.name))
    with FILE.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for number, sample in enumerate(wanted[: args.rows], 1):
            row = answer(sample, args.seconds)
            writer.writerow(row)
            file.flush()
            print(
                f"{number} of {len(wanted)}: {row['origin']} {row['predicted_tok_s'] or row['refused']}", flush=True
            )


if __name__ == "__main__":
    main()
