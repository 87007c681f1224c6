"""The alerts of a site, in one table: rules, their tests, inhibition and the runbook are made of it.

``python -m tools.alerts`` writes the generated files. An alert of severity ``page`` is sent at once: with the
agents' paging kinds there are ten of them at most. Alerts of severity ``digest`` wait for the daily digest.

Three rules for expressions:

* A range has four scrape intervals or more: Prometheus 3 drops the sample on the left edge of a range.
* :func:`grew` counts events, because ``increase`` misses the first event of a new series.
* Every result is aggregated to the labels of its subject, so that a restart of a process changes no label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from appliance.errors import ConfigError
from appliance.notices.notice import PAGING_KINDS

Severity = Literal["page", "digest", "beat"]

SCRAPE_S = 15
"""Seconds between two scrapes."""

AGENT_SILENT_S = 180
"""Seconds after which the last look of an agent is too old. Agents look every few seconds."""

BACKUP_OLD_S = 26 * 3600
DRILL_OLD_S = 8 * 86400


@dataclass(frozen=True, slots=True)
class AlertSample:
    """Series of a promtool test, and the alert at a time.

    Args:
        series: Values by series, in promtool's notation, one for each :data:`SCRAPE_S`.
        at: Time of the check, as ``5m``.
        labels: Labels of the alert, without its name and severity. ``None`` if the alert must be silent.
        value: The value that the summary shows; empty if the summary shows none.
    """

    series: Mapping[str, str]
    at: str
    labels: Mapping[str, str] | None = None
    value: str = ""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Args:
        name: Name in Prometheus.
        group: Heading in the runbook, and the group of its rules.
        expr: Expression in PromQL.
        for_s: Seconds for which the expression must hold.
        severity: ``page``, ``digest``, or ``beat`` for the alert that always fires.
        subject: Labels that name the part that it concerns.
        summary: One sentence, a template of Prometheus.
        meaning: The consequence for users.
        fix: The command to begin with.
        firing: Samples on which it fires.
        silent: Samples on which it does not.
        inhibited_by: Labels that must be equal, by the alert with the cause. While that one fires, this is silent.
    """

    name: str
    group: str
    expr: str
    for_s: int
    severity: Severity
    summary: str
    meaning: str
    fix: str
    firing: tuple[AlertSample, ...]
    silent: tuple[AlertSample, ...]
    subject: tuple[str, ...] = ()
    inhibited_by: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _budget_series(percent: int) -> str:
    """Return the series of a notice of the samples."""
    return f'{NOTICE}{{user="ada", period="2026-11", percent="{percent}"}}'


def grew(series: str, window: str, by: str = "") -> str:
    """Return an expression for the growth of a counter in ``window``, with the first event of new series.

    Args:
        series: A selector.
        window: A duration of four scrape intervals or more.
        by: Labels of the result, as ``engine, reason``; the sum of all series by default.
    """
    total = f"sum by ({by})" if by else "sum"
    # A series that is older than the window counts by its increase; one that began in it counts by its value.
    old = f"{series} offset {window}"
    return f"{total} (increase({series}[{window}]) and ({old}) or {series} unless {old})"


SERVER_ERRORS = (
    'appliance_gateway_requests_total{outcome=~"truncated|unavailable|timeout|engine_failed|engine_error|error"}'
)
REQUESTS = (
    'appliance_gateway_requests_total{outcome=~"ok|truncated|unavailable|timeout|engine_failed|engine_error|error"}'
)
FULL = 'appliance_gateway_requests_total{outcome="queue_full"}'
ENGINE_DOWN = (
    "max by (engine) (appliance_gateway_replica_down) == 1"
    " unless on (engine) max by (engine) (appliance_gateway_replica_draining) == 1"
)
MEDIA_ERRORS = (
    'appliance_gateway_requests_total{endpoint=~"/v1/(audio|images)/.+",'
    ' outcome=~"truncated|unavailable|timeout|engine_failed|engine_error|error"}'
)
WEB_FAILED = 'appliance_assistant_web_searches_total{outcome="failed"}'
WEB_SEARCHES = "appliance_assistant_web_searches_total"
SEARCHES = "appliance_assistant_searches_total"
RERANK_FAILED = "appliance_assistant_rerank_failures_total"
INDEX_FAILED = "appliance_assistant_vector_index_failures_total"
GROWING_INDEX = "min(delta(appliance_assistant_vectors_waiting[10m])) < 0"
"""The index gets passages: fewer wait than ten minutes ago."""
BOT_FAILED = 'appliance_telegram_calls_total{outcome=~"declined|not_accepted|unconfirmed"}'
NOTICE = "appliance_gateway_budget_notice_timestamp_seconds"
BUDGET = f'time() - max by (user, period) ({NOTICE}{{{{percent="{{}}"}}}}) < 3600'
"""Each notice of a budget for an hour: the gateway makes it once for each period and share."""
DISKS = 'fstype!~"tmpfs|ramfs|devtmpfs|overlay|squashfs|iso9660|efivarfs|fuse.*"'
ROOM = (
    f"min by (device) (node_filesystem_avail_bytes{{{DISKS}}} / node_filesystem_size_bytes{{{DISKS}}}"
    f" unless node_filesystem_readonly{{{DISKS}}} == 1)"
)
MEMORY = (
    "node_memory_MemAvailable_bytes / "
    "(node_memory_MemTotal_bytes - node_memory_HugePages_Total * node_memory_Hugepagesize_bytes)"
)
UNIT = "node_systemd_unit_state"


def _disk(metric: str, device: str, mountpoint: str, fstype: str = "ext4") -> str:
    """Return a series of node_exporter for one mounted file system."""
    return f'node_filesystem_{metric}{{device="/dev/{device}", mountpoint="{mountpoint}", fstype="{fstype}"}}'


def _agent(agent: str, metric: str) -> str:
    """Return the series of a silent agent: its last look is old, or it runs and has written none."""
    seen = f"max(appliance_{metric}_last_look_timestamp_seconds)"
    return (
        f'label_replace(time() - {seen} > {AGENT_SILENT_S}, "agent", "{agent}", "", "")'
        f' or label_replace(max({UNIT}{{name="appliance-{agent}.service", state="active"}}) == 1'
        f' unless on () {seen}, "agent", "{agent}", "", "")'
    )


def _finished(counter: str) -> str:
    """Return an expression for the growth of a counter of the assistant within an hour."""
    return f"sum(increase({counter}[1h]))"


