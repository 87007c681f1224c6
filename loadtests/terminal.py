"""A run in the terminal: its progress, and the verdict as tables."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from loadtests.estimates import Interval, percentile
from loadtests.outcome import NOT_ERRORS
from loadtests.report import INVALID, MISSED, PASS, Report, SloCheck
from loadtests.run import Progress
from loadtests.search import Search, SearchStep

LINE_EVERY_S = 10.0


class LiveView:
    """Shows the progress of a run: updated lines, or one line every ten seconds without a terminal."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show the progress."""
        now = time.monotonic()
        if self._live is not None:
            self._live.update(picture(self._title, progress, now))
        elif now - self._printed >= LINE_EVERY_S:
            self._printed = now
            self._console.print(f"{self._title}: {line(progress, now)}", highlight=False)


def line(progress: Progress, now: float) -> str:
    """Return the progress in one line."""
    elapsed = max(0.0, now - progress.began) if progress.began else 0.0
    good = [sample for sample in progress.recent if sample.good]
    ttft = [1000 * sample.ttft for sample in good if sample.ttft is not None]
    window = max(1.0, min(10.0, elapsed))
    failed = sum(count for cause, count in progress.failures.items() if cause not in NOT_ERRORS)
    parts = [f"{elapsed:.0f} s", f"{progress.ended} responses", f"{failed} failed"]
    parts.append(f"{len(progress.recent) / window:.1f} req/s")
    parts.append(f"{sum(s.completion_tokens or 0 for s in good) / window:.0f} tok/s")
    if ttft:
        parts.append(f"TTFT p50 {percentile(ttft, 0.5):.0f} ms, p99 {percentile(ttft, 0.99):.0f} ms")
    if progress.heartbeat is not None:
        parts.append(f"{progress.heartbeat.in_flight} in flight")
    return " · ".join(parts)


def picture(title: str, progress: Progress, now: float) -> Group:
    """Return the progress as lines for the live view."""
    parameters = progress.plan.parameters
    elapsed = max(0.0, now - progress.began) if progress.began else 0.0
    rows = [Text(title, style="bold")]
    share = _share(progress, elapsed)
    if share is not None:
        filled = round(40 * share)
        rows.append(Text("━" * filled, style="green") + Text("━" * (40 - filled), style="dim") + f" {share:.0%}")
    state = "warming up" if elapsed < parameters.warmup else "measuring"
    if parameters.duration_s is not None and elapsed > parameters.duration_s:
        state = "waiting for the last responses"
    rows.append(Text(f"{state}: {line(progress, now)}"))
    if (beat := progress.heartbeat) is not None:
        style = "red" if beat.cpu_share > 0.85 or beat.lag_s > 0.1 else "dim"
        rows.append(
            Text(
                f"client: {beat.cpu_share:.0%} of a core, lag {1000 * beat.lag_s:.0f} ms, {beat.users} users",
                style=style,
            )
        )
    for cause, count in sorted(progress.failures.items()):
        rows.append(Text(f"  {count} x {cause}", style="yellow" if cause in NOT_ERRORS else "red"))
    return Group(*rows)


def _share(progress: Progress, elapsed: float) -> float | None:
    parameters = progress.plan.parameters
    if parameters.duration_s is not None:
        return min(1.0, elapsed / parameters.duration_s)
    if parameters.requests is not None:
        return min(1.0, progress.ended / (parameters.requests * parameters.users))
    return None


def show(report: Report, console: Console, *, subject: str) -> None:
    """Print the verdict as tables: latencies, failures, SLOs."""
    console.print(_measures(report, subject))
    for cause, count in sorted(report.failures.items()):
        console.print(f"  {count} x {escape(cause)}", style="red", highlight=False)
    if len(report.by_model) > 1:
        console.print(_models(report))
    for text in _facts(report):
        console.print(f"  {escape(text)}", highlight=False)
    for note in report.notes:
        console.print(f"  note: {escape(note)}", style="yellow", highlight=False)
    if report.baseline:
        console.print(_baseline(report))
    console.print(verdict(report), highlight=False)


def verdict(report: Report) -> str:
    """Return the verdict in one line, with rich's markup."""
    rate = f"{report.output_tokens_per_s:.0f} output tokens/s over {report.duration_s:.1f} s"
    if report.exit_code == INVALID:
        return f"[bold red]INVALID[/]: {escape('; '.join(report.invalid) or 'no request was made')}"
    if report.exit_code == PASS:
        return f"[bold green]PASS[/]: every SLO holds; {rate}"
    missed = [check.name for check in report.checks if not check.holds]
    missed += [f"{c.measure} against the baseline" for c in report.baseline if c.verdict == "worse"]
    assert report.exit_code == MISSED  # noqa: S101 - there is no fourth code
    return f"[bold red]FAIL[/]: {', '.join(missed)} missed; {rate}"


