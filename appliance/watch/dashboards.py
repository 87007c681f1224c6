"""The dashboards of a site for Grafana: an overview for the owner, the engines, the cards, and the users' view.

``python -m tools.alerts`` writes them to modules/observe/dashboards. A test runs the query of each panel on a real
Prometheus and requires data. Names, units and options are those of Grafana's schema; no option is invented.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

COLUMNS = 24
"""Columns of Grafana's grid."""

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
"""The data source of every panel: the variable of the dashboard."""

Kind = Literal["timeseries", "stat", "table"]


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel and the legend of its series."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Args:
        title: Title on the dashboard.
        description: Its meaning, shown as a tooltip.
        queries: Queries, or one expression.
        unit: A unit of Grafana, such as ``s`` or ``percentunit``.
        kind: Type of the panel.
        width: Columns.
        stack: Whether the series are stacked, because their sum has a meaning.
        most: Upper end of the axis.
        steps: Values from which the colour changes: green below the first, then orange, then red.
        texts: Texts in place of values.
    """

    title: str
    description: str
    queries: Sequence[Query] | str
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 12
    stack: bool = False
    most: float | None = None
    steps: tuple[float, ...] = ()
    texts: tuple[tuple[float, str], ...] = ()

    @property
    def all_queries(self) -> Sequence[Query]:
        """The queries of the panel."""
        return (Query(self.queries),) if isinstance(self.queries, str) else self.queries


@dataclass(frozen=True, slots=True)
class PanelRow:
    """A heading and its panels."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard."""

    uid: str
    title: str
    description: str
    rows: tuple[PanelRow, ...]
    since: str = "now-6h"


REQUESTS = "appliance_gateway_requests_total"
FAILED = '{outcome=~"truncated|unavailable|timeout|engine_failed|engine_error|error|queue_full"}'
DISKS = '{fstype!~"tmpfs|ramfs|devtmpfs|overlay|squashfs|iso9660|efivarfs|fuse.*"}'


def quantile(histogram: str, share: float, by: str) -> str:
    """Return the expression of a quantile of ``histogram``, by the labels ``by``."""
    return f"histogram_quantile({share}, sum by ({by}, le) (rate({histogram}_bucket[$__rate_interval])))"


def quantiles(histogram: str, by: str) -> tuple[Query, ...]:
    """Return the median and the slowest twentieth of ``histogram``."""
    return (
        Query(quantile(histogram, 0.5, by), f"{{{{{by}}}}} median"),
        Query(quantile(histogram, 0.95, by), f"{{{{{by}}}}} slowest 5 %"),
    )


