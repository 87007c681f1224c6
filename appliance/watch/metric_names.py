"""Names of the metrics that the agents write, in one list: agents, alerts, dashboards and tests use the same names.

The agents write text files for node_exporter's textfile collector, and the dead man's switch serves its own page.
The gateway, vLLM and the exporters define their names themselves; a test holds those to a live scrape.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FOLDER = Path("/run/appliance-metrics")
"""The folder of the text files; node_exporter reads it."""

SourceName = Literal["gpu_watch", "power", "backup", "notify", "assistant", "telegram", "deadman", "gateway"]
"""The program that produces a metric. Except the switch and the gateway, each writes the file NAME.prom."""

TEXT_FILES: tuple[SourceName, ...] = ("gpu_watch", "power", "backup", "notify", "assistant", "telegram")
"""The sources with a text file."""


@dataclass(frozen=True, slots=True)
class AgentMetric:
    """One metric of an agent.

    Args:
        name: The name of its series; counters end with ``_total``.
        labels: The names of its labels.
        source: The program that produces it.
        help: Its meaning, with the unit.
        example: Labels and values of series that a healthy machine has. Times are ages in seconds.
    """

    name: str
    source: SourceName
    help: str
    example: tuple[tuple[dict[str, str], float], ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its labels."""
        return tuple(self.example[0][0])

    @property
    def kind(self) -> Literal["counter", "gauge"]:
        """The type in Prometheus' text format."""
        return "counter" if self.name.endswith("_total") else "gauge"

    @property
    def is_time(self) -> bool:
        """Whether its values are seconds since the epoch; examples of these are ages in seconds."""
        return self.name.endswith("_timestamp_seconds")


def _cards(*values: float) -> tuple[tuple[dict[str, str], float], ...]:
    return tuple(({"card": str(index)}, value) for index, value in enumerate(values))


def _one(value: float, **labels: str) -> tuple[tuple[dict[str, str], float], ...]:
    return ((labels, value),)


GIB = 1024.0**3

