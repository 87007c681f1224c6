"""The metrics of the memory, on `/metrics` of the assistant's socket. No label has text or a user's name."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from appliance.assistant.context import AssistantContext


class MemoryMetrics:
    """The counters of one assistant in a registry of its own."""

    def __init__(self, _context: AssistantContext) -> None:
        self.registry = CollectorRegistry()
        self.searches = Counter(
            "appliance_assistant_searches_total",
            "Searches of the memory by their outcome: found, abstained or failed.",
            ["outcome"],
            registry=self.registry,
        )
        self.search_seconds = Histogram(
            "appliance_assistant_search_seconds",
            "Time of a search in seconds, with its embedding.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
            registry=self.registry,
        )
        self.embed_failures = Counter(
            "appliance_assistant_embed_failures_total",
            "Requests for embeddings that failed.",
            registry=self.registry,
        )
        self.rerank_failures = Counter(
            "appliance_assistant_rerank_failures_total",
            "Searches that kept the fused order because the reranker failed.",
            registry=self.registry,
        )
        self.indexed_passages = Counter(
            "appliance_assistant_indexed_passages_total",
            "Passages that the memory stored, by kind: round or fact.",
            ["kind"],
            registry=self.registry,
        )
        self.skipped_conversations = Counter(
            "appliance_assistant_skipped_conversations_total",
            "Ended conversations that are not indexed because their key is not valid.",
            registry=self.registry,
        )
        self.indexed_conversations = Counter(
            "appliance_assistant_indexed_conversations_total",
            "Ended conversations that the memory has indexed.",
            registry=self.registry,
        )
        self.files_waiting = Gauge(
            "appliance_assistant_files_waiting",
            "Files of vector stores whose processing has not ended.",
            registry=self.registry,
        )
        self.finished_files = Counter(
            "appliance_assistant_finished_files_total",
            "Files of vector stores whose processing has ended, by result: completed or failed.",
            ["result"],
            registry=self.registry,
        )
        for result in ("completed", "failed"):
            # A series from the start: an alert compares it with its value of an hour ago.
            self.finished_files.labels(result)
        self.last_look = Gauge(
            "appliance_assistant_last_look_timestamp_seconds",
            "Time at which these metrics were written.",
            registry=self.registry,
        )
        self.waiting_conversations = Gauge(
            "appliance_assistant_waiting_conversations",
            "Ended conversations that are not in the memory yet.",
            registry=self.registry,
        )
        self.vectors_waiting = Gauge(
            "appliance_assistant_vectors_waiting",
            "Passages of a large store that the vector index does not have yet.",
            registry=self.registry,
        )
        self.vector_index_failures = Counter(
            "appliance_assistant_vector_index_failures_total",
            "Passes over the vector index that failed.",
            registry=self.registry,
        )
        self.index_bytes = Gauge(
            "appliance_assistant_index_bytes",
            "Memory of the loaded indexes in bytes, estimated.",
            registry=self.registry,
        )
