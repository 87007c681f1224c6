"""The check that a site's engines fit its cards and RAM; ``appliance check`` applies it to every host.

Pure. Only a certain failure is a violation. The failures are a shard that cuts heads or experts, a context beyond
the model, no room for one request, and too little RAM. The rule for a card is that of
:mod:`appliance.contract.card_memory`. For models and cards outside the catalog, :mod:`appliance.contract.rules`
applies it with the site's ``weights_gib``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from appliance.catalog.cards import Card
from appliance.catalog.shape import Shape
from appliance.contract.card_memory import GIB, shortage
from appliance.contract.model import Engine, Site
from appliance.contract.violation import Violation
from appliance.engines.vllm import pins_exactly
from appliance.errors import UsageError
from appliance.planner import experts_in_ram, host_ram, precision
from appliance.planner.drafts import Drafts
from appliance.planner.from_site import card_of, drafts_on, model_of
from appliance.planner.layout import Layout, check_shards
from appliance.planner.memory import card_memory, weight_bytes
from appliance.planner.precision import Precision


def fit(site: Site) -> list[Violation]:
    """Return a violation for every engine that cannot start, with the smallest change as its fix."""
    found: list[Violation] = []
    for name, engine in site.engines.items():
        found += _engine(site, name, engine)
    for host in site.hosts:
        found += _ram(site, host)
    return found


def _known(site: Site, engine: Engine) -> tuple[Shape, Precision] | None:
    model = site.models.get(engine.model)
    if model is None or engine.kind in ("mock", "http"):
        return None
    try:
        shape, dtype = model_of(model)
    except UsageError:
        return None
    stated = engine.options.get("kv-cache-dtype")
    if isinstance(stated, str) and stated != "auto":
        try:
            dtype = precision.parse(dtype.name, "fp8" if stated.startswith("fp8") else stated)
        except UsageError:
            return shape, dtype
    return shape, dtype


def _layout(engine: Engine) -> Layout:
    return Layout(
        tp=engine.tensor_parallel,
        pp=engine.pipeline_parallel,
        ep=bool(engine.options.get("enable-expert-parallel")),
        hosts=len(engine.hosts),
    )


def _number(engine: Engine, flag: str) -> int | None:
    value = engine.options.get(flag)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


@dataclass(frozen=True, slots=True)
class _CardEngine:
    """An engine whose model and cards are in the catalog."""

    place: str
    """Its place in the site's file."""
    engine: Engine
    shape: Shape
    dtype: Precision
    cards: tuple[tuple[int, Card], ...]
    """Its cards with their indices."""
    drafts: Drafts


def _engine(site: Site, name: str, engine: Engine) -> Iterator[Violation]:
    place = f"engines.{name}"
    known = _known(site, engine)
    if known is None:
        return
    shape, dtype = known
    limit = max(shape.max_context, site.models[engine.model].max_context or 0)
    if engine.context > limit:
        what = f"{engine.context} tokens are more than the {limit} of {shape.name}"
        yield Violation(f"{place}.context", what, f"set it to {limit} or less")
    elif engine.experts_in_ram and engine.host in site.hosts:
        if found := experts_in_ram.card_violation(place, engine, shape, dtype, site.hosts[engine.host]):
            yield found
    elif engine.kind == "vllm" and engine.device == "cuda" and engine.host in site.hosts:
        cards = _cards(site, engine)
        if cards:
            try:
                drafts = drafts_on(site, engine)
            except UsageError as error:
                what, _, fix = str(error).partition("; ")
                yield Violation(f"{place}.skip_recipes", what.removeprefix("skip_recipes: "), fix)
                return
            on_cards = _CardEngine(place=place, engine=engine, shape=shape, dtype=dtype, cards=cards, drafts=drafts)
            if found := _shard(on_cards) or _memory(on_cards):
                yield found


def _shard(on_cards: _CardEngine) -> Violation | None:
    """Return the violation of a replica over cards of two vendors, or of a shard that cuts heads or experts."""
    engine = on_cards.engine
    for replica in range(engine.replicas):
        vendors = sorted({card.vendor for index, card in on_cards.cards if index in engine.cards(replica)})
        if len(vendors) > 1:
            what = f"replica {replica} uses cards of {' and '.join(vendors)}"
            return Violation(f"{on_cards.place}.gpus", what, "give each replica cards of one vendor")
    try:
        check_shards(on_cards.shape, _layout(engine), on_cards.dtype)
    except UsageError as error:
        what, _, fix = str(error).partition("; ")
        return Violation(f"{on_cards.place}.tensor_parallel", what, fix or "lower it")
    return None


