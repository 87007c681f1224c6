"""``appliance loadtest``: from flags to a plan, from runs to reports."""

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
from loadtests.service import answers, first_model, preflight
from loadtests.token_costs import TokenCosts
from loadtests.tokenizer_probe import TokenizerUnavailableError, by_tokenizer, by_usage


@dataclass(frozen=True, slots=True)
class Targets:
    """Where the load goes, and where one may look beside it."""

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
            raise UnprovenError(f"{stop.reason} ended the load test before its report was whole") from None
        except ApplianceError as error:
            if error.exit_code == INVALID:
                raise
            raise UnprovenError(str(error)) from error
        except OSError as error:
            raise UnprovenError(f"the load test could not go on ({error}); free what this machine lacks") from error


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
                where = _where(options, scenario, site, address, keys)
                plan = plan.model_copy(update={"models": where.models})
                _fits(parameters, where)
                target = Target(where.url, where.keys[0], parameters.timeout_s, parameters.stall_s)
                preflight(target, where.models, where.keys[1 : parameters.users])
                token_costs, notes = _sized(where, parameters)
            plan = plan.sized_by(token_costs)
            report = _measured(options, plan, scenario, where, outputs, console, stop)
            report.notes[:0] = notes
        except Stopped:
            report = _nothing(plan, stop)
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

        deliver(report, outputs, stop, renderers, display)
    return report.exit_code


def _measured(
    options: LoadTestOptions,
    plan: LoadPlan,
    scenario: Scenario,
    where: Targets,
    outputs: Outputs,
    console: Console,
    stop: Stop,
) -> Report:
    with tempfile.TemporaryDirectory(prefix="appliance-loadtest-") as folder:
        if options.find_goodput:
            report = _search(options, plan, scenario, where, Path(folder), console, stop)
        else:
            report = _once(plan, where, Path(folder), console, stop)
        if "--samples" in outputs:
            outputs.write("--samples", Path(folder) / "samples.jsonl")
    return report


def _nothing(plan: LoadPlan, stop: Stop) -> Report:
    """The report of a run that was stopped before its load."""
    report = summarise(Collector(notes=[f"{INTERRUPTED} by {stop.reason}"]), plan)
    report.about = {"started": datetime.now(UTC).isoformat(timespec="seconds")}
    return report


