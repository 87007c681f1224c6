"""``appliance plan`` and ``appliance catalog``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.catalog.cards import cards, find_card
from appliance.catalog.models import dump_model, known_models, shipped_models
from appliance.catalog.processors import cpus, find_cpu
from appliance.catalog.shape import Shape
from appliance.cli._args import add_json
from appliance.contract.card_memory import USUAL_UTILIZATION
from appliance.contract.load import load, parse, validate
from appliance.contract.model import Site
from appliance.contract.violation import suggest
from appliance.errors import ConfigError, UsageError
from appliance.planner import add_model, evaluate, precision, row_parser, terminal
from appliance.planner.demand import Demand
from appliance.planner.engines_section import engines_section, replace_engines
from appliance.planner.from_site import hardware_of, model_demands_of, planned_models
from appliance.planner.hardware import MAX_MACHINES, HardwareSpec, parse_cards
from appliance.planner.layout import MAX_DEGREE, Layout
from appliance.planner.load_report import ReportedLoad, read_load_report, row_of_site, row_of_workload
from appliance.planner.measured import match_rows, read_measured
from appliance.planner.models import DEFAULT_CONTEXT, EMBED_PROMPT, ModelDemand, parse_model, split_shares
from appliance.planner.nearest import as_plain, nearest
from appliance.planner.page import page
from appliance.planner.plan_report import PlanReport, as_json, make_report
from appliance.planner.row_parser import Row
from appliance.planner.throughput import Prediction, predict
from appliance.planner.workload import Workload
from appliance.render.terminal import Console
from appliance.system import text_file


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance plan``."""
    site = parser.add_argument_group("what to plan (a configuration, or cards and models)")
    site.add_argument("--config", type=Path, metavar="FILE", help="configuration of a site: hosts, models, roles")
    site.add_argument("--cards", metavar="'2x CARD'", help="cards of each machine")
    site.add_argument(
        "--machines", type=int, default=1, metavar="N", help="machines with those cards (%(default)s)"
    )
    site.add_argument("--ram", type=float, default=128.0, metavar="GIB", help="RAM of each machine (%(default)g)")
    site.add_argument("--cpu", metavar="NAME", help="processor of each machine; default: a generic one")
    site.add_argument("--power", type=float, metavar="W", help="power limit per card; default: the site's, or none")
    site.add_argument(
        "--link", type=float, default=3.0, metavar="GB/S", help="network between machines (%(default)s)"
    )
    site.add_argument(
        "--model", action="append", default=[], metavar="MODEL[:PRECISION]", help="model to serve; repeatable"
    )
    _add_models(site)

    load = parser.add_argument_group("load")
    load.add_argument("--users", type=int, default=100, metavar="N", help="people (%(default)s)")
    load.add_argument("--chats", type=int, default=200, metavar="N", help="chats open at once (%(default)s)")
    load.add_argument(
        "--think", type=float, default=60.0, metavar="S", help="seconds between messages of a chat (%(default)g)"
    )
    load.add_argument(
        "--prompt", type=float, default=2000.0, metavar="TOKENS", help="tokens of a prompt (%(default)g)"
    )
    load.add_argument(
        "--answer", type=float, default=400.0, metavar="TOKENS", help="tokens of a response (%(default)g)"
    )
    load.add_argument(
        "--context", type=int, metavar="TOKENS", help="longest prompt plus response; default: the site's, or 16384"
    )
    load.add_argument(
        "--prefix-hit",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of prompt tokens in the prefix cache (%(default)s)",
    )
    load.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="NAME=SHARE",
        help="share of requests of a role or model; repeatable",
    )
    load.add_argument(
        "--automation",
        choices=("none", "poisson", "bursts", "n8n"),
        default="n8n",
        help="arrivals of automated requests in addition to chats (%(default)s)",
    )

    goal = parser.add_argument_group("SLOs and simulation")
    goal.add_argument("--ttft-slo", type=float, default=2.0, metavar="S", help="time to first token (%(default)s)")
    goal.add_argument("--tpot-slo", type=float, default=0.1, metavar="S", help="time per token (%(default)s)")
    goal.add_argument(
        "--simulate", type=int, default=5_000, metavar="N", help="requests to simulate per model (%(default)s)"
    )
    goal.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the simulation (%(default)s)")

    _add_measured(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--write", action="store_true", help="write the engines section back into --config")
    output.add_argument("--html", type=Path, metavar="FILE", help="also write the plan as one self-contained page")
    add_json(output)
    parser.set_defaults(run=_plan)

    actions = parser.add_subparsers(title="other actions", metavar="ACTION", required=False)
    _add_predict(actions.add_parser("predict", help="predict throughput, latency and memory of one setup"))
    evaluation = actions.add_parser("evaluate", help="compare predictions with a file of measurements")
    evaluation.add_argument("csv", type=Path, metavar="CSV", help="columns as in catalog/measurements.csv")
    add_json(evaluation)
    evaluation.set_defaults(run=_evaluate)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--card", required=True, help="card, by its name in the catalog")
    parser.add_argument("--model", required=True, metavar="MODEL[:PRECISION]", help="model, by its name")
    _add_models(parser)
    parser.add_argument(
        "--engine",
        choices=("vllm", "sglang", "tensorrt-llm", "llamacpp"),
        default="vllm",
        help="engine (%(default)s)",
    )
    parser.add_argument(
        "--input", type=float, default=1024.0, metavar="TOKENS", help="tokens of a prompt (%(default)g)"
    )
    parser.add_argument(
        "--output", type=float, default=1024.0, metavar="TOKENS", help="tokens of a response (%(default)g)"
    )
    parser.add_argument(
        "--concurrency",
        type=float,
        default=1.0,
        metavar="N",
        help="requests in flight over all replicas (%(default)g)",
    )
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="copies (%(default)s)")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="tensor parallel size (%(default)s)")
    parser.add_argument("--pp", type=int, default=1, metavar="N", help="pipeline parallel size (%(default)s)")
    parser.add_argument("--ep", action="store_true", help="expert parallel")
    parser.add_argument("--hosts", type=int, default=1, metavar="N", help="machines per copy (%(default)s)")
    parser.add_argument(
        "--link", type=float, default=3.0, metavar="GB/S", help="network between them (%(default)s)"
    )
    parser.add_argument("--no-p2p", action="store_true", help="cards cannot read each other's memory")
    parser.add_argument("--power", type=float, metavar="W", help="power limit per card; default: none")
    parser.add_argument(
        "--utilization",
        type=float,
        default=USUAL_UTILIZATION,
        metavar="SHARE",
        help="gpu-memory-utilization (%(default)s)",
    )
    parser.add_argument("--kv", metavar="TYPE", help="type of the KV cache: auto, fp8")
    parser.add_argument(
        "--draft", type=int, default=0, metavar="TOKENS", help="tokens drafted per step (%(default)s)"
    )
    parser.add_argument(
        "--method",
        choices=("mtp", "eagle", "dflash", "ngram"),
        default="mtp",
        help="origin of drafts (%(default)s)",
    )
    parser.add_argument(
        "--accepted",
        type=float,
        metavar="TOKENS",
        help="tokens per step with drafts; default: the usual number of the method",
    )
    parser.add_argument(
        "--prefix-hit",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of prompt tokens in the prefix cache (%(default)g)",
    )
    parser.add_argument("--cpu", metavar="NAME", help="processor that computes experts")
    parser.add_argument(
        "--cpu-experts", type=float, default=0.0, metavar="SHARE", help="share of experts in RAM (%(default)g)"
    )
    _add_measured(parser)
    add_json(parser)
    parser.set_defaults(run=_predict)


