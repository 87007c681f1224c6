"""``make bench``: all measurements in one run on one machine; writes results.json, README.md and the plots.

``--only gateway,nginx`` and ``--measures plain,ttft`` select parts; a partial run is printed and not written.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.system.stopping import stop_signals
from benchmarks.gateway import on_vllm, processes, report, scenarios
from benchmarks.gateway.subjects import NAMES, Subject, engines, subject

RESULTS = processes.HERE / "results.json"
LOAD = ("plain", "ttft", "paced")
OWN: dict[str, Callable[[Path], dict[str, Any]]] = {
    "memory": scenarios.memory,
    "fairness": scenarios.fairness,
    "swaps": scenarios.swaps,
    "prefix": on_vllm.prefix,
    "killed": on_vllm.killed,
}
SECONDS = {"plain": 6.0, "ttft": 60.0, "paced": 60.0}


def load(one: Subject, measure: str) -> dict[str, Any]:
    """Run one measurement of one subject."""
    argv = ["taskset", "-c", processes.LOAD_CORE, sys.executable, str(processes.HERE / "client.py")]
    argv += ["--port", str(one.port), "--keys", *one.keys, "--seconds", str(SECONDS[measure])]
    connections = {"plain": 64, "ttft": 100, "paced": 200}[measure]
    if one.name == "litellm" and measure != "plain":
        # It cannot carry the full load on one core; the report names the number.
        connections = 8
    argv += ["--connections", str(connections)]
    if measure == "plain":
        argv += ["--plain", "--rounds", "1000000000"]
    elif measure == "ttft":
        argv += ["--rounds", "3", "--tokens", "50", "--itl-ms", "20", "--ttft-ms", "30", "--spread-s", "2"]
    else:
        argv += ["--tokens", "500", "--itl-ms", "20", "--ttft-ms", "30", "--spread-s", "4"]
    before = (processes.cpu_s(one.pid) if one.pid else 0.0, processes.core_ticks(processes.SUBJECT_CORE))
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=240)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-300:])
    found: dict[str, Any] = json.loads(done.stdout)
    cpu = (processes.cpu_s(one.pid) if one.pid else 0.0) - before[0]
    after = processes.core_ticks(processes.SUBJECT_CORE)
    ticks = {name: after[name] - before[1][name] for name in after}
    total = sum(ticks.values()) or 1
    found |= {"cpu_s": round(cpu, 4), "core_busy_s": ticks["busy"] / 100, "steal": round(ticks["steal"] / total, 4)}
    found["connections"] = connections
    items = found["requests"] if measure == "plain" else found["tokens"]
    if one.pid and items:
        found["cpu_s_per_million"] = round(cpu / items * 1e6, 2)
        found["core_s_per_million"] = round(ticks["busy"] / 100 / items * 1e6, 2)
    if one.pid:
        found["pss_mb"] = processes.pss_mb(one.pid)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--measures", default=",".join([*LOAD, *OWN]))
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    # A run that is stopped ends the processes that it started.
    for number in stop_signals():
        signal.signal(number, lambda which, _: sys.exit(128 + which))
    names = [name for name in NAMES if name in args.only.split(",")]
    measures = args.measures.split(",")
    began = time.monotonic()
    results: dict[str, Any] = {
        "conditions": processes.conditions(),
        "rounds": args.rounds,
        "subjects": {},
        "own": {},
    }
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)
        if wanted := [measure for measure in LOAD if measure in measures]:
            with engines(folder / "engines") as ports:
                for round_number in range(args.rounds):
                    for name in names if round_number % 2 == 0 else names[::-1]:
                        measure_one(
                            results,
                            name,
                            ports=ports,
                            folder=folder / f"{name}-{round_number}",
                            wanted=wanted,
                            round_number=round_number,
                        )
        for measure, run in OWN.items():
            if measure in measures and "gateway" in names:
                log(f"{measure} …")
                try:
                    results["own"][measure] = run(folder / measure)
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    results["own"][measure] = {"failed": str(error)[-400:]}
                log(f"{measure}: {json.dumps(results['own'][measure])[:300]}")
    results["took_s"] = round(time.monotonic() - began)
    if set(names) == set(NAMES) and set(measures) >= {*LOAD, *OWN}:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        report.write(results, processes.HERE)
        log(f"written: {RESULTS.name}, README.md, plots; {results['took_s']} s")
    print(report.table(results))
    return 0


def measure_one(
    results: dict[str, Any], name: str, ports: list[int], folder: Path, wanted: list[str], round_number: int
) -> None:
    """Start one subject and run the ``wanted`` measurements; a failure is recorded in ``results``."""
    entry = results["subjects"].setdefault(name, {"version": "", "measures": {}})
    try:
        with subject(name, ports, folder) as one:
            entry["version"] = one.version
            for measure in wanted:
                found = load(one, measure)
                entry["measures"].setdefault(measure, []).append(found)
                figure = found["requests_per_s"] if measure == "plain" else found["ttft_ms"]
                log(f"round {round_number + 1} {name} {measure}: {figure} cpu/1M {found.get('cpu_s_per_million')}")
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        entry["failed"] = str(error)[-400:]
        log(f"round {round_number + 1} {name} FAILED: {str(error)[-300:]}")


def log(text: str) -> None:
    """Print a line with the time to standard error."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
