"""``appliance loadtest``: from flags to a plan, from runs to reports."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from appliance import textfile
from appliance.config import LoadTest, Site, Slo
from appliance.configfile import load
from appliance.errors import UsageError
from loadtests import html, junit, terminal
from loadtests.baseline import compare, differences
from loadtests.client import Target
from loadtests.flags import fields, validated
from loadtests.lexicon import Lexicon
from loadtests.parameters import Limits, Parameters, Plan
from loadtests.report import INVALID, PASS, Report
from loadtests.run import run
from loadtests.scenarios import SCENARIOS, Scenario
from loadtests.scrape import Source
from loadtests.search import Search, Step
from loadtests.service import answers, first_model, preflight
from loadtests.sizing import TokenizerUnavailableError, by_tokenizer, by_usage


@dataclass(frozen=True, slots=True)
class Where:
    """Where the load goes, and where one may look beside it."""

    url: str
    keys: tuple[str, ...]
    models: tuple[str, ...]
    engines: tuple[str, ...]
    site: Site | None


def command(args: argparse.Namespace) -> int:
    """Run what the flags ask for; the exit code."""
    console = Console()
    if args.list:
        _list(console)
        return PASS
    scenario = _scenario(args.scenario)
    site = _site(args)
    contract = LoadTest() if site is None else site.loadtest
    parameters = _parameters(args, scenario, contract)
    slo = validated(Slo, contract.slo.model_dump() | fields(args, Slo, "slo-"))
    limits = validated(Limits, Limits().model_dump() | fields(args, Limits, "client-"))
    before = _baseline(args, scenario, parameters)
    _writable(args.json, args.junit, args.html, args.samples)
    where = _where(args, scenario, site)
    _fits(parameters, where)
    plan = Plan(scenario=scenario.name, parameters=parameters, models=where.models, slo=slo, limits=limits)
    preflight(Target(where.url, where.keys[0], parameters.timeout_s, parameters.stall_s), where.models)
    lexicon, notes = _sized(where, parameters)
    plan = plan.sized_by(lexicon)
    with tempfile.TemporaryDirectory(prefix="appliance-loadtest-") as folder:
        if args.find_goodput:
            report = _search(args, plan, scenario, where, Path(folder), console)
        else:
            report = _once(plan, where, Path(folder), console)
        if args.samples is not None:
            shutil.copyfile(Path(folder) / "samples.jsonl", args.samples)
    report.notes[:0] = notes
    if before is not None and report.exit_code != INVALID:
        report.baseline = compare(before, report)
    terminal.show(report, console, subject=f"Load test {scenario.name} of {', '.join(where.models)}")
    for path, text in (
        (args.json, report.to_json),
        (args.junit, lambda: junit.render(report)),
        (args.html, lambda: html.render(report)),
    ):
        if path is not None:
            path.write_text(text())
    return report.exit_code


def _list(console: Console) -> None:
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
    console.print(table)


def _scenario(name: str) -> Scenario:
    if name not in SCENARIOS:
        raise UsageError(f"there is no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


def _site(args: argparse.Namespace) -> Site | None:
    # Any gateway can be tested from anywhere: with an address no configuration is needed.
    if args.url is not None and not args.config.exists():
        return None
    return load(args.config)


def _parameters(args: argparse.Namespace, scenario: Scenario, contract: LoadTest) -> Parameters:
    given = fields(args, Parameters, "")
    if args.max_tokens is not None:
        given.setdefault("output_tokens", (args.max_tokens, args.max_tokens))
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


def _baseline(args: argparse.Namespace, scenario: Scenario, parameters: Parameters) -> Report | None:
    if args.baseline is None:
        return None
    try:
        before = Report.from_json(textfile.read(args.baseline, name=f"--baseline {args.baseline}").encode())
    except msgspec.DecodeError:
        raise UsageError(f"--baseline {args.baseline}: no report of `appliance loadtest --json`") from None
    if before.exit_code == INVALID:
        raise UsageError(f"--baseline {args.baseline}: that run was invalid; take one that was not")
    if args.find_goodput:
        return before
    if different := differences(before, scenario.name, parameters.model_dump(mode="json")):
        raise UsageError(f"--baseline {args.baseline}: {different[0]}; compare runs of the same load")
    return before


def _writable(*paths: Path | None) -> None:
    """An hour's run must not end with a path that cannot be written."""
    for path in paths:
        if path is not None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise UsageError(f"{path}: its folder is missing or cannot be written")


