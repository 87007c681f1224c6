"""Scrapes metrics of the gateway, the engines and the GPUs every two seconds during a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families

from appliance.system.http_request import NO_RESPONSE, send_request
from appliance.system.nvidia_smi import GpuQuery
from appliance.system.stopping import Stop
from loadtests.gpu import FIELDS, GpuSample, sample_gpus, throttled

EVERY_S = 2.0
TIMEOUT_S = 2.0
JOIN_S = 0.05
LAST_SCRAPE_S = 0.5
"""Seconds that a stopped run waits for the last scrape."""

GAUGES = {
    "gateway": ("appliance_gateway_requests_in_flight", "appliance_gateway_queue_length"),
    "engine": ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
}
"""Gauges drawn over time, summed over their labels."""

MEANS = {
    "gateway": {
        "TTFT": "appliance_gateway_time_to_first_token_seconds",
        "queue wait": "appliance_gateway_queue_seconds",
        "duration": "appliance_gateway_request_duration_seconds",
    },
    "engine": {
        "TTFT": "vllm:time_to_first_token_seconds",
        "queue wait": "vllm:request_queue_time_seconds",
        "E2E": "vllm:e2e_request_latency_seconds",
        "TPOT": "vllm:request_time_per_output_token_seconds",
    },
}
"""Histograms of which the mean over the run is reported, by sum and count."""

COUNTERS = {
    "gateway": ("appliance_gateway_requests_total", "appliance_gateway_tokens_total"),
    "engine": (
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:num_preemptions_total",
    ),
}


@dataclass(frozen=True, slots=True)
class Source:
    """One source of metrics; ``kind`` is gateway, engine or gpu."""

    name: str
    kind: str
    url: str = ""


@dataclass(slots=True)
class ScrapedMetrics:
    """The metrics of one source: values by series and time, first and last value of all counters."""

    times: list[float] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    failures: int = 0
    error: str = ""


@dataclass(slots=True)
class ScrapeResult:
    """The data for the report: a table, and notes on striking values."""

    table: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_metrics(text: str) -> dict[str, float]:
    """Parse Prometheus' text format to sums over labels by name; labelled counters also as ``name{a=b}``.

    Buckets are skipped. Raises :class:`ValueError` for other text.
    """
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.endswith(("_bucket", "_created")):
                continue
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
            if sample.labels and sample.name.endswith("_total"):
                inner = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{inner}}}"] = sample.value
    return found


class Scraper:
    """A thread that scrapes all sources within ``with``; a stopped run does not wait for their responses."""

    def __init__(self, sources: Sequence[Source], stop: Stop) -> None:
        self._sources = sources
        self._stop = stop
        self._scraped = {source.name: ScrapedMetrics() for source in sources}
        self._gpus: list[tuple[float, tuple[GpuSample, ...]]] = []
        self._query = GpuQuery(FIELDS)
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._closed = False
        """Set with the result: later responses are dropped."""
        self._thread = threading.Thread(target=self._loop, name="scraper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._end(wait=kind is None)

    def result(self, began: float) -> ScrapeResult:
        """Return all metrics after a last scrape; times are seconds since ``began``."""
        self._end(wait=True)
        result = ScrapeResult()
        for source in self._sources:
            if source.kind == "gpu":
                _add_gpus(result, source, scraped=self._gpus, began=began)
            else:
                _add_metrics(result, source, scraped=self._scraped[source.name], began=began)
        return result

    def _end(self, *, wait: bool) -> None:
        self._ended.set()
        while wait and self._thread.is_alive() and not self._stop.wait(JOIN_S):
            pass
        deadline = time.monotonic() + LAST_SCRAPE_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            # No child process may survive; a response over the network may be too late.
            self._query.cancel()
            self._thread.join(JOIN_S)
        with self._lock:
            self._closed = True

    def _loop(self) -> None:
        self._scrape_all()
        while not self._ended.wait(EVERY_S):
            self._scrape_all()
        self._scrape_all()

    def _scrape_all(self) -> None:
        for source in self._sources:
            if self._stop.requested:
                return
            if source.kind == "gpu":
                found = sample_gpus(self._query)
                with self._lock:
                    if found and not self._closed:
                        self._gpus.append((time.monotonic(), found))
            else:
                self._scrape(source, self._scraped[source.name])

    def _scrape(self, source: Source, scraped: ScrapedMetrics) -> None:
        values: dict[str, float] = {}
        error = ""
        try:
            response = send_request(source.url, "/metrics", timeout_s=TIMEOUT_S)
            if response.status == 200:
                values = read_metrics(response.body.decode())
            else:
                error = f"status {response.status}"
        except (*NO_RESPONSE, ValueError) as failure:
            error = str(failure) or type(failure).__name__
        with self._lock:
            if self._closed:
                return
            if error:
                scraped.failures += 1
                scraped.error = error
                return
            scraped.times.append(time.monotonic())
            scraped.first = scraped.first or values
            scraped.last = values
            for name in GAUGES[source.kind]:
                if name in values:
                    scraped.series.setdefault(name, []).append(values[name])


def _add_metrics(result: ScrapeResult, source: Source, scraped: ScrapedMetrics, began: float) -> None:
    if not scraped.times and not scraped.failures:
        # The run was stopped before the first scrape.
        return
    if not scraped.times:
        result.notes.append(f"{source.name}: {source.url}/metrics could not be read ({scraped.error})")
        return
    if scraped.failures:
        tries = scraped.failures + len(scraped.times)
        result.notes.append(f"{source.name}: {scraped.failures} of {tries} scrapes failed ({scraped.error})")
    growth = {name: value - scraped.first.get(name, 0.0) for name, value in scraped.last.items()}
    means = {}
    for name, metric in MEANS[source.kind].items():
        count = growth.get(f"{metric}_count", 0.0)
        if count > 0:
            means[name] = 1000 * growth.get(f"{metric}_sum", 0.0) / count
    counters = {
        name: value for name, value in growth.items() if name.partition("{")[0] in COUNTERS[source.kind] and value
    }
    table: dict[str, Any] = {
        "kind": source.kind,
        "at_s": [round(at - began, 3) for at in scraped.times],
        "series": scraped.series,
        "mean_ms": means,
        "counted": counters,
    }
    queries = growth.get("vllm:prefix_cache_queries_total", 0.0)
    if queries:
        table["prefix_cache_hit_rate"] = growth.get("vllm:prefix_cache_hits_total", 0.0) / queries
    if preempted := growth.get("vllm:num_preemptions_total", 0.0):
        result.notes.append(
            f"{source.name}: {preempted:.0f} sequences were preempted; the KV cache is too small for this load"
        )
    result.table[source.name] = table


def _add_gpus(
    result: ScrapeResult, source: Source, scraped: Sequence[tuple[float, tuple[GpuSample, ...]]], began: float
) -> None:
    if not scraped:
        return
    indices = sorted({card.index for _, found in scraped for card in found})
    series: dict[str, list[float | None]] = {}
    for index in indices:
        own = [next((card for card in found if card.index == index), None) for _, found in scraped]
        series[f"GPU {index} °C"] = [card.temperature_c if card else None for card in own]
        series[f"GPU {index} W"] = [card.power_w if card else None for card in own]
        series[f"GPU {index} %"] = [card.utilization if card else None for card in own]
        reasons = sorted({reason for card in own if card for reason in throttled(card.reasons)})
        if reasons:
            result.notes.append(f"GPU {index} was slowed down: {', '.join(reasons)}")
    result.table[source.name] = {
        "kind": "gpu",
        "at_s": [round(at - began, 3) for at, _ in scraped],
        "series": series,
    }
