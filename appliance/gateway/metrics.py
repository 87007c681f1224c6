"""What the gateway tells Prometheus. Labels are models, endpoints, outcomes and engines: all few and ours."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from appliance.gateway.usage import UsageRow

SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600)


class Metrics:
    """The gateway's own registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        prefix = "appliance_gateway"
        self._requests = Counter(
            f"{prefix}_requests",
            "Requests answered.",
            ["endpoint", "model", "outcome"],
            registry=self._registry,
        )
        self._tokens = Counter(f"{prefix}_tokens", "Tokens.", ["model", "kind"], registry=self._registry)
        self._ttft = Histogram(
            f"{prefix}_time_to_first_token_seconds",
            "From the request to its first token, streams only.",
            ["model"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._duration = Histogram(
            f"{prefix}_request_duration_seconds",
            "From the request to the end of its answer.",
            ["model"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.in_flight = Gauge(f"{prefix}_requests_in_flight", "Requests running.", registry=self._registry)
        self.unauthorized = Counter(
            f"{prefix}_unauthorized", "Requests without a valid key.", registry=self._registry
        )
        self.engine_up = Gauge(
            f"{prefix}_engine_up",
            "Whether the engine's last canary token came.",
            ["engine"],
            registry=self._registry,
        )
        self.rows_dropped = Gauge(
            f"{prefix}_usage_rows_dropped", "Usage rows lost to a full disk.", registry=self._registry
        )

    def count(self, row: UsageRow) -> None:
        """Count a finished request."""
        self._requests.labels(row.endpoint, row.model, row.outcome).inc()
        if row.model:
            self._duration.labels(row.model).observe(row.duration_ms / 1000)
            self._tokens.labels(row.model, "prompt").inc(row.prompt_tokens)
            self._tokens.labels(row.model, "completion").inc(row.completion_tokens)
            if row.ttft_ms is not None:
                self._ttft.labels(row.model).observe(row.ttft_ms / 1000)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)