def list_scenarios() -> None:
    """Print the scenarios with their sizes."""
    table = Table(title="Scenarios", title_justify="left")
    for name in ("scenario", "loop", "size", "what it is"):
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
        raise UsageError(f"there is no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


def _site(options: LoadTestOptions) -> Site | None:
    # Any gateway can be tested from anywhere: with an address no configuration is needed.
    if options.url is not None and not options.config.exists():
        return None
    return load(options.config)


def _parameters(options: LoadTestOptions, scenario: Scenario, contract: LoadTest) -> Parameters:
    given = dict(options.parameters)
    if "requests" in given and "duration_s" not in given:
        # So many requests, however long they take.
        given["duration_s"] = None
    table = scenario.defaults.model_dump() | {"seed": contract.seed} | given
    parameters: Parameters = validated(Parameters, table)
    if parameters.duration_s is not None and parameters.warmup >= parameters.duration_s:
        raise UsageError(
            f"--warmup of {parameters.warmup:g} s leaves nothing of --duration {parameters.duration_s:g} s"
        )
    return parameters


def _baseline(options: LoadTestOptions, scenario: Scenario, parameters: Parameters) -> Report | None:
    if options.baseline is None:
        return None
    try:
        before = Report.from_json(text_file.read(options.baseline, name=f"--baseline {options.baseline}").encode())
    except msgspec.DecodeError:
        raise UsageError(f"--baseline {options.baseline}: no report of `appliance loadtest --json`") from None
    if before.exit_code == INVALID:
        raise UsageError(f"--baseline {options.baseline}: that run was invalid; take one that was not")
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
        # Checked before anything is asked; whether a proxy leads there is looked up again by each asker.
        route(one)
    return url


def _where(
    options: LoadTestOptions, scenario: Scenario, site: Site | None, url: str, keys: tuple[str, ...]
) -> Targets:
    models = options.models
    if not models:
        models = (first_model(url, keys[0], site),) if scenario.models == 1 else ()
    if len(models) != scenario.models:
        raise UsageError(f"scenario {scenario.name} asks {scenario.models} model(s), --model names {len(models)}")
    engines = options.engine_urls
    if not engines and options.url is None and site is not None:
        served = {site.roles[name].model if name in site.roles else name for name in models}
        engines = tuple(
            f"http://127.0.0.1:{port}"
            for engine in site.engines.values()
            if engine.model in served
            for port in engine.ports
        )
    return Targets(url, keys, models, engines, site)


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
        raise UsageError("APPLIANCE_API_KEY is not set; make a key with `appliance keys create loadtest`")
    return (key,)


def _fits(parameters: Parameters, where: Targets) -> None:
    """Prompts that the engine can only refuse would measure how fast it refuses."""
    if where.site is None:
        return
    for name in where.models:
        model = where.site.roles[name].model if name in where.site.roles else name
        for key, engine in where.site.engines.items():
            most = parameters.prompt_tokens[1] + parameters.prefix_tokens + parameters.output_tokens[1]
            if engine.model == model and most > engine.context:
                raise UsageError(
                    f"a prompt of {parameters.prompt_tokens[1] + parameters.prefix_tokens} tokens and "
                    f"{parameters.output_tokens[1]} of answer do not fit engines.{key}.context = {engine.context}; "
                    f"ask for a smaller --prompt-tokens"
                )


def _sized(where: Targets, parameters: Parameters) -> tuple[TokenCosts, list[str]]:
    """What words cost, by the engine's tokenizer or else by what it counts; and what there is to say about it."""
    notes = []
    model = where.models[0]
    served = where.site.roles[model].served_name if where.site is not None and model in where.site.roles else model
    for url in where.engines[:1]:
        try:
            return by_tokenizer(url, served), []
        except TokenizerUnavailableError as error:
            notes.append(f"prompts are not sized by the engine's tokenizer: {error}")
    token_costs = by_usage(Target(where.url, where.keys[0], parameters.timeout_s), model)
    if not where.engines:
        notes.append("prompts are not sized by the engine's tokenizer, as no --engine-url is known")
    return token_costs, notes


def _sources(where: Targets) -> list[Source]:
    # Where an engine is asked directly there is no gateway to tell anything.
    direct = where.url in where.engines
    sources = [] if direct or not answers(where.url) else [Source("gateway", "gateway", where.url)]
    sources += [Source(f"engine {i + 1}", "engine", url) for i, url in enumerate(where.engines) if answers(url)]
    return [*sources, Source("cards", "gpu")]


def _once(plan: LoadPlan, where: Targets, folder: Path, console: Console, stop: Stop, title: str = "") -> Report:
    title = title or f"load test {plan.scenario} of {', '.join(where.models)} at {where.url}"
    with stop.until(1):
        sources = _sources(where)
    with terminal.LiveView(console, title) as watch:
        return run(plan, url=where.url, keys=where.keys, folder=folder, stop=stop, sources=sources, watch=watch)


def _search(
    options: LoadTestOptions,
    plan: LoadPlan,
    scenario: Scenario,
    where: Targets,
    folder: Path,
    console: Console,
    stop: Stop,
) -> Report:
    """Run after run, until the highest load that holds is known; its report, or the last one's where none holds."""
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
            report = _once(one, where, folder, console, stop, f"search at {tried:.4g} {unit}")
        except Stopped:
            if not reports:
                raise
            break
        reports[tried] = report
        missed = [check.name for check in report.checks if not check.holds]
        code, goodput = report.exit_code, report.goodput
        step = SearchStep(
            tried, code == PASS, code == INVALID,
            goodput.value if goodput else None, goodput.low if goodput else None, goodput.high if goodput else None,
            "; ".join(report.invalid) if code == INVALID else ", ".join(missed),
        )  # fmt: skip
        search.record(step)
        console.print(terminal.step_line(step, unit))
        if stop.requested:
            break
    terminal.show_search(search, console, unit=unit)
    best = search.best
    report = reports[best.load if best is not None else search.steps[-1].load]
    report.search = search.steps
    return report
