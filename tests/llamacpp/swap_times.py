"""Prints the times of swaps by stage: ``python -m tests.llamacpp.swap_times [--swaps N]``.

Two models take turns behind a real gateway: mock engines that sleep, mock engines that stop, and llama.cpp
servers that stop. The stages are those of the gateway's status; the first request follows the load.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from appliance.gateway import control_client
from tests.conftest import RunningService, wait_until
from tests.gateway.running.test_swap import ask, two_models
from tests.llamacpp.conftest import real_engine, real_service
from tests.llamacpp.server_command import program
from tests.llamacpp.tiny_gguf import write_tiny


@contextmanager
def llama_models(folder: Path) -> Iterator[RunningService]:
    """Two llama.cpp servers, of which the RAM holds one."""
    command = program(folder)
    models = {name: {"source": str(write_tiny(folder / f"{name}.gguf")), "weights_gib": 6} for name in "ab"}
    engines = {f"e{name}": real_engine(name, command) for name in "ab"}
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
    wait_until(lambda: states(service)[mine] in ("loading", "ready"), "the other model is unloaded", 120)
    unloaded = time.monotonic()
    wait_until(lambda: states(service)[mine] == "ready", "the model is loaded", 120)
    loaded = time.monotonic()
    assert ask(service, model, max_tokens=1).status == 200
    return unloaded - began, loaded - unloaded, time.monotonic() - loaded


def main() -> None:
    """Print a table of medians in Markdown."""
    parser = argparse.ArgumentParser(description="Print the times of swaps by stage.")
    parser.add_argument("--swaps", type=int, default=10)
    swaps = parser.parse_args().swaps
    print("| engines | unload | load and first token | first request |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, running in (
            ("mock, asleep and awake", two_models(folder / "sleep", first={"sleep": True}, sleep=True)),
            ("mock, stop and start", two_models(folder / "stop")),
            ("llama.cpp, stop and start", llama_models(folder)),
        ):
            with running as service:
                for model in "ab":
                    assert ask(service, model, max_tokens=1).status == 200
                rows = [one_swap(service, "ab"[number % 2]) for number in range(swaps)]
            stages = " | ".join(f"{median(part):.2f} s" for part in zip(*rows, strict=True))
            print(f"| {label} | {stages} |", flush=True)


if __name__ == "__main__":
    main()
