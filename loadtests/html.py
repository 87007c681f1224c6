"""A report as one HTML page: everything is inside it, it opens without a network and without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from appliance.render.html import Cell, HtmlTable, render_page
from appliance.render.svg import Axes, Series, plot
from loadtests.estimates import Interval
from loadtests.outcome import NOT_ERRORS
from loadtests.report import INVALID, PASS, VERDICTS, Report, SloCheck

TEMPLATE = Path(__file__).with_name("report.html.j2")
SINCE_START = "seconds since the start"
LATENCY_COLUMNS = ("p50", "p90", "p95", "p99", "max")
KINDS = {True: "good", False: "bad"}


def render(report: Report) -> str:
    """Return the page."""
    detail = (*report.models, report.about.get("url", ""), report.about.get("started", ""))
    return render_page(
        TEMPLATE,
        title=f"Load test: {report.scenario}",
        badge=VERDICTS[report.exit_code].upper(),
        kind={PASS: "good", INVALID: "odd"}.get(report.exit_code, "bad"),
        detail=" · ".join(text for text in detail if text),
        tiles=_tiles(report),
        invalid=report.invalid,
        slos=_slos(report),
        failures=_failures(report),
        over_time=_over_time(report),
        distributions=_distributions(report),
        latencies=_latencies(report),
        baseline=_baseline(report),
        search=_search(report),
        models=_models(report),
        server_plots=list(_server_plots(report)),
        server=_server(report),
        notes=report.notes,
        conditions=_conditions(report),
    )


def _tiles(report: Report) -> list[tuple[str, str]]:
    def ms(name: str, column: str) -> str:
        value = report.percentiles.get(name, {}).get(column)
        return "-" if value is None else f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"

    goodput = "-" if report.goodput is None else f"{report.goodput.value:.2f}/s"
    return [
        (goodput, f"goodput {_bounds(report.goodput)}"),
        (ms("TTFT", "p99"), f"TTFT p99 (p50 {ms('TTFT', 'p50')})"),
        (ms("TPOT", "p99"), f"TPOT p99 (p50 {ms('TPOT', 'p50')})"),
        (ms("max ITL", "max"), "longest gap between tokens"),
        (f"{report.output_tokens_per_s:,.0f}", "output tokens per second"),
        (f"{sum(report.failures.values())} of {report.requests}", "requests failed"),
        ("-" if report.fairness is None else f"{report.fairness:.3f}", f"fairness (Jain), {report.users} users"),
    ]


def _slos(report: Report) -> HtmlTable:
    def measured(check: SloCheck) -> str:
        if check.value is None:
            return "not measured"
        return f"{check.value:.2%}" if check.unit == "share" else f"{check.value:,.1f} {check.unit}"

    def bound(check: SloCheck) -> str:
        sign = "≥" if check.at_least else "≤"
        return f"{sign} {check.limit:.2%}" if check.unit == "share" else f"{sign} {check.limit:,g} {check.unit}"

    rows = [(check.name, measured(check), bound(check), _verdict(check.holds)) for check in report.checks]
    return HtmlTable(("SLO", "measured", "bound", "verdict"), rows)


def _verdict(holds: bool) -> Cell:
    return Cell("holds" if holds else "missed", KINDS[holds])


def _failures(report: Report) -> HtmlTable:
    rows = [(cause, str(count), f"{count / report.requests:.2%}") for cause, count in report.failures.items()]
    if report.cancelled:
        rows.append(("cancelled by the load test (not a failure)", str(report.cancelled), ""))
    return HtmlTable(("cause", "requests", "share"), rows)


def _over_time(report: Report) -> list[Markup]:
    times, limits = report.timeline, {check.name: check.limit for check in report.checks}
    causes = sorted({p.cause for p in report.points if p.cause and p.cause not in {str(c) for c in NOT_ERRORS}})
    good = [(p.at_s, p.ttft_ms) for p in report.points if not p.cause]
    failed = [
        Series(cause, [(p.at_s, p.e2e_ms) for p in report.points if p.cause == cause], dots=True, colour="c4")
        for cause in causes
    ]

    def axes(unit: str, limit: float | None = None) -> Axes:
        return Axes(SINCE_START, unit, limit=limit, shade=times.warmup_s)

    plots = [
        plot("Time to first token, each request", axes("ms", limits.get("TTFT p99")), [
            Series("TTFT", good, dots=True),
            Series("median", list(zip(times.at_s, times.ttft_p50_ms, strict=True)), colour="c1"),
        ]),
        plot("Longest gap between tokens, by time", axes("ms", limits.get("max ITL")), [
            Series("max ITL", list(zip(times.at_s, times.max_itl_ms, strict=True)), colour="c3"),
        ]),
        plot("Output tokens per second", axes("tok/s"), [
            Series("output tokens/s", list(zip(times.at_s, times.tokens_per_s, strict=True)), colour="c2"),
        ]),
        plot("Requests in flight", axes("requests"), [
            Series("in flight", [(at, float(count)) for at, _, _, count in times.client]),
        ]),
        plot("Failed requests, by their duration", axes("ms"), failed),
        plot("The load client", axes("% or ms"), [
            Series("CPU, % of a core", [(at, 100 * cpu) for at, cpu, _, _ in times.client], colour="c5"),
            Series("lag, ms", [(at, lag) for at, _, lag, _ in times.client], colour="c1"),
        ]),
    ]  # fmt: skip
    return [figure for figure in plots if figure]


def _distributions(report: Report) -> list[Markup]:
    plots = []
    for name in ("TTFT", "TPOT", "max ITL", "E2E", "queue wait"):
        if values := report.cdf.get(name):
            points: list[tuple[float, float | None]] = [(value, float(share)) for share, value in enumerate(values)]
            axes = Axes("ms (log)", "%", log_x=True, top=100.0)
            plots.append(plot(f"{name}: share of requests at most", axes, [Series(name, points)]))
    return plots


def _latencies(report: Report) -> HtmlTable:
    def cell(name: str, column: str, value: float) -> Cell:
        return Cell(f"{value:,.1f}", note=_bounds(report.intervals.get(f"{name} {column}")))

    rows: list[tuple[Cell | str, ...]] = [
        (name, *(cell(name, column, values[column]) for column in LATENCY_COLUMNS))
        for name, values in report.percentiles.items()
    ]
    return HtmlTable(("measure", *LATENCY_COLUMNS), rows)


def _baseline(report: Report) -> HtmlTable:
    verdicts = {"worse": Cell("worse", "bad"), "better": Cell("better", "good"), "same": Cell("intervals overlap")}
    rows = [(c.measure, _interval(c.before), _interval(c.now), verdicts[c.verdict]) for c in report.baseline]
    return HtmlTable(("measure", "before", "now", "verdict"), rows)


def _search(report: Report) -> HtmlTable:
    rows = []
    for step in report.search:
        goodput: Cell | str = "-"
        if step.requests_per_s is not None:
            goodput = _interval(Interval(step.requests_per_s, step.low, step.high))
        verdict = Cell("invalid", "odd") if step.invalid else _verdict(step.held)
        rows.append((f"{step.load:.4g}", goodput, verdict, step.why))
    return HtmlTable(("load", "goodput (requests/s)", "verdict", "reason"), rows)


def _models(report: Report) -> HtmlTable | None:
    if len(report.by_model) < 2:
        return None
    rows = []
    for name, one in report.by_model.items():
        ttft = ("-" if value is None else f"{value:,.1f}" for value in (one.ttft_p50_ms, one.ttft_p99_ms))
        rows.append((name, str(one.requests), str(one.failures), *ttft, str(one.output_tokens)))
    return HtmlTable(("model", "requests", "failed", "TTFT p50 (ms)", "TTFT p99 (ms)", "output tokens"), rows)


def _server_plots(report: Report) -> Iterator[Markup]:
    for name, source in report.server.items():
        groups: dict[str, list[Series]] = {}
        for label, values in source["series"].items():
            unit = "share" if label.endswith("perc") else "requests"
            if source["kind"] == "gpu":
                unit = label.rpartition(" ")[2]
            groups.setdefault(unit, []).append(Series(label, list(zip(source["at_s"], values, strict=False))))
        for unit, series in groups.items():
            yield plot(f"{name}: {unit}", Axes(SINCE_START, unit), series)


def _server(report: Report) -> HtmlTable:
    rows: list[tuple[Cell | str, ...]] = []
    for name, source in report.server.items():
        rows += [(name, f"mean {what}", f"{ms:,.1f} ms") for what, ms in source.get("mean_ms", {}).items()]
        rows += [(name, what, f"{count:,.0f}") for what, count in source.get("counted", {}).items()]
        if (hits := source.get("prefix_cache_hit_rate")) is not None:
            rows.append((name, "prefix cache hits", f"{hits:.1%}"))
    return HtmlTable(("source", "metric", "during the run"), rows, left=2)


def _conditions(report: Report) -> HtmlTable:
    tokens, client = report.tokens, report.client
    rows = [
        *((name, str(value)) for name, value in report.parameters.items()),
        ("prompts sized by", tokens.sizing),
        ("prompt size p50, counted", _number(tokens.first_prompts_counted)),
        ("prompt size p50, requested", _number(tokens.first_prompts_wanted)),
        ("tokens: prompt, cached, completion", f"{tokens.prompt}, {tokens.cached}, {tokens.completion}"),
        ("tokens per chunk", _number(tokens.completion / tokens.chunks if tokens.chunks else None, 2)),
        ("requests of the warm-up, not measured", str(report.warmup_requests)),
        ("client CPU mean, max", f"{_number(client.cpu_mean, 2)}, {_number(client.cpu_max, 2)} of a core"),
        ("client lag p95, max", f"{_number(client.lag_p95_ms, 1)}, {_number(client.lag_max_ms, 1)} ms"),
        ("late sending p99 (open loops)", f"{_number(client.late_p99_ms, 1)} ms"),
        ("stale connections reopened", str(client.reconnects)),
    ]
    return HtmlTable(("parameter", "value"), rows)


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _bounds(one: Interval | None) -> str:
    if one is None or one.low is one.high is None:
        return ""
    low, high = (
        "…" if bound is None else f"{bound:,.2f}" if bound < 10 else f"{bound:,.1f}"
        for bound in (one.low, one.high)
    )
    return f"({low} to {high})"


def _interval(one: Interval) -> Cell:
    return Cell(f"{one.value:,.2f}", note=_bounds(one))
