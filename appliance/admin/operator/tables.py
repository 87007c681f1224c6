"""The views of the operator's page: rows and plots from data of the stores and of the gateway. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from markupsafe import Markup

from appliance.notices.notice import Notice
from appliance.render.svg import Axes, Series, drawing, figure, legend_entry, plot, rect, text
from appliance.store.usage import UsageLine

STATES = {"up": "good", "ready": "good", "down": "bad", "failed": "bad", "loading": "odd", "draining": "odd"}
"""CSS classes of states; the others have none."""

MOST_BARS = 15
"""Users in the plot of users."""
NAME_WIDTH, BAR_HEIGHT, BARS_WIDTH = 130, 22, 560
"""Sizes of the plot of users, in the units of its ``viewBox``."""


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
    kind: str
    """CSS class of the state."""
    for_s: float
    waiting: int
    error: str
    swappable: bool
    """Whether a request to load it now makes sense."""


@dataclass(frozen=True, slots=True)
class LastSwap:
    """The result of the last swap."""

    engine: str
    unloaded: str
    ok: bool
    seconds: float
    error: str
    ended: str


@dataclass(frozen=True, slots=True)
class AlertRow:
    """One alert that fires, or one notice."""

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
        kind = "odd" if drained else STATES.get(state, "")
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
        DemandRow(
            name=name,
            model=one["model"],
            state=one["state"],
            kind=STATES.get(one["state"], ""),
            for_s=one["for_s"],
            waiting=one["waiting"],
            error=one["error"] or "",
            swappable=one["state"] not in ("ready", "loading"),
        )
        for name, one in status["on_demand"].items()
    ]


def last_swap(status: Mapping[str, Any], now: float) -> LastSwap | None:
    """Return the last swap in the gateway's ``status``, which is of ``now`` (seconds since the epoch)."""
    found = status["last_swap"]
    if found is None:
        return None
    return LastSwap(
        engine=found["engine"],
        unloaded=", ".join(found["unloaded"]),
        ok=found["ok"],
        seconds=found["seconds"],
        error=found["error"],
        ended=moment(now - found["ago_s"]),
    )


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


def notice_rows(notices: Iterable[Notice]) -> list[AlertRow]:
    """Return the newest notice of each kind and subject, those that page first; a state that ended has no row."""
    newest: dict[tuple[str, str], Notice] = {}
    for one in sorted(notices, key=lambda notice: notice.at):
        newest[one.kind, one.subject] = one
    rows = [
        AlertRow(
            name=f"{one.kind} {one.subject}".strip(),
            severity="page" if one.pages else "digest",
            summary=one.text,
            fix="",
            since=moment(one.at),
        )
        for one in newest.values()
        if not one.ended
    ]
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


def user_bars(lines: Iterable[UsageLine], texts: Mapping[str, str]) -> Markup:
    """Return bars of the prompt and completion tokens of each user, the largest first; empty without tokens."""

    def total(line: UsageLine) -> int:
        return line.prompt_tokens + line.completion_tokens

    shown = sorted((line for line in lines if total(line)), key=lambda line: (-total(line), line.name))[:MOST_BARS]
    if not shown:
        return Markup()
    scale = (BARS_WIDTH - NAME_WIDTH - 60) / total(shown[0])
    parts = []
    for index, line in enumerate(shown):
        top, middle = index * BAR_HEIGHT + 4.0, index * BAR_HEIGHT + 16.0
        name = line.name if len(line.name) <= 20 else line.name[:19] + "…"
        left = float(NAME_WIDTH)
        parts.append(text(left - 8, middle, name, anchor="end"))
        for colour, label, value in (
            ("c0", "prompt", line.prompt_tokens),
            ("c1", "completion", line.completion_tokens),
        ):
            tip = f"{line.name}: {texts[label]} {amount(value)}"
            parts.append(rect(left, top, value * scale, BAR_HEIGHT - 7, kind=colour, tip=tip))
            left += value * scale
        parts.append(text(left + 6, middle, _rounded(total(line))))
    title = texts["by_user"]
    content = drawing(BARS_WIDTH, len(shown) * BAR_HEIGHT + 6, parts, label=title)
    return figure(title, content, [legend_entry("c0", texts["prompt"]), legend_entry("c1", texts["completion"])])


def _rounded(value: int) -> str:
    """Return ``value`` with four digits."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return str(value)


def moment(seconds: float | None) -> str:
    """Return a time in seconds since the epoch as a date and a time in UTC; empty for ``None``."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def amount(value: int | None, limit: int | None = None) -> str:
    """Return a number with thin separators, and its ``limit`` if there is one."""
    shown = "" if value is None else f"{value:,}".replace(",", "\u202f")
    return shown if limit is None else f"{shown} / {amount(limit)}"
