"""From samples to a verdict. Pure."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from appliance.config import Slo
from loadtests.sample import Sample

PASS, MISSED, INVALID = 0, 1, 2
"""Exit codes: every SLO holds; one is missed; the run proves nothing."""


@dataclass(frozen=True, slots=True)
class Check:
    """One SLO against what was measured; ``value`` is ``None`` where nothing could be measured."""

    name: str
    unit: str
    value: float | None
    limit: float

    @property
    def holds(self) -> bool:
        """Whether it holds; what could not be measured does not."""
        return self.value is not None and self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict on a run."""

    requests: int
    failures: dict[str, int]
    checks: tuple[Check, ...]
    percentiles: dict[str, dict[str, float]]
    output_tokens_per_s: float
    duration_s: float

    @property
    def exit_code(self) -> int:
        """:data:`PASS`, :data:`MISSED` or :data:`INVALID`."""
        if self.requests == 0:
            return INVALID
        return PASS if all(check.holds for check in self.checks) else MISSED

    def to_json(self) -> str:
        """The report as JSON, with its verdict."""
        verdict = {PASS: "pass", MISSED: "slo missed", INVALID: "invalid"}[self.exit_code]
        return json.dumps({"verdict": verdict, **asdict(self)}, indent=2)

    @staticmethod
    def from_json(text: str) -> Report:
        """What :meth:`to_json` wrote."""
        table = json.loads(text)
        table.pop("verdict")
        table["checks"] = tuple(Check(**check) for check in table["checks"])
        return Report(**table)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of ``values``, ``share`` in 0..1: a value that really occurred."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarise(samples: Sequence[Sample], slo: Slo) -> Report:
    """The report on ``samples``. Failed requests count as failures and lend no latency to the percentiles."""
    good = [sample for sample in samples if not sample.cause]
    failures = Counter(sample.cause for sample in samples if sample.cause)
    series = {
        "TTFT": [1000 * s.ttft for s in good if s.ttft is not None],
        "TPOT": [1000 * s.tpot for s in good if s.tpot is not None],
        "max ITL": [1000 * s.max_itl for s in good],
        "E2E": [1000 * s.e2e for s in good],
    }
    percentiles = {
        name: {f"p{share:g}": percentile(values, share / 100) for share in (50, 90, 95, 99)}
        for name, values in series.items()
        if values
    }
    checks = (
        Check("TTFT p99", "ms", percentiles.get("TTFT", {}).get("p99"), slo.ttft_p99_ms),
        Check("TPOT p99", "ms", percentiles.get("TPOT", {}).get("p99"), slo.tpot_p99_ms),
        Check("errors", "share", sum(failures.values()) / len(samples) if samples else None, slo.error_rate),
    )
    began = min((s.sent_at for s in samples), default=0.0)
    duration = max((s.ended_at for s in samples), default=0.0) - began
    tokens = sum(s.completion_tokens or 0 for s in good)
    rate = tokens / duration if duration > 0 else 0.0
    return Report(len(samples), dict(failures), checks, percentiles, rate, duration)