OVERVIEW = Dashboard(
    uid="appliance-overview",
    title="Overview",
    description="The state of the whole site on one page.",
    rows=(
        PanelRow(
            "Now",
            (
                Panel(
                    "Alerts",
                    "Alerts that fire, without the beat that always does. The runbook has the fix of each.",
                    (Query('sum(ALERTS{alertstate="firing", severity!="beat"}) or vector(0)'),),
                    kind="stat",
                    width=4,
                    steps=(1, 1),
                ),
                Panel(
                    "Engines up",
                    "Share of the engines that are loaded and generated their last canary token.",
                    "sum(appliance_gateway_engine_up) / count(appliance_gateway_engine_up)",
                    unit="percentunit",
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Public address",
                    "Whether the public address responds, as seen from home through the Internet.",
                    'min(probe_success{job="public"})',
                    kind="stat",
                    width=4,
                    texts=((0, "down"), (1, "up")),
                ),
                Panel(
                    "Mains",
                    "Whether the UPS runs on battery.",
                    "max(appliance_power_on_battery)",
                    kind="stat",
                    width=4,
                    texts=((0, "mains"), (1, "battery")),
                ),
                Panel(
                    "Last backup",
                    "Age of the oldest last backup of all repositories.",
                    "max(time() - appliance_backup_last_success_timestamp_seconds)",
                    unit="s",
                    kind="stat",
                    width=4,
                    steps=(26 * 3600, 50 * 3600),
                ),
                Panel(
                    "Requests now",
                    "Requests that run or wait in the gateway.",
                    "sum(appliance_gateway_requests_in_flight)",
                    kind="stat",
                    width=4,
                ),
            ),
        ),
        PanelRow(
            "Load",
            (
                Panel(
                    "Requests",
                    "Finished requests per second, by outcome.",
                    (Query(f"sum by (outcome) (rate({REQUESTS}[$__rate_interval]))", "{{outcome}}"),),
                    unit="reqps",
                    stack=True,
                ),
                Panel(
                    "Tokens",
                    "Tokens per second, as charged. Cached prompt tokens are a part of the prompt tokens.",
                    (Query("sum by (kind) (rate(appliance_gateway_tokens_total[$__rate_interval]))", "{{kind}}"),),
                ),
                Panel(
                    "First token",
                    "Seconds until the first token of streams, by model.",
                    quantiles("appliance_gateway_time_to_first_token_seconds", "model"),
                    unit="s",
                ),
                Panel(
                    "Waiting",
                    "Requests that wait for a slot, by model.",
                    (Query("sum by (model) (appliance_gateway_queue_length)", "{{model}}"),),
                    stack=True,
                ),
            ),
        ),
        PanelRow(
            "Assistant",
            (
                Panel(
                    "Searches of the memory",
                    "Searches per second, by outcome.",
                    (
                        Query(
                            "sum by (outcome) (rate(appliance_assistant_searches_total[$__rate_interval]))",
                            "{{outcome}}",
                        ),
                    ),
                    unit="reqps",
                    stack=True,
                ),
                Panel(
                    "Web",
                    "Web searches and opened pages per second, by outcome.",
                    (
                        Query(
                            "sum by (outcome) (rate(appliance_assistant_web_searches_total[$__rate_interval]))",
                            "search {{outcome}}",
                        ),
                        Query(
                            "sum by (outcome) (rate(appliance_assistant_web_pages_total[$__rate_interval]))",
                            "page {{outcome}}",
                        ),
                    ),
                    unit="reqps",
                    stack=True,
                ),
                Panel(
                    "Telegram",
                    "Calls of the Bot API per second, by outcome.",
                    (
                        Query(
                            "sum by (outcome) (rate(appliance_telegram_calls_total[$__rate_interval]))",
                            "{{outcome}}",
                        ),
                    ),
                    unit="reqps",
                    stack=True,
                ),
                Panel(
                    "Waiting for the memory",
                    "Files without passages, ended chats without an index, passages that Qdrant does not have yet.",
                    (
                        Query("max(appliance_assistant_files_waiting)", "files"),
                        Query("max(appliance_assistant_waiting_conversations)", "chats"),
                        Query("max(appliance_assistant_vectors_waiting)", "passages"),
                    ),
                ),
            ),
        ),
        PanelRow(
            "Machine",
            (
                Panel(
                    "Temperature of the cards",
                    "At 80 °C and above the watchdog acts, or reports that it would.",
                    (Query("max by (card) (appliance_gpu_temperature_celsius)", "card {{card}}"),),
                    unit="celsius",
                    steps=(80, 88),
                ),
                Panel(
                    "Power of the cards",
                    "Watts of all cards, and the sum of their limits.",
                    (
                        Query("sum(appliance_gpu_power_watts)", "draw"),
                        Query("sum(appliance_gpu_power_limit_watts)", "limit"),
                    ),
                    unit="watt",
                ),
                Panel(
                    "UPS",
                    "Load of the UPS and charge of its battery.",
                    (
                        Query("max(appliance_power_load_ratio)", "load"),
                        Query("min(appliance_power_battery_charge_ratio)", "charge"),
                    ),
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "Disks",
                    "Used share of each disk.",
                    (
                        Query(
                            "1 - min by (device)"
                            f" (node_filesystem_avail_bytes{DISKS} / node_filesystem_size_bytes{DISKS})",
                            "{{device}}",
                        ),
                    ),
                    unit="percentunit",
                    most=1,
                    steps=(0.75, 0.95),
                ),
                Panel(
                    "Memory",
                    "Memory of the machine without cards; huge pages count as used.",
                    (
                        Query("max(node_memory_MemTotal_bytes - node_memory_MemAvailable_bytes)", "used"),
                        Query("max(node_memory_MemTotal_bytes)", "total"),
                    ),
                    unit="bytes",
                ),
                Panel(
                    "Processors",
                    "Share of the time in which the cores work.",
                    (Query('1 - avg(rate(node_cpu_seconds_total{mode="idle"}[$__rate_interval]))', "busy"),),
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "Messages",
                    "Notices that wait in the outbox of this machine and in that of the dead man's switch.",
                    (
                        Query("max(appliance_notify_waiting)", "home"),
                        Query("max(appliance_deadman_notices_waiting)", "VPS"),
                    ),
                ),
                Panel(
                    "Dead man's switch",
                    "Age of each sign of life that the VPS sees. After 3 minutes the switch raises an alarm.",
                    (
                        Query("max(appliance_deadman_handshake_age_seconds)", "handshake of the tunnel"),
                        Query("max(appliance_deadman_beat_age_seconds)", "beat of the monitoring"),
                        Query("time() - max(appliance_deadman_last_look_timestamp_seconds)", "its last look"),
                    ),
                    unit="s",
                    steps=(180, 180),
                ),
            ),
        ),
    ),
)

