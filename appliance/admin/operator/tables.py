"""The views of the operator's page: rows and plots from data of the stores and of the gateway. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from markupsafe import Markup

from appliance.render.svg import Axes, Series, plot
from appliance.store.usage import UsageLine


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One replica as the page shows it."""

    name: str
    model: str
    state: str
    kind: str
    """CSS class: ``good``, ``bad``, ``odd`` or empty."""
    running: str
    waiting: int
    why: str
    drained: bool


@dataclass(frozen=True, slots=True)
class DemandRow:
    """One engine that loads on demand."""

    name: str
    model: str
    state: str
    for_s: float
    waiting: int
    error: str


@dataclass(frozen=True, slots=True)
class AlertRow:
    """One alert that fires."""

    name: str
    severity: str
    summary: str
    fix: str
    since: str


def engine_rows(status: Mapping[str, Any]) -> list[EngineRow]:
    """Return the replicas in the gateway's ``status``."""
    rows = []
    for name, one in status["engines"].items():
        own = status["on_demand"].get(name.partition(".")[0], {})
        state = str(own.get("state") or one["state"]) if one["state"] == "not loaded" else str(one["state"])
        drained = one["draining"] is not None
        kind = "odd" if drained else {"up": "good", "down": "bad"}.get(state, "")
        rows.append(
            EngineRow(
                name=name,
                model=one["model"],
                state=state,
                kind=kind,
                running=f"{one['in_flight']} / {one['slots']}",
                waiting=status["models"].get(one["model"], {}).get("waiting", 0),
                why="; ".join(filter(None, (one["draining"], own.get("error") or one["why"]))),
                drained=drained,
            )
        )
    return rows


def demand_rows(status: Mapping[str, Any]) -> list[DemandRow]:
    """Return the engines on demand in the gateway's ``status``."""
    return [
        DemandRow(name, one["model"], one["state"], one["for_s"], one["waiting"], one["error"] or "")
        for name, one in status["on_demand"].items()
    ]


def alert_rows(alerts: Iterable[Mapping[str, Any]]) -> list[AlertRow]:
    """Return the alerts of Alertmanager's ``/api/v2/alerts``, those that page first."""
    rows = []
    for one in alerts:
        labels, notes = one.get("labels", {}), one.get("annotations", {})
        severity = str(labels.get("severity", ""))
        if severity == "beat":
            # The alert that always fires, for the dead man's switch.
            continue
        rows.append(
            AlertRow(
                name=str(labels.get("alertname", "")),
                severity=severity,
                summary=str(notes.get("summary", "")),
                fix=str(notes.get("fix", "")),
                since=str(one.get("startsAt", ""))[:16].replace("T", " "),
            )
        )
    return sorted(rows, key=lambda row: (row.severity != "page", row.name))


def usage_plots(
    lines: Sequence[UsageLine], days: int, today: date, texts: Mapping[str, str]
) -> tuple[Markup, Markup]:
    """Return plots of tokens and of requests by day, from ``days`` days before ``today``; empty without any.

    ``lines`` are sums by day; a day without a line has had no request.
    """
    by_day = {line.name: line for line in lines}
    if not by_day:
        return Markup(), Markup()
    places = [
        (float(-back), by_day.get((today - timedelta(days=back)).isoformat())) for back in range(days, -1, -1)
    ]

    def series(name: str, value: str, scale: float = 1.0) -> Series:
        points = [(at, getattr(line, value) / scale if line is not None else 0.0) for at, line in places]
        return Series(texts[name], points)

    tokens = plot(
        texts["by_day"],
        Axes(texts["days_ago"], texts["thousands"]),
        [series("prompt", "prompt_tokens", 1000.0), series("completion", "completion_tokens", 1000.0)],
    )
    requests = plot(
        texts["requests_by_day"],
        Axes(texts["days_ago"], texts["requests"]),
        [series("requests", "requests"), series("failed", "failed")],
    )
    return tokens, requests


def moment(seconds: float | None) -> str:
    """Return a time in seconds since the epoch as a date and a time in UTC; empty for ``None``."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def amount(value: int | None, limit: int | None = None) -> str:
    """Return a number with thin separators, and its ``limit`` if there is one."""
    shown = "" if value is None else f"{value:,}".replace(",", "\u202f")
    return shown if limit is None else f"{shown} / {amount(limit)}"
