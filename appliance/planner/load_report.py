"""Reads the JSON report of ``appliance loadtest`` as one measurement of the planned machine.

Pure, except for reading the file. A report has rates and lengths of one model by its name at the gateway. The site,
or the arguments of ``plan predict``, add the card, the layout, the engine and the precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from appliance.catalog.models import find_model, shipped_models
from appliance.contract.model import Engine, Site
from appliance.errors import ConfigError, UsageError
from appliance.planner.from_site import card_of, model_of
from appliance.planner.row_parser import Row
from appliance.planner.workload import Workload

MAX_FAILED = 0.05
"""Largest share of failed requests in a report that counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedLoad:
    """One load test of one model. Lengths are tokens per request, ``rate`` is output tok/s."""

    model: str
    rate: float
    input: float
    output: float
    concurrency: float
    """Requests in flight on average, by Little's law."""
    prefix_hit: float

    def fields(self) -> dict[str, str]:
        """Return the columns of a measurement that the report determines."""
        return {
            "mode": "served",
            "input_tokens": f"{self.input:.0f}",
            "output_tokens": f"{max(1.0, self.output):.0f}",
            "concurrency": f"{self.concurrency:.2f}",
            "output_tok_s": f"{self.rate:.4f}",
            "prefix_hit": f"{self.prefix_hit:.4f}",
        }


class _Counted(msgspec.Struct):
    prompt: int
    completion: int
    cached: int = 0


class _Written(msgspec.Struct):
    """The fields of a report that a measurement needs; the rest of the file is ignored."""

    verdict: str
    requests: int
    output_tokens_per_s: float
    duration_s: float
    models: list[str]
    users: int
    tokens: _Counted
    percentiles: dict[str, dict[str, float]]
    failures: dict[str, int] = msgspec.field(default_factory=dict)


def read_load_report(path: Path) -> ReportedLoad:
    """Return the load in the report ``path``.

    Raises :class:`ConfigError` for another file, an invalid run, several models, and impossible figures.
    """
    try:
        report = msgspec.json.decode(path.read_bytes(), type=_Written)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: is not a report of `appliance loadtest --json` ({error})") from None
    reason = _unfit(report)
    if reason:
        raise ConfigError(f"{path}: {reason}")
    good = report.requests - sum(report.failures.values())
    seconds = report.percentiles["E2E"]["p50"] / 1000.0
    return ReportedLoad(
        model=report.models[0],
        rate=report.output_tokens_per_s,
        input=report.tokens.prompt / good,
        output=report.tokens.completion / good,
        concurrency=min(float(report.users), max(1.0, good / report.duration_s * seconds)),
        prefix_hit=report.tokens.cached / report.tokens.prompt,
    )


def _unfit(report: _Written) -> str:
    """Return the reason for which the report is not a measurement; empty if it is one."""
    tokens = report.tokens
    figures = {
        "requests": report.requests,
        "output_tokens_per_s": report.output_tokens_per_s,
        "duration_s": report.duration_s,
        "users": report.users,
        "tokens.prompt": tokens.prompt,
        "tokens.completion": tokens.completion,
        "percentiles.E2E.p50": report.percentiles.get("E2E", {}).get("p50", 0.0),
    }
    for name, value in figures.items():
        if value <= 0:
            return f"{name} = {value:g} is not a positive number; run the load test again"
    if report.verdict == "invalid":
        return "the run is invalid by its own verdict; run the load test again"
    if len(report.models) != 1:
        return f"measures {len(report.models)} models at once; give a report with one --model"
    failed = sum(report.failures.values())
    if failed > MAX_FAILED * report.requests:
        return f"{failed} of {report.requests} requests failed; a measurement needs 95 % good responses"
    if not 0 <= tokens.cached <= tokens.prompt:
        return f"tokens.cached = {tokens.cached} is not within the {tokens.prompt} tokens of the prompts"
    return ""


def row_of_workload(load: ReportedLoad, workload: Workload) -> Row:
    """Return the measurement of ``load`` under the conditions of ``workload``."""
    layout = workload.layout
    if layout.hosts > 1:
        raise UsageError("a measurement has no column for the link between hosts; remove --hosts")
    if workload.draft_tokens or workload.cpu is not None:
        raise UsageError("a load test's report does not state drafts or experts in RAM; give --measured a CSV")
    other = _catalog_name(load.model)
    if other not in {"", workload.shape.name}:
        raise UsageError(f"the report measures {load.model!r}; give --model {other}")
    return {
        **load.fields(),
        "gpu": workload.card.name,
        "gpu_count": str(layout.cards),
        "model": workload.shape.name,
        "dtype": workload.precision.name,
        "kv": "fp8" if workload.precision.kv_bytes < 2 else "",
        "engine": workload.engine,
        "tp": str(layout.tp),
        "pp": str(layout.pp),
        "dp": str(layout.replicas),
        "ep": "1" if layout.ep else "",
        "power_limit_w": f"{workload.power_w:g}" if workload.power_w is not None else "",
    }


def _catalog_name(alias: str) -> str:
    """Return the catalog's name of a model at the gateway; empty for a name of the site's own."""
    try:
        return find_model(alias, shipped_models()).name
    except UsageError:
        return ""


def row_of_site(load: ReportedLoad, site: Site) -> Row:
    """Return the measurement of ``load`` on the engine of ``site`` that serves its model."""
    name = site.roles[load.model].model if load.model in site.roles else load.model
    serving = [engine for engine in site.engines.values() if engine.model == name and engine.is_started]
    if len(serving) != 1 or serving[0].device != "cuda" or serving[0].kind not in ("vllm", "llamacpp"):
        raise UsageError(
            f"the report measures {load.model!r}, which is not served by exactly one engine on cards; "
            "give --measured a CSV"
        )
    (engine,) = serving
    if engine.spans_hosts:
        raise UsageError(
            f"the engine of {load.model!r} spans hosts, and a measurement has no column for their link"
        )
    if engine.options.get("speculative-config"):
        raise UsageError(f"the engine of {load.model!r} drafts tokens; give --measured a CSV with their number")
    return {**load.fields(), **_engine_fields(site, engine)}


def _engine_fields(site: Site, engine: Engine) -> dict[str, str]:
    """Return the columns of a measurement that the site determines."""
    shape, dtype = model_of(site.models[engine.model])
    used = site.gpus_of(engine)
    limits = [gpu.power_limit_w for gpu in used if gpu.power_limit_w is not None]
    options: dict[str, Any] = dict(engine.options)
    return {
        "host": engine.host,
        "gpu": card_of(used[0]).name,
        "gpu_count": str(engine.cards_per_replica * engine.replicas),
        "model": shape.name,
        "dtype": dtype.name,
        "kv": "fp8" if str(options.get("kv-cache-dtype", "")).startswith("fp8") else "",
        "engine": engine.kind,
        "tp": str(engine.tensor_parallel),
        "pp": str(engine.pipeline_parallel),
        "dp": str(engine.replicas),
        "ep": "1" if options.get("enable-expert-parallel") else "",
        "max_sequences": str(engine.concurrency),
        "power_limit_w": str(min(limits)) if limits else "",
        "eager": "1" if options.get("enforce-eager") else "",
        "asynchronous": "1" if options.get("async-scheduling") else "",
    }
