"""The report on a run, with its verdict. Pure; docs/loadtests.md has every formula."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from appliance.contract.model import Slo
from loadtests.collect import Collector
from loadtests.estimates import BATCHES, Interval, batch_means, jain, percentile, percentile_interval, wilson
from loadtests.outcome import NOT_ERRORS, Cause
from loadtests.parameters import LoadLimits, LoadPlan
from loadtests.sample import Sample
from loadtests.search import SearchStep
from loadtests.timeline import Timeline, TimelinePoint, points, timeline

PASS, MISSED, INVALID = 0, 1, 2
"""Exit codes: every SLO holds; one is missed; the run is invalid."""

VERDICTS = {PASS: "pass", MISSED: "slo missed", INVALID: "invalid"}
INTERRUPTED = "interrupted before its end"
REFUSALS = frozenset(range(300, 500)) - {408, 409, 425, 429}
"""Statuses of requests that this server does not serve at any load."""
SHARES = (50, 90, 95, 99)
MIN_HEARTBEATS = 5
"""Minimum of heartbeats, one a second, for a meaningful CPU share of the client."""


@dataclass(frozen=True, slots=True)
class SloCheck:
    """One SLO and its measured value, ``None`` if it was not measured."""

    name: str
    unit: str
    value: float | None
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the SLO holds; without a value it does not."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True, slots=True)
class ClientHealth:
    """State of the load client. Lag: the delay of a greenlet that is ready to run."""

    cpu_mean: float | None = None
    cpu_max: float | None = None
    lag_p95_ms: float | None = None
    lag_max_ms: float | None = None
    late_p99_ms: float | None = None
    """Open loops: the delay of sending behind the schedule."""
    reconnects: int = 0


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens as counted by the engine, over the measured good responses."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    chunks: int = 0
    first_prompts_wanted: float | None = None
    """Median of the requested sizes of prompts that begin a chat."""
    first_prompts_counted: float | None = None
    sizing: str = ""


@dataclass(frozen=True, slots=True)
class ModelResults:
    """Results of one model."""

    requests: int
    failures: int
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of an earlier run and of this one (:mod:`loadtests.baseline`)."""

    measure: str
    before: Interval
    now: Interval
    verdict: Literal["worse", "better", "same"]


@dataclass(slots=True)
class Report:
    """The verdict on a run and the data behind it."""

    requests: int
    """Measured requests, without those that the load test cancelled."""
    failures: dict[str, int]
    checks: tuple[SloCheck, ...]
    percentiles: dict[str, dict[str, float]]
    """In ms: TTFT, TPOT, ITL, max ITL, E2E, queue wait."""
    output_tokens_per_s: float
    duration_s: float
    scenario: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    warmup_requests: int = 0
    cancelled: int = 0
    intervals: dict[str, Interval] = field(default_factory=dict)
    """95 % intervals by measure, for the comparison with a baseline."""
    goodput: Interval | None = None
    """Requests per second that met every SLO."""
    fairness: float | None = None
    users: int = 0
    drift: float | None = None
    """Median TTFT of the last quarter divided by that of the first."""
    client: ClientHealth = ClientHealth()
    tokens: Tokens = Tokens()
    by_model: dict[str, ModelResults] = field(default_factory=dict)
    invalid: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    timeline: Timeline = field(default_factory=Timeline)
    points: list[TimelinePoint] = field(default_factory=list)
    cdf: dict[str, list[float]] = field(default_factory=dict)
    """The 0th to 100th percentile of a measure in ms, for plots."""
    server: dict[str, Any] = field(default_factory=dict)
    """Metrics scraped during the run (:mod:`loadtests.scrape`)."""
    about: dict[str, str] = field(default_factory=dict)
    """URL, start and number of keys."""
    baseline: list[Comparison] = field(default_factory=list)
    """Comparison with an earlier run, if one was named."""
    search: list[SearchStep] = field(default_factory=list)
    """Tested loads of a search; the report is that of the highest load that held."""

    @property
    def exit_code(self) -> int:
        """:data:`PASS`, :data:`MISSED` or :data:`INVALID`."""
        if self.invalid or self.requests == 0:
            return INVALID
        worse = any(comparison.verdict == "worse" for comparison in self.baseline)
        return PASS if all(check.holds for check in self.checks) and not worse else MISSED

    @property
    def interrupted(self) -> bool:
        """Whether the run was interrupted."""
        return any(INTERRUPTED in reason for reason in self.invalid)

    def interrupt(self, reason: str) -> None:
        """Mark the run as interrupted by ``reason``."""
        if not self.interrupted:
            self.invalid = (f"the run was {INTERRUPTED} by {reason}", *self.invalid)

    def to_json(self) -> str:
        """Return the report as JSON, with its verdict."""
        table = {"verdict": VERDICTS[self.exit_code], **msgspec.to_builtins(self)}
        return msgspec.json.format(msgspec.json.encode(table), indent=2).decode()

    @staticmethod
    def from_json(text: str | bytes) -> Report:
        """Return the report in a result of :meth:`to_json`; raises :class:`msgspec.DecodeError` for other text."""
        return msgspec.json.decode(text, type=Report)