ALERTS: tuple[Alert, ...] = (
    # Service
    Alert(
        name="GatewayDown",
        group="Service",
        expr='max(up{job="gateway"}) == 0 or sum(absent(up{job="gateway"}))',
        for_s=120,
        severity="page",
        summary="The gateway does not respond.",
        meaning="No request gets a response.",
        fix="appliance doctor --only gateway; journalctl -u appliance-gateway -n 50",
        firing=(
            AlertSample({'up{job="gateway", instance="10.77.0.1:8000"}': "1 0x20"}, "3m", {}),
            AlertSample({'up{job="node", instance="127.0.0.1:9100"}': "1x20"}, "3m", {}),
        ),
        silent=(
            AlertSample({'up{job="gateway", instance="10.77.0.1:8000"}': "1x20"}, "3m"),
            # A restart.
            AlertSample({'up{job="gateway", instance="10.77.0.1:8000"}': "1x4 0x4 1x12"}, "2m"),
        ),
    ),
    Alert(
        name="EngineDown",
        group="Service",
        expr=ENGINE_DOWN,
        for_s=300,
        severity="page",
        subject=("engine",),
        summary="Engine {{ $labels.engine }} is down.",
        meaning="The other replicas of its model serve its requests; a model without a replica returns 503.",
        fix="appliance doctor --only engines; journalctl -u appliance-engine-{{ $labels.engine }} -n 100",
        firing=(
            AlertSample(
                {
                    'appliance_gateway_replica_down{engine="a", reason="unreachable"}': "0x2 1x40",
                    'appliance_gateway_replica_draining{engine="a"}': "0x42",
                },
                "7m",
                {"engine": "a"},
            ),
            # The reason changes while it is down.
            AlertSample(
                {
                    'appliance_gateway_replica_down{engine="a", reason="timeout"}': "1x12 0x30",
                    'appliance_gateway_replica_down{engine="a", reason="unreachable"}': "0x12 1x30",
                },
                "7m",
                {"engine": "a"},
            ),
        ),
        silent=(
            AlertSample(
                {
                    'appliance_gateway_replica_down{engine="a", reason="unreachable"}': "1x40",
                    'appliance_gateway_replica_draining{engine="a"}': "1x40",
                },
                "7m",
            ),
            # It loads for four minutes.
            AlertSample({'appliance_gateway_replica_down{engine="a", reason="unreachable"}': "1x16 0x30"}, "4m"),
        ),
        inhibited_by={"GatewayDown": ()},
    ),
    Alert(
        name="EngineHangs",
        group="Service",
        expr=(
            "sum by (engine) (vllm:num_requests_running + vllm:num_requests_waiting) > 0"
            " and sum by (engine) (increase(vllm:generation_tokens_total[2m])) == 0"
        ),
        for_s=60,
        severity="digest",
        subject=("engine",),
        summary="Engine {{ $labels.engine }} has requests and generates no token.",
        meaning="Its requests wait until their timeout. The watchdog of the cards restarts it if it may act.",
        fix="appliance doctor --only engines --only xid; systemctl restart appliance-engine-{{ $labels.engine }}",
        firing=(
            AlertSample(
                {
                    'vllm:num_requests_running{engine="a", exported_engine="0"}': "3x40",
                    'vllm:num_requests_waiting{engine="a", exported_engine="0"}': "9x40",
                    'vllm:generation_tokens_total{engine="a", exported_engine="0"}': "0+100x8 800x32",
                },
                "8m",
                {"engine": "a"},
            ),
        ),
        silent=(
            AlertSample(
                {
                    'vllm:num_requests_running{engine="a", exported_engine="0"}': "3x40",
                    'vllm:num_requests_waiting{engine="a", exported_engine="0"}': "9x40",
                    'vllm:generation_tokens_total{engine="a", exported_engine="0"}': "0+1x40",
                },
                "8m",
            ),
            # Idle.
            AlertSample(
                {
                    'vllm:num_requests_running{engine="a", exported_engine="0"}': "0x40",
                    'vllm:num_requests_waiting{engine="a", exported_engine="0"}': "0x40",
                    'vllm:generation_tokens_total{engine="a", exported_engine="0"}': "800x40",
                },
                "8m",
            ),
        ),
        inhibited_by={"EngineDown": ("engine",)},
    ),
    Alert(
        name="ServerErrors",
        group="Service",
        # Five errors at least, in both windows one request in twenty; a known cause pages by itself.
        expr=(
            f"({grew(SERVER_ERRORS, '5m')} >= 5"
            f" and {grew(SERVER_ERRORS, '5m')} > 0.05 * {grew(REQUESTS, '5m')}"
            f" and {grew(SERVER_ERRORS, '1h')} > 0.01 * {grew(REQUESTS, '1h')})"
            f" unless on () count({ENGINE_DOWN})"
        ),
        for_s=60,
        severity="page",
        summary="{{ $value | humanize }} requests failed on the server within 5 minutes, more than 5 %.",
        meaning="Users see errors although every engine passes its canary.",
        fix="appliance doctor --only gateway --only engines; journalctl -u appliance-gateway -n 100",
        firing=(
            AlertSample(
                {
                    'appliance_gateway_requests_total{outcome="ok", model="m", endpoint="e"}': "100+20x30",
                    'appliance_gateway_requests_total{outcome="timeout", model="m", endpoint="e"}': "0x4 3+3x26",
                },
                "7m",
                {},
                "60",
            ),
            # The first errors of this kind: the series begins with them.
            AlertSample(
                {
                    'appliance_gateway_requests_total{outcome="ok", model="m", endpoint="e"}': "100+1x30",
                    'appliance_gateway_requests_total{outcome="timeout", model="m", endpoint="e"}': "_x16 20x14",
                },
                "6m",
                {},
                "20",
            ),
        ),
        silent=(
            # Three errors at night are 100 % of the requests.
            AlertSample(
                {'appliance_gateway_requests_total{outcome="timeout", model="m", endpoint="e"}': "0x8 3x30"}, "6m"
            ),
            # One error in a hundred.
            AlertSample(
                {
                    'appliance_gateway_requests_total{outcome="ok", model="m", endpoint="e"}': "0+200x30",
                    'appliance_gateway_requests_total{outcome="timeout", model="m", endpoint="e"}': "0+2x30",
                },
                "7m",
            ),
            # An engine is down: that alert pages.
            AlertSample(
                {
                    'appliance_gateway_requests_total{outcome="unavailable", model="m", endpoint="e"}': "0+20x30",
                    'appliance_gateway_replica_down{engine="a", reason="unreachable"}': "1x30",
                },
                "7m",
            ),
            # Mistakes of clients.
            AlertSample(
                {
                    'appliance_gateway_requests_total{outcome="rejected", model="m", endpoint="e"}': "0+20x30",
                    'appliance_gateway_requests_total{outcome="ok", model="m", endpoint="e"}': "0+20x30",
                },
                "7m",
            ),
        ),
        inhibited_by={"GatewayDown": (), "EngineDown": ()},
    ),
    Alert(
        name="InternalErrors",
        group="Service",
        expr=f"{grew('appliance_gateway_internal_errors_total', '1h')} > 0",
        for_s=0,
        severity="digest",
        summary="The gateway itself failed on {{ $value | humanize }} requests within an hour.",
        meaning="These requests got status 500. It is a defect of the gateway.",
        fix="journalctl -u appliance-gateway -p err --since -2h",
        firing=(AlertSample({"appliance_gateway_internal_errors_total": "0x4 2x8"}, "2m", {}, "2"),),
        silent=(
            AlertSample({"appliance_gateway_internal_errors_total": "0x12"}, "2m"),
            # Old errors.
            AlertSample({"appliance_gateway_internal_errors_total": "7x260"}, "65m"),
        ),
    ),
    Alert(
        name="SlowFirstToken",
        group="Service",
        expr=(
            "histogram_quantile(0.95, sum by (model, le)"
            " (rate(appliance_gateway_time_to_first_token_seconds_bucket[30m]))) > 10"
            " and sum by (model) (increase(appliance_gateway_time_to_first_token_seconds_count[30m])) > 20"
        ),
        for_s=600,
        severity="digest",
        subject=("model",),
        summary="One stream in twenty of {{ $labels.model }} waits longer than 10 s for its first token.",
        meaning="Chats feel slow: the queue is long, or prompts are.",
        fix="appliance models status; the dashboard Engines has the queue and the prefill time",
        firing=(
            AlertSample(
                {
                    'appliance_gateway_time_to_first_token_seconds_bucket{model="m", le="10.0"}': "0+1x200",
                    'appliance_gateway_time_to_first_token_seconds_bucket{model="m", le="20.0"}': "0+2x200",
                    'appliance_gateway_time_to_first_token_seconds_bucket{model="m", le="+Inf"}': "0+2x200",
                    'appliance_gateway_time_to_first_token_seconds_count{model="m"}': "0+2x200",
                },
                "45m",
                {"model": "m"},
            ),
        ),
        silent=(
            AlertSample(
                {
                    'appliance_gateway_time_to_first_token_seconds_bucket{model="m", le="10.0"}': "0+2x200",
                    'appliance_gateway_time_to_first_token_seconds_bucket{model="m", le="20.0"}': "0+2x200",
                    'appliance_gateway_time_to_first_token_seconds_bucket{model="m", le="+Inf"}': "0+2x200",
                    'appliance_gateway_time_to_first_token_seconds_count{model="m"}': "0+2x200",
                },
                "45m",
            ),
            # A few slow streams in a quiet hour.
            AlertSample(
                {
                    'appliance_gateway_time_to_first_token_seconds_bucket{model="m", le="10.0"}': "0x200",
                    'appliance_gateway_time_to_first_token_seconds_bucket{model="m", le="20.0"}': "0x60 10x140",
                    'appliance_gateway_time_to_first_token_seconds_bucket{model="m", le="+Inf"}': "0x60 10x140",
                    'appliance_gateway_time_to_first_token_seconds_count{model="m"}': "0x60 10x140",
                },
                "45m",
            ),
        ),
    ),
    Alert(
        name="QueueFull",
        group="Service",
        expr=f"{grew(FULL, '15m', 'model')} > 0",
        for_s=0,
        severity="digest",
        subject=("model",),
        summary="{{ $value | humanize }} requests for {{ $labels.model }} found a full queue within 15 minutes.",
        meaning="These clients got status 503 or 429 and retry. The load is higher than the cards can serve.",
        fix="appliance models status; appliance plan",
        firing=(
            AlertSample(
                {'appliance_gateway_requests_total{outcome="queue_full", model="m", endpoint="e"}': "_x4 6x8"},
                "2m",
                {"model": "m"},
                "6",
            ),
        ),
        silent=(
            AlertSample(
                {'appliance_gateway_requests_total{outcome="queue_full", model="m", endpoint="e"}': "6x80"}, "19m"
            ),
            AlertSample({'appliance_gateway_requests_total{outcome="ok", model="m", endpoint="e"}': "0+9x8"}, "2m"),
        ),
    ),
    Alert(
        name="SwapFailed",
        group="Service",
        expr=f"{grew('appliance_gateway_swap_failures_total', '1h')} > 0",
        for_s=0,
        severity="digest",
        summary="{{ $value | humanize }} loads of models on demand failed within an hour.",
        meaning="Requests for this model got status 503 with the reason.",
        fix="appliance models status; appliance doctor --only engines --only models",
        firing=(AlertSample({"appliance_gateway_swap_failures_total": "0x4 1x8"}, "2m", {}, "1"),),
        silent=(AlertSample({"appliance_gateway_swap_failures_total": "1x260"}, "65m"),),
    ),
    Alert(
        name="ReplicaDrained",
        group="Service",
        expr="max by (engine) (appliance_gateway_replica_draining) == 1",
        for_s=7200,
        severity="digest",
        subject=("engine",),
        summary="Replica {{ $labels.engine }} has been drained for two hours.",
        meaning="It gets no requests until it is undrained. The watchdog or an operator drained it.",
        fix="appliance models status; appliance models undrain {{ $labels.engine }}",
        firing=(AlertSample({'appliance_gateway_replica_draining{engine="a"}': "1x500"}, "121m", {"engine": "a"}),),
        silent=(AlertSample({'appliance_gateway_replica_draining{engine="a"}': "1x100 0x400"}, "20m"),),
    ),
    Alert(
        name="GatewayPaused",
        group="Service",
        expr="max(appliance_gateway_paused) == 1",
        for_s=1800,
        severity="digest",
        summary="The gateway has been paused for half an hour.",
        meaning="Every new request gets status 503 with the reason.",
        fix="appliance models status; appliance models resume",
        firing=(AlertSample({'appliance_gateway_paused{reason="on battery"}': "1x140"}, "31m", {}),),
        silent=(AlertSample({'appliance_gateway_paused{reason="on battery"}': "1x60 0x80"}, "12m"),),
    ),
    Alert(
        name="UsageRowsDropped",
        group="Service",
        expr=f"{grew('appliance_gateway_usage_rows_dropped_total', '1h')} > 0",
        for_s=0,
        severity="digest",
        summary="{{ $value | humanize }} usage records were lost within an hour.",
        meaning="The usage sums are too low. The disk of the gateway is full, or its database cannot be written.",
        fix="appliance doctor --only database --only disk",
        firing=(AlertSample({"appliance_gateway_usage_rows_dropped_total": "0x4 3x8"}, "2m", {}, "3"),),
        silent=(
            AlertSample({"appliance_gateway_usage_rows_dropped_total": "3x260"}, "65m"),
            # A restart of the gateway.
            AlertSample({"appliance_gateway_usage_rows_dropped_total": "3x4 0x256"}, "30m"),
        ),
    ),
    # Assistant
    Alert(
        name="AssistantDown",
        group="Assistant",
        expr=(
            f"time() - max(appliance_assistant_last_look_timestamp_seconds) > {AGENT_SILENT_S}"
            f' or max({UNIT}{{name="appliance-assistant.service", state=~"activating|failed"}}) == 1'
        ),
        for_s=120,
        severity="digest",
        summary="The assistant does not run, or hangs.",
        meaning="Conversations, files and searches return 503; plain chats work without their memory.",
        fix="appliance doctor --only assistant; journalctl -u appliance-assistant -n 100",
        firing=(
            AlertSample({"appliance_assistant_last_look_timestamp_seconds": "0+15x4 60x60"}, "8m", {}),
            AlertSample({f'{UNIT}{{name="appliance-assistant.service", state="activating"}}': "1x40"}, "3m", {}),
        ),
        silent=(
            AlertSample({"appliance_assistant_last_look_timestamp_seconds": "0+15x60"}, "10m"),
            # A restart.
            AlertSample(
                {
                    "appliance_assistant_last_look_timestamp_seconds": "0+15x60",
                    f'{UNIT}{{name="appliance-assistant.service", state="activating"}}': "0x8 1x2 0x50",
                },
                "10m",
            ),
        ),
    ),
    Alert(
        name="FilesStuck",
        group="Assistant",
        expr=(
            "max(appliance_assistant_files_waiting) > 0"
            f" unless {_finished('appliance_assistant_finished_files_total')} > 0"
        ),
        for_s=1800,
        severity="digest",
        summary="{{ $value | humanize }} files wait, and none was processed within an hour.",
        meaning="New files are not found by searches. The embedder is down, or a store has another embedder.",
        fix="appliance doctor --only assistant --only engines; journalctl -u appliance-assistant -n 100",
        firing=(
            AlertSample(
                {
                    "appliance_assistant_files_waiting": "3x400",
                    'appliance_assistant_finished_files_total{result="completed"}': "7x400",
                },
                "95m",
                {},
                "3",
            ),
        ),
        silent=(
            AlertSample(
                {
                    "appliance_assistant_files_waiting": "3x400",
                    'appliance_assistant_finished_files_total{result="completed"}': "0x100 1x100 2x200",
                },
                "85m",
            ),
            AlertSample(
                {
                    "appliance_assistant_files_waiting": "0x400",
                    'appliance_assistant_finished_files_total{result="completed"}': "7x400",
                },
                "95m",
            ),
        ),
        inhibited_by={"AssistantDown": ()},
    ),
    Alert(
        name="ChatsNotIndexed",
        group="Assistant",
        expr=(
            "max(appliance_assistant_waiting_conversations) > 0"
            f" unless {_finished('appliance_assistant_indexed_conversations_total')} > 0"
        ),
        for_s=3600,
        severity="digest",
        summary="{{ $value | humanize }} ended chats wait for the memory, and none was indexed within an hour.",
        meaning="The memory lacks what was discussed since then. An engine, the embedder or a limit stops it.",
        fix="appliance memory status; journalctl -u appliance-assistant -n 100",
        firing=(
            AlertSample(
                {
                    "appliance_assistant_waiting_conversations": "5x600",
                    "appliance_assistant_indexed_conversations_total": "40x600",
                },
                "130m",
                {},
                "5",
            ),
        ),
        silent=(
            AlertSample(
                {
                    "appliance_assistant_waiting_conversations": "5x600",
                    "appliance_assistant_indexed_conversations_total": "0+1x600",
                },
                "130m",
            ),
            AlertSample({"appliance_assistant_waiting_conversations": "0x600"}, "130m"),
        ),
        inhibited_by={"AssistantDown": ()},
    ),
    Alert(
        name="WebSearchFails",
        group="Assistant",
        expr=f"{grew(WEB_FAILED, '1h')} >= 3 and {grew(WEB_FAILED, '1h')} > 0.2 * {grew(WEB_SEARCHES, '1h')}",
        for_s=0,
        severity="digest",
        summary="{{ $value | humanize }} web searches failed within an hour, more than one in five.",
        meaning="Models respond without the web. SearXNG is down, or search engines block it with a captcha.",
        fix="journalctl -u appliance-assistant -n 100; on the VPS: journalctl -u searx -n 100",
        firing=(
            AlertSample(
                {
                    'appliance_assistant_web_searches_total{outcome="failed"}': "0x4 5x8",
                    'appliance_assistant_web_searches_total{outcome="found"}': "0x4 9x8",
                },
                "2m",
                {},
                "5",
            ),
        ),
        silent=(
            # Two failures, and some among many.
            AlertSample({'appliance_assistant_web_searches_total{outcome="failed"}': "0x4 2x8"}, "2m"),
            AlertSample(
                {
                    'appliance_assistant_web_searches_total{outcome="failed"}': "0x4 5x8",
                    'appliance_assistant_web_searches_total{outcome="found"}': "0x4 90x8",
                },
                "2m",
            ),
            AlertSample({'appliance_assistant_web_searches_total{outcome="failed"}': "9x260"}, "65m"),
        ),
        inhibited_by={"AssistantDown": ()},
    ),
    Alert(
        name="EmbedderFails",
        group="Assistant",
        expr=f"{grew('appliance_assistant_embed_failures_total', '1h')} >= 3",
        for_s=0,
        severity="digest",
        summary="{{ $value | humanize }} requests for embeddings failed within an hour.",
        meaning="Searches of files and chats use words only, and new files wait.",
        fix="appliance doctor --only engines; journalctl -u appliance-assistant -n 100",
        firing=(AlertSample({"appliance_assistant_embed_failures_total": "0x4 4x8"}, "2m", {}, "4"),),
        silent=(
            AlertSample({"appliance_assistant_embed_failures_total": "0x4 2x8"}, "2m"),
            AlertSample({"appliance_assistant_embed_failures_total": "9x260"}, "65m"),
        ),
        inhibited_by={"AssistantDown": ()},
    ),
    # Users
    Alert(
        name="RerankerFails",
        group="Assistant",
        expr=f"{grew(RERANK_FAILED, '1h')} >= 3 and {grew(RERANK_FAILED, '1h')} > 0.2 * {grew(SEARCHES, '1h')}",
        for_s=0,
        severity="digest",
        summary="The reranker failed in {{ $value | humanize }} searches within an hour, more than one in five.",
        meaning="Searches of files and chats keep the order of words and vectors, which is less exact.",
        fix="appliance doctor --only engines; journalctl -u appliance-assistant -n 100",
        firing=(
            AlertSample(
                {
                    RERANK_FAILED: "0x4 4x8",
                    'appliance_assistant_searches_total{outcome="found"}': "0x4 6x8",
                    'appliance_assistant_searches_total{outcome="abstained"}': "0x4 3x8",
                },
                "2m",
                {},
                "4",
            ),
        ),
        silent=(
            # Two failures, some among many, and failures of the past.
            AlertSample({RERANK_FAILED: "0x4 2x8", SEARCHES: "0x4 2x8"}, "2m"),
            AlertSample(
                {RERANK_FAILED: "0x4 4x8", 'appliance_assistant_searches_total{outcome="found"}': "0x4 40x8"}, "2m"
            ),
            AlertSample({RERANK_FAILED: "9x260", SEARCHES: "9x260"}, "65m"),
        ),
        inhibited_by={"AssistantDown": ()},
    ),
    Alert(
        name="VectorIndexFails",
        group="Assistant",
        expr=(
            f"{grew(INDEX_FAILED, '10m')} >= 5"
            f" or max(appliance_assistant_vectors_waiting) > 0 unless {GROWING_INDEX}"
        ),
        for_s=600,
        severity="digest",
        summary="The vector index fails, or does not get the passages of large stores.",
        meaning="Searches of large stores return 503. Qdrant is down, full, or refuses its key.",
        fix="appliance doctor --only assistant; journalctl -u qdrant -u appliance-assistant -n 100",
        firing=(
            AlertSample({INDEX_FAILED: "0x4 0+1x100"}, "25m", {}),
            AlertSample({"appliance_assistant_vectors_waiting": "0x4 900x200"}, "45m", {}),
        ),
        silent=(
            # A restart of Qdrant, a load whose rest shrinks, and failures of the past.
            AlertSample({INDEX_FAILED: "0x4 0+1x6 7x80"}, "20m"),
            AlertSample({"appliance_assistant_vectors_waiting": "0x4 90000-300x200"}, "45m"),
            AlertSample({INDEX_FAILED: "40x260", "appliance_assistant_vectors_waiting": "0x260"}, "60m"),
        ),
        inhibited_by={"AssistantDown": ()},
    ),
    Alert(
        name="BudgetNearlyUsed",
        group="Users",
        expr=BUDGET.format(80),
        for_s=0,
        severity="digest",
        subject=("user", "period"),
        summary="{{ $labels.user }} has used 80 % of its budget of {{ $labels.period }}.",
        meaning="At 100 % the user gets status 429 until the day or the month ends.",
        fix="appliance users list",
        firing=(AlertSample({_budget_series(80): "60x12"}, "2m", {"user": "ada", "period": "2026-11"}),),
        silent=(
            AlertSample({_budget_series(80): "0x260"}, "65m"),
            AlertSample({_budget_series(100): "60x12"}, "2m"),
        ),
        inhibited_by={"GatewayDown": ()},
    ),
    Alert(
        name="BudgetUsed",
        group="Users",
        expr=BUDGET.format(100),
        for_s=0,
        severity="digest",
        subject=("user", "period"),
        summary="{{ $labels.user }} has used its budget of {{ $labels.period }} up.",
        meaning="The user gets status 429 until the day or the month ends, or until the plan changes.",
        fix="appliance users list",
        firing=(AlertSample({_budget_series(100): "60x12"}, "2m", {"user": "ada", "period": "2026-11"}),),
        silent=(
            AlertSample({_budget_series(100): "0x260"}, "65m"),
            AlertSample({_budget_series(80): "60x12"}, "2m"),
        ),
        inhibited_by={"GatewayDown": ()},
    ),
    Alert(
        name="BotSilent",
        group="Users",
        expr="time() - max(appliance_telegram_last_poll_timestamp_seconds) > 600",
        for_s=300,
        severity="digest",
        summary="The Telegram bot has received nothing for {{ $value | humanizeDuration }}.",
        meaning="Messages of linked users wait at Telegram: the bot is down, its token ended, or the line failed.",
        fix="journalctl -u appliance-telegram -n 100",
        firing=(AlertSample({"appliance_telegram_last_poll_timestamp_seconds": "0x80"}, "16m", {}, "16m 0s"),),
        silent=(AlertSample({"appliance_telegram_last_poll_timestamp_seconds": "0+15x80"}, "16m"),),
    ),
    Alert(
        name="BotCallsFail",
        group="Users",
        expr=f"{grew(BOT_FAILED, '1h')} > 10",
        for_s=0,
        severity="digest",
        summary="{{ $value | humanize }} calls of the Bot API failed within an hour.",
        meaning="Some responses did not reach their chat. Calls to users that blocked the bot count as well.",
        fix="journalctl -u appliance-telegram -n 100",
        firing=(
            AlertSample(
                {'appliance_telegram_calls_total{kind="send", outcome="declined"}': "0x4 12x8"}, "2m", {}, "12"
            ),
        ),
        silent=(
            AlertSample({'appliance_telegram_calls_total{kind="send", outcome="declined"}': "0x4 9x8"}, "2m"),
            AlertSample({'appliance_telegram_calls_total{kind="send", outcome="accepted"}': "0x4 90x8"}, "2m"),
        ),
        inhibited_by={"BotSilent": ()},
    ),
    Alert(
        name="MediaFails",
        group="Users",
        expr=f"{grew(MEDIA_ERRORS, '1h', 'endpoint')} >= 3",
        for_s=0,
        severity="digest",
        subject=("endpoint",),
        summary="{{ $value | humanize }} requests to {{ $labels.endpoint }} failed within an hour.",
        meaning="Speech, transcription or images do not work for these users; they are few among all requests.",
        fix="appliance doctor --only engines; appliance models status",
        firing=(
            AlertSample(
                {
                    "appliance_gateway_requests_total"
                    '{outcome="engine_failed", model="m", endpoint="/v1/audio/speech"}': "0x4 4x8"
                },
                "2m",
                {"endpoint": "/v1/audio/speech"},
                "4",
            ),
        ),
        silent=(
            AlertSample(
                {
                    "appliance_gateway_requests_total"
                    '{outcome="engine_failed", model="m", endpoint="/v1/chat/completions"}': "0x4 4x8"
                },
                "2m",
            ),
            AlertSample(
                {
                    "appliance_gateway_requests_total"
                    '{outcome="ok", model="m", endpoint="/v1/audio/speech"}': "0x4 9x8"
                },
                "2m",
            ),
        ),
        inhibited_by={"EngineDown": ()},
    ),
    # Engines
    Alert(
        name="KvCacheFull",
        group="Engines",
        expr="max by (engine) (avg_over_time(vllm:kv_cache_usage_perc[15m])) > 0.95",
        for_s=900,
        severity="digest",
        subject=("engine",),
        summary="The KV cache of engine {{ $labels.engine }} has been full for half an hour.",
        meaning="Requests wait for memory. Fewer or shorter contexts fit than the site promises.",
        fix="appliance plan; lower `concurrency` of the engine, or add a replica",
        firing=(
            AlertSample(
                {'vllm:kv_cache_usage_perc{engine="a", exported_engine="0"}': "0.99x160"}, "31m", {"engine": "a"}
            ),
        ),
        silent=(
            AlertSample({'vllm:kv_cache_usage_perc{engine="a", exported_engine="0"}': "0.9x160"}, "31m"),
            # A burst.
            AlertSample(
                {'vllm:kv_cache_usage_perc{engine="a", exported_engine="0"}': "0.3x100 1x20 0.3x40"}, "31m"
            ),
        ),
    ),
    Alert(
        name="Preemptions",
        group="Engines",
        expr=f"{grew('vllm:num_preemptions_total', '1h', 'engine')} > 100",
        for_s=0,
        severity="digest",
        subject=("engine",),
        summary="Engine {{ $labels.engine }} preempted {{ $value | humanize }} requests within an hour.",
        meaning="Preempted requests are computed again: every stream of this engine is slower.",
        fix="appliance plan; lower `concurrency` of the engine",
        firing=(
            AlertSample(
                {'vllm:num_preemptions_total{engine="a", exported_engine="0"}': "_x4 150x8"},
                "2m",
                {"engine": "a"},
                "150",
            ),
        ),
        silent=(AlertSample({'vllm:num_preemptions_total{engine="a", exported_engine="0"}': "_x4 20x8"}, "2m"),),
    ),
    # Cards
    Alert(
        name="CardThrottles",
        group="Cards",
        # A power cap is the normal state of a busy card.
        expr='sum by (card) (increase(appliance_gpu_throttle_seconds_total{reason!="power-cap"}[10m])) > 60',
        for_s=600,
        severity="digest",
        subject=("card",),
        summary="Card {{ $labels.card }} reduced its clocks for {{ $value | humanize }} s of the last 10 minutes.",
        meaning="It is too hot or its power supply is too weak. Streams are slower.",
        fix="appliance doctor --only throttle --only cards; appliance gpu-watch status",
        firing=(
            AlertSample(
                {'appliance_gpu_throttle_seconds_total{card="0", reason="heat"}': "0+5x100"},
                "22m",
                {"card": "0"},
                "200",
            ),
        ),
        silent=(
            AlertSample({'appliance_gpu_throttle_seconds_total{card="0", reason="power-cap"}': "0+15x100"}, "22m"),
            AlertSample({'appliance_gpu_throttle_seconds_total{card="0", reason="heat"}': "0+1x100"}, "22m"),
        ),
    ),
    Alert(
        name="CardEcc",
        group="Cards",
        expr="max by (card) (appliance_gpu_ecc_uncorrected_total) > 0",
        for_s=0,
        severity="digest",
        subject=("card",),
        summary="Card {{ $labels.card }} has {{ $value | humanize }} uncorrected memory errors.",
        meaning="Results may be damaged. A reboot remaps the memory; a card that repeats it must be replaced.",
        fix="appliance doctor --only cards --only xid; reboot at a quiet hour",
        firing=(
            AlertSample({'appliance_gpu_ecc_uncorrected_total{card="1"}': "0x4 1x8"}, "2m", {"card": "1"}, "1"),
            # The agent starts after the error.
            AlertSample({'appliance_gpu_ecc_uncorrected_total{card="1"}': "_x4 1x8"}, "2m", {"card": "1"}, "1"),
        ),
        silent=(AlertSample({'appliance_gpu_ecc_uncorrected_total{card="1"}': "0x12"}, "2m"),),
    ),
    # Machine
    Alert(
        name="DiskFull",
        group="Machine",
        expr=f"{ROOM} < 0.05",
        for_s=300,
        severity="page",
        subject=("device",),
        summary="Disk {{ $labels.device }} has {{ $value | humanizePercentage }} room.",
        meaning="On a full disk, usage records are lost and no key can be created.",
        fix="appliance doctor --only disk; nix-collect-garbage --delete-older-than 14d",
        firing=(
            AlertSample(
                {
                    _disk("avail_bytes", "a", "/"): "4e9x40",
                    _disk("size_bytes", "a", "/"): "1e11x40",
                    _disk("readonly", "a", "/"): "0x40",
                    _disk("avail_bytes", "a", "/nix/store"): "4e9x40",
                    _disk("size_bytes", "a", "/nix/store"): "1e11x40",
                    _disk("readonly", "a", "/nix/store"): "1x40",
                },
                "7m",
                {"device": "/dev/a"},
                "4%",
            ),
        ),
        silent=(
            AlertSample(
                {
                    _disk("avail_bytes", "a", "/"): "4e10x40",
                    _disk("size_bytes", "a", "/"): "1e11x40",
                },
                "7m",
            ),
            # A medium that is always full.
            AlertSample(
                {
                    _disk("avail_bytes", "b", "/iso", "iso9660"): "0x40",
                    _disk("size_bytes", "b", "/iso", "iso9660"): "1e9x40",
                },
                "7m",
            ),
        ),
    ),
    Alert(
        name="DiskFills",
        group="Machine",
        expr=(
            f"{ROOM} < 0.25 and min by (device) ("
            f"predict_linear(node_filesystem_avail_bytes{{{DISKS}}}[6h], 2 * 86400)"
            f" unless node_filesystem_readonly{{{DISKS}}} == 1) < 0"
        ),
        for_s=1800,
        severity="digest",
        subject=("device",),
        summary="Disk {{ $labels.device }} has {{ $value | humanizePercentage }} room and fills within two days.",
        meaning="On a full disk, usage records are lost and no key can be created.",
        fix="appliance doctor --only disk; journalctl --disk-usage",
        firing=(
            AlertSample(
                {
                    _disk("avail_bytes", "a", "/"): "2e10-10000000x300",
                    _disk("size_bytes", "a", "/"): "1e11x300",
                },
                "60m",
                {"device": "/dev/a"},
                "17.6%",
            ),
        ),
        silent=(
            AlertSample(
                {
                    _disk("avail_bytes", "a", "/"): "2e10x300",
                    _disk("size_bytes", "a", "/"): "1e11x300",
                },
                "60m",
            ),
            # A download onto an empty disk.
            AlertSample(
                {
                    _disk("avail_bytes", "a", "/"): "9e10-100000000x300",
                    _disk("size_bytes", "a", "/"): "1e11x300",
                },
                "60m",
            ),
        ),
        inhibited_by={"DiskFull": ("device",)},
    ),
    Alert(
        name="HostMemory",
        group="Machine",
        expr=f"min({MEMORY}) < 0.05",
        for_s=600,
        severity="digest",
        summary="The machine has {{ $value | humanizePercentage }} of its memory left, without huge pages.",
        meaning="The kernel ends processes when it is used up, engines first.",
        fix="appliance doctor --only hugepages; systemctl status --full 'appliance-*' | grep Memory",
        firing=(
            AlertSample(
                {
                    "node_memory_MemAvailable_bytes": "1e9x60",
                    "node_memory_MemTotal_bytes": "100e9x60",
                    "node_memory_HugePages_Total": "0x60",
                    "node_memory_Hugepagesize_bytes": "2097152x60",
                },
                "12m",
                {},
                "1%",
            ),
        ),
        silent=(
            AlertSample(
                {
                    # Huge pages hold the rest on purpose.
                    "node_memory_MemAvailable_bytes": "4e9x60",
                    "node_memory_MemTotal_bytes": "100e9x60",
                    "node_memory_HugePages_Total": "40960x60",
                    "node_memory_Hugepagesize_bytes": "2097152x60",
                },
                "12m",
            ),
        ),
    ),
    Alert(
        name="ClockOff",
        group="Machine",
        expr="max(abs(node_timex_offset_seconds)) > 0.5 or min(node_timex_sync_status) == 0",
        for_s=3600,
        severity="digest",
        summary="The clock of the machine is not synchronised.",
        meaning="Certificates, expiry of keys and the times of usage records depend on it.",
        fix="appliance doctor --only clock; systemctl restart systemd-timesyncd",
        firing=(
            AlertSample({"node_timex_sync_status": "0x260", "node_timex_offset_seconds": "0x260"}, "62m", {}),
            AlertSample({"node_timex_sync_status": "1x260", "node_timex_offset_seconds": "-2x260"}, "62m", {}),
        ),
        silent=(
            AlertSample({"node_timex_sync_status": "1x260", "node_timex_offset_seconds": "0.01x260"}, "62m"),
            # The first minutes after a boot.
            AlertSample({"node_timex_sync_status": "0x60 1x200", "node_timex_offset_seconds": "0x260"}, "12m"),
        ),
    ),
    Alert(
        name="UnitFailed",
        group="Machine",
        expr=(
            f'label_replace(max by (name) ({UNIT}{{state="failed"}}) == 1,'
            ' "engine", "$1", "name", "appliance-engine-(.+)[.]service")'
        ),
        # After EngineDown, which is the cause of a failed engine.
        for_s=600,
        severity="digest",
        subject=("name", "engine"),
        summary="Unit {{ $labels.name }} failed.",
        meaning="Its task is not done until it is started again.",
        fix="appliance doctor --only units; journalctl -u {{ $labels.name }} -n 50",
        firing=(
            AlertSample(
                {f'{UNIT}{{name="a.service", state="failed", type="simple"}}': "1x60"}, "11m", {"name": "a.service"}
            ),
            AlertSample(
                {f'{UNIT}{{name="appliance-engine-a.0.service", state="failed"}}': "1x60"},
                "11m",
                {"name": "appliance-engine-a.0.service", "engine": "a.0"},
            ),
        ),
        silent=(
            AlertSample({f'{UNIT}{{name="a.service", state="active", type="simple"}}': "1x60"}, "11m"),
            AlertSample({f'{UNIT}{{name="a.service", state="failed", type="simple"}}': "1x30 0x32"}, "7m"),
        ),
        inhibited_by={"EngineDown": ("engine",)},
    ),
    Alert(
        name="TargetMissing",
        group="Machine",
        expr='max by (job) (up{job!~"gateway|engine|deadman|public"}) == 0',
        for_s=300,
        severity="digest",
        subject=("job",),
        summary="Prometheus cannot read the metrics of {{ $labels.job }}.",
        meaning="Alerts that use these metrics are silent.",
        fix="appliance doctor --only units; systemctl --failed",
        firing=(AlertSample({'up{job="node", instance="i"}': "0x40"}, "6m", {"job": "node"}),),
        silent=(
            AlertSample({'up{job="node", instance="i"}': "1x40"}, "6m"),
            # An engine that is not loaded has no metrics.
            AlertSample({'up{job="engine", instance="i", engine="a"}': "0x40"}, "6m"),
        ),
    ),
    Alert(
        name="AgentSilent",
        group="Machine",
        expr=(f"{_agent('gpu-watch', 'gpu_watch')} or {_agent('power', 'power')} or {_agent('notify', 'notify')}"),
        for_s=120,
        severity="digest",
        subject=("agent",),
        summary="The agent {{ $labels.agent }} writes no metrics.",
        meaning="It hangs or does not run: its part of the machine is not guarded, and its panels show old values.",
        fix="systemctl status appliance-{{ $labels.agent }}; journalctl -u appliance-{{ $labels.agent }} -n 50",
        firing=(
            # promtool begins at the epoch.
            AlertSample({"appliance_power_last_look_timestamp_seconds": "0+15x8 120x40"}, "9m", {"agent": "power"}),
            AlertSample(
                {f'{UNIT}{{name="appliance-gpu-watch.service", state="active"}}': "1x40"},
                "9m",
                {"agent": "gpu-watch"},
            ),
            AlertSample(
                {"appliance_notify_last_look_timestamp_seconds": "0x100"},
                "20m",
                {"agent": "notify"},
            ),
        ),
        silent=(
            AlertSample(
                {
                    "appliance_power_last_look_timestamp_seconds": "0+15x40",
                    "appliance_gpu_watch_last_look_timestamp_seconds": "0+15x40",
                    "appliance_notify_last_look_timestamp_seconds": "0+15x40",
                },
                "9m",
            ),
            # A machine without the agent.
            AlertSample({f'{UNIT}{{name="appliance-power.service", state="active"}}': "0x40"}, "9m"),
        ),
        inhibited_by={"TargetMissing": ()},
    ),
    # Backups
    Alert(
        name="BackupOld",
        group="Backups",
        # 0 before the first one.
        expr=(
            f"time() - max by (repository) (appliance_backup_last_success_timestamp_seconds != 0) > {BACKUP_OLD_S}"
        ),
        for_s=600,
        severity="digest",
        subject=("repository",),
        summary="The last backup to {{ $labels.repository }} is {{ $value | humanizeDuration }} old.",
        meaning="A failure of the disk would lose the keys and the usage since then.",
        fix="appliance doctor --only backup; journalctl -u 'appliance-backup-*' -n 50",
        firing=(
            AlertSample(
                {'appliance_backup_last_success_timestamp_seconds{repository="vps"}': "-93600x60"},
                "14m",
                {"repository": "vps"},
                "1d 2h 14m 0s",
            ),
        ),
        silent=(
            # The first backup has not ended; BackupMissing reports it after a day.
            AlertSample({'appliance_backup_last_success_timestamp_seconds{repository="vps"}': "0x7000"}, "27h"),
            AlertSample({'appliance_backup_last_success_timestamp_seconds{repository="vps"}': "-90000x60"}, "14m"),
        ),
    ),
    Alert(
        name="BackupMissing",
        group="Backups",
        expr=(
            f'max by (name) ({UNIT}{{name=~"appliance-backup-.+[.]timer", state="active"}}) == 1'
            " unless on () max(appliance_backup_last_success_timestamp_seconds) > 0"
            f" and on () (time() - max(node_boot_time_seconds) > {BACKUP_OLD_S})"
        ),
        for_s=600,
        severity="digest",
        subject=("name",),
        summary="{{ $labels.name }} is set up, and no backup has succeeded since the boot.",
        meaning="A failure of the disk would lose the keys and the usage.",
        fix="appliance doctor --only backup; journalctl -u 'appliance-backup-*' -n 50",
        firing=(
            AlertSample(
                {
                    f'{UNIT}{{name="appliance-backup-vps.timer", state="active"}}': "1x60",
                    "node_boot_time_seconds": "-100000x60",
                },
                "12m",
                {"name": "appliance-backup-vps.timer"},
            ),
        ),
        silent=(
            # The first day.
            AlertSample(
                {
                    f'{UNIT}{{name="appliance-backup-vps.timer", state="active"}}': "1x60",
                    "node_boot_time_seconds": "-1000x60",
                },
                "12m",
            ),
            AlertSample(
                {
                    f'{UNIT}{{name="appliance-backup-vps.timer", state="active"}}': "1x60",
                    'appliance_backup_last_success_timestamp_seconds{repository="vps"}': "1x60",
                    "node_boot_time_seconds": "-100000x60",
                },
                "12m",
            ),
            # No backups are set up.
            AlertSample({"node_boot_time_seconds": "-100000x60"}, "12m"),
        ),
        inhibited_by={"TargetMissing": ()},
    ),
    Alert(
        name="DrillFailed",
        group="Backups",
        expr="max(appliance_backup_drill_failed) == 1",
        for_s=0,
        severity="digest",
        summary="The last restore drill failed.",
        meaning="The backups may be unusable. Treat them as absent until a drill passes.",
        fix="journalctl -u appliance-restore-drill -n 100; appliance backup drill",
        firing=(AlertSample({"appliance_backup_drill_failed": "0x4 1x8"}, "2m", {}),),
        silent=(AlertSample({"appliance_backup_drill_failed": "0x12"}, "2m"),),
    ),
    Alert(
        name="DrillOld",
        group="Backups",
        expr=f"time() - max(appliance_backup_drill_last_success_timestamp_seconds != 0) > {DRILL_OLD_S}",
        for_s=600,
        severity="digest",
        summary="The last passed restore drill is {{ $value | humanizeDuration }} old.",
        meaning="The backups are unproven since then.",
        fix="appliance doctor --only backup; systemctl start appliance-restore-drill",
        firing=(
            AlertSample(
                {"appliance_backup_drill_last_success_timestamp_seconds": "-691200x60"}, "14m", {}, "8d 0h 14m 0s"
            ),
        ),
        silent=(AlertSample({"appliance_backup_drill_last_success_timestamp_seconds": "-600000x60"}, "14m"),),
        inhibited_by={"DrillFailed": ()},
    ),
    Alert(
        name="PoolUnhealthy",
        group="Backups",
        expr="min by (pool) (appliance_pool_healthy) == 0",
        for_s=600,
        severity="digest",
        subject=("pool",),
        summary="The data pool {{ $labels.pool }} is not healthy.",
        meaning="A disk of the pool failed, or its data are damaged. The next failure may lose data.",
        fix="zpool status {{ $labels.pool }}",
        firing=(AlertSample({'appliance_pool_healthy{pool="tank"}': "0x60"}, "12m", {"pool": "tank"}),),
        silent=(AlertSample({'appliance_pool_healthy{pool="tank"}': "1x60"}, "12m"),),
    ),
    # Messages and the VPS
    Alert(
        name="NoticesWait",
        group="Messages and the VPS",
        expr="max(appliance_notify_oldest_seconds) > 3600",
        for_s=300,
        severity="digest",
        summary="A notice has waited for {{ $value | humanizeDuration }}.",
        meaning="Messages do not reach you: check the line, the bot's token and the chat.",
        fix="appliance notify status; appliance doctor --only notices",
        firing=(AlertSample({"appliance_notify_oldest_seconds": "4000x40"}, "6m", {}, "1h 6m 40s"),),
        silent=(AlertSample({"appliance_notify_oldest_seconds": "300x40"}, "6m"),),
    ),
    Alert(
        name="NoticesRefused",
        group="Messages and the VPS",
        expr=f"{grew('appliance_notify_refused_total', '1h')} > 0",
        for_s=0,
        severity="digest",
        summary="The channel refused {{ $value | humanize }} notices within an hour.",
        meaning="These notices were set aside with the reason and are not sent.",
        fix="appliance notify status; journalctl -u appliance-notify -n 50",
        firing=(AlertSample({"appliance_notify_refused_total": "0x4 1x8"}, "2m", {}, "1"),),
        silent=(AlertSample({"appliance_notify_refused_total": "1x260"}, "65m"),),
    ),
    Alert(
        name="PublicAddressDown",
        group="Messages and the VPS",
        expr='max by (instance) (probe_success{job="public"}) == 0',
        # After GatewayDown, which is one of the causes.
        for_s=240,
        severity="page",
        subject=("instance",),
        summary="{{ $labels.instance }} does not respond.",
        meaning="Users cannot reach the service: the VPS, its certificate, the tunnel or the line at home failed.",
        fix="appliance doctor --only tunnel; on the VPS: appliance doctor --only edge --only certificate",
        firing=(
            AlertSample(
                {'probe_success{job="public", instance="https://llm.example.org/v1/models"}': "1x4 0x30"},
                "7m",
                {"instance": "https://llm.example.org/v1/models"},
            ),
        ),
        silent=(
            AlertSample(
                {'probe_success{job="public", instance="https://llm.example.org/v1/models"}': "1x20"}, "4m"
            ),
            AlertSample(
                {'probe_success{job="public", instance="https://llm.example.org/v1/models"}': "1x4 0x4 1x12"}, "2m"
            ),
        ),
        inhibited_by={"GatewayDown": ()},
    ),
    Alert(
        name="CertificateExpires",
        group="Messages and the VPS",
        expr='min by (instance) (probe_ssl_earliest_cert_expiry{job="public"}) - time() < 14 * 86400',
        for_s=3600,
        severity="digest",
        subject=("instance",),
        summary="The certificate of {{ $labels.instance }} expires in {{ $value | humanizeDuration }}.",
        meaning="After that, no client connects. It is renewed 30 days before; the renewal fails.",
        fix="on the VPS: appliance doctor --only certificate; journalctl -u 'acme-*' -n 50",
        firing=(
            AlertSample(
                {'probe_ssl_earliest_cert_expiry{job="public", instance="u"}': "864000x300"},
                "60m15s",
                {"instance": "u"},
                "9d 22h 59m 45s",
            ),
        ),
        silent=(AlertSample({'probe_ssl_earliest_cert_expiry{job="public", instance="u"}': "5000000x300"}, "62m"),),
    ),
    Alert(
        name="SwitchOnVpsFails",
        group="Messages and the VPS",
        expr=(
            'max(up{job="deadman"}) == 0'
            f" or time() - max(appliance_deadman_last_look_timestamp_seconds) > {AGENT_SILENT_S}"
        ),
        for_s=600,
        severity="digest",
        summary="The dead man's switch on the VPS does not look after this machine.",
        meaning="If this machine or its line fails now, no message is sent.",
        fix="on the VPS: systemctl status appliance-deadman; here: appliance doctor --only tunnel",
        firing=(
            AlertSample({'up{job="deadman", instance="i"}': "0x70"}, "12m", {}),
            AlertSample(
                {
                    'up{job="deadman", instance="i"}': "1x70",
                    "appliance_deadman_last_look_timestamp_seconds": "0x70",
                },
                "15m",
                {},
            ),
        ),
        silent=(
            AlertSample(
                {
                    'up{job="deadman", instance="i"}': "1x70",
                    "appliance_deadman_last_look_timestamp_seconds": "0+15x70",
                },
                "12m",
            ),
            # No switch is set up.
            AlertSample({'up{job="node", instance="i"}': "1x70"}, "12m"),
        ),
        inhibited_by={"PublicAddressDown": ()},
    ),
    Alert(
        name="Watchdog",
        group="Messages and the VPS",
        expr="vector(1)",
        for_s=0,
        severity="beat",
        summary="Prometheus and Alertmanager work.",
        meaning="It always fires. The dead man's switch on the VPS raises an alarm when it ends.",
        fix="none is needed",
        firing=(AlertSample({'up{job="prometheus"}': "1x4"}, "1m", {}),),
        silent=(),
    ),
)

