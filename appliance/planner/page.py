"""A plan as one self-contained HTML page: it loads no script, font or image.

Pure: data in, text out. Charts are inline SVG, with their figures as tooltips and as tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from appliance.render import svg
from appliance.render.html import Cell, HtmlTable, render_page

TEMPLATE = Path(__file__).with_name("page.html.j2")
MEMORY_PARTS = (("weights", "weights", "c0"), ("working", "working space", "c1"), ("kv", "KV cache", "c2"))
"""Key, name and colour of each part of a card's memory."""


def page(data: dict[str, Any]) -> str:
    """Return the page for the plan in ``data``, a result of :func:`appliance.planner.plan_report.as_json`."""
    best = data["recommended"]
    return render_page(
        TEMPLATE,
        title=best["title"],
        demand=_demand(data),
        tiles=_tiles(data),
        reasons=data["reasons"],
        memory=_memory(data["memory"]),
        curves=[_curve(name, points) for name, points in data["curves"].items() if points],
        alternatives=_alternatives(data["alternatives"]),
        simulation=_simulation(data["simulation"]),
        nearest=_nearest(data["nearest"], best["parts"]),
        changes=_changes(data["changes"]),
        data=htmlsafe_json_dumps(data),
    )


def _demand(data: dict[str, Any]) -> str:
    machines = "; ".join(
        f"{machine['name']}: {', '.join(_counted(machine['cards'])) or 'no cards'}, "
        f"{machine['ram_gib']:g} GiB of RAM"
        for machine in data["machines"]
    )
    demand = data["demand"]
    return (
        f"{demand['users']} users, {demand['chats']} open chats, "
        f"a message every {demand['think_s']:g} s in each, on {machines}."
    )


def _counted(names: Sequence[str]) -> list[str]:
    return [f"{list(names).count(name)} x {name}" for name in dict.fromkeys(names)]


def _tiles(data: dict[str, Any]) -> list[tuple[str, str]]:
    best = data["recommended"]
    inside = sum(queue["chats_inside"] for queue in data["simulation"])
    chats = sum(queue["chats"] for queue in data["simulation"])
    breaks = min((queue["breaks_at_chats"] for queue in data["simulation"]), default=0)
    return [
        (f"{best['headroom']:.1f}x", "of the demand carried within the SLO"),
        (f"{best['tpot_ms']:.0f} ms", "per token for the slowest model"),
        (f"{inside} of {chats}", "simulated chats stay within the SLO"),
        (str(breaks), "chats at which the tightest model misses the SLO"),
        ("yes" if best["resilient"] else "no", "survives the loss of one card"),
    ]


def _memory(bars: list[dict[str, Any]]) -> Markup:
    """Return a bar per card with the parts of its memory; empty if no card is used."""
    if not bars:
        return Markup()
    left, width, row = 190.0, 590.0, 36.0
    parts = []
    for index, bar in enumerate(bars):
        y, x = index * row, left
        parts.append(svg.text(0, y + 17, f"{bar['card']} · {bar['model'][:18]}"))
        parts.append(svg.rect(left, y, width, 26, kind="free", radius=3))
        for key, name, colour in MEMORY_PARTS:
            wide = bar[key] / bar["total"] * width
            tip = f"{name}: {bar[key]:.1f} of {bar['total']:.1f} GiB"
            parts.append(svg.rect(x, y, wide, 26, kind=colour, tip=tip))
            x += wide
        sizes = " + ".join(f"{bar[key]:.1f}" for key, _, _ in MEMORY_PARTS)
        parts.append(svg.text(left + width + 10, y + 17, f"{sizes} GiB · {bar['kv_tokens']:,} tokens"))
    legend = [svg.legend_entry(colour, name) for _, name, colour in MEMORY_PARTS]
    legend.append(svg.legend_entry("free", "free"))
    drawing = svg.drawing(1060, len(bars) * row, parts, label="Memory per card")
    wide_drawing = Markup('<div class="scroll"><div class="wide">{}</div></div>').format(drawing)
    return svg.figure("", wide_drawing, legend)


