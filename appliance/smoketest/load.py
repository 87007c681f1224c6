"""The smoke test: Locust in a process of its own against a running gateway, and its verdict as a table."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from appliance.contract.model import Site, Smoke
from appliance.errors import StoreError, UsageError
from appliance.render.terminal import long_run_console
from appliance.system.stopping import Stop
from loadtests import report as reports
from loadtests.outputs import Outputs, deliver
from loadtests.parameters import LoadLimits, LoadPlan
from loadtests.report import Report
from loadtests.run import run as loadtest
from loadtests.scenarios import SCENARIOS


def default_model(site: Site) -> str:
    """The first generating model that an engine serves; raises :class:`UsageError` where none does."""
    for engine in site.engines.values():
        if site.models[engine.model].task == "generate":
            return engine.model
    raise UsageError("no engine of this configuration generates text; the smoke test needs one")


def command(site: Site, args: argparse.Namespace, key: str, stop: Stop) -> int:
    """Run ``appliance smoke`` without ``--reports``; the exit code: 1 for a missed SLO, 2 for a run without proof.

    The report of ``--json`` is written also where ``stop`` ended the run.
    """
    url = args.url or f"http://{site.gateway.host}:{site.gateway.port}"
    model = args.model or default_model(site)
    with Outputs({"--json": args.json}, stop) as outputs:
        report = run(site.smoke, url=url, key=key, model=model, folder=site.data_path(Path.cwd()), stop=stop)
        deliver(
            report,
            outputs,
            stop,
            {"--json": report.to_json},
            lambda _: show(report, long_run_console(), subject=model),
        )
    return report.exit_code


def run(smoke: Smoke, *, url: str, key: str, model: str, folder: Path, stop: Stop) -> Report:
    """Run the smoke load against ``url``, until ``stop`` ends it. The key never is in arguments or files.

    The report is kept in ``folder`` too, as smoke.json. Raises :class:`UnprovenError` when Locust itself fails; its
    log is in ``folder``. Raises :class:`StoreError` where ``folder`` takes neither its log nor its report.
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
    limits = LoadLimits(cpu_share=1.0, lag_ms=5000)
    plan = LoadPlan(scenario="smoke", parameters=parameters, models=(model,), slo=smoke.slo, limits=limits)
    try:
        with tempfile.TemporaryDirectory(prefix="appliance-smoke-") as own:
            report = loadtest(plan, url=url, keys=[key], folder=Path(own), log=log, stop=stop)
        result.write_text(report.to_json())
    except OSError as error:
        raise StoreError.unwritable(Path(error.filename or result), error) from None
    return report


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
        reports.INVALID: f"[bold red]INVALID[/]: {escape('; '.join(report.invalid) or 'no request was made')}",
    }[report.exit_code]
    console.print(f"{verdict}; {rate}", highlight=False)


def _word(check: reports.SloCheck | None) -> str:
    if check is None:
        return ""
    return "[green]holds[/]" if check.holds else "[red]missed[/]"