BEAT = "Watchdog"
"""The alert that always fires."""

EVALUATED_AT = '{{ with query "time()" }}{{ . | first | value }}{{ end }}'
"""An annotation of the beat: the time of its evaluation. Alertmanager repeats the last alert of a Prometheus that
has ended, and the switch counts only a beat whose time has changed."""


def paging() -> frozenset[str]:
    """Return the kinds of messages that page: alerts and the agents' kinds.

    PublicAddressDown is the alert of the kind ``public-address-down``, seen from the other side.
    """
    return PAGING_KINDS | {kebab(alert.name) for alert in ALERTS if alert.severity == "page"}


def kebab(name: str) -> str:
    """Return the kind of notice of an alert: ``EngineDown`` becomes ``engine-down``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


def rules() -> dict[str, Any]:
    """Return the rules file of Prometheus."""
    return rules_of(ALERTS)


def rules_of(table: Sequence[Alert]) -> dict[str, Any]:
    """Return a rules file with the alerts of ``table``."""
    groups: dict[str, list[dict[str, object]]] = {}
    for alert in table:
        rule: dict[str, object] = {"alert": alert.name, "expr": alert.expr}
        if alert.for_s:
            rule["for"] = f"{alert.for_s}s"
        rule["labels"] = _labels(alert)
        rule["annotations"] = _annotations(alert)
        groups.setdefault(alert.group, []).append(rule)
    return {"groups": [{"name": f"appliance: {name}", "rules": members} for name, members in groups.items()]}


def routing() -> dict[str, Any]:
    """Return route and inhibition of Alertmanager, with the receivers ``notices`` and ``beat``.

    NixOS replaces variables in its configuration, so that it must not contain a dollar sign.
    """
    return {
        "route": {
            "receiver": "notices",
            # All subjects of an alert are one message.
            "group_by": ["alertname"],
            # Within this time the cause fires, and its effects become silent.
            "group_wait": "30s",
            "group_interval": "5m",
            "repeat_interval": "24h",
            "routes": [
                {
                    "matchers": ['severity="beat"'],
                    "receiver": "beat",
                    "group_wait": "0s",
                    # The switch raises its alarm after 140 s, and has to see that the time of the beat has stopped.
                    "group_interval": "20s",
                    # Less than the group's interval: a beat that is a moment early would be skipped.
                    "repeat_interval": "15s",
                },
                {
                    "matchers": ['severity="page"'],
                    "receiver": "notices",
                    "group_wait": "10s",
                    "group_interval": "1m",
                    "repeat_interval": "12h",
                },
            ],
        },
        "inhibit_rules": [
            {
                "source_matchers": [f'alertname="{cause}"'],
                "target_matchers": [f'alertname="{alert.name}"'],
                "equal": list(equal),
            }
            for alert in ALERTS
            for cause, equal in alert.inhibited_by.items()
        ],
    }


def rule_tests(rules_file: str, table: Sequence[Alert]) -> dict[str, Any]:
    """Return the tests of promtool: each alert fires on its firing samples and is silent on the others.

    Args:
        rules_file: The rules file, from the folder of the tests.
        table: The alerts of that file.
    """
    return {
        "rule_files": [rules_file],
        "evaluation_interval": f"{SCRAPE_S}s",
        "tests": [_rule_test(alert, sample) for alert in table for sample in (*alert.firing, *alert.silent)],
    }


def _labels(alert: Alert) -> dict[str, str]:
    return {"severity": alert.severity}


def _annotations(alert: Alert) -> dict[str, str]:
    annotations = {"summary": alert.summary, "meaning": alert.meaning, "fix": alert.fix}
    return annotations | ({"evaluated_at": EVALUATED_AT} if alert.severity == "beat" else {})


def _rule_test(alert: Alert, sample: AlertSample) -> dict[str, object]:
    expected = []
    if sample.labels is not None:
        expected.append(
            {
                "exp_labels": {**_labels(alert), **sample.labels},
                "exp_annotations": {name: _shown(text, sample) for name, text in _annotations(alert).items()},
            }
        )
    return {
        "name": alert.name,
        "interval": f"{SCRAPE_S}s",
        "input_series": [{"series": series, "values": values} for series, values in sample.series.items()],
        "alert_rule_test": [{"eval_time": sample.at, "alertname": alert.name, "exp_alerts": expected}],
    }


def _shown(template: str, sample: AlertSample) -> str:
    """Return a template of an annotation as Prometheus shows it for ``sample``."""
    if template == EVALUATED_AT:
        # promtool's clock begins at 0.
        return str(int(sample.at.removesuffix("m")) * 60)
    text = re.sub(r"\{\{ \$value[^}]*\}\}", sample.value.replace("\\", r"\\"), template)
    for name, value in (sample.labels or {}).items():
        text = text.replace(f"{{{{ $labels.{name} }}}}", value)
    if "{{" in text:
        raise ConfigError(f"a sample of the alert with the text {template!r} has no value for it")
    return text


RUNBOOK_HEAD = """# Runbook

