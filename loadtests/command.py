"""``appliance loadtest``: from options to a plan, from runs to reports."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from appliance.contract.load import load
from appliance.contract.model import LoadTest, Site, Slo
from appliance.errors import ApplianceError, UnprovenError, UsageError
from appliance.render.terminal import long_run_console
from appliance.system import text_file
from appliance.system.proxy import route
from appliance.system.stopping import Stop, Stopped, listening
from loadtests import html, junit, terminal
from loadtests.baseline import compare, differences
from loadtests.client import Target
from loadtests.collect import Collector
from loadtests.options import LoadTestOptions, validated
from loadtests.outputs import Outputs, deliver
from loadtests.parameters import LoadLimits, LoadPlan, Parameters
from loadtests.report import INTERRUPTED, INVALID, PASS, Report, summarise
from loadtests.run import run
from loadtests.scenarios import SCENARIOS, Scenario
from loadtests.scrape import Source
from loadtests.search import Search, SearchStep
from loadtests.service import first_model, has_metrics, preflight
from loadtests.token_costs import TokenCosts
from loadtests.tokenizer_probe import TokenizerUnavailableError, by_tokenizer, by_usage


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets of the load, and the engines behind them."""

    url: str
    keys: tuple[str, ...]
    models: tuple[str, ...]
    engines: tuple[str, ...]
    site: Site | None


def command(options: LoadTestOptions) -> int:
    """Run a load test; the exit code: 1 for a report with a missed SLO, 2 for every other failure."""
    console = long_run_console()
    with listening() as stop:
        try:
            return _command(options, console, stop)
        except Stopped:
            raise UnprovenError(f"{stop.reason} ended the load test before its report was complete") from None
        except ApplianceError as error:
            if error.exit_code == INVALID:
                raise
            raise UnprovenError(str(error)) from error
        except OSError as error:
            raise UnprovenError(f"the load test failed ({error}); free this resource of the machine") from error


def _command(options: LoadTestOptions, console: Console, stop: Stop) -> int:
    scenario = _scenario(options.scenario)
    site = _site(options)
    contract = LoadTest() if site is None else site.loadtest
    parameters = _parameters(options, scenario, contract)
    slo = validated(Slo, contract.slo.model_dump() | dict(options.slo))
    limits = validated(LoadLimits, LoadLimits().model_dump() | dict(options.limits))
    before = _baseline(options, scenario, parameters)
    address, keys = _address(options, site), api_keys(options.keys, required=options.url is None)
    plan = LoadPlan(scenario=scenario.name, parameters=parameters, models=options.models, slo=slo, limits=limits)
    with Outputs(options.outputs, stop) as outputs:
        try:
            with stop.until(1):
                targets = _targets(options, scenario, site=site, url=address, keys=keys)
                plan = plan.model_copy(update={"models": targets.models})
                _check_context(parameters, targets)
                target = Target(
                    targets.url, targets.keys[0], timeout_s=parameters.timeout_s, stall_s=parameters.stall_s
                )
                preflight(target, targets.models, targets.keys[1 : parameters.users])
                token_costs, notes = _token_costs(targets, parameters)
            plan = plan.sized_by(token_costs)
            report = _run(
                options, plan, scenario=scenario, targets=targets, outputs=outputs, console=console, stop=stop
            )
            report.notes[:0] = notes
        except Stopped:
            report = _stopped_report(plan, stop)
        if before is not None and report.exit_code != INVALID:
            report.baseline = compare(before, report)
        subject = f"Load test {scenario.name} of {', '.join(plan.models)}"
        renderers = {
            "--json": report.to_json,
            "--junit": lambda: junit.render(report),
            "--html": lambda: html.render(report),
        }

        def display(first: bool) -> None:
            if first:
                terminal.show(report, console, subject=subject)
            else:
                console.print(terminal.verdict(report))

        deliver(report, outputs, stop=stop, renderers=renderers, show=display)
    return report.exit_code


def _run(
    options: LoadTestOptions,
    plan: LoadPlan,
    scenario: Scenario,
    targets: Targets,
    outputs: Outputs,
    console: Console,
    stop: Stop,
) -> Report:
    with tempfile.TemporaryDirectory(prefix="appliance-loadtest-") as folder:
        if options.find_goodput:
            report = _search(
                options, plan, scenario=scenario, targets=targets, folder=Path(folder), console=console, stop=stop
            )
        else:
            report = _run_once(plan, targets, folder=Path(folder), console=console, stop=stop)
        if "--samples" in outputs:
            outputs.write("--samples", Path(folder) / "samples.jsonl")
    return report


