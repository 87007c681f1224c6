"""Queries NVIDIA GPUs with `nvidia-smi`, which is installed with the driver.

The command line (:func:`query_command`) and the parser (:func:`parse_rows`) are pure, for callers that run programs
in their own way; :class:`GpuQuery` runs the program itself.
"""

from __future__ import annotations

import contextlib
import csv
import enum
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from appliance.errors import ApplianceError


class NvidiaSmiError(ApplianceError):
    """No result of `nvidia-smi`: it is missing, failed or timed out."""


class ClocksEventReason(enum.IntFlag):
    """Reasons in ``clocks_event_reasons.active`` that lower a GPU's clock below what its load needs.

    Bits of NVML's ``nvmlClocksEventReasons``. Idle, application clocks and sync boost are not listed, because they
    take no speed from a load.
    """

    SOFTWARE_POWER_CAP = 0x04
    """The power limit of the GPU is reached."""
    HARDWARE_SLOWDOWN = 0x08
    SOFTWARE_THERMAL_SLOWDOWN = 0x20
    """The driver lowers the clock to stay below the target temperature of the GPU."""
    HARDWARE_THERMAL_SLOWDOWN = 0x40
    HARDWARE_POWER_BRAKE = 0x80
    """The power supply requests less load."""


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One GPU of a query: a cell of text per field."""

    cells: Mapping[str, str]

    def text(self, field: str) -> str:
        """Return the cell of ``field`` as printed."""
        return self.cells[field]

    def number(self, field: str) -> float | None:
        """Return the number in ``field``; ``None`` for `[N/A]`, `[Not Supported]`, `[Unknown Error]` and so on."""
        try:
            return float(self.cells[field])
        except ValueError:
            return None

    def integer(self, field: str) -> int | None:
        """Return the number in ``field`` without its fraction; ``None`` if it has none."""
        number = self.number(field)
        return None if number is None else int(number)

    def bits(self, field: str) -> int:
        """Return the bit mask in ``field``, printed as ``0x…``; 0 if the GPU does not report it."""
        cell = self.cells[field]
        try:
            return int(cell, 16) if cell.startswith("0x") else 0
        except ValueError:
            return 0


def query_command(fields: Sequence[str]) -> list[str]:
    """Return the command that prints ``fields`` of each GPU as CSV; `nvidia-smi --help-query-gpu` lists them."""
    return ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]


def parse_rows(text: str, fields: Sequence[str]) -> tuple[GpuRow, ...]:
    """Parse the output of :func:`query_command` for the same ``fields``; empty lines are ignored.

    Raises :class:`ValueError` for a line that is not a row, such as a message in place of the table.
    """
    rows = []
    for line in text.splitlines():
        if line.strip():
            row = parse_row(line, fields)
            if row is None:
                raise ValueError(f"not a row of {len(fields)} fields: {line.strip()[:80]!r}")
            rows.append(row)
    return tuple(rows)


def parse_row(line: str, fields: Sequence[str]) -> GpuRow | None:
    """Parse one line of the output; ``None`` if it is not a row of ``fields``."""
    cells = [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True), [])]
    if len(cells) != len(fields):
        return None
    row = GpuRow(dict(zip(fields, cells, strict=True)))
    return None if "index" in fields and not row.text("index").isdigit() else row


class GpuQuery:
    """A query of ``fields`` that can be repeated, and cancelled by another thread while it runs.

    ``timeout_s``: seconds that one run of `nvidia-smi` may take.

    Example::

        for row in GpuQuery(("index", "temperature.gpu")).rows():
            print(row.integer("index"), row.number("temperature.gpu"))
    """

    def __init__(self, fields: Sequence[str], *, timeout_s: float = 5.0) -> None:
        self.fields = tuple(fields)
        self.timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._cancelled = False

    def rows(self) -> tuple[GpuRow, ...]:
        """Run the query and return a row per GPU; raises :class:`NvidiaSmiError`.

        A line that is not a row is skipped: `nvidia-smi` prints a message in place of a GPU that it cannot reach.
        """
        program, *arguments = query_command(self.fields)
        path = shutil.which(program)
        if path is None:
            raise NvidiaSmiError("nvidia-smi is not installed; it is part of the NVIDIA driver")
        self._cancelled = False
        try:
            # In a process group of its own, so that programs which it starts end with it.
            process = subprocess.Popen(
                [path, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, errors="replace", process_group=0,
            )  # fmt: skip
        except OSError as error:
            raise NvidiaSmiError(f"{path} cannot be started: {error.strerror or error}") from error
        self._process = process
        if self._cancelled:
            # By another thread, after the program began and before this one knew its process.
            self.cancel()
        assert process.stdout is not None  # noqa: S101 - a pipe was requested
        with process.stdout:
            try:
                output, _ = process.communicate(timeout=self.timeout_s)
            except subprocess.TimeoutExpired:
                raise NvidiaSmiError(
                    f"nvidia-smi did not respond within {self.timeout_s:g} s; run `nvidia-smi` by hand"
                ) from None
            finally:
                self.cancel()
                # A process that hangs inside the driver survives SIGKILL: do not wait for it.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
        if process.returncode != 0:
            raise NvidiaSmiError(f"nvidia-smi failed with exit code {process.returncode}; run `nvidia-smi` by hand")
        return tuple(row for line in output.splitlines() if (row := parse_row(line, self.fields)) is not None)

    def cancel(self) -> None:
        """Kill `nvidia-smi` if it runs, from any thread; :meth:`rows` then fails."""
        self._cancelled = True
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
