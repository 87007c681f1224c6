"""The results as tables in README.md and as plots; all figures are those of results.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from appliance.render import svg
from appliance.render.svg import Scale

GOALS = {
    "plain requests/s on one core, 64 connections, over direct": (">= 0.15", "0.23"),
    "added TTFT at 100 streams, p50/p99 (ms)": ("<= 1 / 4", "0.5 / 1"),
    "CPU-seconds per million chunks, 200 streams at 50 tok/s": ("<= 45 and <= 2 x nginx", "30"),
    "memory (PSS) after a million requests (MB)": ("<= 80, flat", "50"),
    "a quiet user's TTFT p95 during 64 long requests of another, over alone": ("<= 1.5", "1.2"),
    "prefix-cache hit rate over 2 real vLLM replicas, over one replica's": (">= 0.9", "1"),
    "requests lost over 20 swaps under load": ("0", "0"),
    "one of two real vLLM replicas killed under 50 streams": (
        "only streams begun on it fail, each with an error event",
        "",
    ),
}


def figure(results: dict[str, Any], name: str, measure: str, pick: Callable[[dict[str, Any]], Any]) -> float | None:
    """Return the median over the rounds; ``None`` if it was not measured."""
    entries = results["subjects"].get(name, {}).get("measures", {}).get(measure, [])
    values = [value for entry in entries if (value := pick(entry)) is not None]
    return statistics.median(values) if values else None


def rate(results: dict[str, Any], name: str) -> float | None:
    return figure(results, name, "plain", lambda e: e["requests_per_s"])


def added_ttft(results: dict[str, Any], name: str, point: str) -> float | None:
    own = figure(results, name, "ttft", lambda e: e["ttft_ms"][point])
    direct = figure(results, "direct", "ttft", lambda e: e["ttft_ms"][point])
    return None if own is None or direct is None else own - direct


def per_million(results: dict[str, Any], name: str) -> float | None:
    return figure(results, name, "paced", lambda e: e.get("cpu_s_per_million"))


def ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def show(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def measured(results: dict[str, Any]) -> list[str]:
    """Return the figure of each of :data:`GOALS`, in their order."""
    own = results["own"]
    chunks, nginx = per_million(results, "gateway"), per_million(results, "nginx")
    memory, fairness, prefix = own.get("memory", {}), own.get("fairness", {}), own.get("prefix", {})
    swaps, killed = own.get("swaps", {}), own.get("killed", {})
    return [
        show(ratio(rate(results, "gateway"), rate(results, "direct")), 3),
        f"{show(added_ttft(results, 'gateway', 'p50'))} / {show(added_ttft(results, 'gateway', 'p99'))}",
        f"{show(chunks, 1)} ({show(ratio(chunks, nginx))} x nginx)",
        f"{show(memory.get('last_mb'), 1)}, {show(memory.get('slope_mb_per_100k'), 3)} per 100,000",
        show(fairness.get("ratio")),
        show(prefix.get("ratio"), 3),
        f"{swaps['lost']} of {swaps['requests']} over {swaps['swaps']}" if "lost" in swaps else "-",
        f"{killed['completed']} of {killed['streams']} completed, {killed['broken']} failed, "
        f"{killed['broken_with_error_event']} with an error event, {killed['broken_elsewhere']} on the other"
        if "broken" in killed
        else "-",
    ]


def table(results: dict[str, Any]) -> str:
    """Return both tables as Markdown."""
    lines = ["| measure, all features on | must | aim | measured |", "|---|---|---|---|"]
    for (name, (must, aim)), value in zip(GOALS.items(), measured(results), strict=True):
        lines.append(f"| {name} | {must} | {aim} | {value} |")
    head = (
        "subject", "version", "plain req/s", "over direct", "added TTFT p50/p99 ms", "CPU-s per 1M chunks",
        "over nginx", "PSS MB", "errors",
    )  # fmt: skip
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    direct, nginx = rate(results, "direct"), per_million(results, "nginx")
    for name, entry in results["subjects"].items():
        if "failed" in entry and not entry["measures"]:
            reason = " ".join(entry["failed"].split())[:100].replace("|", "/")
            lines.append(f"| {name} | {entry['version']} | did not run: {reason} |" + " |" * (len(head) - 3))
            continue
        errors = sum(sum(e["errors"].values()) for m in entry["measures"].values() for e in m)
        few = any(e["connections"] == 8 for m in entry["measures"].values() for e in m)
        cells = [
            name + (" (8 streams)" if few else ""),
            entry["version"],
            show(rate(results, name), 0),
            show(ratio(rate(results, name), direct), 3),
            f"{show(added_ttft(results, name, 'p50'))} / {show(added_ttft(results, name, 'p99'))}",
            show(per_million(results, name), 1),
            show(ratio(per_million(results, name), nginx)),
            show(figure(results, name, "paced", lambda e: e.get("pss_mb")), 1),
            str(errors),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def readme(results: dict[str, Any]) -> str:
    """Return the README."""
    where = results["conditions"]
    steal = max(
        (e["steal"] for s in results["subjects"].values() for m in s["measures"].values() for e in m), default=0.0
    )
    return f"""# The gateway, measured

