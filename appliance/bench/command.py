"""``appliance bench``: from options to a run, from its results to the report."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from msgspec import structs

from appliance.bench.card_limit import CardLimit, check_powers, wish
from appliance.bench.cold_start import DRAIN_S, SYSTEMCTL_S, measure_start, startable
from appliance.bench.grid import BenchCell, BenchGrid, EngineBounds, cells_of
from appliance.bench.guard import GuardRules
from appliance.bench.host import BenchHost
from appliance.bench.report import to_html, to_markdown
from appliance.bench.results import BenchConditions, ResultFile
from appliance.bench.run import BenchLimits, BenchParts, GridRun
from appliance.bench.swap_time import load_again, loaded_models, swap_to
from appliance.bench.tables import compared, starts_csv, to_csv
from appliance.contract.model import Engine, Site, Slo
from appliance.errors import StartError, UsageError
from appliance.system import files, lock_file
from appliance.system.stopping import Stop, listening
from appliance.watch.card_power import power_ranges
from loadtests.client import Target
from loadtests.parameters import LoadLimits, LoadPlan, Parameters
from loadtests.report import Report
from loadtests.run import run as run_load
from loadtests.scrape import Source
from loadtests.service import preflight
from loadtests.token_costs import TokenCosts
from loadtests.tokenizer_probe import TokenizerUnavailableError, by_tokenizer, by_usage

RESULTS = "results.jsonl"
REPORTS = ("bench.md", "bench.csv", "starts.csv", "bench.html")
RESTORE_S = 900.0
"""Seconds for a load of the model that served before the swaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """A benchmark as requested. ``key`` is the API key of its requests, ``wishes`` the folder of power limits."""

    site: Site
    data: Path
    out: Path
    model: str
    cold_start: bool = False
    """Whether the engine of ``model`` is started anew, after all other cells."""
    key: str
    grid: BenchGrid
    share: float
    rules: GuardRules
    limits: BenchLimits
    wishes: Path
    power_run: Path
    client: LoadLimits


def measured_engine(site: Site, model: str) -> tuple[str, str, Engine]:
    """Return the model of ``model``, which may be a role, and the one engine that serves it, with its name.

    An empty ``model`` is the first one that generates text. Raises :class:`UsageError`.
    """
    if not model:
        generating = [one.model for one in site.engines.values() if site.models[one.model].task == "generate"]
        if not generating:
            raise UsageError("no engine of this configuration generates text; a benchmark needs one")
        model = generating[0]
    name = site.roles[model].model if model in site.roles else model
    found = [(key, one) for key, one in site.engines.items() if one.model == name]
    if len(found) != 1 or not found[0][1].is_started or site.models[name].task != "generate":
        raise UsageError(
            f"--model {model}: a benchmark needs a model that exactly one engine of this site generates"
        )
    return name, *found[0]


def run_bench(options: BenchOptions) -> int:
    """Measure the missing cells and write the reports; return 0 if none is missing any more, else 1."""
    model, name, engine = measured_engine(options.site, options.model)
    cards = tuple(card for replica in range(engine.replicas) for card in engine.cards(replica))
    host = BenchHost(options.data, cards, options.power_run)
    bounds = EngineBounds(engine.context, engine.concurrency * engine.replicas, options.share)
    grid, limits = options.grid, options.limits
    if options.cold_start:
        startable(options.site, _first_replica(name, engine))
        grid = structs.replace(grid, cold_starts=(model,))
        # A drain, the stop and the start of a unit, and the load of the models of before.
        limits = replace(limits, start_s=DRAIN_S + SYSTEMCTL_S + engine.start_timeout_s + RESTORE_S)
    cells, skipped = cells_of(grid, bounds)
    if not cells:
        raise UsageError(f"no cell is left: {'; '.join(skipped) or 'the grid is empty'}")
    for line in skipped:
        print(f"skipped: {line}")
    rules = replace(options.rules, users=bounds.slots - bounds.largest_batch)
    check_powers(options.grid.powers, cards, power_ranges(options.site.hosts[engine.host].gpus))
    facts = host.cards()
    conditions = BenchConditions(
        host=engine.host,
        model=model,
        engine=name,
        settings=_digest(options.site, engine),
        cards=facts.names,
        driver=facts.driver,
        output=options.grid.output,
    )
    files.make_folder(options.out)
    with listening() as stop, _only_run(options.out):
        results = ResultFile.open(options.out / RESULTS, conditions)
        try:
            ended = _measure(
                replace(options, grid=grid, rules=rules, limits=limits),
                engine,
                results,
                cells,
                host=host,
                cards=cards,
                stop=stop,
            )
        finally:
            write_reports(options.out, options.site)
    left = len([cell for cell in cells if cell not in results.done])
    print(f"reports: {', '.join(str(options.out / one) for one in REPORTS)}")
    if ended:
        print(f"ended early: {ended}; {left} cells are left, and the same command continues")
    return 1 if left else 0