Generated from `appliance/watch/alerts.py`; do not edit. `python -m tools.alerts` writes it, and a test compares it
with the table.

Alerts with **page** arrive at once, alerts with **digest** in the daily message. With those of the agents, at most
ten kinds of messages page: {kinds}.

| alert | severity | fires after | silent while |
|---|---|---|---|
"""


def runbook() -> str:
    """Return docs/runbook.md."""
    kinds = ", ".join(f"`{kind}`" for kind in sorted(paging()))
    text = RUNBOOK_HEAD.format(kinds=kinds)
    for alert in ALERTS:
        causes = ", ".join(alert.inhibited_by)
        text += (
            f"| [{alert.name}](#{alert.name.lower()}) | {alert.severity} | {_duration(alert.for_s)} | {causes} |\n"
        )
    group = ""
    for alert in ALERTS:
        if alert.group != group:
            group = alert.group
            text += f"\n## {group}\n"
        summary = re.sub(r"\{\{ \$value[^}]*\}\}", "N", alert.summary)
        text += (
            f"\n### {alert.name}\n\n{_plain(summary)}\n\n{alert.meaning}\n\n"
            f"```console\n{_plain(alert.fix)}\n```\n\n"
            f"```promql\n{alert.expr}\n```\n"
        )
    return text


def _plain(template: str) -> str:
    return re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: found[1].upper(), template)


def _duration(seconds: int) -> str:
    if seconds % 3600 == 0 and seconds:
        return f"{seconds // 3600} h"
    return f"{seconds // 60} min" if seconds else "at once"
