"""The allocator of vLLM's sleep mode: two processes take turns on the card, and lose no byte and no memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from tools.prove_gpu.parts.outcome import end, require_cuda

SHARE = 0.5
"""Share of the free memory of the card that each of the two processes fills."""
MOST_GIB = 48
PIECE_MIB = 512
CYCLES = 20
LEAK_MIB = 256
"""Memory of the card that may be lost over all cycles."""


def worker(gib: int) -> None:
    """Fill the card, then sleep and wake at each line of the standard input; print the result of each step."""
    torch = require_cuda()
    from vllm.device_allocator.cumem import CuMemAllocator  # noqa: PLC0415

    allocator = CuMemAllocator.get_instance()
    generator = torch.Generator(device="cuda")
    generator.manual_seed(os.getpid())
    with allocator.use_memory_pool(tag="weights"):
        pieces = [
            torch.randint(0, 255, (PIECE_MIB * 2**20,), dtype=torch.uint8, device="cuda", generator=generator)
            for _ in range(gib * 1024 // PIECE_MIB)
        ]
    wanted = _sums(torch, pieces)
    torch.cuda.synchronize()
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.monotonic()
        if line.strip() == "sleep":
            allocator.sleep(offload_tags="weights")
        else:
            allocator.wake_up()
        torch.cuda.synchronize()
        seconds = time.monotonic() - began
        same = line.strip() == "sleep" or _sums(torch, pieces) == wanted
        print(f"{seconds:.4f} {'same' if same else 'differs'} {torch.cuda.mem_get_info()[0]}", flush=True)


def _sums(torch: Any, pieces: list[Any]) -> list[int]:
    return [int(piece.sum(dtype=torch.int64)) for piece in pieces]


class TurnTaker:
    """One of the two processes."""

    def __init__(self, gib: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, sys.argv[1], str(gib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def step(self, word: str) -> tuple[float, bool, int]:
        """Return the seconds of a step, whether the bytes are the same, and the free memory of the card."""
        if self.process.stdin is not None:
            self.process.stdin.write(f"{word}\n")
            self.process.stdin.flush()
        seconds, same, free = self._line().split()
        return float(seconds), same == "same", int(free)

    def _line(self) -> str:
        line = "" if self.process.stdout is None else self.process.stdout.readline()
        if not line:
            end("failed", f"a process of the cycles ended with code {self.process.wait()}")
        return line


def main() -> None:
    """Run the cycles."""
    if len(sys.argv) > 2:
        worker(int(sys.argv[2]))
        return
    torch = require_cuda()
    try:
        import vllm.device_allocator.cumem  # noqa: F401, PLC0415 - its absence is a result
    except (ImportError, AssertionError) as error:
        end("missing", f"this Python has no allocator of vLLM ({error})")
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gib = min(MOST_GIB, int(min(torch.cuda.mem_get_info()[0] * SHARE, pages * 0.35) / 2**30))
    if gib < 1:
        end("missing", "the card or the RAM has less than 3 GiB free")
    until = time.monotonic() + float(os.environ.get("PROVE_GPU_SECONDS", "150"))
    first = TurnTaker(gib)
    first.step("sleep")
    second = TurnTaker(gib)
    times: dict[str, list[float]] = {"sleep": [], "wake": []}
    free: list[int] = []
    cycles = 0
    for cycle in range(CYCLES):
        if time.monotonic() > until:
            break
        leaving, coming = (second, first) if cycle % 2 == 0 else (first, second)
        seconds, _, room = leaving.step("sleep")
        times["sleep"].append(seconds)
        free.append(room)
        seconds, same, _ = coming.step("wake")
        times["wake"].append(seconds)
        if not same:
            end("failed", f"cycle {cycle + 1}: the weights differ after the wake", gib=gib)
        cycles += 1
    lost = (free[0] - free[-1]) / 2**20 if free else 0.0
    figures = {
        "gib": gib,
        "cycles": cycles,
        "first_sleep_s": times["sleep"][0] if cycles else None,
        "median_sleep_s": sorted(times["sleep"])[cycles // 2] if cycles else None,
        "median_wake_s": sorted(times["wake"])[cycles // 2] if cycles else None,
        "lost_mib": round(lost, 1),
    }
    if cycles < 2:
        end("missing", "the time ended before two cycles", **figures)
    if lost > LEAK_MIB:
        end("failed", f"the card lost {lost:.0f} MiB over {cycles} cycles", **figures)
    end("passed", **figures)


if __name__ == "__main__":
    main()