ENGINES = Dashboard(
    uid="appliance-engines",
    title="Engines",
    description="Each replica: its requests, speed, memory and prefix cache.",
    rows=(
        PanelRow(
            "State",
            (
                Panel(
                    "Up",
                    "Whether the engine is loaded and generated its last canary token.",
                    (Query("max by (engine) (appliance_gateway_engine_up)", "{{engine}}"),),
                    kind="stat",
                    texts=((0, "down"), (1, "up")),
                ),
                Panel(
                    "Drained",
                    "Replicas that get no new requests, because an operator or the watchdog drained them.",
                    (Query("max by (engine) (appliance_gateway_replica_draining)", "{{engine}}"),),
                    kind="stat",
                    texts=((0, "serves"), (1, "drained")),
                ),
                Panel(
                    "Canary",
                    "Seconds of the last canary token.",
                    (Query("max by (engine) (appliance_gateway_canary_seconds)", "{{engine}}"),),
                    unit="s",
                ),
                Panel(
                    "Requests of the gateway",
                    "Requests that run on the engine, as the gateway counts them.",
                    (Query("sum by (engine) (appliance_gateway_engine_requests_in_flight)", "{{engine}}"),),
                ),
            ),
        ),
        PanelRow(
            "Scheduler",
            (
                Panel(
                    "Running and waiting",
                    "Requests inside vLLM. Waiting ones have a slot and wait for memory.",
                    (
                        Query("sum by (engine) (vllm:num_requests_running)", "{{engine}} running"),
                        Query("sum by (engine) (vllm:num_requests_waiting)", "{{engine}} waiting"),
                    ),
                ),
                Panel(
                    "KV cache",
                    "Used share of the KV cache. At 100 % requests wait or are preempted.",
                    (Query("max by (engine) (vllm:kv_cache_usage_perc)", "{{engine}}"),),
                    unit="percentunit",
                    most=1,
                    steps=(0.8, 0.95),
                ),
                Panel(
                    "Reasons of waiting",
                    "Waiting requests by reason: capacity is a lack of memory or slots.",
                    (
                        Query(
                            "sum by (engine, reason) (vllm:num_requests_waiting_by_reason)", "{{engine}} {{reason}}"
                        ),
                    ),
                ),
                Panel(
                    "Preemptions",
                    "Requests per second that lost their memory and are computed again.",
                    (Query("sum by (engine) (rate(vllm:num_preemptions_total[$__rate_interval]))", "{{engine}}"),),
                    unit="reqps",
                ),
            ),
        ),
        PanelRow(
            "Speed",
            (
                Panel(
                    "Tokens",
                    "Tokens per second: generated, and prompt tokens with the cached ones.",
                    (
                        Query(
                            "sum by (engine) (rate(vllm:generation_tokens_total[$__rate_interval]))",
                            "{{engine}} generated",
                        ),
                        Query(
                            "sum by (engine) (rate(vllm:prompt_tokens_total[$__rate_interval]))",
                            "{{engine}} prompt",
                        ),
                    ),
                ),
                Panel(
                    "Prefix cache",
                    "Share of the prompt tokens that the prefix cache had.",
                    (
                        Query(
                            "sum by (engine) (rate(vllm:prefix_cache_hits_total[$__rate_interval]))"
                            " / sum by (engine) (rate(vllm:prefix_cache_queries_total[$__rate_interval]))",
                            "{{engine}}",
                        ),
                    ),
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "First token",
                    "Seconds from the arrival in vLLM to the first token.",
                    quantiles("vllm:time_to_first_token_seconds", "engine"),
                    unit="s",
                ),
                Panel(
                    "Time between tokens",
                    "Seconds between two tokens of a stream.",
                    quantiles("vllm:inter_token_latency_seconds", "engine"),
                    unit="s",
                ),
                Panel(
                    "Time in vLLM's queue",
                    "Seconds of waiting inside vLLM.",
                    quantiles("vllm:request_queue_time_seconds", "engine"),
                    unit="s",
                ),
                Panel(
                    "Prefill",
                    "Seconds of computing the prompt.",
                    quantiles("vllm:request_prefill_time_seconds", "engine"),
                    unit="s",
                ),
                Panel(
                    "Ends of requests",
                    "Requests per second, by the reason of their end.",
                    (
                        Query(
                            "sum by (finished_reason) (rate(vllm:request_success_total[$__rate_interval]))",
                            "{{finished_reason}}",
                        ),
                    ),
                    unit="reqps",
                    stack=True,
                ),
                Panel(
                    "Length of prompts",
                    "Tokens of a prompt.",
                    quantiles("vllm:request_prompt_tokens", "engine"),
                ),
            ),
        ),
    ),
)