def write_reports(out: Path, site: Site) -> None:
    """Write the reports of the results in ``out``. Raises :class:`StoreError`."""
    found = ResultFile.read(out / RESULTS)
    if found.conditions.model not in site.models:
        raise UsageError(f"{out / RESULTS}: measures {found.conditions.model}, which is not a model of the site")
    cells = compared(found.results, site, found.conditions.model)
    files.replace(out / "bench.md", to_markdown(found.conditions, cells, found.results))
    files.replace(out / "bench.csv", to_csv(cells))
    files.replace(out / "starts.csv", starts_csv(found.conditions, found.results))
    files.replace(out / "bench.html", to_html(found.conditions, cells, found.results))


def _measure(
    options: BenchOptions,
    engine: Engine,
    results: ResultFile,
    cells: Sequence[BenchCell],
    *,
    host: BenchHost,
    cards: tuple[int, ...],
    stop: Stop,
) -> str:
    """Run the missing cells; return why the run ended early."""
    if all(cell in results.done for cell in cells):
        return ""
    model = results.conditions.model
    url = f"http://{options.site.gateway.host}:{options.site.gateway.port}"
    target = Target(url, options.key, timeout_s=options.limits.cell_s)
    with wish(options.wishes) if options.grid.powers else nullcontext() as held:
        limit = CardLimit(host, cards, held) if held is not None else None
        before = loaded_models(options.data)
        if any(cell.is_load for cell in cells):
            preflight(target, [model])
        parts = BenchParts(
            host=host,
            load=_Load(options, target, model, engine),
            swap=lambda wanted, ended: _swap(options, wanted, ended),
            start=lambda _, ended: _start(options, _first_replica(results.conditions.engine, engine), ended),
            limit=limit.set if limit is not None else _unlimited,
            limit_w=lambda: _limit_w(host),
            cards=cards,
            report=lambda line: print(line, flush=True),
        )
        try:
            return GridRun(results, parts, rules=options.rules, limits=options.limits, stop=stop).run(cells)
        finally:
            if not all(cell.is_load for cell in cells):
                load_again(options.data, before, timeout_s=RESTORE_S)


class _Load:
    """Runs the load of a cell with the load test's own client."""

    def __init__(self, options: BenchOptions, target: Target, model: str, engine: Engine) -> None:
        self._options = options
        self._target = target
        self._model = model
        self._engine = engine

    @cached_property
    def _costs(self) -> TokenCosts:
        return _costs(self._target, self._engine, self._model)

    def __call__(self, cell: BenchCell, folder: Path, stop: Stop) -> Report:
        words = max(1, cell.input - round(self._costs.overhead))
        output = self._options.grid.output
        parameters = Parameters(
            users=cell.batch,
            requests=cell.rounds,
            duration_s=None,
            prompt_tokens=(words, words),
            output_tokens=(output, output),
            # Another seed for each cell: the prefix cache holds the prompts of the cells before.
            seed=zlib.crc32(cell.name.encode()),
            timeout_s=self._options.limits.cell_s,
            stall_s=self._options.limits.cell_s,
        )
        plan = LoadPlan(
            scenario="chat", parameters=parameters, models=(self._model,), slo=Slo(), limits=self._options.client
        ).sized_by(self._costs)
        return run_load(
            plan,
            url=self._target.url,
            keys=[self._target.key],
            folder=folder,
            stop=stop,
            sources=[Source("cards", "gpu")],
        )


def _costs(target: Target, engine: Engine, model: str) -> TokenCosts:
    try:
        return by_tokenizer(f"http://127.0.0.1:{engine.port}", model)
    except TokenizerUnavailableError:
        return by_usage(target, model)


def _swap(options: BenchOptions, model: str, stop: Stop) -> dict[str, float]:
    """Load ``model`` from another one, which is loaded first if ``model`` is."""
    if model in loaded_models(options.data):
        others = [one for one in options.grid.swaps if one != model]
        if not others:
            raise UsageError(f"{model} is loaded, and the site has no other on-demand model")
        swap_to(options.data, others[0], stop=stop, timeout_s=options.limits.cell_s)
    return swap_to(options.data, model, stop=stop, timeout_s=options.limits.cell_s)


def _start(options: BenchOptions, name: str, stop: Stop) -> dict[str, float]:
    """Start the replica ``name`` anew; the models of before are loaded again."""
    return measure_start(options.site, options.data, name, stop_serving=True, stop=stop).seconds


def _first_replica(name: str, engine: Engine) -> str:
    """Return the name of the first replica of the engine ``name``, which is measured for all of them."""
    return name if engine.replicas == 1 else f"{name}.0"


def _limit_w(host: BenchHost) -> float | None:
    return min((limit for _, limit in host.cards().limits), default=None)


def _unlimited(watts: int | None, stop: Stop) -> None:
    """Set no limit: no cell of the grid has one."""


def _digest(site: Site, engine: Engine) -> str:
    text = engine.model_dump_json() + site.models[engine.model].model_dump_json()
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _only_run(out: Path) -> Iterator[None]:
    """Hold the folder of results against a second run."""
    try:
        lock = lock_file.take(out / ".lock")
    except lock_file.HeldError as held:
        raise StartError(f"process {held.note.get('pid', '?')} writes {out} already; wait for its end") from None
    lock.note()
    try:
        yield
    finally:
        lock.release()
