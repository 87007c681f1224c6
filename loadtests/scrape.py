"""Asks the gateway, the engines and the cards how they are, every two seconds beside a run."""

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
LEAVE_S = 0.5
"""Seconds that a stopped run gives the last look to end."""

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
"""Histograms of which the mean over the run is told, by sum and count."""

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
    """One place to scrape: ``kind`` is gateway, engine or gpu."""

    name: str
    kind: str
    url: str = ""


@dataclass(slots=True)
class Seen:
    """What one source said: values by series and time, first and last of all counters."""

    times: list[float] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    failures: int = 0
    error: str = ""


@dataclass(slots=True)
class ScrapeResult:
    """For the report: a table, and sentences about what was striking."""

    table: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_metrics(text: str) -> dict[str, float]:
    """Prometheus' text format as sums over labels by name; labelled counters also as ``name{a=b}``.

    Buckets are left out. Raises :class:`ValueError` for other text.
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
    """A thread that asks all sources, from ``with`` to its end; a stopped run does not wait for their answers."""

    def __init__(self, sources: Sequence[Source], stop: Stop) -> None:
        self._sources = sources
        self._stop = stop
        self._seen = {source.name: Seen() for source in sources}
        self._cards: list[tuple[float, tuple[GpuSample, ...]]] = []
        self._query = GpuQuery(FIELDS)
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._closed = False
        """Set once the result is made: what a late answer brings is dropped."""
        self._thread = threading.Thread(target=self._loop, name="scraper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._end(wait=kind is None)

    def result(self, began: float) -> ScrapeResult:
        """All that was seen, after a last look; times since ``began``."""
        self._end(wait=True)
        result = ScrapeResult()
        for source in self._sources:
            if source.kind == "gpu":
                _tell_cards(result, source, self._cards, began)
            else:
                _tell(result, source, self._seen[source.name], began)
        return result

    def _end(self, *, wait: bool) -> None:
        self._ended.set()
        while wait and self._thread.is_alive() and not self._stop.wait(JOIN_S):
            pass
        deadline = time.monotonic() + LEAVE_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            # No child may outlive us; an answer of the network may come too late.
            self._query.cancel()
            self._thread.join(JOIN_S)
        with self._lock:
            self._closed = True

    def _loop(self) -> None:
        self._all()
        while not self._ended.wait(EVERY_S):
            self._all()
        self._all()

    def _all(self) -> None:
        for source in self._sources:
            if self._stop.requested:
                return
            if source.kind == "gpu":
                found = sample_gpus(self._query)
                with self._lock:
                    if found and not self._closed:
                        self._cards.append((time.monotonic(), found))
            else:
                self._one(source, self._seen[source.name])

    def _one(self, source: Source, seen: Seen) -> None:
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
                seen.failures += 1
                seen.error = error
                return
            seen.times.append(time.monotonic())
            seen.first = seen.first or values
            seen.last = values
            for name in GAUGES[source.kind]:
                if name in values:
                    seen.series.setdefault(name, []).append(values[name])


def _tell(result: ScrapeResult, source: Source, seen: Seen, began: float) -> None:
    if not seen.times and not seen.failures:
        # The run was stopped before the first look.
        return
    if not seen.times:
        result.notes.append(f"{source.name}: {source.url}/metrics could not be read ({seen.error})")
        return
    if seen.failures:
        result.notes.append(
            f"{source.name}: {seen.failures} of {seen.failures + len(seen.times)} looks failed ({seen.error})"
        )
    grown = {name: value - seen.first.get(name, 0.0) for name, value in seen.last.items()}
    means = {}
    for name, metric in MEANS[source.kind].items():
        count = grown.get(f"{metric}_count", 0.0)
        if count > 0:
            means[name] = 1000 * grown.get(f"{metric}_sum", 0.0) / count
    counters = {
        name: value for name, value in grown.items() if name.partition("{")[0] in COUNTERS[source.kind] and value
    }
    table: dict[str, Any] = {
        "kind": source.kind,
        "at_s": [round(at - began, 3) for at in seen.times],
        "series": seen.series,
        "mean_ms": means,
        "counted": counters,
    }
    queries = grown.get("vllm:prefix_cache_queries_total", 0.0)
    if queries:
        table["prefix_cache_hit_rate"] = grown.get("vllm:prefix_cache_hits_total", 0.0) / queries
    if preempted := grown.get("vllm:num_preemptions_total", 0.0):
        result.notes.append(
            f"{source.name}: {preempted:.0f} sequences were preempted; its KV cache is too small for this load"
        )
    result.table[source.name] = table


def _tell_cards(
    result: ScrapeResult, source: Source, seen: Sequence[tuple[float, tuple[GpuSample, ...]]], began: float
) -> None:
    if not seen:
        return
    indices = sorted({card.index for _, found in seen for card in found})
    series: dict[str, list[float | None]] = {}
    for index in indices:
        own = [next((card for card in found if card.index == index), None) for _, found in seen]
        series[f"GPU {index} °C"] = [card.temperature_c if card else None for card in own]
        series[f"GPU {index} W"] = [card.power_w if card else None for card in own]
        series[f"GPU {index} %"] = [card.utilization if card else None for card in own]
        reasons = sorted({reason for card in own if card for reason in throttled(card.reasons)})
        if reasons:
            result.notes.append(f"GPU {index} was slowed down: {', '.join(reasons)}")
    result.table[source.name] = {"kind": "gpu", "at_s": [round(at - began, 3) for at, _ in seen], "series": series}
