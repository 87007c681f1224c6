"""The public measurements that are nearest to a prediction, with their distance and the differences.

Pure. A distance is a sum over the conditions of a run: 0 for the same run; 0.7 for twice the bandwidth of the card;
about 1 for another model of the same kind. The sum has no unit: it orders rows and
limits trust.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log

from appliance.catalog.shape import Shape
from appliance.catalog.shipped import MEASUREMENTS
from appliance.errors import ApplianceError
from appliance.planner import evaluate, precision
from appliance.planner.row_parser import Row, parse_row, truth_of
from appliance.planner.throughput import predict
from appliance.planner.workload import Workload

NEAREST = 3
FAR = 1.5
"""Distance from which a measurement hardly supports a prediction."""
OTHER_MODEL, OTHER_KIND, OTHER_CARD, OTHER_PRECISION, OTHER_ENGINE, OTHER_MODE, OTHER_DRAFTS = (
    0.4,
    0.7,
    0.3,
    0.3,
    0.5,
    0.4,
    0.5,
)
"""Distances of a difference in one condition, before any difference in size."""


@dataclass(frozen=True, slots=True)
class PublicRun:
    """A row of the shipped measurements as a workload, with its rate in tok/s."""

    line: int
    row: Row
    workload: Workload
    truth: float


@dataclass(frozen=True, slots=True)
class NearRun:
    """A public measurement near a workload."""

    run: PublicRun
    distance: float
    differences: tuple[str, ...]
    """Conditions of the measurement that differ, the most important first."""
    predicted: float
    """The planner's prediction for the measured run, tok/s."""

    @property
    def title(self) -> str:
        """Model, precision, card, engine and load of the measurement."""
        run = self.run.workload
        cards = f"{run.layout.cards} x " if run.layout.cards > 1 else ""
        engine = " ".join(filter(None, (run.engine, self.run.row.get("engine_version") or "")))
        return (
            f"{run.shape.name.rsplit('/', 1)[-1]} {run.precision.name} on {cards}{run.card.name}, {engine}, "
            f"{run.concurrency:g} at once"
        )

    @property
    def source(self) -> str:
        """Address or description of the source."""
        return self.run.row.get("source") or ""


def nearest(
    workload: Workload, runs: Sequence[PublicRun] | None = None, count: int = NEAREST
) -> tuple[NearRun, ...]:
    """Return the ``count`` measurements nearest to ``workload``, of the shipped ones by default."""
    runs = public_runs() if runs is None else runs
    ordered = sorted(
        ((_total(workload, run.workload), run) for run in runs), key=lambda pair: (pair[0], pair[1].line)
    )
    return tuple(
        NearRun(
            run=run,
            distance=total,
            differences=tuple(text for _, text in sorted(_parts(workload, run.workload), reverse=True) if text),
            predicted=predict(run.workload).rate,
        )
        for total, run in ordered[:count]
    )


def as_plain(found: Sequence[NearRun]) -> list[dict[str, object]]:
    """Return the measurements as plain data."""
    return [
        {
            "title": near.title,
            "measured_tok_s": near.run.truth,
            "predicted_tok_s": near.predicted,
            "distance": round(near.distance, 2),
            "differences": list(near.differences),
            "source": near.source,
            "line": near.run.line,
        }
        for near in found
    ]


@lru_cache(maxsize=1)
def public_runs() -> tuple[PublicRun, ...]:
    """Return the shipped measurements that the planner reads."""
    found = []
    for line, row in enumerate(evaluate.read(MEASUREMENTS), 2):
        try:
            truth = truth_of(row)
            if truth:
                found.append(PublicRun(line, row, parse_row(row), truth))
        except ApplianceError:
            continue
    return tuple(found)


FIGURES: tuple[tuple[float, str, Callable[[Workload], float]], ...] = (
    (0.5, "requests at once per replica", lambda run: run.concurrency / run.layout.replicas),
    (0.2, "tokens in", lambda run: run.input + 64.0),
    (0.15, "tokens out", lambda run: run.output + 16.0),
    (0.6, "cards per shard", lambda run: float(run.layout.tp)),
    (0.6, "pipeline stages", lambda run: float(run.layout.pp)),
    (0.2, "replicas", lambda run: float(run.layout.replicas)),
    (0.4, "W per card", lambda run: (run.power_w or run.card.tdp_w) / run.card.tdp_w),
)
"""Figures of a run, each with the distance of a factor e between two runs."""


def _total(a: Workload, b: Workload) -> float:
    return sum(_distances(a, b))


def _parts(mine: Workload, other: Workload) -> list[tuple[float, str]]:
    """Return the distance of each condition, with its description if it differs."""
    sizes = _distances(mine, other)
    return [(size, text if size > 0.0 else "") for size, text in zip(sizes, _descriptions(other), strict=True)]


def _distances(mine: Workload, other: Workload) -> list[float]:
    """Return the distance of each condition, in the order of :func:`_descriptions`."""
    return [
        _models(mine.shape, other.shape),
        _cards(mine, other),
        _precisions(mine, other),
        OTHER_ENGINE * (mine.engine != other.engine),
        OTHER_MODE * (mine.mode != other.mode),
        OTHER_DRAFTS * (_drafts(mine) != _drafts(other)),
        0.3 * abs(mine.years_old - other.years_old),
        *(weight * abs(log(figure(mine) / figure(other))) for weight, _, figure in FIGURES),
        2.0 * abs(_in_ram(mine) - _in_ram(other)),
    ]


def _descriptions(run: Workload) -> list[str]:
    """Return the description of each condition of ``run``."""
    shown = {"tokens in": run.input, "tokens out": run.output, "W per card": run.power_w or run.card.tdp_w}
    return [
        run.shape.name.rsplit("/", 1)[-1],
        run.card.name,
        run.precision.name,
        run.engine,
        f"mode {run.mode}",
        _drafts(run),
        f"software {run.years_old * 12:.0f} months old",
        *(f"{shown.get(words, figure(run)):g} {words}" for _, words, figure in FIGURES),
        f"{_in_ram(run):.0%} in RAM",
    ]


def _in_ram(run: Workload) -> float:
    """Return the share of the weights in RAM, of the experts or of all."""
    return run.cpu_expert_share + run.cpu_bytes_share


def _models(mine: Shape, other: Shape) -> float:
    if mine.name == other.name:
        return 0.0
    sizes = 0.7 * abs(log(mine.active_params / other.active_params))
    sizes += 0.3 * abs(log(mine.total_params / other.total_params))
    return OTHER_MODEL + sizes + OTHER_KIND * ((mine.moe is None) != (other.moe is None))


def _cards(mine: Workload, other: Workload) -> float:
    if mine.card.name == other.card.name:
        return 0.0
    sizes = abs(log(mine.card.memory_gb_s / other.card.memory_gb_s))
    return OTHER_CARD + sizes + 0.5 * abs(log(mine.card.bf16_tflops / other.card.bf16_tflops))


def _precisions(mine: Workload, other: Workload) -> float:
    if mine.precision.name == other.precision.name:
        return 0.0
    mine_bytes, other_bytes = (precision.weights(mine.shape, run.precision).total for run in (mine, other))
    return OTHER_PRECISION + 0.5 * abs(log(mine_bytes / other_bytes))


def _drafts(run: Workload) -> str:
    return f"{run.draft_tokens} drafts by {run.drafts}" if run.draft_tokens else "no drafts"
