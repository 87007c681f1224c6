"""The correction of predictions by measurements of the same model on the same machine.

Pure. The errors of the model are a Gaussian process over the conditions of a run. All runs of a model on a card
share a part of their error. Runs of near lengths and concurrency share more of it, and so do runs with the same
limit in the roofline. Other precisions, layouts or drafts share less. The measured errors then determine the
expected error of any other run, and the share of the uncertainty that remains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import exp, log, sqrt

COMMON = 0.25
"""Standard deviation (ln) of the error that all runs of a model on a card share."""
NEAR = 0.30
"""Standard deviation (ln) of the error that runs with near lengths and concurrency share."""
LIMITED = 0.17
"""Standard deviation (ln) of the error of one part of the roofline in runs alike."""
LIMITED_ANY = 0.05
"""As :data:`LIMITED`, in any two runs of the model on the card."""
NOISE = 0.03
"""Standard deviation (ln) of one measurement."""
CONCURRENCY_SCALE, INPUT_SCALE, OUTPUT_SCALE = 2.0, 2.0, 3.0
"""Distances (ln) over which a shared error falls to 1/e."""
PART_WEIGHTS = (2.0, 1.0, 2.0, 2.0, 0.6, 0.6, 1.0)
"""Weights of the parts in :attr:`RunConditions.parts`: dense weights, experts, KV cache, arithmetic, floors, host
time per sequence, links."""
OTHER_PRECISION, OTHER_ENGINE, OTHER_TP, OTHER_LAYOUT, OTHER_ATTENTION = 0.1, 0.6, 0.3, 0.1, 0.4
OTHER_DRAFTS, OTHER_MODE, OTHER_KV = 0.5, 0.6, 0.1
"""Exponents by which a difference in one condition lowers the shared error: 0.5 leaves a share of exp(-0.5)."""
REPLICAS_SCALE, POWER_SCALE_W = 14.0, 2000.0
MAX_POINTS = 200
"""Most measurements of one model on one card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConditions:
    """The conditions of a run on which its error depends."""

    log_concurrency: float
    """ln of the requests in flight per replica."""
    log_input: float
    log_output: float
    log_replicas: float
    power_w: float
    precision: str
    kv_bytes: float
    engine: str
    tp: int
    layout: tuple[int, bool]
    """Pipeline stages, and whether experts are whole on a card."""
    attention_dp: bool
    drafts: tuple[str, int]
    mode: str
    parts: tuple[float, ...]
    """d ln(rate) / d ln(constant) for each part of the roofline, see :data:`PART_WEIGHTS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPoint:
    """A measurement on this machine. ``error`` is ln(measured / predicted) before any correction."""

    card: str
    model: str
    conditions: RunConditions
    error: float


@dataclass(frozen=True, slots=True)
class Correction:
    """The expected ln(true / predicted) of a run, and the share of the interval's width that remains."""

    shift: float
    width: float


NO_CORRECTION = Correction(0.0, 1.0)


def shared_error(a: RunConditions, b: RunConditions) -> float:
    """Return the covariance of the errors (ln) of two runs of one model on one card."""
    other = (
        OTHER_PRECISION * (a.precision != b.precision)
        + OTHER_KV * (a.kv_bytes != b.kv_bytes)
        + OTHER_ENGINE * (a.engine != b.engine)
        + OTHER_TP * (a.tp != b.tp)
        + OTHER_LAYOUT * (a.layout != b.layout)
        + OTHER_ATTENTION * (a.attention_dp != b.attention_dp)
        + OTHER_DRAFTS * (a.drafts != b.drafts)
        + OTHER_MODE * (a.mode != b.mode)
        + abs(a.log_replicas - b.log_replicas) / REPLICAS_SCALE
        + abs(a.power_w - b.power_w) / POWER_SCALE_W
    )
    far = (
        abs(a.log_concurrency - b.log_concurrency) / CONCURRENCY_SCALE
        + abs(a.log_input - b.log_input) / INPUT_SCALE
        + abs(a.log_output - b.log_output) / OUTPUT_SCALE
    )
    limited = sum(weight * weight * x * y for weight, x, y in zip(PART_WEIGHTS, a.parts, b.parts, strict=True))
    alike = COMMON**2 + NEAR**2 * exp(-far) + LIMITED**2 * limited
    return alike * exp(-other) + LIMITED_ANY**2 * limited


def correct(points: tuple[MeasuredPoint, ...], run: RunConditions) -> Correction:
    """Return the correction of ``run`` by measurements of its model on its card; none without measurements."""
    if not points:
        return NO_CORRECTION
    factor, weights = _solved(points)
    shared = [shared_error(point.conditions, run) for point in points]
    shift = sum(weight * share for weight, share in zip(weights, shared, strict=True))
    before = shared_error(run, run)
    known = sum(value * value for value in _forward(factor, shared))
    return Correction(shift, sqrt((max(0.0, before - known) + NOISE**2) / (before + NOISE**2)))


@lru_cache(maxsize=64)
def _solved(points: tuple[MeasuredPoint, ...]) -> tuple[list[list[float]], list[float]]:
    """Return the Cholesky factor of the points' covariance, shape (n, n), and its solution for the errors, (n,)."""
    size = len(points)
    factor = [[0.0] * size for _ in range(size)]
    for row in range(size):
        for column in range(row + 1):
            value = shared_error(points[row].conditions, points[column].conditions)
            value += NOISE**2 * (row == column)
            value -= sum(factor[row][i] * factor[column][i] for i in range(column))
            factor[row][column] = sqrt(value) if row == column else value / factor[column][column]
    half = _forward(factor, [point.error for point in points])
    weights = [0.0] * size
    for row in reversed(range(size)):
        later = sum(factor[i][row] * weights[i] for i in range(row + 1, size))
        weights[row] = (half[row] - later) / factor[row][row]
    return factor, weights


def _forward(factor: list[list[float]], right: list[float]) -> list[float]:
    """Return x with ``factor`` x = ``right``, for a lower triangle."""
    found: list[float] = []
    for row, value in enumerate(right):
        found.append((value - sum(factor[row][i] * found[i] for i in range(row))) / factor[row][row])
    return found


def log_tokens(tokens: float, least: float) -> float:
    """Return ln of a length; lengths far below ``least`` tokens count as equal."""
    return log(tokens + least)