def _memory(on_cards: _CardEngine) -> Violation | None:
    """Return the violation of weights, or of one request's KV cache, that do not fit on the smallest card."""
    engine = on_cards.engine
    if engine.options.get("cpu-offload-gb"):
        # Some weights are in RAM: the check of the host includes them.
        return None
    smallest = min((card for _, card in on_cards.cards), key=lambda card: card.memory_mib)
    memory = card_memory(
        smallest,
        on_cards.shape,
        on_cards.dtype,
        layout=_layout(engine),
        utilization=engine.gpu_memory_utilization,
        context=engine.context,
        sequences=engine.concurrency,
        batched_tokens=_number(engine, "max-num-batched-tokens"),
        graphs=not engine.options.get("enforce-eager"),
        drafts=on_cards.drafts,
    )
    if memory.kv_tokens >= engine.context:
        return None
    what = shortage(
        weights=memory.weights,
        working_space=memory.overhead,
        memory=memory.total,
        utilization=engine.gpu_memory_utilization,
    )
    if what is None:
        what = f"the KV cache would hold {memory.kv_tokens} tokens, one request of {engine.context} does not fit"
    return Violation(on_cards.place, what, _nearest(on_cards, smallest, memory.kv_tokens))


def _cards(site: Site, engine: Engine) -> tuple[tuple[int, Card], ...]:
    """Return the engine's cards with their indices; empty if the catalog does not have one of them."""
    try:
        return tuple((gpu.index, card_of(gpu)) for gpu in site.gpus_of(engine))
    except UsageError:
        return ()


def _nearest(on_cards: _CardEngine, card: Card, tokens: int) -> str:
    """Return the smallest change with which the engine would fit on ``card``; the KV cache holds ``tokens``."""
    if tokens >= 1024:
        return f"lower context to {tokens // 1024 * 1024}"
    engine, shape, dtype = on_cards.engine, on_cards.shape, on_cards.dtype

    def fits(dtype: Precision, layout: Layout) -> bool:
        memory = card_memory(
            card,
            shape,
            dtype,
            layout=layout,
            context=engine.context,
            sequences=engine.concurrency,
            drafts=on_cards.drafts,
        )
        return memory.kv_tokens >= engine.context

    for tp in (2, 4, 8):
        if tp <= engine.tensor_parallel:
            continue
        try:
            check_shards(shape, Layout(tp=tp), dtype)
        except UsageError:
            continue
        if fits(dtype, Layout(tp=tp)):
            return f"raise tensor_parallel to {tp}"
    for name in ("fp8", "awq-int4"):
        if fits(precision.parse(name), _layout(engine)):
            return f"take the model in {name}"
    return "take a smaller model or more cards"


def _ram(site: Site, host: str) -> Iterator[Violation]:
    engines: list[host_ram.EngineRam] = []
    for engine in site.engines.values():
        known = _known(site, engine)
        if host not in engine.hosts or known is None:
            continue
        shape, dtype = known
        # Each host of an engine over several hosts has an equal part of its cards and weights.
        share = 1 / len(engine.hosts)
        cards = engine.cards_per_replica // len(engine.hosts)
        weights = precision.weights(shape, dtype).total * share
        offload = 0.0
        for flag in ("kv-offloading-size", "cpu-offload-gb"):
            value = engine.options.get(flag)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                offload += float(value) * GIB * (cards if flag == "cpu-offload-gb" else share)
        on_cpu = engine.device == "cpu" and engine.kind in ("vllm", "llamacpp")
        in_ram = weights + engine.kv_cache_gib * GIB if on_cpu else 0.0
        if engine.experts_in_ram:
            in_ram = experts_in_ram.bytes_in_ram(engine, shape, dtype)
        one = host_ram.EngineRam(
            cards=cards if engine.on_cards else 0,
            weights=weight_bytes(shape, dtype, Layout()) * share,
            sleeps=engine.sleep,
            pins_exactly=pins_exactly(engine),
            in_ram=in_ram,
            offload=offload,
        )
        engines += [one] * engine.replicas
    if not engines:
        return
    ram = host_ram.needed_ram(site.hosts[host].memory_gib, engines)
    # The size of the processes is an estimate: only explicitly requested bytes may be a violation.
    if (
        sum(engine.requested for engine in engines)
        > ram.total * (1 - host_ram.FREE_SHARE) - host_ram.SYSTEM_GIB * GIB / 2
    ):
        yield Violation(
            f"hosts.{host}.memory_gib",
            f"{ram.needed / GIB:.0f} GiB of RAM are needed, the host has {site.hosts[host].memory_gib}; "
            f"the largest part is {ram.biggest}",
            f"have {ram.needed / GIB / (1 - host_ram.FREE_SHARE):.0f} GiB, or offload and pin less",
        )
