"""The load of the smoke test: Locust in a process of its own against a running gateway, the verdict as a table."""

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
from loadtests.run import run
from loadtests.scenarios import SCENARIOS


def default_model(site: Site) -> str:
    """Return the first generating model that an engine serves; raises :class:`UsageError` if there is none."""
    for engine in site.engines.values():
        if site.models[engine.model].task == "generate":
            return engine.model
    raise UsageError("no engine of this configuration generates text; the smoke test needs one")


def command(site: Site, args: argparse.Namespace, key: str, stop: Stop) -> int:
    """Run ``appliance smoke`` without ``--reports``; the exit code: 1 for a missed SLO, 2 for an invalid run.

    The report of ``--json`` is also written if ``stop`` ended the run.
    """
    url = args.url or f"http://{site.gateway.host}:{site.gateway.port}"
    model = args.model or default_model(site)
    with Outputs({"--json": args.json}, stop) as outputs:
        report = run_load(site.smoke, url=url, key=key, model=model, folder=site.data_path(Path.cwd()), stop=stop)
        console = long_run_console()
        deliver(
            report,
            outputs,
            stop=stop,
            renderers={"--json": report.to_json},
            show=lambda _: show(report, console, subject=model),
        )
    return report.exit_code


def run_load(smoke: Smoke, *, url: str, key: str, model: str, folder: Path, stop: Stop) -> Report:
    """Run the smoke load against ``url``, until ``stop`` ends it. The key is never in arguments or files.

    The report is also written to ``folder``, as smoke.json. Raises :class:`UnprovenError` if Locust itself fails;
    its log is in ``folder``. Raises :class:`StoreError` if log or report cannot be written to ``folder``.
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
    # On a machine that has just booted the client is late at times; that must not invalidate the run.
    limits = LoadLimits(cpu_share=1.0, lag_ms=5000)
    plan = LoadPlan(scenario="smoke", parameters=parameters, models=(model,), slo=smoke.slo, limits=limits)
    try:
        with tempfile.TemporaryDirectory(prefix="appliance-smoke-") as own:
            report = run(plan, url=url, keys=[key], folder=Path(own), log=log, stop=stop)
        result.write_text(report.to_json())
    except OSError as error:
        raise StoreError.unwritable(Path(error.filename or result), error) from None
    return report


def show(report: Report, console: Console, *, subject: str) -> None:
    """Print the verdict as a table: latencies, failed requests, SLOs."""
    table = Table(title=f"Smoke test of {subject}", title_justify="left")
    for column in ("measure", "p50", "p95", "p99", "SLO", "verdict"):
        table.add_column(column, justify="left" if column in ("measure", "verdict") else "right")
    checks = {check.name.removesuffix(" p99"): check for check in report.checks}
    for name, values in report.percentiles.items():
        check = checks.get(name)
        limit = f"p99 <= {check.limit:.0f}" if check else ""
        cells = [f"{values[p]:.1f}" for p in ("p50", "p95", "p99")]
        table.add_row(f"{name} (ms)", *cells, limit, _verdict(check))
    errors = checks["errors"]
    failed = sum(report.failures.values())
    table.add_row(
        "failed requests", "", "", f"{failed} of {report.requests}", f"<= {errors.limit:.0%}", _verdict(errors)
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


def _verdict(check: reports.SloCheck | None) -> str:
    if check is None:
        return ""
    return "[green]holds[/]" if check.holds else "[red]missed[/]"