`make bench` runs all measurements below in one run on one machine and rewrites this page, `results.json` and the
plots. `make bench ARGS="--only gateway,nginx --measures plain,paced"` measures a part and prints it.

{table(results)}

**Conditions.** {where["date"]}, {where["cpu"]}, {where["cores"]} cores, kernel {where["kernel"]}, Python
{where["python"]}. The subject runs on core {where["gateway_core"]}, the load client and two engines on core
{where["load_and_engine_core"]}. {results["rounds"]} rounds, the second in reversed order; figures are medians over
the rounds, ratios are within the run. At most {steal:.1%} of the core's time was stolen by other machines.
The run took {results["took_s"]} s.

**All features on** means: four users with keys and limits, token buckets, the fair queue, sticky routing over two
replicas. The media check, usage records in SQLite and metrics are on as well.

**Engine and client** of the load (`engine.py`, `client.py`) are as lean as Python allows. They share a core and
limit the direct rate, so slow ones would flatter every proxy. The mock engine takes 21.5 µs of CPU time for a plain
request and `engine.py` 7.3 µs; the client of `appliance loadtest` takes 84 µs. Together that is more than the
gateway's 57 µs or nginx's 16 µs: the load's core would be the limit. Fairness, swaps and prefix cache need no such
rate and use the mock engine, real vLLM and the load test's client.

Streams are paced (20 ms between tokens): without a pace the proxy that merges most tokens per read looks fastest.
CPU time is that of the process tree, in nanoseconds from schedstat. The kernel's work for loopback packets is
charged to no process; it is in `core_s_per_million` of results.json, the time of the whole core.

**LiteLLM** cannot carry 100 streams on one core; it is measured with 8.

![Plain requests per second over direct](plain.svg)
![CPU-seconds per million chunks](chunks.svg)
![Memory over a million requests](memory.svg)
"""


def write(results: dict[str, Any], folder: Path) -> None:
    """Write README.md and the plots."""
    (folder / "README.md").write_text(readme(results))
    direct = rate(results, "direct")
    names = [name for name in results["subjects"] if name != "direct"]
    plain = [(n, v) for n in names if (v := ratio(rate(results, n), direct)) is not None]
    chunks = [(n, v) for n in names if (v := per_million(results, n)) is not None]
    (folder / "plain.svg").write_text(bars("Plain requests/s on one core, over direct (more is better)", plain, 3))
    (folder / "chunks.svg").write_text(bars("CPU-seconds per million chunks (less is better)", chunks, 1))
    samples = results["own"].get("memory", {}).get("pss_mb", [])
    (folder / "memory.svg").write_text(line("PSS in MB over a million requests", samples))


STYLE = Markup(
    "text{font:13px system-ui,sans-serif;fill:#222}.title{font-weight:600}.peer{fill:#8aa4c8}.gateway{fill:#d9822b}"
    ".axis{stroke:#999;fill:none}.limit{stroke:#999;stroke-dasharray:4 4}"
    ".line{stroke:#d9822b;stroke-width:2;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.peer{fill:#5f7da6}}"
)


def bars(title: str, values: list[tuple[str, float]], digits: int) -> str:
    """Draw horizontal bars, the longest as wide as the plot, the gateway in a colour of its own."""
    most = max((value for _, value in values), default=1.0)
    width = Scale(0.0, most, 0.0, 420.0)
    parts = [svg.text(10, 20, title, kind="title")]
    for index, (name, value) in enumerate(sorted(values, key=lambda pair: -pair[1])):
        y = 36 + 26 * index
        wide = max(1.0, width(value))
        parts.append(svg.text(120, y + 14, name, anchor="end"))
        parts.append(svg.rect(128, y, wide, 18, kind="gateway" if name == "gateway" else "peer", radius=2))
        parts.append(svg.text(134 + wide, y + 14, f"{value:,.{digits}f}"))
    return svg.drawing(640, 40 + 26 * len(values), parts, label=title, style=STYLE)


def line(title: str, values: list[float]) -> str:
    """Draw a line with a point per 100,000 requests, from zero up, and the limit of 80 MB."""
    x, y = Scale(0.0, 10.0, 60.0, 560.0), Scale(0.0, max([*values, 80.0]), 180.0, 40.0)
    points = [(x(index), y(value)) for index, value in enumerate(values)]
    parts = [
        svg.text(10, 20, title, kind="title"),
        svg.line(60, 40, 60, 180, kind="axis"),
        svg.line(60, 180, 570, 180, kind="axis"),
        svg.line(60, y(80), 570, y(80), kind="limit"),
        svg.text(52, y(80) + 4, "80", anchor="end"),
        svg.text(52, 184, "0", anchor="end"),
        svg.text(570, 200, "1,000,000", anchor="end"),
        svg.polyline(points, kind="gateway"),
    ]
    if points:
        parts.append(svg.text(576, points[-1][1] + 4, f"{values[-1]:.1f}"))
    return svg.drawing(640, 210, parts, label=title, style=STYLE)