def meets(sample: Sample, slo: Slo) -> bool:
    """Return whether one request meets every SLO, each as its own bound: the goodput of DistServe (2024)."""
    bounds = (
        (sample.ttft, slo.ttft_p99_ms),
        (sample.tpot, slo.tpot_p99_ms),
        (sample.gaps.longest, slo.itl_max_ms),
        (sample.e2e, slo.e2e_p99_ms),
    )
    return sample.good and all(
        seconds is None or limit is None or 1000 * seconds <= limit for seconds, limit in bounds
    )


def summarise(collected: Collector, plan: LoadPlan) -> Report:
    """Return the report. Failed requests count as failures and have no part in the percentiles."""
    samples = [sample for sample in collected.samples if sample.cause not in NOT_ERRORS]
    good = [sample for sample in samples if sample.good]
    failures = Counter(sample.cause for sample in samples if sample.cause)
    series = _series(good)
    percentiles = {
        name: {**{f"p{share}": percentile(values, share / 100) for share in SHARES}, "max": max(values)}
        for name, values in series.items()
        if values
    }
    if collected.gaps.total:
        gaps = {f"p{share}": 1000 * (collected.gaps.percentile(share / 100) or 0.0) for share in SHARES}
        percentiles["ITL"] = {**gaps, "max": 1000 * collected.gaps.longest}
    duration, ended = _window(collected, plan)
    met = sum(meets(sample, plan.slo) for sample in samples)
    share = wilson(met, len(samples))
    tokens = sum(sample.completion_tokens or 0 for sample in good)
    intervals = {
        f"{name} p{point}": percentile_interval(values, point / 100)
        for name, values in series.items()
        for point in SHARES
        if values
    }
    if samples:
        intervals["error share"] = wilson(sum(failures.values()), len(samples))
        intervals["good share"] = share
    goodput = share.scaled(len(samples) / duration) if duration and samples else None
    if goodput is not None:
        intervals["goodput"] = goodput
    if (rate := _rate_interval(good, duration, ended)) is not None:
        intervals["output tokens/s"] = rate
    client = _health(collected, samples)
    return Report(
        requests=len(samples),
        failures=dict(failures),
        checks=_checks(percentiles, samples, failures=failures, share=share.value, slo=plan.slo),
        percentiles=percentiles,
        output_tokens_per_s=tokens / duration if duration else 0.0,
        duration_s=duration,
        scenario=plan.scenario,
        parameters=plan.parameters.model_dump(mode="json"),
        models=plan.models,
        warmup_requests=collected.warmup,
        cancelled=sum(sample.cause == Cause.CANCELLED for sample in collected.samples),
        intervals=intervals,
        goodput=goodput,
        fairness=fairness(samples),
        users=len({sample.user for sample in samples}),
        drift=_drift(good),
        client=client,
        tokens=_tokens(good, plan),
        by_model=_by_model(samples),
        invalid=tuple(_invalid(collected, samples, client=client, limits=plan.limits)),
        notes=[note for note in collected.notes if not note.startswith(INTERRUPTED)],
        timeline=timeline(collected, plan.parameters.warmup),
        points=points(collected),
        cdf={
            name: [percentile(values, max(0.0001, point / 100)) for point in range(101)]
            for name, values in series.items()
            if len(values) > 1
        },
    )


