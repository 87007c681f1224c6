"""Reads measurements of the planned machine, which correct the predictions of its models.

Pure. A row of another machine, of another model, or with impossible figures is skipped and listed by line. A file
without a single row of this machine is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

from appliance.catalog.shape import Shape
from appliance.errors import ApplianceError, ConfigError
from appliance.planner.constants import Constants, calibrated
from appliance.planner.evaluate import read
from appliance.planner.hardware import HardwareSpec
from appliance.planner.impossible import reject_impossible
from appliance.planner.learned import MAX_POINTS, MeasuredPoint
from appliance.planner.row_parser import Row, parse_row, truth_of
from appliance.planner.throughput import loop_terms, predict, run_conditions, workload_memory
from appliance.planner.workload import Workload

HOST = "host"
"""Optional column: the name of the machine in the configuration."""


@dataclass(frozen=True, slots=True)
class UnusedRow:
    """A row of the file that corrects nothing."""

    line: int
    reason: str
    elsewhere: str = ""
    """The machine or the card of the row, if it is not one of the plan."""

    def __str__(self) -> str:
        return f"line {self.line}: skipped: {self.reason}"


@dataclass(frozen=True, slots=True)
class MachineMeasurements:
    """The measurements of each machine by its name, and the rows that are skipped."""

    points: dict[str, tuple[MeasuredPoint, ...]]
    unused: tuple[UnusedRow, ...]

    def on(self, machine: HardwareSpec) -> HardwareSpec:
        """Return ``machine`` with its measurements."""
        return dataclasses.replace(machine, measured=self.points.get(machine.name, ()))


def measured_point(workload: Workload, truth: float, k: Constants | None = None) -> MeasuredPoint:
    """Return the point of a measured rate ``truth`` in tok/s."""
    k = k or calibrated()
    plain = dataclasses.replace(workload, measured=())
    terms = loop_terms(plain, workload_memory(plain))
    return MeasuredPoint(
        card=workload.card.name,
        model=workload.shape.name,
        conditions=run_conditions(plain, terms, k),
        error=log(truth / predict(plain, k).rate),
    )


def read_measured(
    path: Path, machines: Sequence[HardwareSpec], models: Collection[str], known: dict[str, Shape] | None = None
) -> MachineMeasurements:
    """Return the measurements in the CSV ``path`` for ``machines`` and the catalog's ``models``.

    Raises :class:`ConfigError` for a file that cannot be read, and for one of another machine.
    """
    return match_rows(read(path), str(path), machines, models=models, known=known)


def match_rows(
    rows: Sequence[Row],
    name: str,
    machines: Sequence[HardwareSpec],
    *,
    models: Collection[str],
    known: dict[str, Shape] | None = None,
) -> MachineMeasurements:
    """Return the measurements in ``rows`` of the file ``name``; the rest is as in :func:`read_measured`."""
    points: dict[str, list[MeasuredPoint]] = {machine.name: [] for machine in machines}
    unused: list[UnusedRow] = []
    counts: dict[tuple[str, str], int] = {}
    for line, row in enumerate(rows, 2):
        try:
            reject_impossible(row, known)
            workload = parse_row(row, known)
            truth = truth_of(row) or 0.0
        except ApplianceError as error:
            unused.append(UnusedRow(line, str(error)))
            continue
        places = _places(row, workload, machines)
        if not places:
            where = (row.get(HOST) or "").strip() or workload.card.name
            unused.append(UnusedRow(line, f"{where} is not a machine or a card of this plan", where))
        elif workload.layout.cards > max(_cards_like(machine, workload) for machine in places):
            unused.append(UnusedRow(line, f"{workload.layout.cards} cards are more than this plan has"))
        elif workload.shape.name not in models:
            unused.append(UnusedRow(line, f"{workload.shape.name} is not planned"))
        elif counts.get((workload.card.name, workload.shape.name), 0) >= MAX_POINTS:
            unused.append(UnusedRow(line, f"only the first {MAX_POINTS} rows of a model and a card count"))
        else:
            counts[workload.card.name, workload.shape.name] = (
                counts.get((workload.card.name, workload.shape.name), 0) + 1
            )
            point = measured_point(workload, truth)
            for machine in places:
                points[machine.name].append(point)
    elsewhere = list(dict.fromkeys(row.elsewhere for row in unused if row.elsewhere))
    if elsewhere and not any(points.values()):
        ours = dict.fromkeys(card.name for machine in machines for card in machine.cards)
        raise ConfigError(
            f"{name}: was measured on {', '.join(elsewhere)}; this plan is for "
            f"{', '.join(machine.name for machine in machines)} with {', '.join(ours) or 'no cards'}; "
            "give a file of this machine"
        )
    return MachineMeasurements({key: tuple(found) for key, found in points.items()}, tuple(unused))


def _places(row: Row, workload: Workload, machines: Sequence[HardwareSpec]) -> list[HardwareSpec]:
    """Return the machines of ``row``: the one it names, else every one with its card."""
    host = (row.get(HOST) or "").strip()
    named = [machine for machine in machines if host in {"", machine.name}]
    return [machine for machine in named if _cards_like(machine, workload)]


def _cards_like(machine: HardwareSpec, workload: Workload) -> int:
    """Return the number of cards of the workload's kind; a site states its own memory for them."""
    return sum(card.name == workload.card.name for card in machine.cards)
