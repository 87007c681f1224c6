"""The metrics of web search, in the registry of the assistant. No label has a query, a URL or a user's name."""

from __future__ import annotations

from prometheus_client import Counter

from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.metrics import MemoryMetrics


class WebMetrics:
    """The counters of web search."""

    def __init__(self, context: AssistantContext) -> None:
        registry = context.shared(MemoryMetrics).registry
        self.searches = Counter(
            "appliance_assistant_web_searches_total",
            "Web searches by their outcome: found, empty or failed.",
            ["outcome"],
            registry=registry,
        )
        self.pages = Counter(
            "appliance_assistant_web_pages_total",
            "Web pages that a model opened, by their outcome: read or failed.",
            ["outcome"],
            registry=registry,
        )
        self.failures = Counter(
            "appliance_assistant_web_failures_total",
            "Web searches and pages that failed, by the kind of the failure.",
            ["kind"],
            registry=registry,
        )
        for outcome in ("found", "empty", "failed"):
            # A series from the start: an alert compares it with its value before.
            self.searches.labels(outcome)
        for outcome in ("read", "failed"):
            self.pages.labels(outcome)