def _series(good: Sequence[Sample]) -> dict[str, list[float]]:
    takes: dict[str, Callable[[Sample], float | None]] = {
        "TTFT": lambda s: s.ttft,
        "TPOT": lambda s: s.tpot,
        "max ITL": lambda s: s.gaps.longest if s.streamed and s.chunks > 1 else None,
        "E2E": lambda s: s.e2e,
    }
    series = {name: [1000 * value for s in good if (value := take(s)) is not None] for name, take in takes.items()}
    # The gateway sends the header only for requests that waited in its queue; the others waited 0 ms.
    if any(s.queue_ms is not None for s in good):
        series["queue wait"] = [s.queue_ms or 0.0 for s in good]
    return series


def _window(collected: Collector, plan: LoadPlan) -> tuple[float, float]:
    """Return length and end of the measured time: from the end of the warm-up to that of the last response."""
    if not collected.samples:
        return 0.0, 0.0
    first = min(sample.sent_at for sample in collected.samples)
    began = max(first, collected.began + plan.parameters.warmup) if plan.parameters.warmup else first
    ended = max(sample.ended_at for sample in collected.samples)
    return max(0.0, ended - began), ended


def _rate_interval(good: Sequence[Sample], duration: float, ended: float) -> Interval | None:
    """Return output tokens per second by batches of the measured time; tokens are spread over their stream."""
    if duration < BATCHES:
        return None
    began, width = ended - duration, duration / BATCHES
    batches = [0.0] * BATCHES
    for sample in good:
        since = sample.first_token_at if sample.streamed and sample.first_token_at else sample.sent_at
        until = max(sample.ended_at, since + 1e-6)
        for batch in range(BATCHES):
            low, high = began + batch * width, began + (batch + 1) * width
            overlap = min(high, until) - max(low, since)
            if overlap > 0:
                batches[batch] += (sample.completion_tokens or 0) * overlap / (until - since)
    return batch_means([tokens / width for tokens in batches])


def _checks(
    percentiles: dict[str, dict[str, float]],
    samples: Sequence[Sample],
    failures: Counter[str],
    share: float,
    slo: Slo,
) -> tuple[SloCheck, ...]:
    streamed = any(sample.streamed for sample in samples) or not samples

    def p99(name: str) -> float | None:
        return percentiles.get(name, {}).get("p99")

    checks = []
    if streamed:
        # Responses without streaming have no first token; a run with no others has no SLO for it.
        checks.append(SloCheck("TTFT p99", "ms", value=p99("TTFT"), limit=slo.ttft_p99_ms))
        checks.append(SloCheck("TPOT p99", "ms", value=p99("TPOT"), limit=slo.tpot_p99_ms))
        if slo.itl_max_ms is not None:
            checks.append(
                SloCheck("max ITL", "ms", value=percentiles.get("max ITL", {}).get("max"), limit=slo.itl_max_ms)
            )
    if slo.e2e_p99_ms is not None:
        checks.append(SloCheck("E2E p99", "ms", value=p99("E2E"), limit=slo.e2e_p99_ms))
    errors = sum(failures.values()) / len(samples) if samples else None
    checks.append(SloCheck("errors", "share", value=errors, limit=slo.error_rate))
    if slo.goodput_share is not None:
        checks.append(
            SloCheck(
                "good share", "share", value=share if samples else None, limit=slo.goodput_share, at_least=True
            )
        )
    return tuple(checks)


def fairness(samples: Sequence[Sample]) -> float | None:
    """Return Jain's index over users, of the tokens that each received per second of waiting for responses.

    Per second of waiting, so that more requests or longer pauses of a user do not count as unfair. Only tokens of
    good responses, so that a user whose requests fail lowers the index.
    """
    received: dict[int, float] = {}
    waited: dict[int, float] = {}
    for sample in samples:
        received[sample.user] = received.get(sample.user, 0.0) + (
            sample.completion_tokens or 0 if sample.good else 0
        )
        waited[sample.user] = waited.get(sample.user, 0.0) + sample.e2e
    return jain([received[user] / waited[user] if waited[user] > 0 else 0.0 for user in received])


def _drift(good: Sequence[Sample]) -> float | None:
    ordered = [s.ttft for s in sorted(good, key=lambda s: s.sent_at) if s.ttft is not None]
    quarter = len(ordered) // 4
    if quarter < 10:
        return None
    return percentile(ordered[-quarter:], 0.5) / percentile(ordered[:quarter], 0.5)


