"""Whether a site's engines fit its cards and RAM: what ``appliance check`` runs for every host.

Pure. Only what would surely fail is a violation: shards that cut heads or experts, a context beyond the
model, weights that leave no room for one request, RAM that is not there. Models and cards outside the
catalogue are left to the simpler rules of :mod:`appliance.contract.rules`, which know ``weights_gib``.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.catalog.cards import Card
from appliance.catalog.shape import Shape
from appliance.contract.card_memory import GIB, shortage
from appliance.contract.model import Engine, Site
from appliance.contract.rules import Violation
from appliance.errors import UsageError
from appliance.planner import host_ram, precision
from appliance.planner.from_site import card_of, model_of
from appliance.planner.layout import Layout, check_shards
from appliance.planner.memory import card_memory, weight_bytes
from appliance.planner.precision import Precision


def fit(site: Site) -> list[Violation]:
    """Every engine that cannot start, each with the nearest thing that would."""
    found: list[Violation] = []
    for name, engine in site.engines.items():
        found += _engine(site, name, engine)
    for host in site.hosts:
        found += _ram(site, host)
    return found


def _known(site: Site, engine: Engine) -> tuple[Shape, Precision] | None:
    model = site.models.get(engine.model)
    if model is None or engine.kind == "mock":
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
    return Layout(tp=engine.tensor_parallel, ep=bool(engine.options.get("enable-expert-parallel")))


def _number(engine: Engine, flag: str) -> int | None:
    value = engine.options.get(flag)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _engine(site: Site, name: str, engine: Engine) -> Iterator[Violation]:
    where = f"engines.{name}"
    known = _known(site, engine)
    if known is None:
        return
    shape, dtype = known
    limit = max(shape.max_context, site.models[engine.model].max_context or 0)
    if engine.context > limit:
        what = f"{engine.context} tokens are more than the {limit} of {shape.name}"
        yield Violation(f"{where}.context", what, f"set it to {limit} or less")
    elif engine.kind == "vllm" and engine.device == "cuda" and engine.host in site.hosts:
        pairs = _pairs(site, engine)
        if pairs:
            found = _shard(where, engine, shape, dtype, pairs) or _memory(where, engine, shape, dtype, pairs)
            if found is not None:
                yield found


def _shard(
    where: str, engine: Engine, shape: Shape, dtype: Precision, pairs: list[tuple[int, Card]]
) -> Violation | None:
    """A replica over cards of two vendors, or a cut that heads or experts do not allow."""
    for replica in range(engine.replicas):
        vendors = sorted({card.vendor for index, card in pairs if index in engine.cards(replica)})
        if len(vendors) > 1:
            what = f"replica {replica} spreads over cards of {' and '.join(vendors)}"
            return Violation(f"{where}.gpus", what, "give each replica cards of one vendor")
    try:
        check_shards(shape, _layout(engine), dtype)
    except UsageError as error:
        what, _, fix = str(error).partition("; ")
        return Violation(f"{where}.tensor_parallel", what, fix or "lower it")
    return None


def _memory(
    where: str, engine: Engine, shape: Shape, dtype: Precision, pairs: list[tuple[int, Card]]
) -> Violation | None:
    """Weights or one request's KV cache without room on the smallest card."""
    if engine.options.get("cpu-offload-gb"):
        return None  # weights partly in RAM: the host's account looks at them
    smallest = min((card for _, card in pairs), key=lambda card: card.memory_mib)
    memory = card_memory(
        smallest,
        shape,
        dtype,
        _layout(engine),
        utilization=engine.gpu_memory_utilization,
        context=engine.context,
        sequences=engine.concurrency,
        batched_tokens=_number(engine, "max-num-batched-tokens"),
        graphs=not engine.options.get("enforce-eager"),
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
    return Violation(where, what, _nearest(engine, shape, dtype, smallest, memory.kv_tokens))


def _pairs(site: Site, engine: Engine) -> list[tuple[int, Card]]:
    """The engine's cards with their indices; empty where the catalogue lacks one of them."""
    try:
        return [(gpu.index, card_of(gpu)) for gpu in site.hosts[engine.host].gpus if gpu.index in engine.gpus]
    except UsageError:
        return []


def _nearest(engine: Engine, shape: Shape, dtype: Precision, card: Card, tokens: int) -> str:
    """The smallest change that would fit."""
    if tokens >= 1024:
        return f"lower context to {tokens // 1024 * 1024}"
    for tp in (2, 4, 8):
        if tp <= engine.tensor_parallel:
            continue
        try:
            check_shards(shape, Layout(tp=tp), dtype)
        except UsageError:
            continue
        memory = card_memory(
            card, shape, dtype, Layout(tp=tp), context=engine.context, sequences=engine.concurrency
        )
        if memory.kv_tokens >= engine.context:
            return f"raise tensor_parallel to {tp}"
    for name in ("fp8", "awq-int4"):
        smaller = precision.parse(name)
        memory = card_memory(
            card, shape, smaller, _layout(engine), context=engine.context, sequences=engine.concurrency
        )
        if memory.kv_tokens >= engine.context:
            return f"take the model in {name}"
    return "take a smaller model or more cards"


def _ram(site: Site, host: str) -> Iterator[Violation]:
    engines: list[host_ram.EngineRam] = []
    for engine in site.engines.values():
        known = _known(site, engine)
        if engine.host != host or known is None:
            continue
        shape, dtype = known
        weights = precision.weights(shape, dtype).total
        offload = 0.0
        for flag in ("kv-offloading-size", "cpu-offload-gb"):
            value = engine.options.get(flag)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                per_card = engine.tensor_parallel if flag == "cpu-offload-gb" else 1
                offload += float(value) * GIB * per_card
        on_cpu = engine.device == "cpu" and engine.kind == "vllm"
        one = host_ram.EngineRam(
            cards=engine.tensor_parallel if engine.device == "cuda" else 0,
            weights=weight_bytes(shape, dtype, Layout()),
            sleeps=bool(engine.options.get("enable-sleep-mode")),
            in_ram=weights + engine.kv_cache_gib * GIB if on_cpu else 0.0,
            offload=offload,
        )
        engines += [one] * engine.replicas
    if not engines:
        return
    account = host_ram.account(site.hosts[host].memory_gib, engines)
    # Processes alone are an estimate; only what is asked for by the gigabyte may refuse a site.
    if (
        sum(engine.requested for engine in engines)
        > account.total * (1 - host_ram.FREE_SHARE) - host_ram.SYSTEM_GIB * GIB / 2
    ):
        yield Violation(
            f"hosts.{host}.memory_gib",
            f"{account.needed / GIB:.0f} GiB of RAM are needed, {site.hosts[host].memory_gib} are there; "
            f"most goes to {account.biggest}",
            f"have {account.needed / GIB / (1 - host_ram.FREE_SHARE):.0f} GiB, or offload and pin less",
        )