def _where(args: argparse.Namespace, scenario: Scenario, site: Site | None) -> Where:
    keys = tuple(_keys(args))
    if args.url is None:
        assert site is not None  # noqa: S101 - without an address the configuration was loaded
        url = f"http://{site.gateway.host}:{site.gateway.port}"
    else:
        url = args.url.rstrip("/").removesuffix("/v1")
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--url {args.url}: begin it with http:// or https://")
    models = tuple(args.model or ())
    if not models:
        models = (first_model(url, keys[0], site),) if scenario.models == 1 else ()
    if len(models) != scenario.models:
        raise UsageError(f"scenario {scenario.name} asks {scenario.models} model(s), --model names {len(models)}")
    engines = tuple(args.engine_url or ())
    if not engines and args.url is None and site is not None:
        served = {site.roles[name].model if name in site.roles else name for name in models}
        engines = tuple(
            f"http://127.0.0.1:{port}"
            for engine in site.engines.values()
            if engine.model in served
            for port in engine.ports
        )
    return Where(url, keys, models, engines, site)


def _keys(args: argparse.Namespace) -> Sequence[str]:
    if args.keys is not None:
        keys = textfile.keys(args.keys, name=f"--keys {args.keys}")
        if not keys:
            raise UsageError(f"--keys {args.keys}: there is no key in it")
        return keys
    key = textfile.key(os.environ.get("APPLIANCE_API_KEY", ""), "APPLIANCE_API_KEY")
    if not key:
        raise UsageError("APPLIANCE_API_KEY is not set; make a key with `appliance keys create loadtest`")
    return [key]


def _fits(parameters: Parameters, where: Where) -> None:
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


def _sized(where: Where, parameters: Parameters) -> tuple[Lexicon, list[str]]:
    """What words cost, by the engine's tokenizer or else by what it counts; and what there is to say about it."""
    notes = []
    model = where.models[0]
    served = where.site.roles[model].served_name if where.site is not None and model in where.site.roles else model
    for url in where.engines[:1]:
        try:
            return by_tokenizer(url, served), []
        except TokenizerUnavailableError as error:
            notes.append(f"prompts are not sized by the engine's tokenizer: {error}")
    lexicon = by_usage(Target(where.url, where.keys[0], parameters.timeout_s), model)
    if not where.engines:
        notes.append("prompts are not sized by the engine's tokenizer, as no --engine-url is known")
    return lexicon, notes


def _sources(where: Where) -> list[Source]:
    # Where an engine is asked directly there is no gateway to tell anything.
    direct = where.url in where.engines
    sources = [] if direct or not answers(f"{where.url}/metrics") else [Source("gateway", "gateway", where.url)]
    sources += [
        Source(f"engine {i + 1}", "engine", url) for i, url in enumerate(where.engines) if answers(f"{url}/metrics")
    ]
    return [*sources, Source("cards", "gpu")]


def _once(plan: Plan, where: Where, folder: Path, console: Console, title: str = "") -> Report:
    title = title or f"load test {plan.scenario} of {', '.join(where.models)} at {where.url}"
    with terminal.Watch(console, title) as watch:
        return run(plan, url=where.url, keys=where.keys, folder=folder, sources=_sources(where), watch=watch)


def _search(
    args: argparse.Namespace, plan: Plan, scenario: Scenario, where: Where, folder: Path, console: Console
) -> Report:
    """Run after run, until the highest load that holds is known; its report, or the last one's where none holds."""
    what = "rate" if scenario.open_loop else "users"
    unit = "requests/s" if scenario.open_loop else "users"
    search = Search(
        float(getattr(plan.parameters, what)), args.max_load, args.resolution, whole=not scenario.open_loop
    )
    reports: dict[float, Report] = {}
    while (tried := search.next()) is not None:
        parameters = plan.parameters.model_copy(update={what: tried if scenario.open_loop else int(tried)})
        one = plan.model_copy(update={"parameters": parameters})
        report = _once(one, where, folder, console, f"search at {tried:.4g} {unit}")
        reports[tried] = report
        missed = [check.name for check in report.checks if not check.holds]
        code, goodput = report.exit_code, report.goodput
        step = Step(
            tried, code == PASS, code == INVALID,
            goodput.value if goodput else None, goodput.low if goodput else None, goodput.high if goodput else None,
            "; ".join(report.invalid) if code == INVALID else ", ".join(missed),
        )  # fmt: skip
        search.record(step)
        console.print(terminal.step_line(step, unit), highlight=False)
        if report.interrupted:
            break
    terminal.show_search(search, console, unit=unit)
    best = search.best
    report = reports[best.load if best is not None else search.steps[-1].load]
    report.search = search.steps
    return report
