"""The report for people (a table that fits 80 columns) and for programs (JSON with a stable schema)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from appliance.doctor.causes import causes
from appliance.doctor.checklist import ChecklistPoint
from appliance.doctor.finding import DoctorReport, Finding, Level

COLOURS: dict[Level, str] = {"ok": "green", "warn": "yellow", "unknown": "magenta", "fail": "bold red"}
SCHEMA_VERSION = 1


def as_table(report: DoctorReport) -> dict[str, Any]:
    """Return the report as plain data, which ``--json`` prints."""
    return {
        "version": SCHEMA_VERSION,
        "host": report.host,
        "worst": report.worst,
        "exit_code": report.exit_code,
        "causes": [
            {"code": one.cause, "name": one.name, "subject": one.subject, "seen": one.seen, "fix": one.fix}
            for one in causes(report.results)
        ],
        "checks": [asdict(one) for one in report.results],
        # The key is older than the name; programs read it.
        "left_out": [asdict(one) for one in report.skipped],
    }


def as_json(report: DoctorReport) -> str:
    """Return the report for other programs."""
    return json.dumps(as_table(report), indent=2, ensure_ascii=False)


def show(report: DoctorReport, console: Console) -> None:
    """Print the report for people: a line per finding; if it is not ok, also its meaning and its fix."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, expand=True)
    table.add_column("level", width=7, no_wrap=True)
    table.add_column("check", width=12, no_wrap=True)
    table.add_column("seen", ratio=1, overflow="fold")
    previous = ""
    for one in report.results:
        table.add_row(
            f"[{COLOURS[one.level]}]{_word(one.level)}[/]",
            f"[bold]{one.name}[/]" if one.name != previous else "",
            _details(one),
        )
        previous = one.name
    console.print(table)
    if report.skipped:
        names = ", ".join(one.name for one in report.skipped)
        console.print(Padding(f"[dim]not applicable to this host: {names}[/]", (1, 0, 0, 0)))
    console.print(Padding(_summary(report), (1, 0, 0, 0)))


def show_list(checks: Iterable[tuple[str, str, str | None]], console: Console) -> None:
    """Print each check with what it inspects, or why it does not apply to this host."""
    table = Table.grid("check", "looks", padding=(0, 2, 0, 0))
    for name, looks, why in checks:
        table.add_row(f"[bold]{name}[/]", f"[dim]not applicable: {escape(why)}[/]" if why else escape(looks))
    console.print(table)


def checklist_table(host: str, points: Iterable[ChecklistPoint]) -> dict[str, Any]:
    """Return the operator's points as plain data, which ``--checklist --json`` prints."""
    return {
        "version": SCHEMA_VERSION,
        "host": host,
        "points": [
            {
                "number": one.number,
                "title": one.title,
                "level": "skipped" if one.skipped else one.level,
                "skipped": one.skipped,
                "findings": [asdict(finding) for finding in one.findings],
            }
            for one in points
        ],
    }


def show_checklist(host: str, points: tuple[ChecklistPoint, ...], console: Console) -> None:
    """Print the operator's points: ok or not, and for each finding what it means and what fixes it."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, expand=True)
    table.add_column("number", width=2, no_wrap=True, justify="right")
    table.add_column("level", width=7, no_wrap=True)
    table.add_column("seen", ratio=1, overflow="fold")
    for one in points:
        level = "[dim]-[/]" if one.skipped else f"[{COLOURS[one.level]}]{_word(one.level)}[/]"
        details = f"[dim]not applicable: {escape(one.skipped)}[/]" if one.skipped else ""
        lines = [f"[bold]{escape(one.title)}[/]", details or "\n".join(_details(each) for each in one.findings)]
        table.add_row(str(one.number), level, "\n".join(lines))
    console.print(table)
    good = sum(not one.skipped and one.level == "ok" for one in points)
    applicable = sum(not one.skipped for one in points)
    console.print(Padding(f"{escape(host)}: {good} of {applicable} points are ok", (1, 0, 0, 0)))


def _word(level: Level) -> str:
    return level.upper() if level == "fail" else level


def _details(one: Finding) -> str:
    subject = f"{one.subject}: " if one.subject else ""
    lines = [escape(subject + one.seen)]
    if one.level != "ok":
        lines += [f"[dim]{escape(one.meaning)}[/]"] if one.meaning else []
        lines += [f"[cyan]→ {escape(one.fix)}[/]"] if one.fix else []
    return "\n".join(lines)


def _summary(report: DoctorReport) -> str:
    counts = [
        f"[{COLOURS[level]}]{number} {level}[/]"
        for level in COLOURS
        if (number := sum(one.level == level for one in report.results))
    ]
    line = f"{escape(report.host)}: {', '.join(counts) or 'nothing to inspect'}"
    found = causes(report.results)
    if not found:
        return line
    first = found[0]
    what = f"{first.name}{f' {first.subject}' if first.subject else ''}: {first.seen}"
    return f"{line}\n[bold red]Fix first:[/] {escape(what)}\n[cyan]  → {escape(first.fix)}[/]"
