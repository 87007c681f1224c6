"""The results as a table in README.md and as plots; everything in them comes from results.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

GOALS = {
    "plain requests/s on one core, 64 connections, over direct": (">= 0.15", "0.23"),
    "added TTFT at 100 streams, p50/p99 (ms)": ("<= 1 / 4", "0.5 / 1"),
    "CPU-seconds per million chunks, 200 streams at 50 tok/s": ("<= 45 and <= 2 x nginx", "30"),
    "memory (PSS) after a million requests (MB)": ("<= 80, flat", "50"),
    "a quiet user's TTFT p95 beside a user with 64 long requests, over alone": ("<= 1.5", "1.2"),
    "prefix-cache hit rate over 2 real vLLM replicas, over one replica's": (">= 0.9", "1"),
    "requests lost over 20 swaps under load": ("0", "0"),
    "one of two real vLLM replicas killed under 50 streams": ("only streams begun on it break, each told", ""),
}


def figure(results: dict[str, Any], name: str, measure: str, pick: Callable[[dict[str, Any]], Any]) -> float | None:
    """Median over the rounds; ``None`` where it was not measured."""
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


def seen(results: dict[str, Any]) -> list[str]:
    """What was seen for each of :data:`GOALS`, in their order."""
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
        f"{killed['completed']} of {killed['streams']} completed, {killed['broken']} broke, "
        f"{killed['broken_with_error_event']} of them told, {killed['broken_elsewhere']} on the other replica"
        if "broken" in killed
        else "-",
    ]


def table(results: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    lines = ["| measure, all features on | must | aim | seen |", "|---|---|---|---|"]
    for (name, (must, aim)), value in zip(GOALS.items(), seen(results), strict=True):
        lines.append(f"| {name} | {must} | {aim} | {value} |")
    head = (
        "subject", "version", "plain req/s", "over direct", "added TTFT p50/p99 ms", "CPU-s per 1M chunks",
        "over nginx", "PSS MB", "errors",
    )  # fmt: skip
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    direct, nginx = rate(results, "direct"), per_million(results, "nginx")
    for name, entry in results["subjects"].items():
        if "failed" in entry and not entry["measures"]:
            said = " ".join(entry["failed"].split())[:100].replace("|", "/")
            lines.append(f"| {name} | {entry['version']} | did not run: {said} |" + " |" * (len(head) - 3))
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
    """The whole README."""
    where = results["conditions"]
    steal = max(
        (e["steal"] for s in results["subjects"].values() for m in s["measures"].values() for e in m), default=0.0
    )
    return f"""# The gateway, measured

`make bench` measures everything below in one run on one machine and rewrites this page, `results.json` and the
plots. `make bench ARGS="--only gateway,nginx --measures plain,paced"` measures a part and prints it.

{table(results)}

**Conditions.** {where["date"]}, {where["cpu"]}, {where["cores"]} cores, kernel {where["kernel"]}, Python
{where["python"]}. What is measured runs on core {where["gateway_core"]}; the load client and two engines on core
{where["load_and_engine_core"]}. {results["rounds"]} rounds, the second in reversed order; figures are medians over
the rounds, ratios are taken within the run. At most {steal:.1%} of the core's time was stolen by other machines.
The run took {results["took_s"]} s.

**All features on** means: four users with keys and limits, token buckets, the fair queue, two replicas with sticky
routing, the media check, usage rows in SQLite, metrics.

**The engine** (`engine.py`) is as lean as Python allows, because a slow engine would flatter whatever stands before
it: it and the client share a core and are the limit of the direct rate. Streams are paced (20 ms between tokens):
without a pace whoever merges most tokens per read looks fastest. CPU time is the process tree's own, in nanoseconds
from schedstat; the kernel's work for loopback packets, which no process is charged for, is in the whole core's
`core_s_per_million` of results.json.

**LiteLLM** cannot carry 100 streams on one core; its streams are measured with 8.

![Plain requests per second over direct](plain.svg)
![CPU-seconds per million chunks](chunks.svg)
![Memory over a million requests](memory.svg)
"""


def write(results: dict[str, Any], folder: Path) -> None:
    """README.md and the plots."""
    (folder / "README.md").write_text(readme(results))
    direct = rate(results, "direct")
    names = [name for name in results["subjects"] if name != "direct"]
    plain = [(n, v) for n in names if (v := ratio(rate(results, n), direct)) is not None]
    chunks = [(n, v) for n in names if (v := per_million(results, n)) is not None]
    (folder / "plain.svg").write_text(bars("Plain requests/s on one core, over direct (more is better)", plain, 3))
    (folder / "chunks.svg").write_text(bars("CPU-seconds per million chunks (less is better)", chunks, 1))
    samples = results["own"].get("memory", {}).get("pss_mb", [])
    (folder / "memory.svg").write_text(line("PSS in MB over a million requests", samples))


STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#222}.t{font-weight:600}.b{fill:#8aa4c8}.o{fill:#d9822b}"
    ".a{stroke:#999;fill:none}.l{stroke:#d9822b;stroke-width:2;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.b{fill:#5f7da6}}</style>"
)


def bars(title: str, values: list[tuple[str, float]], digits: int) -> str:
    """Horizontal bars, the longest as wide as the plot; ours in another colour."""
    most = max((value for _, value in values), default=1.0)
    height = 40 + 26 * len(values)
    parts = [f'<text class="t" x="10" y="20">{title}</text>']
    for i, (name, value) in enumerate(sorted(values, key=lambda pair: -pair[1])):
        y = 36 + 26 * i
        width = max(1.0, 420 * value / most)
        kind = "o" if name == "gateway" else "b"
        parts.append(f'<text x="120" y="{y + 14}" text-anchor="end">{name}</text>')
        parts.append(f'<rect class="{kind}" x="128" y="{y}" width="{width:.1f}" height="18" rx="2"/>')
        parts.append(f'<text x="{134 + width:.1f}" y="{y + 14}">{value:,.{digits}f}</text>')
    return _svg(640, height, parts)


def line(title: str, values: list[float]) -> str:
    """A line from zero up, one point per 100,000 requests."""
    most = max([*values, 80.0])
    points = " ".join(f"{60 + 50 * i},{180 - 140 * v / most:.1f}" for i, v in enumerate(values))
    limit = 180 - 140 * 80 / most
    parts = [
        f'<text class="t" x="10" y="20">{title}</text>',
        '<path class="a" d="M60 40V180H570"/>',
        f'<path class="a" stroke-dasharray="4 4" d="M60 {limit:.1f}H570"/>',
        f'<text x="52" y="{limit + 4:.1f}" text-anchor="end">80</text>',
        '<text x="52" y="184" text-anchor="end">0</text>',
        '<text x="570" y="200" text-anchor="end">1,000,000</text>',
        f'<polyline class="l" points="{points}"/>',
    ]
    if values:
        parts.append(f'<text x="576" y="{184 - 140 * values[-1] / most:.1f}">{values[-1]:.1f}</text>')
    return _svg(640, 210, parts)


def _svg(width: int, height: int, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"{STYLE}{''.join(parts)}</svg>\n"
    )