CARDS = Dashboard(
    uid="appliance-cards",
    title="Cards",
    description="Each card: heat, power, memory and errors; and the UPS that carries them.",
    rows=(
        PanelRow(
            "State",
            (
                Panel(
                    "Rung of the watchdog",
                    "0: none. 1: fans. 2: power. 3: drain. 4: restart. 5: reboot. 6: cold cycle. 7: degraded.",
                    (Query("max by (card) (appliance_gpu_rung)", "card {{card}}"),),
                    kind="stat",
                    width=8,
                    steps=(1, 3),
                ),
                Panel(
                    "Watchdog",
                    "Whether the watchdog acts, or reports only.",
                    "max(appliance_gpu_watch_acting)",
                    kind="stat",
                    width=4,
                    texts=((0, "reports only"), (1, "acts")),
                ),
                Panel(
                    "Last look",
                    "Age of the last look at the cards. An old look means that all panels of this page are old.",
                    "time() - max(appliance_gpu_watch_last_look_timestamp_seconds)",
                    unit="s",
                    kind="stat",
                    width=4,
                    steps=(60, 180),
                ),
                Panel(
                    "Driver",
                    "Whether the driver hangs: nvidia-smi does not end.",
                    "max(appliance_gpu_watch_driver_hangs)",
                    kind="stat",
                    width=4,
                    texts=((0, "responds"), (1, "hangs")),
                ),
                Panel(
                    "Memory errors",
                    "Uncorrected errors since the driver was loaded.",
                    "sum(appliance_gpu_ecc_uncorrected_total)",
                    kind="stat",
                    width=4,
                    steps=(1, 1),
                ),
            ),
        ),
        PanelRow(
            "Heat and power",
            (
                Panel(
                    "Temperature",
                    "Temperature of the chip.",
                    (Query("max by (card) (appliance_gpu_temperature_celsius)", "card {{card}}"),),
                    unit="celsius",
                    steps=(80, 88),
                ),
                Panel(
                    "Margin",
                    "Degrees until the card slows down by itself.",
                    (Query("min by (card) (appliance_gpu_temperature_margin_celsius)", "card {{card}}"),),
                    unit="celsius",
                ),
                Panel(
                    "Power",
                    "Draw and limit of each card.",
                    (
                        Query("max by (card) (appliance_gpu_power_watts)", "card {{card}} draw"),
                        Query("max by (card) (appliance_gpu_power_limit_watts)", "card {{card}} limit"),
                    ),
                    unit="watt",
                ),
                Panel(
                    "Fans",
                    "Speed of the fans.",
                    (Query("max by (card) (appliance_gpu_fan_ratio)", "card {{card}}"),),
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "Throttling",
                    "Share of the time with reduced clocks, by reason. A power cap is normal under full load.",
                    (
                        Query(
                            "sum by (card, reason) (rate(appliance_gpu_throttle_seconds_total[$__rate_interval]))",
                            "card {{card}} {{reason}}",
                        ),
                    ),
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "Xid messages",
                    "Messages of the driver within the time range, by number. Many are errors of a program.",
                    (
                        Query(
                            "sum by (card, xid) (increase(appliance_gpu_xids_total[$__range]))",
                            "card {{card}} Xid {{xid}}",
                        ),
                    ),
                    kind="table",
                ),
            ),
        ),
        PanelRow(
            "Use",
            (
                Panel(
                    "Utilisation",
                    "Share of the time in which a kernel ran. It does not measure the load; tokens do.",
                    (Query("max by (card) (appliance_gpu_utilization_ratio)", "card {{card}}"),),
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "Memory",
                    "Used memory of each card; vLLM reserves its share at the start.",
                    (
                        Query("max by (card) (appliance_gpu_memory_used_bytes)", "card {{card}} used"),
                        Query("max by (card) (appliance_gpu_memory_total_bytes)", "card {{card}} total"),
                    ),
                    unit="bytes",
                ),
            ),
        ),
        PanelRow(
            "UPS",
            (
                Panel(
                    "Phase",
                    "The present phase of the power agent.",
                    (Query("max by (phase) (appliance_power_phase) == 1", "{{phase}}"),),
                    kind="table",
                    width=6,
                ),
                Panel(
                    "Connection",
                    "Whether the UPS can be read.",
                    "max(appliance_power_ups_connected)",
                    kind="stat",
                    width=6,
                    texts=((0, "lost"), (1, "connected")),
                ),
                Panel(
                    "Runtime",
                    "Runtime on battery that the UPS estimates at the present load. Measure it by a drill.",
                    (Query("min(appliance_power_battery_runtime_seconds)", "runtime"),),
                    unit="s",
                ),
            ),
        ),
    ),
)

