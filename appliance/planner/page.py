"""One self-contained HTML page of a plan: no script from elsewhere, no font, no network.

Pure: data in, text out. Charts are inline SVG, with their figures as tooltips and as tables.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from math import log10
from typing import Any

STYLE = """
:root{--ink:#16202a;--soft:#5b6875;--line:#d8dee4;--back:#fff;--panel:#f5f7f9;
--a:#2563a8;--b:#c98a1b;--c:#2e8b68;--d:#e3e7eb}
@media (prefers-color-scheme:dark){:root{--ink:#e6ebf0;--soft:#9aa7b3;--line:#33404c;--back:#12181e;
--panel:#1a222a;
--a:#6aa6e8;--b:#e0b055;--c:#5fc39a;--d:#2a343e}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1080px;padding:32px 24px 64px;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:24px;margin:0 0 4px;line-height:1.25}
h2{font-size:17px;margin:36px 0 10px}
p{margin:4px 0;color:var(--soft)}
ul{margin:12px 0;padding-left:20px}
li{margin:3px 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th{color:var(--soft);font-weight:600;white-space:nowrap}
td:first-child,th:first-child,.l{text-align:left}
tr.best td{background:var(--panel);font-weight:600}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));
gap:12px;margin:20px 0}
.tile{background:var(--panel);border-radius:8px;padding:12px 14px}
.tile b{display:block;font-size:22px}
.tile span{color:var(--soft);font-size:13px}
.key{display:inline-block;width:11px;height:11px;border-radius:2px;margin:0 5px 0 14px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:20px}
@media(max-width:520px){.charts{display:block}}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--soft);font:12px system-ui,sans-serif}
figure{margin:0}
figcaption{font-weight:600;margin-bottom:4px}
""".strip()


def page(data: dict[str, Any]) -> str:
    """The page for what :func:`appliance.planner.plan_report.as_json` gives."""
    best = data["recommended"]
    cards = "; ".join(
        f"{machine['name']}: {', '.join(_counted(machine['cards'])) or 'no cards'}, "
        f"{machine['ram_gib']:g} GiB of RAM"
        for machine in data["machines"]
    )
    demand = data["demand"]
    asked = f"{demand['users']} users, {demand['chats']} open chats, "
    asked += f"a message every {demand['think_s']:g} s in each,"
    body = [
        f"<h1>{escape(best['title'])}</h1>",
        f"<p>{asked} on {escape(cards)}.</p>",
        _tiles(data),
        "<ul>" + "".join(f"<li>{escape(reason)}</li>" for reason in data["reasons"]) + "</ul>",
        "<h2>Memory per card</h2>",
        _memory(data["memory"]),
        "<h2>Throughput and latency</h2>",
        '<div class="charts">'
        + "".join(_curve(name, points) for name, points in data["curves"].items() if points)
        + "</div>",
        "<p>Each point is a number of answers in flight; the band is the 80 % interval.</p>",
        "<h2>Alternatives</h2>",
        _alternatives(data["alternatives"]),
        "<h2>In front of real people</h2>",
        _simulation(data["simulation"]),
        "<h2>What would change</h2>",
        _changes(data["changes"]),
    ]
    raw = json.dumps(data).replace("<", "\\u003c")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Plan</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head><body>{''.join(body)}"
        f'<script type="application/json" id="plan">{raw}</script></body></html>\n'
    )


def _counted(names: Sequence[str]) -> list[str]:
    return [f"{list(names).count(name)} x {name}" for name in dict.fromkeys(names)]


def _tiles(data: dict[str, Any]) -> str:
    best = data["recommended"]
    inside = sum(queue["chats_inside"] for queue in data["simulation"])
    chats = sum(queue["chats"] for queue in data["simulation"])
    breaks = min((queue["breaks_at_chats"] for queue in data["simulation"]), default=0)
    tiles = [
        (f"{best['headroom']:.1f}x", "of the demand carried within the SLO"),
        (f"{best['tpot_ms']:.0f} ms", "per token for the slowest model"),
        (f"{inside} of {chats}", "simulated chats stay inside the SLO"),
        (str(breaks), "chats of the tightest model before it breaks"),
        ("yes" if best["resilient"] else "no", "survives the loss of one card"),
    ]
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in tiles
        )
        + "</div>"
    )


def _memory(bars: list[dict[str, Any]]) -> str:
    if not bars:
        return "<p>No card is used.</p>"
    left, width, height = 190, 590, 26
    rows = []
    for place, bar in enumerate(bars):
        y = place * 36
        x = float(left)
        rows.append(f'<text x="0" y="{y + 17}">{escape(bar["card"])} · {escape(bar["model"])[:18]}</text>')
        rows.append(f'<rect x="{left}" y="{y}" width="{width}" height="{height}" rx="3" fill="var(--d)"/>')
        for part, colour in (("weights", "a"), ("working", "b"), ("kv", "c")):
            wide = bar[part] / bar["total"] * width
            tip = f"{part}: {bar[part]:.1f} of {bar['total']:.1f} GiB"
            rows.append(
                f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{height}" fill="var(--{colour})">'
                f"<title>{tip}</title></rect>"
            )
            x += wide
        note = f"{bar['weights']:.1f} + {bar['working']:.1f} + {bar['kv']:.1f} GiB · {bar['kv_tokens']:,} tokens"
        rows.append(f'<text x="{left + width + 10}" y="{y + 17}">{note}</text>')
    keys = "".join(
        f'<span class="key" style="background:var(--{colour})"></span>{name}'
        for name, colour in (("weights", "a"), ("working space", "b"), ("KV cache", "c"), ("left free", "d"))
    )
    tall = len(bars) * 36
    drawing = f'viewBox="0 0 1060 {tall}" role="img" aria-label="Memory per card">{"".join(rows)}'
    return f'<p>{keys}</p><div class="scroll"><svg style="min-width:760px" {drawing}</svg></div>'


def _curve(name: str, points: list[dict[str, float]]) -> str:
    """Time per token over throughput, both on logarithmic axes."""
    width, height, left, bottom, right, top = 480, 300, 52, 40, 16, 14
    xs = [point[key] for point in points for key in ("low", "high")]
    ys = [point["tpot_ms"] for point in points]
    x0, x1 = log10(min(xs) * 0.9), log10(max(xs) * 1.1)
    y0, y1 = log10(min(ys) * 0.8), log10(max(ys) * 1.25)

    def at_x(value: float) -> float:
        return left + (log10(value) - x0) / (x1 - x0) * (width - left - right)

    def at_y(value: float) -> float:
        return height - bottom - (log10(value) - y0) / (y1 - y0) * (height - bottom - top)

    grid = []
    for value in _ticks(10**x0, 10**x1):
        grid.append(_line(at_x(value), at_x(value), top, height - bottom))
        grid.append(_text(at_x(value), height - bottom + 16, "middle", f"{value:,.0f}"))
    for value in _ticks(10**y0, 10**y1):
        grid.append(_line(left, width - right, at_y(value), at_y(value)))
        grid.append(_text(left - 6, at_y(value) + 4, "end", f"{value:,.0f}"))
    band = [f"{at_x(point['low']):.1f},{at_y(point['tpot_ms']):.1f}" for point in points]
    band += [f"{at_x(point['high']):.1f},{at_y(point['tpot_ms']):.1f}" for point in reversed(points)]
    line = " ".join(f"{at_x(point['tok_s']):.1f},{at_y(point['tpot_ms']):.1f}" for point in points)
    dots = []
    for point in points:
        x, y = at_x(point["tok_s"]), at_y(point["tpot_ms"])
        tip = f"{point['in_flight']:.0f} in flight: {point['tok_s']:.0f} tok/s "
        tip += f"({point['low']:.0f} to {point['high']:.0f}), "
        tip += f"{point['tpot_ms']:.1f} ms per token, TTFT {point['ttft_ms']:.0f} ms"
        dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="var(--a)"><title>{tip}</title></circle>')
        dots.append(_text(x - 8, y - 8, "end", f"{point['in_flight']:.0f}"))
    return (
        f'<figure><figcaption>{escape(name)}</figcaption><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Throughput and latency of {escape(name)}">{"".join(grid)}'
        f'<polygon points="{" ".join(band)}" fill="var(--a)" opacity="0.15"/>'
        f'<polyline points="{line}" fill="none" stroke="var(--a)" stroke-width="2"/>{"".join(dots)}'
        f"{_text((left + width - right) / 2, height - 6, 'middle', 'output tok/s, all replicas')}"
        f'<text transform="translate(12 {(height - bottom + top) / 2}) rotate(-90)" '
        'text-anchor="middle">ms per token</text>'
        "</svg></figure>"
    )


def _line(x0: float, x1: float, y0: float, y1: float) -> str:
    return f'<line x1="{x0:.1f}" x2="{x1:.1f}" y1="{y0:.1f}" y2="{y1:.1f}" stroke="var(--line)"/>'


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    found = [base * 10.0**power for power in range(-2, 8) for base in (1, 2, 5)]
    inside = [value for value in found if low <= value <= high]
    return inside if len(inside) <= 8 else inside[:: len(inside) // 6]


def _table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], left: int = 1) -> str:
    def cell(tag: str, place: int, text: str) -> str:
        side = ' class="l"' if place < left else ""
        return f"<{tag}{side}>{escape(text)}</{tag}>"

    head = "".join(cell("th", place, text) for place, text in enumerate(heads))
    body = "".join(
        f'<tr class="{kind}">' + "".join(cell("td", place, text) for place, text in enumerate(cells)) + "</tr>"
        for kind, cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _alternatives(plans: list[dict[str, Any]]) -> str:
    rows = [
        (
            "best" if place == 0 else "",
            [
                plan["title"],
                plan["best_at"],
                f"{plan['headroom']:.2f}x",
                f"{plan['tpot_ms']:.0f}",
                f"{plan['ttft_ms']:.0f}",
                f"{plan['chats_of_full_context']:.0f}",
                str(plan["spare_cards"]),
            ],
        )
        for place, plan in enumerate(plans)
    ]
    return _table(("topology", "best at", "headroom", "ms/token", "TTFT ms", "long chats", "spare cards"), rows, 2)


def _simulation(queues: list[dict[str, Any]]) -> str:
    if not queues:
        return "<p>No model here answers token by token.</p>"
    rows = [
        (
            "",
            [
                queue["model"],
                " / ".join(f"{queue['ttft_s'][name]:.2f}" for name in ("p50", "p95", "p99")),
                f"{queue['tpot_s']['p50'] * 1e3:.0f} / {queue['tpot_s']['p99'] * 1e3:.0f}",
                f"{queue['chats_inside']} of {queue['chats']}",
                f"{queue['users_inside']} of {queue['users']}",
                f"{queue['requests_inside']:.1%}",
                str(queue["breaks_at_chats"]),
            ],
        )
        for queue in queues
    ]
    heads = (
        "model",
        "TTFT p50/p95/p99 s",
        "ms/token p50/p99",
        "chats inside",
        "users inside",
        "requests inside",
        "breaks at chats",
    )
    return _table(heads, rows)


def _changes(changes: list[dict[str, Any]]) -> str:
    rows = []
    for change in changes:
        plan = change["plan"]
        if plan is None:
            rows.append(("", [change["what"], "nothing would fit", "", ""]))
        else:
            rows.append(("", [change["what"], plan["title"], f"{plan['headroom']:.2f}x", f"{plan['tpot_ms']:.0f}"]))
    return _table(("with", "then best", "headroom", "ms/token"), rows, 2)
