"""How NVIDIA cards are, by ``nvidia-smi``, which is there wherever the driver is."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass

FIELDS = ("index", "temperature.gpu", "power.draw", "utilization.gpu", "clocks_event_reasons.active")

REASONS = {
    0x0000000000000004: "power cap (software)",
    0x0000000000000008: "hardware slowdown",
    0x0000000000000020: "temperature (software)",
    0x0000000000000040: "temperature (hardware)",
    0x0000000000000080: "power brake (hardware)",
}
"""Bits of NVML's nvmlClocksEventReasons that take speed from a load; idle, settings and sync boost do not count."""


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One card at one time; ``None`` for what it does not tell."""

    index: int
    temperature_c: float | None
    power_w: float | None
    utilization: float | None
    reasons: int


def throttled(reasons: int) -> list[str]:
    """What slows a card down, in words."""
    return [name for bit, name in REASONS.items() if reasons & bit]


class Query:
    """``nvidia-smi``, which another thread may end while it runs."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def cards(self) -> tuple[GpuSample, ...]:
        """All cards; none without ``nvidia-smi``, or if it fails."""
        program = shutil.which("nvidia-smi")
        if program is None:
            return ()
        try:
            # A group of its own: whatever it starts ends with it.
            with subprocess.Popen(
                [program, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, process_group=0,
            ) as process:  # fmt: skip
                self._process = process
                try:
                    text, _ = process.communicate(timeout=5)
                finally:
                    self.end()
        except (OSError, subprocess.SubprocessError):
            return ()
        if process.returncode != 0:
            return ()
        return tuple(card for line in text.splitlines() if (card := parse(line)) is not None)

    def end(self) -> None:
        """Kill it, if it runs; :meth:`cards` then finds none."""
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def parse(line: str) -> GpuSample | None:
    """One line of ``nvidia-smi``'s CSV; ``None`` for a line that is no card."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != len(FIELDS) or not cells[0].isdigit():
        return None
    temperature, power, utilization = (_number(cell) for cell in cells[1:4])
    try:
        reasons = int(cells[4], 16)
    except ValueError:
        reasons = 0
    return GpuSample(int(cells[0]), temperature, power, utilization, reasons)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        # "[N/A]" and its like.
        return None
