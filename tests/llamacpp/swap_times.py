"""Prints the times of swaps by stage: ``python -m tests.llamacpp.swap_times [--swaps N] [--only TEXT]``.

Two models take turns behind a real gateway: mock engines that sleep, mock engines that stop, llama.cpp servers that
stop, and vLLM on the CPU, which stops. The stages are those of the gateway's status; the first request follows the
load. vLLM needs its environment, which ``make test`` makes.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median

from appliance.gateway import control_client
from tests.conftest import ROOT, RunningService, wait_until
from tests.gateway.running.test_swap import ask, two_models
from tests.llamacpp.conftest import real_engine, real_service
from tests.llamacpp.server_command import program
from tests.llamacpp.tiny_gguf import write_tiny
from tests.up_process import ENGINE_PYTHON

START_S = 600.0
"""Seconds for one load: vLLM takes minutes on a busy machine."""


@contextmanager
def llama_models(folder: Path) -> Iterator[RunningService]:
    """Two llama.cpp servers, of which the RAM holds one."""
    command = program(folder)
    models = {name: {"source": str(write_tiny(folder / f"{name}.gguf")), "weights_gib": 6} for name in "ab"}
    engines = {f"e{name}": real_engine(name, command) for name in "ab"}
    with real_service(folder / "gateway", models, engines) as service:
        yield service


@contextmanager
def vllm_models(folder: Path) -> Iterator[RunningService]:
    """Two vLLM engines on the CPU with a tiny model, of which the RAM holds one."""
    made = folder / "tiny"
    script = ROOT / "appliance/models/tiny_qwen3.py"
    subprocess.run([str(ENGINE_PYTHON), str(script), str(made)], check=True, capture_output=True)
    models = {name: {"source": str(made), "weights_gib": 6} for name in "ab"}
    own = {"kind": "vllm", "kv_cache_gib": 1, "shutdown_timeout_s": 2, "options": {"enforce-eager": True}}
    engines = {f"e{name}": real_engine(name, ENGINE_PYTHON, **own) for name in "ab"}
    with real_service(folder / "gateway", models, engines) as service:
        yield service


def states(service: RunningService) -> tuple[str, str]:
    """Return the states of both engines."""
    found = control_client.status(service.data)["on_demand"]
    return found["ea"]["state"], found["eb"]["state"]


def one_swap(service: RunningService, model: str) -> tuple[float, float, float]:
    """Swap to ``model``; return the seconds of the unload, of the load, and of the first request."""
    mine = "ab".index(model)
    began = time.monotonic()
    control_client.swap(service.data, model)
    wait_until(lambda: states(service)[mine] in ("loading", "ready"), "the other model is unloaded", START_S)
    unloaded = time.monotonic()
    wait_until(lambda: states(service)[mine] == "ready", "the model is loaded", START_S)
    loaded = time.monotonic()
    assert ask(service, model, max_tokens=1).status == 200
    return unloaded - began, loaded - unloaded, time.monotonic() - loaded


def main() -> None:
    """Print a table of medians in Markdown."""
    parser = argparse.ArgumentParser(description="Print the times of swaps by stage.")
    parser.add_argument("--swaps", type=int, default=10)
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name begins with it")
    args = parser.parse_args()
    rows: dict[str, Callable[[Path], AbstractContextManager[RunningService]]] = {
        "mock, asleep and awake": lambda folder: two_models(folder, first={"sleep": True}, sleep=True),
        "mock, stop and start": two_models,
        "llama.cpp, stop and start": llama_models,
        "vLLM on the CPU, stop and start": vllm_models,
    }
    print("| engines | unload | load and first token | first request |\n|---|---|---|---|", flush=True)
    for label, running in rows.items():
        if label.startswith(args.only):
            print(f"| {label} | {' | '.join(measured(running, args.swaps))} |", flush=True)


def measured(running: Callable[[Path], AbstractContextManager[RunningService]], swaps: int) -> list[str]:
    """Return the median of each stage over ``swaps`` swaps."""
    with tempfile.TemporaryDirectory() as name, running(Path(name)) as service:
        for model in "ab":
            one_swap(service, model)
        times = [one_swap(service, "ab"[number % 2]) for number in range(swaps)]
    return [f"{median(part):.2f} s" for part in zip(*times, strict=True)]


if __name__ == "__main__":
    main()