def _add_measured(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--measured",
        type=Path,
        metavar="FILE",
        help="measurements of this machine, which correct the predictions: a CSV with columns as in "
        "catalog/measurements.csv, or a report of `appliance loadtest --json` (FILE.json)",
    )


def _add_models(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--catalog", type=Path, metavar="FILE", help="further models, as `appliance catalog add-model` writes them"
    )


def add_catalog(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance catalog``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list cards and models")
    add_json(listing)
    listing.set_defaults(run=_list)
    add = actions.add_parser("add-model", help="describe a model from its config.json")
    add.add_argument(
        "source", metavar="PATH-or-REPO", help="config.json, its folder, or OWNER/NAME in the local cache"
    )
    add.add_argument("--into", type=Path, metavar="FILE", help="catalog to append to; default: print")
    add.add_argument("--embedding", action="store_true", help="pooling model: it has no output head")
    add_json(add)
    add.set_defaults(run=_add_model)


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    return console


def _plan(args: argparse.Namespace) -> int:
    known = known_models(args.catalog)
    if args.write and args.config is None:
        raise UsageError("--write needs --config FILE: it writes the engines section there")
    site = load(args.config) if args.config is not None else None
    machines, wanted = _question(args, site, known)
    if not 1 <= args.simulate <= 10_000_000:
        raise UsageError(
            f"--simulate {args.simulate} is out of range; nearest valid: {min(max(args.simulate, 1), 10_000_000)}"
        )
    if args.measured is not None:
        names = {model.shape.name for model in wanted.models}
        report = _load_row(args.measured, lambda load: row_of_site(load, _site_of_report(site)))
        machines = _with_measured(args.measured, machines, names, known=known, report=report)
    found = make_report(machines, wanted, requests=args.simulate, seed=args.seed, pattern=args.automation)
    if args.json:
        _print_json(as_json(found))
    else:
        terminal.show_plan(_console(), found)
    if args.html is not None:
        _save(args.html, page(as_json(found)))
    if args.write and site is not None:
        _write(args.config, site, found)
    return 0


def _site_of_report(site: Site | None) -> Site:
    if site is None:
        raise UsageError("a load test's report needs --config FILE: the site states the engine of its model")
    return site


def _load_row(path: Path, complete: Callable[[ReportedLoad], Row]) -> Row | None:
    """Return the measurement of a load test's report, ``complete`` adding the conditions; None for a CSV."""
    return complete(read_load_report(path)) if path.suffix.lower() == ".json" else None


def _with_measured(
    path: Path,
    machines: tuple[HardwareSpec, ...],
    models: set[str],
    *,
    known: dict[str, Shape],
    report: Row | None,
) -> tuple[HardwareSpec, ...]:
    """Return the machines with their measurements; report the rows that are skipped.

    ``report`` is the measurement of a load test's report, None for a CSV.
    """
    if report is None:
        found = read_measured(path, machines, models, known)
    else:
        found = match_rows([report], str(path), machines, models=models, known=known)
    for row in found.unused:
        sys.stderr.write(f"{path}: {row}\n")
    return tuple(found.on(machine) for machine in machines)


def _question(
    args: argparse.Namespace, site: Site | None, known: dict[str, Shape]
) -> tuple[tuple[HardwareSpec, ...], Demand]:
    shares = _shares(args.share)
    cpu = find_cpu(args.cpu) if args.cpu else None
    if site is not None:
        if args.cards or args.model:
            raise UsageError("--cards and --model belong to a plan without --config; remove them")
        machines = hardware_of(site, cpu)
        if args.power is not None:
            machines = tuple(dataclasses.replace(machine, power_w=args.power) for machine in machines)
        machines = tuple(dataclasses.replace(machine, link_gb_s=args.link) for machine in machines)
        models = model_demands_of(site, shares, prompt=args.prompt, response=args.answer, known=known)
        if args.context:
            models = tuple(
                dataclasses.replace(model, context=min(args.context, model.shape.max_context)) for model in models
            )
    else:
        machines, models = _from_flags(args, shares, known)
    for machine in machines:
        for card in machine.cards:
            if args.power is not None and not card.min_power_w <= args.power <= card.max_power_w:
                nearest = card.min_power_w if args.power < card.min_power_w else card.max_power_w
                raise UsageError(
                    f"{args.power:g} W is out of the range of {card.name}; nearest valid: {nearest:g} W"
                )
    return machines, Demand(
        users=args.users,
        chats=args.chats,
        think_s=args.think,
        models=models,
        prefix_hit=args.prefix_hit,
        ttft_slo_s=args.ttft_slo,
        tpot_slo_s=args.tpot_slo,
    )


def _from_flags(
    args: argparse.Namespace, shares: dict[str, float], known: dict[str, Shape]
) -> tuple[tuple[HardwareSpec, ...], tuple[ModelDemand, ...]]:
    if not args.cards or not args.model:
        raise UsageError(
            "nothing to plan: give --config FILE, or --cards '2x RTX PRO 6000 Blackwell Workstation' --model NAME"
        )
    if not 1 <= args.machines <= MAX_MACHINES:
        raise UsageError(
            f"--machines {args.machines} is out of range; nearest valid: {min(max(args.machines, 1), 8)}"
        )
    cards = parse_cards(args.cards)
    cpu = find_cpu(args.cpu or ("generic server" if args.ram >= 64 else "generic desktop"))
    machines = tuple(
        HardwareSpec(
            name=f"m{number + 1}" if args.machines > 1 else "gpu",
            cards=cards,
            ram_gib=args.ram,
            cpu=cpu,
            power_w=args.power,
            link_gb_s=args.link,
        )
        for number in range(args.machines)
    )
    asked = [parse_model(text, known) for text in args.model]
    names = {shape.name: shape.name.rsplit("/", 1)[-1] for shape, _ in asked}
    stated = {full: shares.get(short, shares.get(full)) for full, short in names.items()}
    shared = split_shares(
        {shape.name: shape.pooling for shape, _ in asked},
        {name: share for name, share in stated.items() if share is not None},
    )
    models = []
    for shape, dtype in asked:
        name = names[shape.name]
        context = min(args.context or DEFAULT_CONTEXT, shape.max_context)
        if args.context and args.context > shape.max_context:
            raise UsageError(
                f"context {args.context} is more than the {shape.max_context} of {shape.name}; "
                f"nearest: {shape.max_context}"
            )
        models.append(
            ModelDemand(
                name=name,
                shape=shape,
                precision=dtype,
                share=shared[shape.name],
                prompt=min(EMBED_PROMPT, context / 2) if shape.pooling else args.prompt,
                response=1.0 if shape.pooling else args.answer,
                context=context,
            )
        )
    planned = {*names, *names.values()}
    stray = [name for name in shares if name not in planned]
    if stray:
        raise UsageError(f"--share names {stray[0]!r}, which is not planned; {suggest(stray[0], sorted(planned))}")
    return machines, tuple(models)


def _shares(texts: list[str]) -> dict[str, float]:
    shares = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            shares[name] = float(value)
        except ValueError:
            raise UsageError(f"--share {text!r} is not NAME=SHARE; write --share coder=0.4") from None
        if not 0 <= shares[name] <= 1:
            raise UsageError(
                f"--share {text}: a share is between 0 and 1; nearest: {min(max(shares[name], 0), 1):g}"
            )
    return shares


def _write(path: Path, site: Site, found: PlanReport) -> None:
    plan = found.advice.best
    if not plan.writable:
        plan = next((other for other, _ in found.advice.alternatives if other.writable), plan)
    if path.suffix == ".json":
        raise UsageError(f"{path} is rendered by Nix; put the engines into the NixOS options instead")
    planned = planned_models(site)
    kept = [name for name, engine in site.engines.items() if engine.model not in planned or not engine.is_started]
    if kept:
        raise UsageError(
            f"{path}: --write replaces all engines, and the planner does not place engines.{kept[0]}; write the "
            "section by hand, as the plan shows it"
        )
    text = replace_engines(text_file.read(path), engines_section(plan, site))
    validate(f"{path} (not written)", parse(path, text))
    _save(path, text)
    sys.stderr.write(f"{path}: engines are now {plan.title}\n")


def _save(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another path") from None


def _predict(args: argparse.Namespace) -> int:
    shape, dtype = parse_model(args.model, known_models(args.catalog))
    if args.kv:
        dtype = dataclasses.replace(dtype, kv_bytes=precision.parse("bf16", args.kv).kv_bytes)
    workload = Workload(
        card=_one_card(args.card),
        shape=shape,
        precision=dtype,
        input=args.input,
        output=args.output,
        concurrency=args.concurrency,
        layout=Layout(tp=args.tp, pp=args.pp, replicas=args.replicas, ep=args.ep, hosts=args.hosts),
        engine=args.engine,
        power_w=args.power,
        p2p=False if args.no_p2p else None,
        link_gb_s=args.link if args.hosts > 1 else None,
        drafts=args.method if args.draft else "",
        draft_tokens=args.draft,
        accepted=args.accepted if args.draft else 1.0,
        prefix_hit=args.prefix_hit,
        cpu=find_cpu(args.cpu) if args.cpu else None,
        cpu_expert_share=args.cpu_experts,
        utilization=args.utilization,
    )
    if args.cpu_experts and not args.cpu:
        raise UsageError("--cpu-experts needs --cpu NAME: the processor whose RAM holds them")
    if args.measured is not None:
        machine = HardwareSpec(
            name="gpu", cards=(workload.card,) * MAX_DEGREE, ram_gib=0.0, cpu=find_cpu("generic server")
        )
        report = _load_row(args.measured, lambda load: row_of_workload(load, workload))
        known = known_models(args.catalog)
        (machine,) = _with_measured(args.measured, (machine,), {shape.name}, known=known, report=report)
        workload = dataclasses.replace(workload, measured=machine.measured)
    prediction = predict(workload)
    if args.cpu_experts == 0.0 and not prediction.memory.fits and args.engine != "llamacpp":
        need, room = prediction.memory.weights / 2**30, prediction.memory.budget / 2**30
        raise UsageError(
            f"{need:.1f} GiB of weights per card do not fit the {room:.1f} GiB of {workload.card.name}; "
            "raise --tp, or take a smaller precision"
        )
    if args.json:
        _print_json({**_prediction(prediction), "nearest": as_plain(nearest(workload))})
    else:
        terminal.show_prediction(_console(), prediction, nearest(workload))
    return 0


def _one_card(text: str) -> Any:
    if "," in text or " + " in text:
        vendors = {find_card(part.strip()).vendor for part in text.replace(" + ", ",").split(",")}
        kind = "mixed vendors" if len(vendors) > 1 else "mixed cards"
        raise UsageError(f"{text}: {kind} in one shard; name one card, and shard over equal ones with --tp")
    return find_card(text)


def _prediction(prediction: Prediction) -> dict[str, Any]:
    plain = dataclasses.asdict(prediction)
    memory = plain.pop("memory")
    memory.pop("layout")
    return {**plain, "memory": {**memory, "fits": prediction.memory.fits}}


def _evaluate(args: argparse.Namespace) -> int:
    rows = evaluate.read(args.csv)
    if "notes" in rows[0] and "mode" not in rows[0]:
        sys.stderr.write(
            f"{args.csv}: conditions in the column notes are not read; "
            "import the file with `python -m tools.measurements` first\n"
        )
    results = evaluate.evaluate(rows)
    if args.json:
        stated = [result for result in results if row_parser.states_conditions(result.row)]
        _print_json(
            {
                "all": dataclasses.asdict(evaluate.summarise(results)),
                "conditions_stated": dataclasses.asdict(evaluate.summarise(stated)),
                "groups": [
                    {"model": model, "card": card, **dataclasses.asdict(evaluate.summarise(group))}
                    for (model, card), group in evaluate.by_group(results).items()
                ],
                "rows": [
                    {
                        "line": result.line,
                        "model": result.group[0],
                        "card": result.group[1],
                        "truth": result.truth,
                        "predicted": result.predicted,
                        "low": result.low,
                        "high": result.high,
                        "refused": result.refused,
                        "assumed": list(result.assumed),
                    }
                    for result in results
                ],
            }
        )
    else:
        terminal.show_evaluation(_console(), results)
    return 0


def _add_model(args: argparse.Namespace) -> int:
    shape = add_model.read(args.source, args.embedding)
    size = shape.checkpoint_bytes or precision.weights(shape, precision.parse(shape.native)).total
    figures = {
        "model": shape.name,
        "total_params": shape.total_params,
        "active_params": shape.active_params,
        "checkpoint_bytes": round(size),
        "native": shape.native,
        "kv_bytes_per_token_bf16": shape.kv_bytes_per_token(),
        "state_bytes_per_sequence": shape.state_bytes_per_sequence,
        "max_context": shape.max_context,
        "max_tensor_parallel": shape.max_tp,
    }
    if args.into is not None:
        _append(args.into, shape)
    if args.json:
        _print_json(figures)
    elif args.into is None:
        sys.stdout.write(dump_model(shape))
    if not args.json:
        sys.stderr.write(
            f"{shape.name}: {shape.total_params / 1e9:.3f} B parameters, {shape.active_params / 1e9:.3f} "
            "B active, "
            f"{size / 1e9:.2f} GB as {shape.native}, {shape.kv_bytes_per_token():.0f} B of KV cache per "
            "token, "
            f"{shape.state_bytes_per_sequence} B of state per sequence\n"
        )
    return 0


def _append(path: Path, shape: Shape) -> None:
    text = ""
    if path.exists():
        if shape.name in known_models(path) and f'[models."{shape.name}"]' in text_file.read(path):
            raise UsageError(f"{path}: already holds {shape.name}; remove its table first")
        text = text_file.read(path).rstrip("\n") + "\n\n"
    _save(path, text + dump_model(shape))


def _list(args: argparse.Namespace) -> int:
    models = {name: shape.total_params for name, shape in shipped_models().items()}
    if args.json:
        _print_json({"cards": list(cards()), "cpus": list(cpus()), "models": models})
        return 0
    for name, card in cards().items():
        sys.stdout.write(f"card   {name}: {card.memory_mib} MiB, {card.memory_gb_s:g} GB/s, {card.tdp_w:g} W\n")
    for name, params in models.items():
        sys.stdout.write(f"model  {name}: {params / 1e9:.3f} B\n")
    return 0
