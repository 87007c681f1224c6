"""Speed of copies between RAM and card in pieces like a model's tensors, by the way of pinning the RAM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from tools.prove_gpu.parts.outcome import end, require_cuda

PIECES_MIB = (768, 384)
"""Expert tensors of Qwen3-30B-A3B in bf16: 805 and 403 MB."""

COUNT = 4
SETTINGS = {
    "plain": "",
    "unrounded": "pinned_max_round_threshold_mb:1",
    "registered": "pinned_use_cuda_host_register:True,pinned_num_register_threads:8",
}
"""Values of PYTORCH_CUDA_ALLOC_CONF; each needs a process of its own."""


def measure() -> dict[str, float]:
    """Return GB/s of each direction and the seconds of the allocation."""
    torch = require_cuda()
    began = time.monotonic()
    host = [torch.empty(size * 2**20, dtype=torch.uint8, pin_memory=True) for size in PIECES_MIB * COUNT]
    allocated = time.monotonic() - began
    for number, piece in enumerate(host):
        piece.fill_(number + 1)
    card = [torch.empty_like(piece, device="cuda") for piece in host]
    total = sum(piece.numel() for piece in host) / 1e9
    found = {"allocate_s": allocated, "gigabytes": total}
    found["to_card"] = total / _timed(torch, lambda: _copy(card, host))
    sums = [int(piece[:4096].sum()) for piece in card]
    if sums != [4096 * (number + 1) for number in range(len(host))]:
        end("failed", "the card has other bytes than the RAM after the copy")
    for number, piece in enumerate(card):
        piece.fill_(number + 101)
    found["to_ram"] = total / _timed(torch, lambda: _copy(host, card))
    if [int(piece[-1]) for piece in host] != [number + 101 for number in range(len(host))]:
        end("failed", "the RAM has other bytes than the card after the copy")
    there, back = torch.cuda.Stream(), torch.cuda.Stream()
    half = len(host) // 2

    def both() -> None:
        with torch.cuda.stream(there):
            _copy(card[:half], host[:half])
        with torch.cuda.stream(back):
            _copy(host[half:], card[half:])

    found["both"] = total / _timed(torch, both)
    return found


def _copy(targets: list[Any], sources: list[Any]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source, non_blocking=True)


def _timed(torch: Any, work: Any) -> float:
    torch.cuda.synchronize()
    began = time.monotonic()
    work()
    torch.cuda.synchronize()
    return time.monotonic() - began


def main() -> None:
    """Measure one setting, or all of them in processes of their own."""
    if len(sys.argv) > 2:
        end("passed", **measure())
    require_cuda()
    figures: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        done = subprocess.run(
            [sys.executable, __file__, sys.argv[1], name], capture_output=True, text=True, check=False,
            env={**os.environ, **({"PYTORCH_CUDA_ALLOC_CONF": setting} if setting else {})},
        )  # fmt: skip
        lines = done.stdout.splitlines()
        try:
            result = json.loads(lines[-1])
        except (ValueError, IndexError):
            end("failed", f"{name}: {(done.stderr or 'no output').strip().splitlines()[-1][:300]}", **figures)
        if result["outcome"] != "passed":
            end(result["outcome"], f"{name}: {result['reason']}", **figures)
        figures[name] = result["figures"]
    end("passed", **figures)


if __name__ == "__main__":
    main()