def _curve(name: str, points: list[dict[str, float]]) -> Markup:
    """Return the plot of the time per token over the throughput, both logarithmic."""
    area = [(point["low"], point["tpot_ms"]) for point in points]
    area += [(point["high"], point["tpot_ms"]) for point in reversed(points)]
    marks = [(f"{point['in_flight']:.0f}", _tip(point)) for point in points]
    line = svg.Series(name, [(point["tok_s"], point["tpot_ms"]) for point in points], marks=marks, area=area)
    axes = svg.Axes("output tok/s, all replicas", "ms per token", log_x=True, log_y=True)
    return svg.plot(name, axes, [line], height=320, legend=False)


def _tip(point: dict[str, float]) -> str:
    throughput = f"{point['tok_s']:.0f} tok/s ({point['low']:.0f} to {point['high']:.0f})"
    latency = f"{point['tpot_ms']:.1f} ms per token, TTFT {point['ttft_ms']:.0f} ms"
    return f"{point['in_flight']:.0f} in flight: {throughput}, {latency}"


def _alternatives(plans: list[dict[str, Any]]) -> HtmlTable:
    rows = [
        (
            plan["title"],
            plan["best_at"],
            f"{plan['headroom']:.2f}x",
            f"{plan['tpot_ms']:.0f}",
            f"{plan['ttft_ms']:.0f}",
            f"{plan['chats_of_full_context']:.0f}",
            str(plan["spare_cards"]),
        )
        for plan in plans
    ]
    heads = ("topology", "best at", "headroom", "ms/token", "TTFT ms", "long chats", "spare cards")
    return HtmlTable(heads, rows, left=2, best=0)


def _simulation(queues: list[dict[str, Any]]) -> HtmlTable:
    rows = [
        (
            queue["model"],
            " / ".join(f"{queue['ttft_s'][name]:.2f}" for name in ("p50", "p95", "p99")),
            f"{queue['tpot_s']['p50'] * 1e3:.0f} / {queue['tpot_s']['p99'] * 1e3:.0f}",
            f"{queue['chats_inside']} of {queue['chats']}",
            f"{queue['users_inside']} of {queue['users']}",
            f"{queue['requests_inside']:.1%}",
            str(queue["breaks_at_chats"]),
        )
        for queue in queues
    ]
    heads = (
        "model",
        "TTFT p50/p95/p99 s",
        "ms/token p50/p99",
        "chats within SLO",
        "users within SLO",
        "requests within SLO",
        "SLO missed at chats",
    )
    return HtmlTable(heads, rows)


def _nearest(found: dict[str, list[dict[str, Any]]], parts: list[dict[str, Any]]) -> HtmlTable:
    """Return the table of the public measurements nearest to each model, with links to their sources."""
    limits = {part["model"]: part["limit"] for part in parts}
    rows = []
    for model, runs in found.items():
        for run in runs:
            source = run["source"]
            link = source if source.startswith(("https://", "http://")) else ""
            rows.append(
                (
                    model,
                    limits.get(model, ""),
                    Cell(run["title"], link=link, note="" if link else source),
                    ", ".join(run["differences"]) or "the same conditions",
                    f"{run['measured_tok_s']:.0f}",
                    f"{run['predicted_tok_s']:.0f}",
                    f"{run['distance']:.2f}",
                )
            )
    heads = ("model", "limited by", "measurement", "differs in", "measured tok/s", "predicted tok/s", "distance")
    return HtmlTable(heads, rows, left=4)


def _changes(changes: list[dict[str, Any]]) -> HtmlTable:
    rows = []
    for change in changes:
        plan = change["plan"]
        if plan is None:
            rows.append((change["what"], "no plan fits", "", ""))
        else:
            rows.append((change["what"], plan["title"], f"{plan['headroom']:.2f}x", f"{plan['tpot_ms']:.0f}"))
    return HtmlTable(("with", "best plan", "headroom", "ms/token"), rows, left=2)