METRICS: tuple[AgentMetric, ...] = (
    AgentMetric("appliance_gpu_temperature_celsius", "gpu_watch", "Temperature of the card.", _cards(61, 64)),
    AgentMetric(
        "appliance_gpu_temperature_margin_celsius",
        "gpu_watch",
        "Degrees until the card slows down; cards without this field have no series.",
        _cards(24, 21),
    ),
    AgentMetric("appliance_gpu_power_watts", "gpu_watch", "Power draw.", _cards(310, 295)),
    AgentMetric("appliance_gpu_power_limit_watts", "gpu_watch", "Enforced power limit.", _cards(450, 450)),
    AgentMetric("appliance_gpu_fan_ratio", "gpu_watch", "Speed of the fans, 0 to 1.", _cards(0.62, 0.66)),
    AgentMetric(
        "appliance_gpu_memory_used_bytes", "gpu_watch", "Used memory of the card.", _cards(84 * GIB, 85 * GIB)
    ),
    AgentMetric("appliance_gpu_memory_total_bytes", "gpu_watch", "Memory of the card.", _cards(95 * GIB, 95 * GIB)),
    AgentMetric(
        "appliance_gpu_utilization_ratio", "gpu_watch", "Time in which a kernel ran, 0 to 1.", _cards(0.83, 0.79)
    ),
    AgentMetric(
        "appliance_gpu_throttle_seconds_total",
        "gpu_watch",
        "Seconds of reduced clocks, by reason.",
        tuple(
            ({"card": card, "reason": reason}, seconds)
            for card in ("0", "1")
            for reason, seconds in (("power-cap", 120.0), ("heat", 0.0))
        ),
    ),
    AgentMetric(
        "appliance_gpu_ecc_uncorrected_total",
        "gpu_watch",
        "Uncorrected memory errors since the driver was loaded.",
        _cards(0, 0),
    ),
    AgentMetric(
        "appliance_gpu_xids_total", "gpu_watch", "Xid messages of the driver.", _one(1, card="0", xid="13")
    ),
    AgentMetric(
        "appliance_gpu_rung", "gpu_watch", "Rung of the ladder on which the card is; 0 is none.", _cards(0, 0)
    ),
    AgentMetric("appliance_gpu_watch_driver_hangs", "gpu_watch", "Whether the driver hangs.", _one(0)),
    AgentMetric(
        "appliance_gpu_watch_last_look_timestamp_seconds",
        "gpu_watch",
        "Time of the last look at the cards.",
        _one(5),
    ),
    AgentMetric("appliance_gpu_watch_acting", "gpu_watch", "Whether it acts; 0 if it reports only.", _one(0)),
    AgentMetric("appliance_power_on_battery", "power", "Whether the UPS runs on battery.", _one(0)),
    AgentMetric("appliance_power_battery_charge_ratio", "power", "Charge of the battery, 0 to 1.", _one(1)),
    AgentMetric("appliance_power_battery_runtime_seconds", "power", "Runtime that the UPS estimates.", _one(840)),
    AgentMetric("appliance_power_load_ratio", "power", "Load of the UPS, 0 to 1.", _one(0.58)),
    AgentMetric("appliance_power_ups_connected", "power", "Whether the UPS can be read.", _one(1)),
    AgentMetric("appliance_power_phase", "power", "1 for the present phase.", _one(1, phase="mains")),
    AgentMetric(
        "appliance_power_last_look_timestamp_seconds", "power", "Time of the last look at the UPS.", _one(1)
    ),
    AgentMetric(
        "appliance_backup_last_success_timestamp_seconds",
        "backup",
        "Time of the last complete backup.",
        _one(8 * 3600, repository="vps"),
    ),
    AgentMetric(
        "appliance_backup_last_try_timestamp_seconds",
        "backup",
        "Time of the last attempt.",
        _one(8 * 3600, repository="vps"),
    ),
    AgentMetric(
        "appliance_backup_failed",
        "backup",
        "Whether the step failed in the last attempt.",
        _one(0, repository="vps", step="backup"),
    ),
    AgentMetric(
        "appliance_backup_size_bytes", "backup", "Size of the last backup.", _one(2 * GIB, repository="vps")
    ),
    AgentMetric(
        "appliance_backup_drill_last_success_timestamp_seconds",
        "backup",
        "Time of the last passed restore drill.",
        _one(2 * 86400),
    ),
    AgentMetric("appliance_backup_drill_failed", "backup", "Whether the last restore drill failed.", _one(0)),
    AgentMetric("appliance_pool_healthy", "backup", "Whether the data pool is healthy.", _one(1, pool="tank")),
    AgentMetric("appliance_notify_waiting", "notify", "Notices in the outbox.", _one(0)),
    AgentMetric("appliance_notify_oldest_seconds", "notify", "Age of the oldest paging notice.", _one(0)),
    AgentMetric(
        "appliance_notify_last_look_timestamp_seconds", "notify", "Time of the last look into the outbox.", _one(5)
    ),
    AgentMetric("appliance_notify_sent_total", "notify", "Messages that were sent.", _one(12)),
    AgentMetric("appliance_notify_failures_total", "notify", "Attempts that failed.", _one(1)),
    AgentMetric("appliance_notify_refused_total", "notify", "Notices that the channel refused.", _one(0)),
    AgentMetric(
        "appliance_assistant_last_look_timestamp_seconds", "assistant", "Time of the last written metrics.", _one(5)
    ),
    AgentMetric("appliance_assistant_files_waiting", "assistant", "Files that are not processed yet.", _one(0)),
    AgentMetric(
        "appliance_assistant_finished_files_total",
        "assistant",
        "Processed files, by result.",
        (({"result": "completed"}, 12.0), ({"result": "failed"}, 1.0)),
    ),
    AgentMetric("appliance_assistant_waiting_conversations", "assistant", "Ended chats without an index.", _one(0)),
    AgentMetric("appliance_assistant_indexed_conversations_total", "assistant", "Indexed chats.", _one(40)),
    AgentMetric(
        "appliance_assistant_searches_total",
        "assistant",
        "Searches of the memory, by outcome.",
        (({"outcome": "found"}, 90.0), ({"outcome": "abstained"}, 9.0), ({"outcome": "failed"}, 1.0)),
    ),
    AgentMetric("appliance_assistant_index_bytes", "assistant", "Memory of the loaded indexes.", _one(2 * GIB)),
    AgentMetric(
        "appliance_assistant_vectors_waiting", "assistant", "Passages that Qdrant does not have yet.", _one(0)
    ),
    AgentMetric(
        "appliance_assistant_web_searches_total",
        "assistant",
        "Web searches, by outcome.",
        (({"outcome": "found"}, 30.0), ({"outcome": "empty"}, 2.0), ({"outcome": "failed"}, 0.0)),
    ),
    AgentMetric(
        "appliance_assistant_web_pages_total",
        "assistant",
        "Web pages that a model opened, by outcome.",
        (({"outcome": "read"}, 20.0), ({"outcome": "failed"}, 3.0)),
    ),
    AgentMetric("appliance_assistant_embed_failures_total", "assistant", "Failed calls of the embedder.", _one(0)),
    AgentMetric("appliance_assistant_rerank_failures_total", "assistant", "Failed calls of the reranker.", _one(0)),
    AgentMetric(
        "appliance_assistant_vector_index_failures_total", "assistant", "Failed passes over Qdrant.", _one(0)
    ),
    AgentMetric(
        "appliance_telegram_last_poll_timestamp_seconds",
        "telegram",
        "Time of the bot's last successful request for updates.",
        _one(5),
    ),
    AgentMetric(
        "appliance_telegram_calls_total",
        "telegram",
        "Calls of the Bot API, by kind and outcome.",
        (({"kind": "send", "outcome": "accepted"}, 50.0), ({"kind": "send", "outcome": "declined"}, 0.0)),
    ),
    AgentMetric(
        "appliance_deadman_last_look_timestamp_seconds", "deadman", "Time of the switch's last look.", _one(10)
    ),
    AgentMetric("appliance_deadman_home_alive", "deadman", "Whether home counts as alive.", _one(1)),
    AgentMetric("appliance_deadman_handshake_age_seconds", "deadman", "Age of the last handshake.", _one(70)),
    AgentMetric("appliance_deadman_beat_age_seconds", "deadman", "Age of the last beat of home.", _one(40)),
    AgentMetric("appliance_deadman_ready", "deadman", "Whether /ready succeeded through the tunnel.", _one(1)),
    AgentMetric("appliance_deadman_notices_waiting", "deadman", "Notices in the switch's outbox.", _one(0)),
    AgentMetric("appliance_gateway_info", "gateway", "Version of the gateway.", _one(1, version="0.1.0")),
    AgentMetric(
        "appliance_gateway_paused", "gateway", "Whether the gateway is paused.", _one(1, reason="on battery")
    ),
    AgentMetric(
        "appliance_gateway_replica_draining", "gateway", "Whether the replica drains.", _one(0, engine="chat")
    ),
    AgentMetric(
        "appliance_gateway_replica_down",
        "gateway",
        "1 for the reason for which the replica is down.",
        _one(0, engine="chat", reason="unreachable"),
    ),
    AgentMetric(
        "appliance_gateway_canary_seconds", "gateway", "Seconds of the last canary.", _one(0.2, engine="chat")
    ),
)
"""All metrics of the agents and those that the gateway adds for operation."""


def of(source: SourceName) -> tuple[AgentMetric, ...]:
    """Return the metrics of ``source``."""
    return tuple(metric for metric in METRICS if metric.source == source)


def example_text(source: SourceName, now: float) -> str:
    """Return a page of ``source`` in Prometheus' text format, as a healthy machine produces it at ``now``."""
    lines = []
    for metric in of(source):
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        for labels, value in metric.example:
            shown = ",".join(f'{name}="{text}"' for name, text in labels.items())
            at = now - value if metric.is_time else value
            lines.append(f"{metric.name}{{{shown}}} {at}" if shown else f"{metric.name} {at}")
    return "\n".join([*lines, ""])
