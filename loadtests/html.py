"""A report as one page: everything is inside it, it opens without a network and without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from loadtests.estimates import Interval
from loadtests.outcome import NOT_ERRORS
from loadtests.plots import Axes, Series, plot
from loadtests.report import INVALID, PASS, VERDICTS, Report, SloCheck

STYLE = """
:root{color-scheme:light dark;--ink:#1d2330;--soft:#5d6675;--line:#dfe3ea;--card:#fff;--page:#f4f6f9;
--good:#12805c;--bad:#c62f2f;--odd:#a86200;--c0:#2f6fd0;--c1:#d9731a;--c2:#12805c;--c3:#9b4fc4;--c4:#c62f2f;
--c5:#6b7686}@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#9aa4b4;--line:#323a47;
--card:#1c222c;--page:#12161d;--good:#4cc499;--bad:#f2726f;--odd:#e0a040;--c0:#72a6f2;--c1:#f0a05a;
--c2:#4cc499;--c3:#c58ae6;--c4:#f2726f;--c5:#9aa4b4}}*{box-sizing:border-box}body{margin:0;
background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}main{max-width:1180px;
margin:0 auto;padding:24px 20px 60px}h1{font-size:22px;margin:0}h2{font-size:17px;margin:32px 0 10px}
header{display:flex;gap:14px;align-items:center;flex-wrap:wrap}.soft{color:var(--soft)}
.badge{padding:3px 12px;border-radius:99px;color:#fff;font-weight:600;letter-spacing:.03em}
.pass{background:#12805c}.missed{background:#c62f2f}.invalid{background:#a86200}.cards{display:grid;
grid-template-columns:repeat(auto-fit,minmax(145px,1fr));gap:12px;margin-top:18px}
.card,figure,.box{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px;
margin:0}.card b{display:block;font-size:22px;line-height:1.3}.card span{color:var(--soft);font-size:13px}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(460px,100%),1fr));gap:14px}
figcaption{font-weight:600;margin-bottom:4px}svg{width:100%;height:auto;display:block}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}svg .unit{font-style:italic}
.grid{stroke:var(--line);stroke-width:1}.line{fill:none;stroke-width:1.8}.limit{stroke:var(--bad);
stroke-dasharray:5 4;fill:none}.warm{fill:var(--line);opacity:.5}.legend{display:flex;gap:14px;
flex-wrap:wrap;color:var(--soft);font-size:13px}.legend i{display:inline-block;width:10px;height:10px;
border-radius:3px;margin-right:5px}.legend .lim{background:none;border-top:2px dashed var(--bad);height:0;
border-radius:0;width:16px;vertical-align:middle}table{border-collapse:collapse;width:100%}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--line)}th{color:var(--soft);
font-weight:500}th:first-child,td:first-child,td.l,th.l{text-align:left}tr:last-child td{border:0}
.holds{color:var(--good)}.miss{color:var(--bad)}.odd{color:var(--odd)}.scroll{overflow-x:auto}ul{margin:0;
padding-left:20px}code{font-size:13px}
""" + "".join(
    f"path.c{i}{{stroke:var(--c{i})}}circle.c{i}{{fill:var(--c{i});opacity:.65}}i.c{i}{{background:var(--c{i})}}"
    for i in range(6)
)


def render(report: Report) -> str:
    """The page."""
    kind = "pass" if report.exit_code == PASS else "invalid" if report.exit_code == INVALID else "missed"
    title = f"Load test: {report.scenario}"
    where = " · ".join(
        escape(text)
        for text in (*report.models, report.about.get("url", ""), report.about.get("started", ""))
        if text
    )
    sections = [
        _cards(report),
        _sentences("Why this run proves nothing", report.invalid, "odd"),
        _slos(report),
        _failures(report),
        f'<h2>Over time</h2><div class="plots">{_over_time(report)}</div>',
        f'<h2>Distributions</h2><div class="plots">{_distributions(report)}</div>',
        _latencies(report),
        _baseline(report),
        _search(report),
        _models(report),
        _server(report),
        _sentences("Notes", tuple(report.notes), "odd"),
        _conditions(report),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<header><span class="badge {kind}">{VERDICTS[report.exit_code].upper()}</span><h1>{escape(title)}</h1>'
        f'<span class="soft">{where}</span></header>{"".join(sections)}</main></body></html>\n'
    )


def _cards(report: Report) -> str:
    def p(name: str, point: str) -> str:
        value = report.percentiles.get(name, {}).get(point)
        return "-" if value is None else f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"

    failed = sum(report.failures.values())
    goodput = "-" if report.goodput is None else f"{report.goodput.value:.2f}/s"
    cards = [
        (goodput, f"goodput {_bounds(report.goodput)}"),
        (p("TTFT", "p99"), f"TTFT p99 (p50 {p('TTFT', 'p50')})"),
        (p("TPOT", "p99"), f"TPOT p99 (p50 {p('TPOT', 'p50')})"),
        (p("max ITL", "max"), "longest silence between tokens"),
        (f"{report.output_tokens_per_s:,.0f}", "output tokens per second"),
        (f"{failed} of {report.requests}", "requests failed"),
        ("-" if report.fairness is None else f"{report.fairness:.3f}", f"fairness (Jain), {report.users} users"),
    ]
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in cards
        )
        + "</div>"
    )


def _slos(report: Report) -> str:
    def seen(check: SloCheck) -> str:
        if check.value is None:
            return "not measured"
        return f"{check.value:.2%}" if check.unit == "share" else f"{check.value:,.1f} {check.unit}"

    def bound(check: SloCheck) -> str:
        sign = "≥" if check.at_least else "≤"
        return f"{sign} {check.limit:.2%}" if check.unit == "share" else f"{sign} {check.limit:,g} {check.unit}"

    rows = [
        (check.name, seen(check), bound(check), _word("holds" if check.holds else "miss", check.holds))
        for check in report.checks
    ]
    return "<h2>SLOs</h2>" + _table(("SLO", "seen", "bound", "verdict"), rows)


def _word(kind: str, holds: bool) -> str:
    return f'<span class="{kind}">{"holds" if holds else "missed"}</span>'


def _failures(report: Report) -> str:
    rows = [
        (escape(cause), str(count), f"{count / report.requests:.2%}") for cause, count in report.failures.items()
    ]
    if report.cancelled:
        rows.append(("cancelled by us (no failure)", str(report.cancelled), ""))
    return "<h2>Errors by cause</h2>" + _table(("cause", "requests", "share"), rows) if rows else ""


def _over_time(report: Report) -> str:
    line, limits = report.timeline, {check.name: check.limit for check in report.checks}
    at = line.at_s
    causes = sorted({p.cause for p in report.points if p.cause and p.cause not in {str(c) for c in NOT_ERRORS}})
    good = [(p.at_s, p.ttft_ms) for p in report.points if not p.cause]
    failed = [
        Series(cause, [(p.at_s, p.e2e_ms) for p in report.points if p.cause == cause], dots=True, colour="c4")
        for cause in causes
    ]
    base = {"x": "seconds since the start", "shade": line.warmup_s}
    plots = [
        plot("Time to first token, each request", Axes(y="ms", limit=limits.get("TTFT p99"), **base), [  # type: ignore[arg-type]
            Series("TTFT", good, dots=True),
            Series("median", list(zip(at, line.ttft_p50_ms, strict=True)), colour="c1"),
        ]),
        plot("Longest silence between tokens, by time", Axes(y="ms", limit=limits.get("max ITL"), **base), [  # type: ignore[arg-type]
            Series("max ITL", list(zip(at, line.max_itl_ms, strict=True)), colour="c3"),
        ]),
        plot("Output tokens per second", Axes(y="tok/s", **base), [  # type: ignore[arg-type]
            Series("output tokens/s", list(zip(at, line.tokens_per_s, strict=True)), colour="c2"),
        ]),
        plot("Requests in flight", Axes(y="requests", **base), [  # type: ignore[arg-type]
            Series("in flight", [(t, float(n)) for t, _, _, n in line.client]),
        ]),
        plot("Failed requests, by their duration", Axes(y="ms", **base), failed) if failed else "",  # type: ignore[arg-type]
        plot("The load client itself", Axes(y="% or ms", **base), [  # type: ignore[arg-type]
            Series("CPU, % of a core", [(t, 100 * cpu) for t, cpu, _, _ in line.client], colour="c5"),
            Series("lag, ms", [(t, lag) for t, _, lag, _ in line.client], colour="c1"),
        ]),
    ]  # fmt: skip
    return "".join(plots)


def _distributions(report: Report) -> str:
    found = []
    for name in ("TTFT", "TPOT", "max ITL", "E2E", "queue wait"):
        values = report.cdf.get(name)
        if values:
            points: list[tuple[float, float | None]] = [(value, float(point)) for point, value in enumerate(values)]
            found.append(
                plot(
                    f"{name}: share of requests at most",
                    Axes("ms (log)", "%", log=True, top=100.0),
                    [Series(name, points)],
                )
            )
    return "".join(found)


def _latencies(report: Report) -> str:
    points = ("p50", "p90", "p95", "p99", "max")
    rows = []
    for name, values in report.percentiles.items():
        cells = []
        for point in points:
            around = _bounds(report.intervals.get(f"{name} {point}"))
            small = f' <span class="soft">{escape(around)}</span>' if around else ""
            cells.append(f"{values[point]:,.1f}{small}")
        rows.append((escape(name), *cells))
    return "<h2>Latencies in ms, with 95 % intervals</h2>" + _table(("measure", *points), rows)


def _baseline(report: Report) -> str:
    words = {
        "worse": '<span class="miss">worse</span>',
        "better": '<span class="holds">better</span>',
        "same": "intervals touch",
    }
    rows = [(escape(c.measure), _interval(c.before), _interval(c.now), words[c.verdict]) for c in report.baseline]
    return "<h2>Against the baseline</h2>" + _table(("measure", "before", "now", "verdict"), rows) if rows else ""


def _search(report: Report) -> str:
    rows = []
    for step in report.search:
        goodput = (
            "-" if step.requests_per_s is None else _interval(Interval(step.requests_per_s, step.low, step.high))
        )
        word = (
            '<span class="odd">invalid</span>'
            if step.invalid
            else _word("holds" if step.held else "miss", step.held)
        )
        rows.append((f"{step.load:.4g}", goodput, word, escape(step.why)))
    heads = ("load", "goodput (requests/s)", "verdict", "why")
    return "<h2>Search for the highest load that holds</h2>" + _table(heads, rows) if rows else ""


def _models(report: Report) -> str:
    if len(report.by_model) < 2:
        return ""
    rows = []
    for name, one in report.by_model.items():
        ttft = ("-" if value is None else f"{value:,.1f}" for value in (one.ttft_p50_ms, one.ttft_p99_ms))
        rows.append((escape(name), str(one.requests), str(one.failures), *ttft, str(one.output_tokens)))
    heads = ("model", "requests", "failed", "TTFT p50 (ms)", "TTFT p99 (ms)", "output tokens")
    return "<h2>By model</h2>" + _table(heads, rows)


def _server(report: Report) -> str:
    plots, rows = [], []
    for name, seen in report.server.items():
        at, series = seen["at_s"], seen["series"]
        groups: dict[str, list[Series]] = {}
        for label, values in series.items():
            unit = (
                label.rpartition(" ")[2]
                if seen["kind"] == "gpu"
                else ("share" if label.endswith("perc") else "requests")
            )
            groups.setdefault(unit, []).append(Series(label, list(zip(at, values, strict=False))))
        plots += [
            plot(f"{name}: {unit}", Axes("seconds since the start", unit), own) for unit, own in groups.items()
        ]
        rows += [
            (escape(name), f"mean {escape(what)}", f"{ms:,.1f} ms") for what, ms in seen.get("mean_ms", {}).items()
        ]
        rows += [
            (escape(name), f"<code>{escape(what)}</code>", f"{n:,.0f}")
            for what, n in seen.get("counted", {}).items()
        ]
        if (hits := seen.get("prefix_cache_hit_rate")) is not None:
            rows.append((escape(name), "prefix cache hits", f"{hits:.1%}"))
    if not plots and not rows:
        return ""
    table = _table(("source", "figure", "over the run"), rows, left=2) if rows else ""
    return f'<h2>What gateway, engines and cards say</h2><div class="plots">{"".join(plots)}</div><br>{table}'


def _conditions(report: Report) -> str:
    tokens, client = report.tokens, report.client
    rows = [(escape(name), escape(str(value))) for name, value in report.parameters.items()]
    rows += [
        ("prompts sized by", escape(tokens.sizing)),
        ("prompt size p50, counted", _plain(tokens.first_prompts_counted)),
        ("prompt size p50, wanted", _plain(tokens.first_prompts_wanted)),
        ("tokens: prompt, cached, completion", f"{tokens.prompt}, {tokens.cached}, {tokens.completion}"),
        ("tokens per chunk", _plain(tokens.completion / tokens.chunks if tokens.chunks else None, 2)),
        ("requests of the warm-up, left out", str(report.warmup_requests)),
        ("client CPU mean, max", f"{_plain(client.cpu_mean, 2)}, {_plain(client.cpu_max, 2)} of a core"),
        ("client lag p95, max", f"{_plain(client.lag_p95_ms, 1)}, {_plain(client.lag_max_ms, 1)} ms"),
        ("late sending p99 (open loops)", f"{_plain(client.late_p99_ms, 1)} ms"),
        ("stale connections opened anew", str(client.reconnects)),
    ]  # fmt: skip
    return "<h2>Conditions</h2>" + _table(("what", "value"), rows)


def _sentences(title: str, texts: tuple[str, ...], kind: str) -> str:
    items = "".join(f'<li class="{kind}">{escape(text)}</li>' for text in texts)
    return f'<h2>{title}</h2><div class="box"><ul>{items}</ul></div>' if texts else ""


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], left: int = 1) -> str:
    """Cells are HTML already, heads are ours."""
    kind = ['class="l"' if place < left else "" for place in range(len(heads))]
    head = "".join(f"<th {k}>{name}</th>" for k, name in zip(kind, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td {k}>{cell}</td>" for k, cell in zip(kind, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="box scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _plain(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _bounds(one: Interval | None) -> str:
    if one is None or one.low is one.high is None:
        return ""
    low, high = (
        "…" if bound is None else f"{bound:,.2f}" if bound < 10 else f"{bound:,.1f}"
        for bound in (one.low, one.high)
    )
    return f"({low} to {high})"


def _interval(one: Interval) -> str:
    return f'{one.value:,.2f} <span class="soft">{_bounds(one)}</span>'