def _health(collected: Collector, samples: Sequence[Sample]) -> ClientHealth:
    heartbeats = collected.heartbeats
    lags = [1000 * beat.lag_s for beat in heartbeats]
    late = [1000 * (s.sent_at - s.scheduled_at) for s in samples if s.scheduled_at is not None]
    return ClientHealth(
        sum(beat.cpu_share for beat in heartbeats) / len(heartbeats) if heartbeats else None,
        max((beat.cpu_share for beat in heartbeats), default=None),
        lag_p95_ms=percentile(lags, 0.95) if lags else None,
        lag_max_ms=max(lags, default=None),
        late_p99_ms=percentile(late, 0.99) if late else None,
        reconnects=sum(sample.reconnected for sample in samples),
    )


def _tokens(good: Sequence[Sample], plan: LoadPlan) -> Tokens:
    pairs = [(s.wanted_prompt_tokens, s.prompt_tokens) for s in good]
    sized = [(wanted, counted) for wanted, counted in pairs if wanted is not None and counted is not None]
    return Tokens(
        sum(s.prompt_tokens or 0 for s in good),
        sum(s.cached_tokens or 0 for s in good),
        completion=sum(s.completion_tokens or 0 for s in good),
        chunks=sum(s.chunks for s in good),
        first_prompts_wanted=percentile([wanted for wanted, _ in sized], 0.5) if sized else None,
        first_prompts_counted=percentile([counted for _, counted in sized], 0.5) if sized else None,
        sizing=plan.sizing,
    )


def _by_model(samples: Sequence[Sample]) -> dict[str, ModelResults]:
    found = {}
    for model in sorted({sample.model for sample in samples}):
        own = [sample for sample in samples if sample.model == model]
        ttft = [1000 * s.ttft for s in own if s.good and s.ttft is not None]
        found[model] = ModelResults(
            len(own),
            sum(not s.good for s in own),
            ttft_p50_ms=percentile(ttft, 0.5) if ttft else None,
            ttft_p99_ms=percentile(ttft, 0.99) if ttft else None,
            output_tokens=sum(s.completion_tokens or 0 for s in own if s.good),
        )
    return found


def _refused(samples: Sequence[Sample]) -> str:
    """Return why a run without a served request is invalid; empty for every other run."""
    if not samples:
        return ""
    (cause, count), *more = Counter(sample.cause for sample in samples).most_common()
    most = f"{count} x {cause}{', and others' if more else ''}"
    if not any(sample.status for sample in samples) and not any(s.cause == Cause.CLIENT_LIMIT for s in samples):
        return f"no request got a response ({most})"
    if all(sample.status in REFUSALS for sample in samples):
        detail = next((f": {' '.join(sample.detail.split())}" for sample in samples if sample.detail), "")
        return f"every request was rejected ({most}{detail}); name a model and options that the server offers"
    return ""


def _invalid(
    collected: Collector, samples: Sequence[Sample], client: ClientHealth, limits: LoadLimits
) -> list[str]:
    """Return the reasons why the run is invalid, a clause each."""
    reasons = [f"the run was {note}" for note in collected.notes if note.startswith(INTERRUPTED)][:1]
    if not samples and not reasons:
        what = "every request was part of the warm-up" if collected.warmup else "no request was made"
        reasons.append(f"{what}; set a longer --duration or more --requests")
    if (refused := _refused(samples)) and not reasons:
        reasons.append(refused)
    if unsent := sum(sample.cause == Cause.CLIENT_LIMIT for sample in samples):
        reasons.append(
            f"{unsent} requests were not sent, over --max-in-flight; the service is too slow for the rate"
        )
    late = []
    if (
        client.cpu_mean is not None
        and len(collected.heartbeats) >= MIN_HEARTBEATS
        and client.cpu_mean > limits.cpu_share
    ):
        late.append(f"the client used {client.cpu_mean:.0%} of its core (limit {limits.cpu_share:.0%})")
    for name, value in (("lag p95", client.lag_p95_ms), ("late sending p99", client.late_p99_ms)):
        if value is not None and value > limits.lag_ms:
            late.append(f"the client's {name} is {value:.0f} ms (limit {limits.lag_ms:g} ms)")
    if late:
        reasons += [*late, "use a faster client machine, or less load"]
    return reasons