def _stopped_report(plan: LoadPlan, stop: Stop) -> Report:
    """Return the report of a run that was stopped before its load."""
    report = summarise(Collector(notes=[f"{INTERRUPTED} by {stop.reason}"]), plan)
    report.about = {"started": datetime.now(UTC).isoformat(timespec="seconds")}
    return report


def list_scenarios() -> None:
    """Print the scenarios with their sizes."""
    table = Table(title="Scenarios", title_justify="left")
    for name in ("scenario", "loop", "size", "description"):
        table.add_column(name)
    for scenario in SCENARIOS.values():
        p = scenario.defaults
        span = f"{p.requests} requests each" if p.requests else f"{p.duration_s:g} s"
        rate = f", {p.rate:g}/s" if scenario.open_loop else ""
        tokens = (
            f"{p.prompt_tokens[0]}-{p.prompt_tokens[1]} tokens in, {p.output_tokens[0]}-{p.output_tokens[1]} out"
        )
        size = f"{p.users} users{rate}, {span}, {tokens}"
        table.add_row(scenario.name, "open" if scenario.open_loop else "closed", size, scenario.text)
    long_run_console().print(table)


def _scenario(name: str) -> Scenario:
    if name not in SCENARIOS:
        raise UsageError(f"scenario {name!r} does not exist; there are {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


def _site(options: LoadTestOptions) -> Site | None:
    # With an address no configuration is needed: any gateway can be tested from any machine.
    if options.url is not None and not options.config.exists():
        return None
    return load(options.config)


def _parameters(options: LoadTestOptions, scenario: Scenario, contract: LoadTest) -> Parameters:
    given = dict(options.parameters)
    if "requests" in given and "duration_s" not in given:
        # A number of requests without a limit of time.
        given["duration_s"] = None
    table = scenario.defaults.model_dump() | {"seed": contract.seed} | given
    parameters: Parameters = validated(Parameters, table)
    if parameters.duration_s is not None and parameters.warmup >= parameters.duration_s:
        raise UsageError(
            f"--warmup of {parameters.warmup:g} s leaves no time of --duration {parameters.duration_s:g} s"
        )
    return parameters


def _baseline(options: LoadTestOptions, scenario: Scenario, parameters: Parameters) -> Report | None:
    if options.baseline is None:
        return None
    try:
        before = Report.from_json(text_file.read(options.baseline, name=f"--baseline {options.baseline}").encode())
    except msgspec.DecodeError:
        raise UsageError(f"--baseline {options.baseline}: not a report of `appliance loadtest --json`") from None
    if before.exit_code == INVALID:
        raise UsageError(f"--baseline {options.baseline}: that run was invalid; name a valid one")
    if options.find_goodput:
        return before
    if different := differences(before, scenario.name, parameters.model_dump(mode="json")):
        raise UsageError(f"--baseline {options.baseline}: {different[0]}; compare runs of the same load")
    return before


def _address(options: LoadTestOptions, site: Site | None) -> str:
    if options.url is None:
        assert site is not None  # noqa: S101 - without an address the configuration was loaded
        return f"http://{site.gateway.host}:{site.gateway.port}"
    url = str(options.url).rstrip("/").removesuffix("/v1")
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--url {options.url}: begin it with http:// or https://")
    for one in (url, *options.engine_urls):
        # Checked before the first request; each request looks up the proxy again.
        route(one)
    return url


def _targets(
    options: LoadTestOptions, scenario: Scenario, site: Site | None, url: str, keys: tuple[str, ...]
) -> Targets:
    models = options.models
    if not models:
        models = (first_model(url, keys[0], site),) if scenario.models == 1 else ()
    if len(models) != scenario.models:
        raise UsageError(f"scenario {scenario.name} needs {scenario.models} model(s), --model names {len(models)}")
    engines = options.engine_urls
    if not engines and options.url is None and site is not None:
        served = {site.roles[name].model if name in site.roles else name for name in models}
        engines = tuple(
            f"http://127.0.0.1:{port}"
            for engine in site.engines.values()
            if engine.model in served
            for port in engine.ports
        )
    return Targets(url, keys, models=models, engines=engines, site=site)


def api_keys(file: Path | None, *, required: bool) -> tuple[str, ...]:
    """Return the keys in ``file``, or the one in the environment; one empty key if there is none.

    Raises :class:`UsageError` if a key is ``required`` (by our gateway; another server may need none) and missing.
    """
    if file is not None:
        keys = text_file.keys(file, name=f"--keys {file}")
        if not keys:
            raise UsageError(f"--keys {file}: the file contains no key")
        return tuple(keys)
    key = text_file.key(os.environ.get("APPLIANCE_API_KEY", ""), "APPLIANCE_API_KEY")
    if not key and required:
        raise UsageError("APPLIANCE_API_KEY is not set; create a key with `appliance keys create loadtest`")
    return (key,)


def _check_context(parameters: Parameters, targets: Targets) -> None:
    """Raise :class:`UsageError` if the prompts exceed the context of an engine, which would reject them all."""
    if targets.site is None:
        return
    for name in targets.models:
        model = targets.site.roles[name].model if name in targets.site.roles else name
        for key, engine in targets.site.engines.items():
            most = parameters.prompt_tokens[1] + parameters.prefix_tokens + parameters.output_tokens[1]
            if engine.model == model and most > engine.context:
                raise UsageError(
                    f"a prompt of {parameters.prompt_tokens[1] + parameters.prefix_tokens} tokens and "
                    f"{parameters.output_tokens[1]} of output do not fit engines.{key}.context = {engine.context}; "
                    f"set a smaller --prompt-tokens"
                )


def _token_costs(targets: Targets, parameters: Parameters) -> tuple[TokenCosts, list[str]]:
    """Return the token costs, by the engine's tokenizer or else by usage, and notes on their origin."""
    notes = []
    model = targets.models[0]
    served = (
        targets.site.roles[model].served_name if targets.site is not None and model in targets.site.roles else model
    )
    for url in targets.engines[:1]:
        try:
            return by_tokenizer(url, served), []
        except TokenizerUnavailableError as error:
            notes.append(f"prompts are not sized by the engine's tokenizer: {error}")
    token_costs = by_usage(Target(targets.url, targets.keys[0], parameters.timeout_s), model)
    if not targets.engines:
        notes.append("prompts are not sized by the engine's tokenizer, because no --engine-url is known")
    return token_costs, notes


def _sources(targets: Targets) -> list[Source]:
    # If the target is an engine, there is no gateway with metrics.
    direct = targets.url in targets.engines
    sources = [] if direct or not has_metrics(targets.url) else [Source("gateway", "gateway", targets.url)]
    sources += [
        Source(f"engine {i + 1}", "engine", url) for i, url in enumerate(targets.engines) if has_metrics(url)
    ]
    return [*sources, Source("cards", "gpu")]


def _run_once(
    plan: LoadPlan, targets: Targets, folder: Path, console: Console, stop: Stop, title: str = ""
) -> Report:
    title = title or f"load test {plan.scenario} of {', '.join(targets.models)} at {targets.url}"
    with stop.until(1):
        sources = _sources(targets)
    with terminal.LiveView(console, title) as view:
        return run(
            plan,
            url=targets.url,
            keys=targets.keys,
            folder=folder,
            stop=stop,
            sources=sources,
            on_progress=view,
        )


def _search(
    options: LoadTestOptions,
    plan: LoadPlan,
    scenario: Scenario,
    targets: Targets,
    folder: Path,
    console: Console,
    stop: Stop,
) -> Report:
    """Search the highest load that meets the SLOs; return its report, or the last one if none does."""
    what = "rate" if scenario.open_loop else "users"
    unit = "requests/s" if scenario.open_loop else "users"
    search = Search(
        float(getattr(plan.parameters, what)), options.max_load, options.resolution, whole=not scenario.open_loop
    )
    reports: dict[float, Report] = {}
    while (tried := search.next()) is not None:
        parameters = plan.parameters.model_copy(update={what: tried if scenario.open_loop else int(tried)})
        one = plan.model_copy(update={"parameters": parameters})
        try:
            report = _run_once(
                one, targets, folder=folder, console=console, stop=stop, title=f"search at {tried:.4g} {unit}"
            )
        except Stopped:
            if not reports:
                raise
            break
        reports[tried] = report
        missed = [check.name for check in report.checks if not check.holds]
        code, goodput = report.exit_code, report.goodput
        step = SearchStep(
            tried,
            code == PASS,
            invalid=code == INVALID,
            requests_per_s=goodput.value if goodput else None,
            low=goodput.low if goodput else None,
            high=goodput.high if goodput else None,
            why="; ".join(report.invalid) if code == INVALID else ", ".join(missed),
        )
        search.record(step)
        console.print(terminal.step_line(step, unit))
        if stop.requested:
            break
    terminal.show_search(search, console, unit=unit)
    best = search.best
    report = reports[best.load if best is not None else search.steps[-1].load]
    report.search = search.steps
    return report