USERS = Dashboard(
    uid="appliance-users",
    title="Users",
    description="The service as clients experience it. Usage by user is in the usage records, not in metrics.",
    since="now-24h",
    rows=(
        PanelRow(
            "Success",
            (
                Panel(
                    "Success within the time range",
                    "Share of the requests without an error of the server.",
                    f"1 - (sum(increase({REQUESTS}{FAILED}[$__range])) or vector(0))"
                    f" / sum(increase({REQUESTS}[$__range]))",
                    unit="percentunit",
                    kind="stat",
                    width=8,
                ),
                Panel(
                    "Requests within the time range",
                    "Finished requests.",
                    f"sum(increase({REQUESTS}[$__range]))",
                    kind="stat",
                    width=8,
                ),
                Panel(
                    "Tokens within the time range",
                    "Generated tokens.",
                    'sum(increase(appliance_gateway_tokens_total{kind="completion"}[$__range]))',
                    kind="stat",
                    width=8,
                ),
                Panel(
                    "Requests by model",
                    "Finished requests per second, without those that name no model of the site.",
                    (Query(f'sum by (model) (rate({REQUESTS}{{model!=""}}[$__rate_interval]))', "{{model}}"),),
                    unit="reqps",
                    stack=True,
                ),
                Panel(
                    "Requests by endpoint",
                    "Finished requests per second.",
                    (Query(f"sum by (endpoint) (rate({REQUESTS}[$__rate_interval]))", "{{endpoint}}"),),
                    unit="reqps",
                    stack=True,
                ),
                Panel(
                    "Requests without success",
                    "Requests per second without success. Rejected and limited ones are due to the client.",
                    (
                        Query(
                            f'sum by (outcome) (rate({REQUESTS}{{outcome!="ok"}}[$__rate_interval]))', "{{outcome}}"
                        ),
                        Query(
                            "sum(rate(appliance_gateway_unauthorized_total[$__rate_interval]))",
                            "without a valid key",
                        ),
                    ),
                    unit="reqps",
                    width=24,
                ),
            ),
        ),
        PanelRow(
            "Speed",
            (
                Panel(
                    "First token",
                    "Seconds from the request to the first token of streams.",
                    quantiles("appliance_gateway_time_to_first_token_seconds", "model"),
                    unit="s",
                ),
                Panel(
                    "Whole request",
                    "Seconds from the request to the end of its response.",
                    quantiles("appliance_gateway_request_duration_seconds", "model"),
                    unit="s",
                ),
                Panel(
                    "Waiting for a slot",
                    "Seconds in the gateway's queue.",
                    quantiles("appliance_gateway_queue_seconds", "model"),
                    unit="s",
                ),
                Panel(
                    "Tokens by model",
                    "Tokens per second, by model and kind.",
                    (
                        Query(
                            "sum by (model, kind) (rate(appliance_gateway_tokens_total[$__rate_interval]))",
                            "{{model}} {{kind}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)

ALL = (OVERVIEW, ENGINES, CARDS, USERS)


def dashboards() -> list[dict[str, Any]]:
    """Return the JSON of all dashboards."""
    return [_dashboard(one) for one in ALL]


def _dashboard(board: Dashboard) -> dict[str, Any]:
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": ["appliance"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": board.since, "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {},
                    "hide": 0,
                }
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Paging alerts",
                    "datasource": SOURCE,
                    "enable": True,
                    "iconColor": "red",
                    "expr": 'max by (alertname) (ALERTS{alertstate="firing", severity="page"})',
                    "titleFormat": "{{alertname}}",
                }
            ]
        },
        "links": [
            {
                "title": "All dashboards",
                "type": "dashboards",
                "tags": ["appliance"],
                "asDropdown": True,
                "includeVars": False,
                "keepTime": True,
            }
        ],
        "panels": list(_panels(board)),
    }


def _panels(board: Dashboard) -> Iterator[dict[str, Any]]:
    """Yield the panels in rows of the grid, with ids in their order."""
    number, x, y, height = 0, 0, 0, 0
    for row in board.rows:
        number += 1
        y, x = y + height, 0
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        }
        y, height = y + 1, 0
        for panel in row.panels:
            number += 1
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            tall = 5 if panel.kind == "stat" else 8
            yield _panel(panel, number) | {"gridPos": {"x": x, "y": y, "w": panel.width, "h": tall}}
            x, height = x + panel.width, max(height, tall)


def _panel(panel: Panel, number: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "color": {"mode": "palette-classic"}}
    if panel.unit == "celsius":
        del defaults["min"]
    if panel.most is not None:
        defaults["max"] = panel.most
    colours = ("green", "orange", "red")
    defaults["thresholds"] = {
        "mode": "absolute",
        "steps": [
            {"color": colour, "value": value} for colour, value in zip(colours, (None, *panel.steps), strict=False)
        ],
    }
    if panel.texts:
        defaults["mappings"] = [
            {"type": "value", "options": {f"{value:g}": {"text": text, "index": index}}}
            for index, (value, text) in enumerate(panel.texts)
        ]
    options: dict[str, Any] = {}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 20 if panel.stack else 5,
            "lineWidth": 1,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stack else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if panel.steps else "off"},
        }
        options = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    elif panel.kind == "stat":
        defaults["color"] = {"mode": "thresholds"}
        options = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "none",
            "textMode": "auto",
        }
    instant = panel.kind != "timeseries"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "instant": instant,
                "range": not instant,
                "format": "table" if panel.kind == "table" else "time_series",
            }
            for index, query in enumerate(panel.all_queries)
        ],
    }
