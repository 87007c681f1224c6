"""vLLM itself with a tiny model: a start, a greedy response, and the same response after sleep and wake."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tools.prove_gpu.parts.outcome import end, require_cuda

FREED_SHARE = 0.5
"""Share of the engine's memory that a sleep must free."""
CYCLES = 3


def main() -> None:
    """Run the engine."""
    torch = require_cuda()
    try:
        from vllm import LLM, SamplingParams  # noqa: PLC0415 - its absence is a result
    except ImportError as error:
        end("missing", f"this Python has no vLLM ({error})")
    model = Path(sys.argv[1]) / "tiny"
    made = subprocess.run(
        [sys.executable, os.environ["PROVE_GPU_TINY"], str(model)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        end("failed", f"the tiny model was not made: {made.stderr.strip().splitlines()[-1][:300]}")
    empty = torch.cuda.mem_get_info()[0]
    began = time.monotonic()
    engine = LLM(model=str(model), enable_sleep_mode=True, gpu_memory_utilization=0.3, max_model_len=2048)
    started = time.monotonic() - began
    greedy = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)

    def response() -> str:
        return str(engine.generate(["The card is"], greedy, use_tqdm=False)[0].outputs[0].text)

    wanted = response()
    used = empty - torch.cuda.mem_get_info()[0]
    figures: dict[str, float] = {"start_s": round(started, 2), "used_gib": round(used / 2**30, 2)}
    for cycle in range(CYCLES):
        began = time.monotonic()
        engine.sleep(level=1)
        figures["sleep_s"] = round(time.monotonic() - began, 3)
        freed = used - (empty - torch.cuda.mem_get_info()[0])
        figures["freed_gib"] = round(freed / 2**30, 2)
        if freed < FREED_SHARE * used:
            end(
                "failed",
                f"cycle {cycle + 1}: a sleep freed {freed / 2**30:.2f} of {used / 2**30:.2f} GiB",
                **figures,
            )
        began = time.monotonic()
        engine.wake_up()
        figures["wake_s"] = round(time.monotonic() - began, 3)
        if response() != wanted:
            end("failed", f"cycle {cycle + 1}: the greedy response differs after the wake", **figures)
    end("passed", **figures)


if __name__ == "__main__":
    main()
