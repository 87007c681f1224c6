"""The gateway's metrics for Prometheus. Labels are models, endpoints, outcomes and engines of the site: all few.

Counting adds to a number; names, labels and the text format are produced for each scrape. A labelled counter of
prometheus_client costs 2 µs per count, and a request has a dozen counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from appliance.store.models import UsageRow

PREFIX = "appliance_gateway"
BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600)

BOUNDS = (*map(floatToGoString, BUCKETS_S), "+Inf")
"""The values of the label ``le``: "1.0", not "1", which Prometheus 3 would rewrite."""


class Histogram:
    """Counts by bucket of :data:`BUCKETS_S`, and a sum in seconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return cumulative counts by upper bound, as Prometheus needs them."""
        found = []
        count = 0
        for bound, own in zip(BOUNDS, self.counts, strict=True):
            count += own
            found.append((bound, float(count)))
        return found


@dataclass(slots=True)
class ModelCounters:
    """The counters of one model."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    ttft: Histogram = field(default_factory=Histogram)
    duration: Histogram = field(default_factory=Histogram)
    queue: Histogram = field(default_factory=Histogram)


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One gauge or counter that is read at each scrape: ``values`` by the values of its ``labels``."""

    name: str
    help: str
    values: dict[tuple[str, ...], float]
    labels: tuple[str, ...] = ()
    counter: bool = False


class Metrics(Collector):
    """The gateway's counters, and the resources of its process.

    Args:
        samples: Returns the gauges and counters of other parts at the time of a scrape.
    """

    def __init__(self, samples: Callable[[], Iterator[MetricSample]] = lambda: iter(())) -> None:
        self._samples = samples
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._requests: dict[tuple[str, str, str], int] = {}
        self._models: dict[str, ModelCounters] = {}
        self.in_flight = 0
        self.unauthorized = 0
        self.internal_errors = 0
        self.not_found: dict[str, int] = {}
        """Requests for unknown paths, by a label of a fixed list."""
        self.passed: dict[tuple[str, str], int] = {}
        """Requests that the assistant served, by group of paths and outcome."""

    def count(self, row: UsageRow) -> None:
        """Count a finished request."""
        labels = (row.endpoint, row.model, row.outcome)
        self._requests[labels] = self._requests.get(labels, 0) + 1
        if not row.model:
            return
        counters = self._models.get(row.model)
        if counters is None:
            counters = self._models[row.model] = ModelCounters()
        counters.prompt += row.prompt_tokens
        counters.cached += row.cached_tokens
        counters.completion += row.completion_tokens
        counters.duration.observe(row.duration_ms / 1000)
        counters.queue.observe(row.queue_ms / 1000)
        if row.ttft_ms is not None:
            counters.ttft.observe(row.ttft_ms / 1000)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics for prometheus_client's formatter."""
        requests = CounterMetricFamily(
            f"{PREFIX}_requests", "Finished requests.", labels=["endpoint", "model", "outcome"]
        )
        for labels, count in self._requests.items():
            requests.add_metric(labels, count)
        yield requests
        tokens = CounterMetricFamily(f"{PREFIX}_tokens", "Tokens.", labels=["model", "kind"])
        histograms = {
            "ttft": HistogramMetricFamily(
                f"{PREFIX}_time_to_first_token_seconds",
                "Seconds from the request to its first token, streams only.",
                labels=["model"],
            ),
            "duration": HistogramMetricFamily(
                f"{PREFIX}_request_duration_seconds",
                "Seconds from the request to the end of its response.",
                labels=["model"],
            ),
            "queue": HistogramMetricFamily(
                f"{PREFIX}_queue_seconds", "Seconds of waiting for a slot of an engine.", labels=["model"]
            ),
        }
        for model, counters in self._models.items():
            for kind in ("prompt", "cached", "completion"):
                tokens.add_metric([model, kind], getattr(counters, kind))
            for name, family in histograms.items():
                histogram: Histogram = getattr(counters, name)
                family.add_metric([model], histogram.buckets(), histogram.total)
        yield tokens
        yield from histograms.values()
        yield GaugeMetricFamily(
            f"{PREFIX}_requests_in_flight", "Requests running or waiting.", value=self.in_flight
        )
        yield CounterMetricFamily(
            f"{PREFIX}_unauthorized", "Requests without a valid key.", value=self.unauthorized
        )
        yield CounterMetricFamily(
            f"{PREFIX}_internal_errors", "Requests on which the gateway itself failed.", value=self.internal_errors
        )
        not_found = CounterMetricFamily(f"{PREFIX}_not_found", "Requests for unknown paths.", labels=["path"])
        for label, count in self.not_found.items():
            not_found.add_metric([label], count)
        yield not_found
        if self.passed:
            passed = CounterMetricFamily(
                f"{PREFIX}_passed", "Requests passed to the assistant.", labels=["endpoint", "outcome"]
            )
            for key, count in self.passed.items():
                passed.add_metric(key, count)
            yield passed
        for sample in self._samples():
            make = CounterMetricFamily if sample.counter else GaugeMetricFamily
            found = make(f"{PREFIX}_{sample.name}", sample.help, labels=sample.labels)
            for values, value in sample.values.items():
                found.add_metric(values, value)
            yield found
