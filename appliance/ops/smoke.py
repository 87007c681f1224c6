"""The smoke test: Locust in a process of its own against a running gateway, and its verdict as a table."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from appliance.config import Site, Smoke
from appliance.engines.control import run_step
from appliance.errors import StartError, StoreError, UsageError
from loadtests import report as reports
from loadtests.parameters import Limits, Plan
from loadtests.report import Report
from loadtests.run import command, environment
from loadtests.scenarios import SCENARIOS


def default_model(site: Site) -> str:
    """The first generating model that an engine serves; raises :class:`UsageError` where none does."""
    for engine in site.engines.values():
        if site.models[engine.model].task == "generate":
            return engine.model
    raise UsageError("no engine of this configuration generates text; the smoke test needs one")


async def run(smoke: Smoke, *, url: str, key: str, model: str, folder: Path) -> Report:
    """Run the smoke load against ``url``. The key travels in the environment, never in arguments.

    Raises :class:`StartError` when Locust itself fails; its log lies in ``folder``. Raises :class:`StoreError`
    where ``folder`` takes neither its log nor its report.
    """
    result, log = folder / "smoke.json", folder / "log" / "smoke.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        result.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError.unwritable(log, error) from None
    size = {
        "users": smoke.users,
        "requests": smoke.requests_per_user,
        "output_tokens": (smoke.max_tokens, smoke.max_tokens),
    }
    parameters = SCENARIOS["smoke"].defaults.model_copy(update=size)
    # A machine that has just booted is late now and then; that must not make its proof invalid.
    limits = Limits(cpu_share=1.0, lag_ms=5000)
    plan = Plan(scenario="smoke", parameters=parameters, models=(model,), slo=smoke.slo, limits=limits)
    code = await run_step(command(plan, url), log=log, environment=environment(plan, [key], None, result))
    try:
        return Report.from_json(result.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        if os.statvfs(folder).f_bavail == 0:
            # Its log could not say so either.
            raise StoreError(f"{folder} is full: the load test left no report; free space on its disk") from None
        raise StartError(f"the smoke test ended with code {code} and no whole report; see {log}") from None
    except OSError as error:
        raise StoreError(f"{result} cannot be read ({error.strerror}); `journalctl -k` says why") from None


def show(report: Report, console: Console, *, subject: str) -> None:
    """The verdict as a table: what was asked, what came, what holds."""
    table = Table(title=f"Smoke test of {subject}", title_justify="left")
    for column in ("measure", "p50", "p95", "p99", "SLO", "verdict"):
        table.add_column(column, justify="left" if column in ("measure", "verdict") else "right")
    checks = {check.name.removesuffix(" p99"): check for check in report.checks}
    for name, values in report.percentiles.items():
        check = checks.get(name)
        limit = f"p99 <= {check.limit:.0f}" if check else ""
        cells = [f"{values[p]:.1f}" for p in ("p50", "p95", "p99")]
        table.add_row(f"{name} (ms)", *cells, limit, _word(check))
    errors = checks["errors"]
    failed = sum(report.failures.values())
    table.add_row(
        "failed requests", "", "", f"{failed} of {report.requests}", f"<= {errors.limit:.0%}", _word(errors)
    )
    console.print(table)
    for cause, count in sorted(report.failures.items()):
        console.print(f"  {count} x {cause}", style="red", highlight=False)
    rate = f"{report.output_tokens_per_s:.0f} output tokens/s over {report.duration_s:.1f} s"
    verdict = {
        reports.PASS: "[bold green]PASS[/]: every SLO holds",
        reports.MISSED: "[bold red]FAIL[/]: an SLO is missed",
        reports.INVALID: "[bold red]INVALID[/]: no request was made",
    }[report.exit_code]
    console.print(f"{verdict}; {rate}", highlight=False)


def _word(check: reports.Check | None) -> str:
    if check is None:
        return ""
    return "[green]holds[/]" if check.holds else "[red]missed[/]"
