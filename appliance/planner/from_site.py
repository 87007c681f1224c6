"""The hardware and the demand of a site: its hosts as machines, its models with their shares and lengths.

Pure. The catalog resolves a model's name by the last part of its ``source``. A card's memory is the figure of the
site, because the driver's figure is more reliable than a data sheet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from appliance.catalog.cards import Card, find_card
from appliance.catalog.processors import Cpu, find_cpu
from appliance.catalog.shape import Shape
from appliance.contract.model import Engine, Gpu, Host, Model, Site
from appliance.contract.rules import MEDIA_KINDS
from appliance.contract.violation import suggest
from appliance.engines.tuning import computes_of, shipped_rules, tune
from appliance.errors import UsageError
from appliance.planner.drafts import NO_DRAFTS, Drafts, drafts_of
from appliance.planner.hardware import HardwareSpec
from appliance.planner.models import (
    DEFAULT_CONTEXT,
    DEFAULT_PROMPT,
    DEFAULT_RESPONSE,
    EMBED_PROMPT,
    ModelDemand,
    parse_model,
    split_shares,
)
from appliance.planner.precision import Precision


def card_of(gpu: Gpu) -> Card:
    """Return the catalog's card with the memory of the site; :class:`UsageError` for an unknown card."""
    return dataclasses.replace(find_card(gpu.model), memory_mib=gpu.memory_mib)


def cpu_of(host: Host) -> Cpu:
    """Return a generic processor as a guess: the contract does not name processors."""
    return find_cpu("generic server" if host.memory_gib >= 64 else "generic desktop")


def model_of(model: Model, known: Mapping[str, Shape] | None = None) -> tuple[Shape, Precision]:
    """Return shape and precision of the model's source; :class:`UsageError` if the catalog does not have it."""
    shape, dtype = parse_model(model.source, dict(known) if known is not None else None)
    if model.task == "embed":
        shape = dataclasses.replace(shape, pooling=True)
    return shape, dtype


def drafts_on(site: Site, engine: Engine) -> Drafts:
    """Return the drafts of ``engine``: by its own options, else by the recipes of its model and cards.

    Raises :class:`UsageError` if it skips a recipe that does not exist.
    """
    if engine.kind != "vllm":
        return NO_DRAFTS
    default = tune(engine, site.models[engine.model], computes_of(site, engine), shipped_rules())
    return drafts_of({**default.options, **engine.options})


def hardware_of(site: Site, cpu: Cpu | None = None) -> tuple[HardwareSpec, ...]:
    """Return the hosts of ``site`` that run engines or have cards and a link; all hosts if there are none."""
    started = {engine.host for engine in site.engines.values() if engine.is_started}
    linked = {name for name, host in site.hosts.items() if host.link is not None and host.gpus}
    busy = (started | linked) & site.hosts.keys() or set(site.hosts)
    found = []
    for name, host in site.hosts.items():
        if name not in busy:
            continue
        limits = [gpu.power_limit_w for gpu in host.gpus if gpu.power_limit_w is not None]
        ordered = sorted(host.gpus, key=lambda gpu: gpu.index)
        found.append(
            HardwareSpec(
                name=name,
                cards=tuple(card_of(gpu) for gpu in ordered),
                ram_gib=host.memory_gib,
                cpu=cpu or cpu_of(host),
                power_w=float(min(limits)) if limits else None,
            )
        )
    return tuple(found)


def planned_models(site: Site) -> dict[str, Model]:
    """Return the models that the planner places: no audio or images, and none that only other servers serve."""
    elsewhere = {engine.model for engine in site.engines.values() if not engine.is_started}
    here = {engine.model for engine in site.engines.values() if engine.is_started}
    return {
        name: model
        for name, model in site.models.items()
        if model.task not in MEDIA_KINDS and (name in here or name not in elsewhere)
    }


def model_demands_of(
    site: Site,
    shares: Mapping[str, float],
    *,
    prompt: float = DEFAULT_PROMPT,
    response: float = DEFAULT_RESPONSE,
    known: Mapping[str, Shape] | None = None,
) -> tuple[ModelDemand, ...]:
    """Return the demand on each model of ``site``.

    ``shares`` of all requests are by role or model; :func:`split_shares` divides the rest. ``prompt`` and
    ``response`` are tokens. Raises :class:`UsageError` for an unknown name and for shares that do not add up to 1.
    """
    unknown = [name for name in shares if name not in site.roles and name not in site.models]
    if unknown:
        names = [*site.roles, *site.models]
        raise UsageError(f"role or model {unknown[0]!r} does not exist; {suggest(unknown[0], names)}")
    given: dict[str, float] = {}
    for name, share in shares.items():
        served = site.roles[name].model if name in site.roles else name
        given[served] = given.get(served, 0.0) + share
    planned = planned_models(site)
    for name in given:
        if name not in planned:
            raise UsageError(
                f"the planner does not place {name!r}: it plans text and embeddings on the hosts of this site; "
                "remove its share"
            )
    rest = [name for name in planned if name not in given]
    left = 1.0 - sum(given.values())
    if left < -1e-6 or (left > 1e-6 and not rest):
        total = sum(given.values())
        raise UsageError(f"the shares add up to {total:g}; nearest valid: divide each by {total:g}")
    shared = split_shares({name: model.task == "embed" for name, model in planned.items()}, given)
    found = []
    for name, model in planned.items():
        shape, dtype = model_of(model, known)
        serving = [engine for engine in site.engines.values() if engine.model == name]
        contexts = [engine.context for engine in serving]
        limit = min(shape.max_context, model.max_context or shape.max_context)
        context = min(max(contexts, default=DEFAULT_CONTEXT), limit)
        embeds = model.task == "embed"
        tokens = min(EMBED_PROMPT if embeds else prompt, context / 2)
        found.append(
            ModelDemand(
                name=name,
                shape=shape,
                precision=dtype,
                share=shared[name],
                prompt=tokens,
                response=1.0 if embeds else min(response, context / 2),
                context=context,
                drafts=max((drafts_on(site, engine) for engine in serving), default=NO_DRAFTS, key=_most_tokens),
            )
        )
    return tuple(found)


def _most_tokens(drafts: Drafts) -> int:
    return drafts.tokens
