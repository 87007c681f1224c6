"""A plan, a prediction and an evaluation as text and tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1

from rich.console import Console
from rich.table import Table

from appliance.contract.card_memory import GIB
from appliance.planner.evaluate import RowResult, Summary, by_group, summarise
from appliance.planner.nearest import FAR, NearRun
from appliance.planner.plan_report import PlanReport, memory_bars
from appliance.planner.throughput import Prediction

BAR_WIDTH = 40


def show_plan(console: Console, report: PlanReport) -> None:
    """Print the recommendation, its reasons, alternatives, memory, simulation and changes."""
    best, demand = report.advice.best, report.demand
    cards = ", ".join(
        f"{machine.name}: {_cards(machine.cards)}, {machine.ram_gib:g} GiB" for machine in report.machines
    )
    console.print(f"[bold]{best.title}[/bold]")
    console.print(f"for {demand.users} users, {demand.chats} chats on {cards}\n", highlight=False)
    for reason in report.advice.reasons:
        console.print(f"- {reason}", highlight=False)
    table = Table(title="Alternatives", title_justify="left")
    for name in ("topology", "best at", "headroom", "ms/token", "TTFT ms", "long chats", "spare"):
        table.add_column(name, justify="left" if name in {"topology", "best at"} else "right")
    for plan, what in report.advice.alternatives:
        table.add_row(
            plan.title,
            what,
            f"{plan.headroom:.2f}x",
            f"{plan.tpot_ms:.0f}",
            f"{plan.ttft_ms:.0f}",
            f"{plan.context_room:.0f}",
            str(plan.spare_cards),
        )
    console.print(table)
    _show_memory(console, report)
    for part in best.parts:
        if part.candidate.model.name in report.near:
            console.print(
                f"\nPublic measurements nearest to {part.candidate.model.name}, limited by {part.candidate.limit}:",
                highlight=False,
            )
            show_nearest(console, report.near[part.candidate.model.name])
    _show_queues(console, report)
    if report.changes:
        table = Table(title="Effect of changes", title_justify="left")
        for name in ("with", "then best", "headroom", "ms/token"):
            table.add_column(name)
        for change in report.changes:
            plan_or = change.plan
            if plan_or is None:
                table.add_row(change.what, "nothing would fit", "", "")
            else:
                table.add_row(change.what, plan_or.title, f"{plan_or.headroom:.2f}x", f"{plan_or.tpot_ms:.0f}")
        console.print(table)


def _cards(cards: Sequence[object]) -> str:
    names = [getattr(card, "name", "") for card in cards]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "no cards"


def _show_memory(console: Console, report: PlanReport) -> None:
    bars = memory_bars(report.advice.best)
    if not bars:
        return
    table = Table(title="Memory per card (GiB)", title_justify="left")
    for name in ("card", "model", "weights # working + KV cache =", "weights", "working", "KV", "KV tokens"):
        table.add_column(name)
    for bar in bars:
        unit = BAR_WIDTH / bar["total"]
        drawn = (
            "#" * round(bar["weights"] * unit) + "+" * round(bar["working"] * unit) + "=" * round(bar["kv"] * unit)
        )
        table.add_row(
            bar["card"],
            bar["model"],
            drawn.ljust(BAR_WIDTH, "."),
            f"{bar['weights']:.1f}",
            f"{bar['working']:.1f}",
            f"{bar['kv']:.1f}",
            f"{bar['kv_tokens']:,}",
        )
    console.print(table)


def _show_queues(console: Console, report: PlanReport) -> None:
    if not report.queues:
        return
    table = Table(title="Simulated (chats, and n8n's batches on top)", title_justify="left")
    for name in (
        "model",
        "TTFT p50/p95/p99 s",
        "ms/token p50/p99",
        "chats inside",
        "users inside",
        "breaks at",
    ):
        table.add_column(name)
    for queue in report.queues:
        one = queue.outcome
        table.add_row(
            queue.model,
            "/".join(f"{value:.2f}" for value in one.ttft),
            f"{one.tpot[0] * 1e3:.0f}/{one.tpot[2] * 1e3:.0f}",
            f"{one.chats_inside} of {one.chats}",
            f"{one.users_inside} of {one.users}",
            f"{queue.breaking_point} chats",
        )
    console.print(table)


def show_prediction(console: Console, prediction: Prediction, near: Sequence[NearRun] = ()) -> None:
    """Print throughput, latency, limit, memory and the nearest measurements of one workload."""
    step = prediction.step
    console.print(
        f"[bold]{prediction.output_tok_s:.0f} tok/s[/bold] of output (80 %: {prediction.low:.0f} to "
        f"{prediction.high:.0f}), "
        f"TTFT {prediction.ttft_ms:.0f} ms, {prediction.tpot_ms:.1f} ms per token, "
        f"{prediction.running:.0f} running",
        highlight=False,
    )
    console.print(
        f"limited by {prediction.limit}; one step: memory {step.memory * 1e3:.2f} ms, arithmetic "
        f"{step.compute * 1e3:.2f}, "
        f"launches {step.floor * 1e3:.2f}, links {step.communication * 1e3:.2f}, host {step.host * 1e3:.2f}",
        highlight=False,
    )
    memory = prediction.memory
    console.print(
        f"per card: {memory.weights / GIB:.1f} GiB of weights, {memory.overhead / GIB:.1f} working, "
        f"{max(memory.kv, 0) / GIB:.1f} KV cache = {memory.kv_tokens:,} tokens",
        highlight=False,
    )
    if prediction.shift:
        console.print(
            f"measurements of this machine change the rate by {expm1(prediction.shift):+.0%}", highlight=False
        )
    if near and near[0].distance >= FAR:
        console.print("no public measurement is near: use the interval, not the number", highlight=False)
    show_nearest(console, near)


def show_nearest(console: Console, near: Sequence[NearRun]) -> None:
    """Print the nearest public measurements with their distances and sources."""
    for one in near:
        differs = ", ".join(one.differences) or "the same conditions"
        console.print(
            f"distance {one.distance:.2f}: {one.run.truth:.0f} tok/s measured, {one.predicted:.0f} predicted: "
            f"{one.title}",
            highlight=False,
        )
        console.print(f"  differs in {differs}\n  {one.source}", highlight=False, markup=False, soft_wrap=True)


def show_evaluation(console: Console, results: Sequence[RowResult]) -> None:
    """Print the errors over a file, then by group, then the refused rows."""
    table = Table(title="ln(predicted / true) of output tok/s", title_justify="left")
    for name in ("group", "rows", "answered", "median", "p90", "inside 80 %", "rank"):
        table.add_column(name, justify="left" if name == "group" else "right")
    table.add_row("all", *_figures(summarise(results)), style="bold")
    for (model, card), group in by_group(results).items():
        table.add_row(f"{model} on {card}", *_figures(summarise(group)))
    console.print(table)
    for result in results:
        if result.refused:
            console.print(f"line {result.line}: refused: {result.refused}", highlight=False)


def _figures(summary: Summary) -> list[str]:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    counts = [str(summary.rows), str(summary.answered)]
    return counts + [shown(value) for value in (summary.median, summary.p90, summary.inside, summary.rank)]