def _measures(report: Report, subject: str) -> Table:
    table = Table(title=escape(subject), title_justify="left", box=SIMPLE_HEAD)
    for column in ("measure", "p50", "p90", "p95", "p99", "max", "SLO", "verdict"):
        table.add_column(column, justify="left" if column in ("measure", "verdict") else "right", no_wrap=True)
    checks = {check.name: check for check in report.checks}
    for name, values in report.percentiles.items():
        check = checks.get(f"{name} p99") or checks.get(name)
        bound = "" if check is None else f"{'p99' if check.name.endswith('p99') else 'max'} ≤{check.limit:g}"
        cells = [_ms(values[p]) for p in ("p50", "p90", "p95", "p99", "max")]
        table.add_row(f"{name} (ms)", *cells, bound, _verdict(check))
    errors = checks.get("errors")
    failed = sum(report.failures.values())
    limit = f"≤{errors.limit:.0%}" if errors else ""
    table.add_row("failed requests", "", "", "", "", f"{failed} of {report.requests}", limit, _verdict(errors))
    if (share := checks.get("good share")) is not None:
        value = "" if share.value is None else f"{share.value:.1%}"
        table.add_row("requests within SLOs", "", "", "", "", value, f"≥{share.limit:.1%}", _verdict(share))
    return table


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _facts(report: Report) -> list[str]:
    facts = []
    if report.goodput is not None:
        facts.append(f"goodput {interval(report.goodput)} requests/s within every SLO (95 % by Wilson)")
    facts.append(
        f"{report.requests} requests measured, {report.warmup_requests} of the warm-up not measured, "
        f"{report.cancelled} cancelled by the load test, {report.users} users"
    )
    if report.fairness is not None:
        facts.append(f"fairness between users (Jain) {report.fairness:.3f}")
    if report.drift is not None:
        facts.append(f"median TTFT of the last quarter is {report.drift:.2f} x that of the first")
    tokens = report.tokens
    if tokens.completion:
        each = f", {tokens.completion / tokens.chunks:.2f} a chunk" if tokens.chunks else ""
        facts.append(
            f"tokens: {tokens.prompt} prompt ({tokens.cached} cached), {tokens.completion} completion{each}"
        )
    if tokens.first_prompts_wanted is not None and tokens.first_prompts_counted is not None:
        facts.append(
            f"prompt size p50: {tokens.first_prompts_counted:.0f} tokens counted, "
            f"{tokens.first_prompts_wanted:.0f} requested; sized by {tokens.sizing}"
        )
    client = report.client
    if client.cpu_mean is not None and client.lag_p95_ms is not None:
        late = "" if client.late_p99_ms is None else f", late sending p99 {client.late_p99_ms:.1f} ms"
        facts.append(f"client: {client.cpu_mean:.0%} of a core, lag p95 {client.lag_p95_ms:.1f} ms{late}")
    for name, seen in report.server.items():
        means = ", ".join(f"{what} {value:.1f} ms" for what, value in seen.get("mean_ms", {}).items())
        hits = seen.get("prefix_cache_hit_rate")
        values = ([f"means {means}"] if means else []) + (
            [f"prefix cache hits {hits:.1%}"] if hits is not None else []
        )
        if values:
            facts.append(f"{name}: {', '.join(values)}")
    return facts


def interval(one: Interval) -> str:
    """Return a figure with its interval; an ellipsis for a missing bound."""
    low, high = ("…" if bound is None else f"{bound:.2f}" for bound in (one.low, one.high))
    return f"{one.value:.2f} ({low} to {high})"


def _models(report: Report) -> Table:
    table = Table(title="By model", title_justify="left")
    for column in ("model", "requests", "failed", "TTFT p50 (ms)", "TTFT p99 (ms)", "output tokens"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, one in report.by_model.items():
        ttft = ("" if value is None else f"{value:.1f}" for value in (one.ttft_p50_ms, one.ttft_p99_ms))
        table.add_row(escape(name), str(one.requests), str(one.failures), *ttft, str(one.output_tokens))
    return table


def _baseline(report: Report) -> Table:
    table = Table(title="Comparison with the baseline", title_justify="left")
    for column in ("measure", "before", "now", "verdict"):
        table.add_column(column, justify="right" if column in ("before", "now") else "left")
    words = {"worse": "[red]worse[/]", "better": "[green]better[/]", "same": "intervals overlap"}
    for one in report.baseline:
        table.add_row(one.measure, interval(one.before), interval(one.now), words[one.verdict])
    return table


def show_search(search: Search, console: Console, *, unit: str) -> None:
    """Print the tested loads and the highest that held."""
    table = Table(title="Search for the highest load that meets the SLOs", title_justify="left")
    for column in (unit, "goodput (requests/s)", "verdict", "reason"):
        table.add_column(column, justify="right" if column == unit else "left")
    for step in search.steps:
        goodput = (
            "" if step.requests_per_s is None else interval(Interval(step.requests_per_s, step.low, step.high))
        )
        word = "[green]holds[/]" if step.held else "[yellow]invalid[/]" if step.invalid else "[red]missed[/]"
        table.add_row(f"{step.load:g}" if search.whole else f"{step.load:.2f}", goodput, word, escape(step.why))
    console.print(table)
    best = search.best
    if best is None:
        console.print("no load meets the SLOs", style="bold red")
        return
    remark = "" if search.resolved else " at least: no valid run above it failed"
    console.print(f"highest load that meets the SLOs: [bold]{best.load:.4g}[/] {unit}{remark}", highlight=False)


def step_line(step: SearchStep, unit: str) -> str:
    """Return the result of one tested load in one line."""
    goodput = "" if step.requests_per_s is None else f", goodput {step.requests_per_s:.2f}/s"
    word = "holds" if step.held else "invalid" if step.invalid else "missed"
    return f"{step.load:.4g} {unit}: {word}{goodput}{escape(f' ({step.why})' if step.why else '')}"


def _verdict(check: SloCheck | None) -> str:
    if check is None:
        return ""
    return "[green]holds[/]" if check.holds else "[red]missed[/]"
